"""Encoded samples out of the shards: byte ranges in parallel, neighbours in one request, every sample proven.

Three kinds of trouble are told apart. A store that does not answer is asked again, patiently. Bytes that are there
and are not those that were indexed are read once more and then reported as damaged, which concerns one sample. A shard
that is not there at all is an error at once.
"""

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from vast.data.cache import DiskCache
from vast.dataset_format import SampleRow
from vast.errors import ObjectDamaged, ObjectMissing, StoreError
from vast.storage import open_store

# What lies between two samples of a shard is read as well when it is less than this: at 100 MB/s it takes a
# millisecond, a request to a store far away takes twenty.
_GAP_BYTES = 128 << 10
# A merged range is not larger: its first sample comes when its last one has.
_MERGED_BYTES = 8 << 20
_NUM_THREADS = 16
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0

_log = logging.getLogger(__name__)


class SampleSource:
    """Reads samples of one data set, given their rows of the index.

    It holds no index itself, so a copy of it in each reader process costs nothing: pickled, it is its arguments.

    Args:
        url: The data set.
        patience_s: Seconds for which a store that does not answer is asked again.
        cache: Where samples once read are kept.
    """

    def __init__(self, url: str, patience_s: float = 0.0, cache: DiskCache | None = None) -> None:
        self._arguments = (url, patience_s, cache)
        self._patience_s = patience_s
        self._cache = cache
        self._store = open_store(url)
        self._threads: tuple[int, ThreadPoolExecutor] | None = None
        self._closed = threading.Event()

    def __reduce__(self) -> tuple[type["SampleSource"], tuple[str, float, DiskCache | None]]:
        return SampleSource, self._arguments

    def read(self, row: SampleRow) -> bytes:
        """Return the encoded media of a sample, checked against its sha256.

        Raises:
            ObjectDamaged: Its bytes are not those that were indexed.
            ObjectMissing: There is no such shard.
            StoreError: The store has not answered for `patience_s`.
        """
        found = self._cache.get(row.sha256) if self._cache else None
        return found if found is not None else self._read_alone(row)

    def submit(self, rows: Sequence[SampleRow]) -> list["Future[bytes]"]:
        """Begin to read samples and return, row by row, what `read` will return or raise."""
        coming: list[Future[bytes]] = [Future() for _ in rows]
        for group in merged(zip(rows, coming, strict=True)):
            self._pool().submit(self._deliver_group, group)
        return coming

    @property
    def libraries(self) -> list[str]:
        """What the store imports when it is first used, and takes a second to."""
        return ["boto3"] if self._store.url.startswith("s3://") else []

    def close(self) -> None:
        """Have reads that are waiting for the store end soon, with StoreError."""
        self._closed.set()
        if self._threads is not None:
            self._threads[1].shutdown(wait=False, cancel_futures=True)

    def describe(self, row: SampleRow) -> str:
        """Name a sample for people: data set, key, shard and byte range."""
        last = row.offset + row.size_bytes - 1
        return f"{self._store.url}: sample {row.key} in {row.shard}, bytes {row.offset}..{last}"

    def _pool(self) -> ThreadPoolExecutor:
        # Threads do not come along in a fork.
        if self._threads is None or self._threads[0] != os.getpid():
            self._threads = (os.getpid(), ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="fetch"))
        return self._threads[1]

    def _deliver_group(self, group: "Group") -> None:
        try:
            self._read_group(group)
        except BaseException as error:  # whoever waits must hear of it
            for _, coming in group:
                if not coming.done():
                    coming.set_exception(error)

    def _read_group(self, group: "Group") -> None:
        """Deliver neighbours in a shard: out of the cache, the rest in as few requests as possible."""
        missing: Group = []
        for row, coming in group:
            found = self._cache.get(row.sha256) if self._cache else None
            if found is None:
                missing.append((row, coming))
            else:
                coming.set_result(found)
        for part in merged(missing):
            span: bytes | None = None
            start = part[0][0].offset
            if len(part) > 1:
                # What is wrong with one of them comes out below, where each is read alone.
                with contextlib.suppress(StoreError):
                    span = self._get(part[0][0], start, _end(part[-1][0]) - start)
            for row, coming in part:
                data = span[row.offset - start : row.offset - start + row.size_bytes] if span is not None else None
                self._deliver(row, data, coming)

    def _deliver(self, row: SampleRow, data: bytes | None, coming: "Future[bytes]") -> None:
        try:
            if data is not None and _is_right(row, data):
                self._keep(row, data)
                coming.set_result(data)
            else:
                coming.set_result(self._read_alone(row))
        except Exception as error:
            coming.set_exception(error)

    def _read_alone(self, row: SampleRow) -> bytes:
        for _ in range(2):
            data = self._get(row, row.offset, row.size_bytes)
            if _is_right(row, data):
                self._keep(row, data)
                return data
        found = hashlib.sha256(data).hexdigest()
        raise ObjectDamaged(
            f"{self.describe(row)}: sha256 is {found[:12]}…, the index says {row.sha256[:12]}…, twice in a row; "
            f"the shard is damaged: run `vast data verify {self._store.url}`"
        )

    def _keep(self, row: SampleRow, data: bytes) -> None:
        if self._cache:
            self._cache.put(row.sha256, data)

    def _get(self, row: SampleRow, offset: int, size_bytes: int) -> bytes:
        """Ask the store until it answers; it has pauses and tries of its own, which end sooner."""
        begun = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return self._store.get_range(row.shard, offset, size_bytes)
            except (ObjectMissing, ObjectDamaged) as error:
                raise type(error)(f"{self.describe(row)}: {error}") from error
            except StoreError as error:
                waited_s = time.monotonic() - begun
                if waited_s + pause_s > self._patience_s or self._closed.is_set():
                    patience = f"; it was asked again for {waited_s:.0f} s (data.store_patience_s)" * (waited_s > 1)
                    raise StoreError(f"{self.describe(row)}: {error}{patience}") from error
                _log.warning("the store does not answer, asking again: %s", error)
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


Group = list[tuple[SampleRow, "Future[bytes]"]]


def merged(samples: Iterable[tuple[SampleRow, "Future[bytes]"]]) -> Iterator[Group]:
    """Yield samples in groups that one request should read: near each other in a shard, and not too many."""
    group: Group = []
    for sample in sorted(samples, key=lambda sample: (sample[0].shard, sample[0].offset)):
        row = sample[0]
        if group:
            first, last = group[0][0], group[-1][0]
            near = row.shard == last.shard and row.offset - _end(last) <= _GAP_BYTES
            if not near or _end(row) - first.offset > _MERGED_BYTES:
                yield group
                group = []
        group.append(sample)
    if group:
        yield group


def _end(row: SampleRow) -> int:
    return row.offset + row.size_bytes


def _is_right(row: SampleRow, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == row.sha256
