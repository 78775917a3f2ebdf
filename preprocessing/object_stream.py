"""An object of a store read from its first byte to its last and hashed on the way, as a tar if it is one.

Shards may be larger than the memory, so they are never held whole: one chunk is.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from vast.storage import Store

CHUNK_BYTES = 8 << 20
"""Bytes of one request; a few in flight at a time fill a network."""
# A path of this many bytes is longer than any key.
_MAX_PAX_BYTES = 8192


class TarError(ValueError):
    """What is no tar as a shard writer makes it."""


@dataclass(frozen=True)
class Member:
    """A file in a tar; its payload is what the stream reads next."""

    name: str
    offset: int
    """First byte of the payload."""
    size_bytes: int


class ObjectStream:
    """Reads an object once, in order.

    Raises:
        ObjectMissing: There is no such object.
        StoreError: The store failed.
    """

    def __init__(self, store: Store, key: str) -> None:
        self.size_bytes = store.size(key)
        self.position = 0
        self._store, self._key = store, key
        self._sha256 = hashlib.sha256()
        self._chunk = memoryview(b"")
        self._fetched = 0

    def read(self, size_bytes: int) -> bytes:
        """Return the next bytes, fewer only at the end of the object."""
        return b"".join(self.pieces(size_bytes))

    def pieces(self, size_bytes: int) -> Iterator[memoryview]:
        """Yield the next bytes in pieces, so that they need not be in memory together."""
        while size_bytes > 0 and (self._chunk or self._fetch()):
            piece, self._chunk = self._chunk[:size_bytes], self._chunk[size_bytes:]
            size_bytes -= len(piece)
            self.position += len(piece)
            yield piece

    def lines(self) -> Iterator[bytes]:
        """Yield the lines that are left, without their line breaks."""
        rest = b""
        for piece in self.pieces(self.size_bytes):
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def sha256(self) -> str:
        """Read what is left and return the hex digest of the whole object."""
        for _ in self.pieces(self.size_bytes):
            pass
        return self._sha256.hexdigest()

    def _fetch(self) -> bool:
        size_bytes = min(CHUNK_BYTES, self.size_bytes - self._fetched)
        if size_bytes <= 0:
            return False
        chunk = self._store.get_range(self._key, self._fetched, size_bytes)
        self._sha256.update(chunk)
        self._fetched += size_bytes
        self._chunk = memoryview(chunk)
        return True


def tar_members(stream: ObjectStream) -> Iterator[Member]:
    """Yield the plain files of a tar, up to its end.

    Stricter than tarfile, which takes a damaged header for the end of the archive.

    Raises:
        TarError: A header is damaged, something else than a plain file is in it, or it does not end as a tar does.
    """
    long_name = ""
    while any(block := stream.read(tarfile.BLOCKSIZE)):
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise TarError(f"the header before byte {stream.position} is damaged: {error}") from error
        payload = Member(long_name or header.name, stream.position, header.size)
        end = stream.position + -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if not 0 <= header.size <= stream.size_bytes - stream.position:
            raise TarError(f"{payload.name} is said to have {header.size} bytes, which the file has not")
        if header.type == tarfile.XHDTYPE:
            long_name = _pax_path(stream, header.size)
        elif header.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            yield payload
            long_name = ""
        else:
            raise TarError(f"{payload.name} is no plain file")
        for _ in stream.pieces(end - stream.position):
            pass
    end = stream.position + tarfile.BLOCKSIZE
    if any(any(piece) for piece in stream.pieces(stream.size_bytes)):
        raise TarError(f"there is something after the end of the tar, behind byte {end}")
    if stream.size_bytes < end:
        raise TarError("it lacks the two empty blocks that end a tar")


def _pax_path(stream: ObjectStream, size_bytes: int) -> str:
    """Return the name in an extended header, which stands before members whose name has over a hundred letters."""
    record = stream.read(min(size_bytes, _MAX_PAX_BYTES)).decode(errors="surrogateescape")
    length, _, content = record.partition(" ")
    name, _, value = content.partition("=")
    if name != "path" or length != str(size_bytes) or not value.endswith("\n"):
        raise TarError(f"the extended header before byte {stream.position} is damaged")
    return value.removesuffix("\n")
