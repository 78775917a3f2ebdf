"""One small object store interface over a local folder or S3, and the local folder.

Keys are relative to the store's URL and separated by "/". A put is complete or absent: local files go through a
temporary name, fsync and rename; S3 objects appear only when their PUT or multipart upload has ended.

S3 reads its endpoint and credentials from the environment of the process that uses the store (AWS_ENDPOINT_URL or
AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION), so a pickled store carries no secret, and
every node of a cluster needs these variables itself.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from vast.errors import ObjectDamaged, ObjectMissing, StoreError, UserError

_CHUNK_BYTES = 1 << 20
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{32}\.tmp")
# What a file system answers that has no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


@dataclass(frozen=True)
class ObjectStat:
    """What a store tells of an object without reading it."""

    size_bytes: int
    version: str
    """Another one whenever the object has been replaced by other content; on S3 the ETag, which on most servers is the
    same again for the same content."""


class Store(Protocol):
    """What every store can do; it may be pickled, and used from several threads and after a fork.

    A store that fails for a while is asked again, so any call may take a minute or more before it raises StoreError.
    """

    url: str

    def put_bytes(self, key: str, data: bytes) -> ObjectStat:
        """Write an object; it is complete or absent, and replaces an older one. Returns what was written."""

    def put_file(self, key: str, path: str | os.PathLike[str]) -> ObjectStat:
        """Write a file's content as an object; it is complete or absent. Returns what was written.

        The file is streamed: memory does not depend on its size.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none of this name; return whether that was done.

        Of several processes that try at once one succeeds, where `conditional_puts`. When the answer to a request was
        lost, the stored bytes tell whether it was carried out, so they should be unlike those of any other writer.
        """

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Write an object if the one there still has this version (see `stat`); return whether that was done.

        As safe as `create`. A version on S3 stands for the content: one that comes back is not noticed.
        """

    def conditional_puts(self) -> bool:
        """Tell whether `create` and `replace` are atomic here; an S3 server is asked once, with a scratch object.

        On a server that ignores conditions they put, wait and read back: of two writers that come within that wait of
        each other only the later one is told that it succeeded. This narrows the race and does not close it.
        """

    def get_bytes(self, key: str) -> bytes:
        """Read a whole object.

        Raises:
            ObjectMissing: There is no such object.
        """

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """Read exactly `size_bytes` from `offset`; a body that breaks off is resumed a bounded number of times.

        Raises:
            ObjectDamaged: The object ends before the range does.
            StoreError: The body kept breaking off.
        """

    def get_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """Fetch an object into a file, which is complete or absent."""

    def exists(self, key: str) -> bool:
        """Tell whether the object is there; a store that cannot be reached is an error, not a no."""

    def stat(self, key: str) -> ObjectStat:
        """Return the object's size and version.

        Raises:
            ObjectMissing: There is no such object.
        """

    def size(self, key: str) -> int:
        """Return the object's size in bytes."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that begin with `prefix`, sorted."""

    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is no error."""

    def sweep(self) -> int:
        """Remove what puts that were killed have left directly at this URL; return how much it was.

        That is temporary files, and on S3 multipart uploads that were begun and never ended. Puts that are under way
        there fail, so only the one writer of a prefix may call it. Folders below are left alone: they may belong to
        others.
        """


def open_store(url: str) -> Store:
    """Return the store at `s3://bucket/prefix`, `file:///folder` or a local path; nothing is contacted yet.

    Raises:
        UserError: The URL has another scheme, no bucket, or a password in it.
    """
    refuse_password(url, "a URL", "credentials come from the environment (AWS_ACCESS_KEY_ID, ...)")
    if url.startswith("pipe:"):
        raise UserError("a URL that begins with pipe: would run a program; use s3://bucket/prefix or a local folder")
    match = _SCHEME.match(url)
    scheme = match.group(1).lower() if match else ""
    if scheme == "s3":
        from vast.storage_s3 import S3Store  # it builds on this module

        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            refuse_password(
                os.environ.get(name, ""), name, "credentials have variables of their own (AWS_ACCESS_KEY_ID)"
            )
        return S3Store(url)
    if scheme == "file":
        return LocalStore(unquote(urlsplit(url).path))
    if scheme:
        raise UserError(f"{url}: cannot open a {scheme}:// store; use s3://bucket/prefix or a local folder")
    if not url.strip():
        raise UserError("an empty URL names no store; use s3://bucket/prefix or a local folder")
    return LocalStore(url)


def refuse_password(url: str, what: str, instead: str) -> None:
    """Refuse a URL with a user or password in it: what is named by URL is written into logs, results and trackers.

    Args:
        url: The URL; a message never repeats it.
        what: What it is, for the message.
        instead: Where credentials belong.

    Raises:
        UserError: There is an `@` in its authority.
    """
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)", url)
    authority = re.sub(r"^\[[0-9A-Fa-f:.]+\]", "", found[1]) if found else ""
    # the second: a password with a slash that nobody quoted
    if "@" in authority or re.search(r":(?!\d*$)", authority):
        raise UserError(f"{what} has a user or password in it (not repeated here); leave them out: {instead}")


def join_url(url: str, *parts: str) -> str:
    """Append parts to a store's URL with single slashes."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def checked_key(key: str) -> str:
    """Return the key.

    Raises:
        ValueError: It could lead out of the store, or means different things to different stores.
    """
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"{key!r} is not a key: it must be relative, without empty, '.' or '..' parts")
    return key


class _Occupied(Exception):  # noqa: N818 - no error, an answer
    """The name is not free, or no longer holds the expected version."""


class LocalStore:
    """A folder as a store; it is made when the first object is put."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        # Absolute at once: Ray workers run in another working directory than the driver.
        self._root = Path(folder).expanduser().absolute()
        self.url = str(self._root)

    def put_bytes(self, key: str, data: bytes) -> ObjectStat:
        """See Store."""
        return self._put(key, lambda temporary: temporary.write_bytes(data))

    def put_file(self, key: str, path: str | os.PathLike[str]) -> ObjectStat:
        """See Store."""
        return self._put(key, lambda temporary: shutil.copyfile(path, temporary))

    def create(self, key: str, data: bytes) -> bool:
        """See Store."""
        return self._put_if(key, data, _place_if_absent)

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """See Store."""
        return self._put_if(key, data, lambda temporary, path: _place_if_unchanged(temporary, path, version))

    def conditional_puts(self) -> bool:
        """See Store."""
        return True

    def get_bytes(self, key: str) -> bytes:
        """See Store."""
        with self._reading(key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """See Store."""
        with self._reading(key), open(self._path(key), "rb") as file:
            file.seek(offset)
            data = file.read(size_bytes)
        if len(data) != size_bytes:
            raise range_error(self.url, key, offset, size_bytes, offset + len(data))
        return data

    def get_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """See Store."""
        with self._reading(key):
            source = open(self._path(key), "rb")  # noqa: SIM115 - closed below; only its opening is a store's error
        with source, complete_or_absent(Path(path)) as temporary, open(temporary, "wb") as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)

    def exists(self, key: str) -> bool:
        """See Store."""
        return self._path(key).is_file()

    def stat(self, key: str) -> ObjectStat:
        """See Store."""
        with self._reading(key):
            return _stat(self._path(key))

    def size(self, key: str) -> int:
        """See Store."""
        return self.stat(key).size_bytes

    def list(self, prefix: str = "") -> Iterator[str]:
        """See Store."""
        folder = self._root / prefix.rpartition("/")[0]
        paths = (path for path in folder.rglob("*") if path.is_file() and not is_temporary(path.name))
        keys = (path.relative_to(self._root).as_posix() for path in paths)
        yield from sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """See Store."""
        with contextlib.suppress(ObjectMissing), self._reading(key):
            self._path(key).unlink()

    def sweep(self) -> int:
        """See Store."""
        try:
            found = [entry.path for entry in os.scandir(self._root) if _TEMPORARY.fullmatch(entry.name)]
            for path in found:
                Path(path).unlink(missing_ok=True)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StoreError(f"{self.url}: cannot remove temporary files: {error}") from error
        return len(found)

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def _put_if(self, key: str, data: bytes, place: Callable[[Path, Path], None]) -> bool:
        try:
            self._put(key, lambda temporary: temporary.write_bytes(data), place)
        except _Occupied:
            return False
        return True

    def _put(
        self, key: str, write: Callable[[Path], object], place: Callable[[Path, Path], None] = os.replace
    ) -> ObjectStat:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with complete_or_absent(path, place) as temporary:
                write(temporary)
                # The kernel's own stamps are some milliseconds coarse: two versions within could look the same.
                now_ns = time.time_ns()
                os.utime(temporary, ns=(now_ns, now_ns))
                written = _stat(temporary)
        except OSError as error:
            raise StoreError(f"{self.url}: cannot write {key}: {error}") from error
        return written

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissing(f"{self.url}: there is no {key}") from error
        except OSError as error:
            raise StoreError(f"{self.url}: cannot read {key}: {error.strerror or error}") from error


@contextlib.contextmanager
def complete_or_absent(path: Path, place: Callable[[Path, Path], None] = os.replace) -> Iterator[Path]:
    """Yield a temporary path whose file takes its place at `path` at the end, or is removed when the block raises."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
        _fsync(temporary)
        place(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """Return a name that no store lists and that `Store.sweep` removes."""
    return f".{name[:100]}.{uuid.uuid4().hex}.tmp"


def is_temporary(name: str) -> bool:
    """Tell whether the last part of a key is no object's name."""
    return name.startswith(".") and name.endswith(".tmp")


def range_error(url: str, key: str, offset: int, size_bytes: int, end: int) -> ObjectDamaged:
    """Return the error of a range that the object does not have; `end` is where its bytes end."""
    return ObjectDamaged(
        f"{url}: {key} has no bytes {offset}..{offset + size_bytes - 1}: they end at {end}; "
        "the object is shorter than its index says"
    )


def _place_if_absent(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _Occupied from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            # Claim the name; until the next line its file is empty.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            raise _Occupied from None
        os.replace(temporary, path)


def _place_if_unchanged(temporary: Path, path: Path, version: str) -> None:
    try:
        # For writing, as NFS asks of those who want a lock for themselves alone.
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        raise _Occupied from None
    try:
        # On the very file that is to be replaced: whoever waits here finds another version afterwards. The kernel
        # ends a lock with its process.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _stat(path).version != version:
            raise _Occupied
        os.replace(temporary, path)
    except FileNotFoundError:
        raise _Occupied from None
    finally:
        os.close(descriptor)


def _stat(path: Path) -> ObjectStat:
    found = path.stat()
    return ObjectStat(found.st_size, f"{found.st_ino}-{found.st_mtime_ns}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
