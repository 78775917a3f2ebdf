"""Reads a whole data set back and says what is wrong with it.

Reading is bound by the store (one request of a few megabytes for each thread) or, on a local disk, by hashing every
byte twice, once for its shard and once for its sample, which the threads do side by side. Decoding all clips costs some
hundred times more than that.
"""

import itertools
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from preprocessing.object_stream import ObjectStream
from preprocessing.profiles import TranscodeSettings
from preprocessing.verify_files import MAX_SHOWN, check_failures, check_files, check_unlisted, first
from preprocessing.verify_shard import ShardCheck, ShardFindings, check_webdataset, key_hash
from vast.dataset_format import (
    FAILURES_KEY,
    MANIFEST_KEY,
    Manifest,
    SampleRow,
    ShardInfo,
    index_key,
    read_manifest,
)
from vast.errors import StoreError, UserError
from vast.sample_index import SampleIndex, read_index
from vast.storage import Store, open_store

OnProgress = Callable[[int, int], None]
"""Called with the samples read and all samples, about once a second."""

NUM_THREADS = min(16, max(4, os.cpu_count() or 1))
"""Shards read at a time; each takes a chunk of memory and, where clips are decoded, one clip."""


def verify(
    url: str,
    *,
    decode_sample: int = 20,
    decode_all: bool = False,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[str]:
    """Read everything at `url` back and return the problems, one line each; none when the data set is whole.

    Every byte is read: sizes and digests of shards, indexes and samples, the agreement of index, json members, failures
    and manifest. One shard of each split is also read with plain webdataset, the field's own client. A line begins with
    the name of the file; of many problems of one kind the first are told, then their number.

    Args:
        url: The data set.
        decode_sample: Clips of each split to decode, spread evenly.
        decode_all: Decode every clip.
        on_progress: See `OnProgress`.
        on_note: Called with sentences on what is no damage, but perhaps a mistake: splits that share keys.

    Raises:
        StoreError: The store cannot be reached.
    """
    try:
        manifest = read_manifest(url)
    except UserError as error:
        return [str(error)]
    store = open_store(url)
    problems = [*check_files(store, manifest)]
    failed: dict[str, list[str]] = {split: [] for split in manifest.splits}
    problems += first(check_failures(store, manifest, failed))
    problems += first(check_unlisted(store, manifest))
    encoding, unknown = _settings(manifest)
    problems += unknown
    splits = [_Split(url, store, manifest, name, encoding) for name in manifest.splits]
    tasks = [task for split in splits for task in split.tasks(decode_sample, decode_all)]
    for task, found in zip(tasks, _run(tasks, on_progress), strict=True):
        task.split.take(task.shard.name, found)
    for split in splits:
        split.check_whole(failed[split.name])
        problems += split.problems
    if on_note is not None:
        for one, other in itertools.combinations(splits, 2):
            if num_shared := len(np.intersect1d(one.hashes(), other.hashes())):
                on_note(f"{one.name} and {other.name} share {num_shared} keys")
    return problems


def _settings(manifest: Manifest) -> tuple[TranscodeSettings | None, list[str]]:
    """Return how clips are encoded, by which they are proven; None for pictures and when it cannot be told."""
    if manifest.media != "video":
        return None, []
    try:
        return TranscodeSettings.model_validate(manifest.transcode), []
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) or "all of them" for item in error.errors())
        return None, [f"{MANIFEST_KEY}: transcode has settings that no clip can be proven by: {fields}"]


class _Split:
    """One split: its index, and what reading its shards has shown."""

    def __init__(
        self, url: str, store: Store, manifest: Manifest, name: str, encoding: TranscodeSettings | None
    ) -> None:
        self.name, self.encoding = name, encoding
        self.store, self.manifest, self.info = store, manifest, manifest.splits[name]
        self.problems: list[str] = []
        self._index: SampleIndex | None = None
        self._runs: dict[str, list[range]] = {}
        self._hashes: dict[str, NDArray[np.uint64]] = {}
        self._num_replaced = 0
        try:
            if (found := ObjectStream(store, index_key(name)).sha256()) != self.info.index_sha256:
                # What is in it proves nothing then; the shards are still read for themselves.
                self.note(f"sha256 is {found}, the manifest says {self.info.index_sha256}")
                return
            index = read_index(url, name)
            self._runs = _runs(index.column("shard"))
        except (StoreError, ValueError) as error:  # also a split whose name is no key of a store
            self.note(f"cannot be read: {error}")
            return
        self._index = index
        if len(index) != self.info.samples:
            self.note(f"{len(index)} rows, the manifest says {self.info.samples} samples")
        if unknown := self._runs.keys() - {shard.name for shard in self.info.shards}:
            self.note(f"names shards that the manifest does not: {', '.join(sorted(unknown)[:MAX_SHOWN])}")

    def note(self, problem: str) -> None:
        """Add a problem of the index."""
        self.problems.append(f"{index_key(self.name)}: {problem}")

    def tasks(self, decode_sample: int, decode_all: bool) -> "list[_Task]":
        """Return what there is to do for each shard."""
        num_samples = len(self._index) if self._index is not None else 0
        spread = np.linspace(0, num_samples - 1, min(decode_sample, num_samples)).astype(int)
        picks = range(num_samples) if decode_all else frozenset(spread.tolist())
        return [_Task(self, shard, picks, is_first=number == 0) for number, shard in enumerate(self.info.shards)]

    def rows(self, shard: str) -> dict[int, SampleRow] | None:
        """Return a shard's rows by their position; None without an index.

        Raises:
            StoreError: The index is damaged there.
        """
        if self._index is None:
            return None
        positions = [i for run in self._runs.get(shard, ()) for i in run]
        return dict(zip(positions, self._index.rows(positions), strict=True))

    def take(self, shard: str, found: ShardFindings) -> None:
        """Add what reading a shard has shown."""
        self.problems += found.problems
        self._hashes[shard] = found.key_hashes
        self._num_replaced += found.num_replaced

    def hashes(self) -> NDArray[np.uint64]:
        """Return the hashes of all keys, sorted."""
        return np.sort(np.concatenate([np.empty(0, np.uint64), *self._hashes.values()]))

    def check_whole(self, failed: Sequence[str]) -> None:
        """Check what only all shards together show; `failed` are the keys of records that could not be encoded."""
        hashes = self.hashes()
        if len(repeated := np.unique(hashes[1:][hashes[1:] == hashes[:-1]])):
            self.note(f"{len(repeated)} keys occur more than once, such as {self._key_of(int(repeated[0]))}")
        both = [key for key in failed if _is_in(key_hash(key), hashes)]
        if both:
            self.problems.append(f"{FAILURES_KEY}: {len(both)} keys are samples of {self.name} too, such as {both[0]}")
        if not self.problems and self._num_replaced != self.info.replaced:
            where = f"{MANIFEST_KEY}: says {self.info.replaced} samples of {self.name} are replaced"
            self.problems.append(f"{where}, the shards say {self._num_replaced}")

    def _key_of(self, wanted: int) -> str:
        shard = next(shard for shard, hashes in self._hashes.items() if wanted in hashes)
        return next(row.key for row in (self.rows(shard) or {}).values() if key_hash(row.key) == wanted)


@dataclass(frozen=True)
class _Task:
    """One shard to read."""

    split: _Split
    shard: ShardInfo
    picks: Collection[int]
    """Positions in the index of the samples to decode."""
    is_first: bool

    def run(self, on_sample: Callable[[], None]) -> ShardFindings:
        try:
            rows = self.split.rows(self.shard.name)
        except StoreError as error:
            return ShardFindings([f"{index_key(self.split.name)}: cannot be read: {error}"])
        known = rows or {}
        check = ShardCheck(
            info=self.shard,
            split=self.split.name,
            manifest=self.split.manifest,
            rows=None if rows is None else list(rows.values()),
            decode={row.key for i, row in known.items() if i in self.picks},
            settings=self.split.encoding,
        )
        found = check.run(self.split.store, on_sample)
        if self.is_first and rows is not None and not found.problems:
            media = self.split.manifest.media
            found.problems += check_webdataset(self.split.store, self.shard, media, list(known.values()))
        return found


def _run(tasks: Sequence[_Task], on_progress: OnProgress | None) -> Iterator[ShardFindings]:
    """Run the tasks on threads and yield their findings in order."""
    done = [0] * len(tasks)
    total = sum(task.shard.samples for task in tasks)
    stop = threading.Event()

    def start(number: int) -> ShardFindings:
        def count() -> None:
            done[number] += 1
            if stop.is_set():
                raise CancelledError

        found = tasks[number].run(count)
        done[number] = tasks[number].shard.samples  # of a damaged shard fewer were read
        return found

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        futures = [pool.submit(start, number) for number in range(len(tasks))]
        try:
            pending = set(futures)
            while pending:
                _, pending = wait(pending, timeout=1.0)
                if on_progress is not None:
                    on_progress(min(sum(done), total), total)
            yield from (future.result() for future in futures)
        finally:
            stop.set()  # shards may take minutes, and whoever interrupts does not want to wait for them
            for future in futures:
                future.cancel()


def _runs(shards: NDArray[Any]) -> dict[str, list[range]]:
    """Return where each shard's rows are; a builder puts them side by side, and then there is one range each."""
    runs: dict[str, list[range]] = {}
    edges = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist(), len(shards)]
    for start, end in itertools.pairwise(edges):
        if start < end:
            runs.setdefault(shards[start], []).append(range(start, end))
    return runs


def _is_in(value: int, ordered: NDArray[np.uint64]) -> bool:
    position = int(np.searchsorted(ordered, np.uint64(value)))
    return position < len(ordered) and int(ordered[position]) == value
