"""The members of a tar, without trusting a word of it.

Python's own tarfile goes round in circles when a member claims a negative size, reads extended headers of any length
into memory and calls itself for each of them. This reader only moves forward, in little memory, and keeps what lies
before the place where an archive is torn. Like `tar --ignore-zeros` it goes on behind the mark that ends an archive, as
people also append one archive to another.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from preprocessing.members import (
    BAD_SIZE,
    CUT_SHORT,
    DEVICE,
    FIFO,
    FOLDER,
    LINK,
    OTHER_TYPE,
    SPARSE,
    UNSAFE_NAME,
    ArchiveError,
    Listing,
    Pieces,
    looks_like_a_file,
)

BLOCK = 512
_ZEROS = bytes(BLOCK)
_CHUNK_BYTES = 1 << 20
_MAX_EXTENDED_BYTES = 1 << 20
# A header has eleven octal digits; larger sizes need an extended header, and the field then says nothing.
_MAX_OCTAL = 8 << 30

_PLAIN = b"0\x007"
_REASONS = {b"1": LINK, b"2": LINK, b"3": DEVICE, b"4": DEVICE, b"6": FIFO, b"S": SPARSE}
# Whatever their headers say, these are followed by no content.
_WITHOUT_CONTENT = b"123456"
# Headers that say more of the member after them, and of these such as it cannot be listed without.
_EXTENDED = b"xgLK"
_OF_THE_NEXT = b"xL"


class Source(Protocol):
    """The bytes of a tar from its beginning on."""

    position: int
    tear: str
    """Why the bytes end, when they end too early."""

    def read(self, size_bytes: int) -> bytes:
        """Return the next bytes; fewer than asked for mean the end."""

    def skip(self, size_bytes: int) -> int:
        """Pass over bytes; return how many there were."""

    def unread(self, data: bytes) -> None:
        """Put back what the last `read` has given."""


class PlainSource:
    """A tar that is not compressed; passing over content costs nothing."""

    def __init__(self, pieces: Pieces) -> None:
        self.position = 0
        self.tear = ""
        self._pieces = pieces

    def read(self, size_bytes: int) -> bytes:
        """See Source."""
        data = self._pieces.pread(self.position, size_bytes)
        self.position += len(data)
        return data

    def skip(self, size_bytes: int) -> int:
        """See Source."""
        skipped = min(size_bytes, self._pieces.size_bytes - self.position)
        self.position += skipped
        return skipped

    def unread(self, data: bytes) -> None:
        """See Source."""
        self.position -= len(data)


def looks_like_tar(block: bytes) -> bool:
    """Tell whether an archive that begins with `block` is a tar; the mark that ends one may be all there is."""
    return len(block) >= BLOCK and (block[:BLOCK] == _ZEROS or _Header.parse(block[:BLOCK]) is not None)


def scan_tar(source: Source, listing: Listing) -> None:
    """Add the members of a tar to `listing`, with what is wrong when it cannot be read to its end.

    Raises:
        OSError: The file cannot be read any further; what was found is in `listing`.
        ArchiveError: Likewise; there is too much of it.
    """
    extended = _Extended()
    is_ended = False
    while True:
        begin = source.position
        block = source.read(BLOCK)
        if len(block) < BLOCK:
            if block or source.tear or not is_ended:
                listing.problem = f"{source.tear or 'cut off'} at byte {source.position} of the tar"
            return
        if block == _ZEROS:
            _skip_zeros(source)
            is_ended = True
            continue
        header = _Header.parse(block)
        if header is None:
            listing.problem = f"there is no tar header at byte {begin}"
            return
        is_ended = False
        if header.kind in _EXTENDED:
            is_whole = extended.read(header, source)
        else:
            is_whole = _take(header, extended, source, listing)
            extended.forget()
        if not is_whole:
            listing.skipped[CUT_SHORT] += 1
            listing.problem = f"{source.tear or 'cut off'} at byte {source.position} of the tar, inside a member"
            return


def check_member(chunks: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    """Yield a member's content out of chunks that begin with its header, if it is still the member that was listed.

    Raises:
        ArchiveError: The archive is another one by now, or it ends early.
    """
    left = BLOCK + size_bytes
    for number, chunk in enumerate(chunks):
        if number == 0:
            header = _Header.parse(chunk[:BLOCK])
            if header is None or header.kind not in _PLAIN or not header.may_have(size_bytes):
                raise ArchiveError("the archive has changed since it was listed")
        yield chunk[BLOCK:] if number == 0 else chunk
        left -= len(chunk)
    if left:
        raise ArchiveError(f"the archive ends {left} bytes too early")


def plain_chunks(pieces: Pieces, offset: int, size_bytes: int) -> Iterator[bytes]:
    """Yield bytes of a tar that is not compressed."""
    for begin in range(offset, offset + size_bytes, _CHUNK_BYTES):
        yield pieces.pread(begin, min(_CHUNK_BYTES, offset + size_bytes - begin))


@dataclass(frozen=True, slots=True)
class _Header:
    """A block of 512 bytes that announces a member or says more of the next one."""

    name: str
    size_bytes: int
    kind: bytes
    is_continued: bool
    """For the old way to write sparse files: another block of the map follows."""

    @staticmethod
    def parse(block: bytes) -> "_Header | None":
        if len(block) < BLOCK:
            return None
        checksum, size_bytes = _number(block[148:156]), _number(block[124:136])
        unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if checksum != unsigned:
            # Some old programs summed signed bytes.
            rest = block[:148] + block[156:]
            if checksum != unsigned - 256 * sum(byte > 127 for byte in rest):
                return None
        if size_bytes is None:
            return None
        name = _text(block[:100])
        # Only POSIX archives have a prefix there; GNU's have times.
        if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
            name = f"{prefix}/{name}"
        return _Header(name, size_bytes, block[156:157], bool(block[482]))

    def may_have(self, size_bytes: int) -> bool:
        """Tell whether an extended header may say that the content is of this size."""
        return size_bytes == self.size_bytes or size_bytes >= _MAX_OCTAL


class _Extended:
    """What headers before a member's own one say of it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.name: str | None = None
        self.size_bytes: int | None = None
        self.reason = ""
        """Why the member had better be passed over."""

    def read(self, header: _Header, source: Source) -> bool:
        """Read such a header's content; return whether it was all there."""
        if header.size_bytes > _MAX_EXTENDED_BYTES:
            if header.kind in _OF_THE_NEXT:
                self.reason = UNSAFE_NAME
            return source.skip(_padded(header.size_bytes)) >= header.size_bytes
        body = source.read(_padded(header.size_bytes))
        if header.kind == b"L":
            self.name = _text(body[: header.size_bytes])
        elif header.kind == b"x":
            self._take_records(body[: header.size_bytes])
        return len(body) >= header.size_bytes

    def _take_records(self, body: bytes) -> None:
        """Take in `LENGTH KEY=VALUE` lines, where LENGTH is that of the whole line."""
        begin = 0
        while begin < len(body) and body[begin]:
            space = body.find(b" ", begin, begin + 20)
            length = body[begin:space] if space > 0 else b""
            end = begin + int(length) if length.isdigit() else 0
            key, is_record, value = body[space + 1 : end - 1].partition(b"=")
            if not is_record or body[end - 1 : end] != b"\n":
                self.reason = UNSAFE_NAME
                return
            if key == b"path":
                self.name = value.decode("utf-8", "surrogateescape")
            elif key == b"size" and value.isdigit() and len(value) < 20:
                self.size_bytes = int(value)
            elif key == b"size":
                self.reason = BAD_SIZE
            elif key.startswith(b"GNU.sparse."):
                self.reason = SPARSE
            begin = end


def _take(header: _Header, extended: _Extended, source: Source, listing: Listing) -> bool:
    """Pass over a member's content and list it if it is a plain file; return whether it was all there."""
    is_continued = header.kind == b"S" and header.is_continued
    while is_continued:
        block = source.read(BLOCK)
        if len(block) < BLOCK:
            return False
        is_continued = bool(block[504])
    name = header.name if extended.name is None else extended.name
    size_bytes = header.size_bytes if extended.size_bytes is None else extended.size_bytes
    offset = source.position
    if header.kind not in _WITHOUT_CONTENT and source.skip(_padded(size_bytes)) < size_bytes:
        return False
    if header.kind == b"5" or (header.kind in _PLAIN and name.endswith("/")):
        listing.skipped += Counter([FOLDER] if looks_like_a_file(name) else [])
    elif header.kind not in _PLAIN:
        listing.skipped[_REASONS.get(header.kind, OTHER_TYPE)] += 1
    elif extended.reason or not header.may_have(size_bytes):
        listing.skipped[extended.reason or BAD_SIZE] += 1
    else:
        listing.take(name, offset, size_bytes)
    return True


def _skip_zeros(source: Source) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        rest = chunk.lstrip(b"\0")
        if rest:
            num_zeros = len(chunk) - len(rest)
            source.unread(chunk[num_zeros - num_zeros % BLOCK :])
            return


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK) * BLOCK


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int | None:
    """Read octal digits, or a binary number behind a byte 0x80; a negative one (0xff) is no size."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    try:
        return int(digits, 8) if digits.isdigit() else 0 if not digits else None
    except ValueError:
        return None
