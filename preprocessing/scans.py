"""Lists of what archives hold, made once: reading a gzipped tar through takes as long as copying it.

A list and, for a gzipped tar, its seek index are kept as `scan-<digest>.json` and `scan-<digest>.gzidx`. The digest
stands for the archive's files: their names, sizes and times, and the bytes at both their ends.
"""

import atexit
import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from preprocessing.archives import Archive, Kind, Place, kind_of, open_archive
from preprocessing.gzip_index import InflatedSource, SeekIndexBuilder
from preprocessing.members import ArchiveError, Listing, Pieces
from preprocessing.tar_members import PlainSource, scan_tar
from preprocessing.zip_members import scan_zip
from vast.errors import ObjectMissing, UserError
from vast.storage import Store, join_url, open_store

Progress = Callable[[int, int], None]
"""Called with (archives scanned, archives in all)."""

SCANS = "scan-"
"""Common beginning of the keys of all scans."""

# Smaller ones are read sooner than the processes have started that would share the work.
MIN_SHARED_BYTES = 256 << 20

_FORMAT = "1"
_KEY = re.compile(r"scan-[0-9a-f]{32}\.(json|gzidx)")
_END_BYTES = 64 << 10
_NUM_LOOKS = 16


@dataclass(frozen=True)
class Scan:
    """What an archive holds."""

    listing: Listing
    archive: Archive | None = None
    """None when it cannot be read at all."""


def scan_archives(places: Sequence[Place], scans: str | None = None, on_progress: Progress | None = None) -> list[Scan]:
    """List the members of archives, in several processes where that is worth it.

    Args:
        places: The archives.
        scans: URL of the store where lists are kept, and looked for first; None for a folder that this process removes
            when it ends. Readers on other nodes get the seek indexes from there.
        on_progress: See `Progress`.

    Raises:
        StoreError: The store failed.
        UserError: A process was killed.
    """
    if not places:
        return []
    tell = on_progress or (lambda done, total: None)
    store = open_store(scans or _own_folder())
    with ThreadPoolExecutor(_NUM_LOOKS) as pool:
        digests = list(pool.map(_digest, places))
        found = list(pool.map(partial(_look, store), places, digests))
    todo = [number for number, scan in enumerate(found) if scan is None]
    tell(len(places) - len(todo), len(places))
    jobs = [(places[number], store.url, digests[number]) for number in todo]
    for count, (number, scan) in enumerate(_run(jobs), 1):
        found[todo[number]] = scan
        tell(len(places) - len(todo) + count, len(places))
    return [scan for scan in found if scan is not None]


def delete_scans(url: str) -> None:
    """Remove the lists and seek indexes kept at `url`; nothing else is touched.

    Raises:
        StoreError: The store failed.
    """
    store = open_store(url)
    for key in list(store.list(SCANS)):
        if _KEY.fullmatch(key):
            store.delete(key)


def _run(jobs: Sequence[tuple[Place, str, str]]) -> Iterator[tuple[int, Scan]]:
    num_processes = min(len(jobs), len(os.sched_getaffinity(0)))
    if num_processes < 2 or sum(_size_bytes(place) for place, _, _ in jobs) < MIN_SHARED_BYTES:
        yield from ((number, _scan(*job)) for number, job in enumerate(jobs))
        return
    # spawn: a forked child would inherit the locks of the caller's threads (boto3, Ray) in whatever state they are.
    pool = ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"))
    try:
        running = {pool.submit(_scan, *job): number for number, job in enumerate(jobs)}
        for future in as_completed(running):
            yield running[future], future.result()
    except BrokenProcessPool as error:
        raise UserError("a process that was listing archives was killed; is there enough memory?") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _scan(place: Place, url: str, digest: str) -> Scan:
    """List an archive, keep the list, and return it."""
    listing = Listing()
    try:
        pieces = open_archive(place.paths)
        kind = kind_of(pieces)
    except OSError as error:
        listing.problem = f"cannot be opened: {error.strerror}"
        return Scan(listing)
    except ArchiveError as error:
        listing.problem = str(error)
        return Scan(listing)
    store = open_store(url)
    archive = Archive(place.paths, kind)
    if kind == "tar.gz":
        if _scan_gzip(pieces, listing, store, digest):
            archive = Archive(place.paths, kind, join_url(store.url, f"scan-{digest}.gzidx"))
    else:
        with _noting(listing):
            if kind == "zip":
                scan_zip(pieces, listing)
            else:
                scan_tar(PlainSource(pieces), listing)
    listing.drop_duplicates()
    if not listing.problem:  # who mends the archive without changing its size should have it read again
        store.put_bytes(f"scan-{digest}.json", _to_json(kind, listing))
    return Scan(listing, archive)


def _scan_gzip(pieces: Pieces, listing: Listing, store: Store, digest: str) -> bool:
    """List a gzipped tar and keep its seek index; return whether there is one, as nothing needs no index."""
    with contextlib.closing(SeekIndexBuilder(pieces)) as builder, tempfile.TemporaryDirectory(prefix="vast-") as folder:
        with _noting(listing):
            scan_tar(InflatedSource(pieces, builder.limit_bytes, builder.cover), listing)
        if not listing.names:
            return False
        path = Path(folder, "index")
        builder.cover(listing.offsets[-1])
        if not builder.finish(path):
            listing.problem = "a gzip stream that can be read from its start alone; unpack it, or pack it again"
            listing.forget_members()
            return False
        store.put_file(f"scan-{digest}.gzidx", path)
    return True


@contextlib.contextmanager
def _noting(listing: Listing) -> Iterator[None]:
    """Write down what ends a scan early; what has been listed by then can be used."""
    try:
        yield
    except OSError as error:
        listing.problem = f"cannot be read any further: {error.strerror}"
    except ArchiveError as error:
        listing.problem = str(error)


def _look(store: Store, place: Place, digest: str) -> Scan | None:
    """Return an archive's list if there is a sound one."""
    try:
        content = json.loads(store.get_bytes(f"scan-{digest}.json"))
        kind: Kind = content["kind"]
        names, offsets, sizes = content["names"], array("q", content["offsets"]), array("q", content["sizes"])
        listing = Listing(names, offsets, sizes, Counter(content["skipped"]))
    except (ObjectMissing, ValueError, KeyError, TypeError):
        return None
    index = f"scan-{digest}.gzidx"
    if kind != "tar.gz" or not names:
        return Scan(listing, Archive(place.paths, kind))
    return Scan(listing, Archive(place.paths, kind, join_url(store.url, index))) if store.exists(index) else None


def _to_json(kind: Kind, listing: Listing) -> bytes:
    content = {
        "kind": kind,
        "names": listing.names,
        "offsets": listing.offsets.tolist(),
        "sizes": listing.sizes.tolist(),
        "skipped": listing.skipped,
    }
    return json.dumps(content, sort_keys=True).encode()


def _digest(place: Place) -> str:
    """Identify an archive without reading it through; of one that cannot be read, its names."""
    found = hashlib.sha256(_FORMAT.encode())
    for path in place.paths:
        found.update(json.dumps(os.path.basename(path)).encode())
    with contextlib.suppress(OSError, ArchiveError):
        pieces = open_archive(place.paths)
        found.update(json.dumps([pieces.size_bytes, pieces.times_ns]).encode())
        for begin, end in pieces.spans():
            found.update(pieces.pread(begin, min(_END_BYTES, end - begin)))
            found.update(pieces.pread(max(begin, end - _END_BYTES), _END_BYTES))
    return found.hexdigest()[:32]


def _size_bytes(place: Place) -> int:
    try:
        return open_archive(place.paths).size_bytes
    except (OSError, ArchiveError):
        return 0


def _own_folder() -> str:
    """Return a folder that this very process removes when it ends."""
    pid = os.getpid()
    if pid not in _own:
        _own[pid] = tempfile.mkdtemp(prefix="vast-scans-")
        atexit.register(_remove, pid)
    return _own[pid]


def _remove(pid: int) -> None:
    if os.getpid() == pid:  # a forked child comes here as well
        shutil.rmtree(_own[pid], ignore_errors=True)


_own: dict[int, str] = {}
