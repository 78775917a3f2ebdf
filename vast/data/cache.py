"""A bounded folder on a node's own disk with the bytes of samples, shared by all processes of the node.

A file is named by the sha256 of its content, so what is found under a name is either right or thrown away: nothing can
be stale, and data sets that share samples share files. Readers prove what they take, so a torn file after a crash or a
failing disk costs a second read of the store and nothing else.

`ledger` holds the folder's bytes as text; whoever holds its lock may change it. The kernel frees a lock with its
process. A crash between a file and its entry makes the ledger wrong by that file, until it is counted again: when a
process opens the cache, and whenever the folder is full.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vast.storage import is_temporary, temporary_name

# Made room for at once, so that a full cache does not look through its folder for every file.
_KEPT_SHARE = 0.9
# A temporary file this old belongs to a process that is no more.
_ORPHAN_S = 3600.0
# After a problem with the disk the cache takes nothing for so long.
_SULK_S = 60.0

_log = logging.getLogger(__name__)


class DiskCache:
    """Bytes by their sha256. No method raises for want of disk space, rights or files: a cache may always be empty.

    Args:
        folder: It is made when the first file is put.
        max_bytes: Most that all files may take; the ones used longest ago make room.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int) -> None:
        self._folder = Path(folder).expanduser().absolute()
        self._max_bytes = max_bytes
        self._counted = False
        self._sulks_until = 0.0

    def get(self, sha256: str) -> bytes | None:
        """Return the bytes of this digest, or None."""
        path = self._path(sha256)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of its last use
        return data

    def put(self, sha256: str, data: bytes) -> None:
        """Keep bytes whose digest the caller has proven; may decide not to."""
        if len(data) > self._max_bytes or time.monotonic() < self._sulks_until:
            return
        try:
            self._put(self._path(sha256), data)
        except OSError as error:
            self._sulks_until = time.monotonic() + _SULK_S
            _log.warning("%s: nothing is cached for %.0f s: %s", self._folder, _SULK_S, error)

    def _put(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._ledger() as ledger:
            if ledger is None or path.exists():
                return
            held = self._count(0) if not self._counted else _read(ledger)
            if held + len(data) > self._max_bytes:
                held = self._count(len(data))
            self._counted = True
            # Entered before it is written: of a crash between the two the count is too high, never too low.
            _write(ledger, held + len(data))
            temporary = path.with_name(temporary_name(path.name))
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            except OSError:
                temporary.unlink(missing_ok=True)
                _write(ledger, held)
                raise

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[int | None]:
        """Yield the locked ledger, or None while another process has it: then this file is not worth the wait."""
        descriptor = os.open(self._folder / "ledger", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield descriptor
        finally:
            os.close(descriptor)

    def _count(self, wanted_bytes: int) -> int:
        """Count the files' bytes; where `wanted_bytes` do not fit, remove the files used longest ago."""
        files, held = [], 0
        for entry in _files(self._folder):
            with contextlib.suppress(OSError):  # another process may have removed it
                found = entry.stat()
                if not is_temporary(entry.name):
                    files.append((found.st_mtime_ns, found.st_size, entry.path))
                    held += found.st_size
                elif time.time() - found.st_mtime > _ORPHAN_S:
                    os.unlink(entry.path)
        if held + wanted_bytes <= self._max_bytes:
            return held
        room = max(0, int(self._max_bytes * _KEPT_SHARE) - wanted_bytes)
        for _, size_bytes, path in sorted(files):
            if held <= room:
                break
            os.unlink(path)
            held -= size_bytes
        return held


def _files(folder: Path) -> Iterator["os.DirEntry[str]"]:
    for part in os.scandir(folder):
        if part.is_dir(follow_symlinks=False):
            yield from os.scandir(part.path)


def _read(ledger: int) -> int:
    text = os.pread(ledger, 32, 0)
    return int(text) if text.strip().isdigit() else 0


def _write(ledger: int, held: int) -> None:
    os.pwrite(ledger, b"%020d" % held, 0)
