"""The members of a zip, without trusting a word of it.

Python's own zipfile takes 600 bytes of memory a member, and one name that is not what it claims to be, or a missing
end, costs the whole archive. This reader keeps what lies before the place where an archive is torn.
"""

import stat
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from preprocessing.members import (
    BAD_SIZE,
    CUT_SHORT,
    DEVICE,
    FIFO,
    FOLDER,
    LINK,
    ArchiveError,
    Listing,
    Pieces,
    looks_like_a_file,
)

ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")

ENCRYPTED = "encrypted"
OTHER_METHOD = "compressed in another way than deflate"

_CHUNK_BYTES = 1 << 20
_STORED, _DEFLATED = 0, 8
_MAX_DEFLATE_RATIO = 1032

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_64_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_MAX_COMMENT = 65_535
_MAX_ENTRY_BYTES = _CENTRAL.size + 3 * 65_535
_NONE_32 = 0xFFFFFFFF

_IS_ENCRYPTED, _HAS_DESCRIPTOR = 1 << 0, 1 << 3
_UNIX = 3


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """What a zip says of a member."""

    name: str
    offset: int
    """Of its own header in the archive."""
    end: int
    """The content ends there at the earliest."""
    flags: int
    method: int
    compressed_bytes: int
    size_bytes: int
    mode: int = 0
    """File type and permissions as Unix has them; 0 when the zip was made elsewhere."""

    def is_stored(self) -> bool:
        """Tell whether the archive holds the content just as it is."""
        return self.method == _STORED and not self.flags & _IS_ENCRYPTED

    def reason(self) -> str:
        """Return why the member cannot be used, or nothing."""
        kinds = {
            stat.S_IFLNK: LINK,
            stat.S_IFIFO: FIFO,
            stat.S_IFSOCK: FIFO,
            stat.S_IFCHR: DEVICE,
            stat.S_IFBLK: DEVICE,
        }
        if reason := kinds.get(stat.S_IFMT(self.mode)):
            return reason
        if self.flags & _IS_ENCRYPTED:
            return ENCRYPTED
        if self.method not in (_STORED, _DEFLATED):
            return OTHER_METHOD
        most = self.compressed_bytes if self.method == _STORED else _MAX_DEFLATE_RATIO * self.compressed_bytes
        if self.size_bytes > most or (self.method == _STORED and self.size_bytes != most):
            return BAD_SIZE
        return ""


def scan_zip(pieces: Pieces, listing: Listing) -> None:
    """Add the members of a zip to `listing`, with what is wrong when it cannot be read to its end.

    Raises:
        OSError: The file cannot be read any further; what was found is in `listing`.
        ArchiveError: There is too much of it.
    """
    entries = zip_entries(pieces)
    while True:
        try:
            entry = next(entries, None)
        except ArchiveError as error:
            listing.problem = str(error)
            return
        if entry is None:
            return
        if entry.name.endswith("/") or stat.S_ISDIR(entry.mode):
            listing.skipped += Counter([FOLDER] if looks_like_a_file(entry.name) else [])
        elif entry.end > pieces.size_bytes:
            listing.skipped[CUT_SHORT] += 1
            listing.problem = "members are said to lie behind the archive's end"
        elif reason := entry.reason():
            listing.skipped[reason] += 1
        else:
            listing.take(entry.name, entry.offset, entry.size_bytes)


def zip_entries(pieces: Pieces) -> Iterator[ZipEntry]:
    """Yield what the table at a zip's end says, or without that table what the members' own headers say.

    Raises:
        ArchiveError: The archive is torn; all entries before that have been yielded.
    """
    table = _find_table(pieces)
    if table is None:
        yield from _walk(pieces)
    else:
        yield from _read_table(pieces, *table)


def zip_data_offset(pieces: Pieces, offset: int) -> int:
    """Return where a member's content begins whose header is at `offset`.

    Raises:
        ArchiveError: There is no header.
    """
    return _local_header(pieces, offset)[1]


def zip_chunks(pieces: Pieces, offset: int, size_bytes: int) -> Iterator[bytes]:
    """Yield the content of the member whose own header is at `offset`.

    Raises:
        ArchiveError: It is damaged or has changed: other bytes, or more or fewer than `size_bytes`.
    """
    entry, begin, checksum = _local_header(pieces, offset)
    if entry.flags & _IS_ENCRYPTED or entry.method not in (_STORED, _DEFLATED):
        raise ArchiveError("the archive has changed since it was listed")
    position = begin
    stream = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == _DEFLATED else None
    found, left, pending = 0, size_bytes, b""
    while left > 0 or (stream is not None and not stream.eof):
        if not pending:
            pending = pieces.pread(position, min(_CHUNK_BYTES, left) if stream is None else _CHUNK_BYTES)
            position += len(pending)
        if not pending:
            raise ArchiveError(f"the archive ends {left} bytes too early")
        if stream is None:
            data, pending = pending, b""
        else:
            try:
                data = stream.decompress(pending, min(_CHUNK_BYTES, left + 1))
            except zlib.error:
                raise ArchiveError("the deflate stream is damaged") from None
            pending = stream.unconsumed_tail
        left -= len(data)
        if left < 0 or (stream is not None and stream.eof and left > 0):
            raise ArchiveError("the member is not as long as the archive says")
        found = zlib.crc32(data, found)
        yield data
    end = position if stream is None else position - len(stream.unused_data)
    if entry.flags & _HAS_DESCRIPTOR:
        # The descriptor behind the content may begin with a magic of its own, and then again may not.
        descriptor = pieces.pread(end, 8)
        is_right = found.to_bytes(4, "little") in (descriptor[:4], descriptor[4:8])
    else:
        is_right = found == checksum
    if not is_right:
        raise ArchiveError("the content does not match its checksum")


def _local_header(pieces: Pieces, offset: int) -> tuple[ZipEntry, int, int]:
    """Return what a member's own header says, where its content begins, and its checksum."""
    block = pieces.pread(offset, _LOCAL.size)
    if len(block) < _LOCAL.size or block[:4] != ZIP_MAGICS[0]:
        raise ArchiveError(f"there is no member's header at byte {offset}")
    _, _, flags, method, _, _, checksum, compressed, size, name_bytes, extra_bytes = _LOCAL.unpack(block)
    begin = offset + _LOCAL.size + name_bytes + extra_bytes
    text = pieces.pread(offset + _LOCAL.size, name_bytes + extra_bytes)
    size, compressed = _wide(text[name_bytes:], size, compressed)
    entry = ZipEntry(_text(text[:name_bytes]), offset, begin + compressed, flags, method, compressed, size)
    return entry, begin, checksum


def _walk(pieces: Pieces) -> Iterator[ZipEntry]:
    position = 0
    while True:
        if position + _LOCAL.size > pieces.size_bytes:
            raise ArchiveError(f"cut off at byte {pieces.size_bytes}")
        if pieces.pread(position, 4) != ZIP_MAGICS[0]:
            raise ArchiveError("its table of members is damaged")
        entry, _, _ = _local_header(pieces, position)
        if entry.flags & _HAS_DESCRIPTOR and not entry.compressed_bytes:
            raise ArchiveError(f"without a table of members, and the one at byte {position} does not tell its own size")
        yield entry
        position = entry.end


def _find_table(pieces: Pieces) -> tuple[int, int, int] | None:
    """Return where the table of members begins and ends, and how far all its offsets are off; None without one."""
    tail_begin = max(0, pieces.size_bytes - _END.size - _MAX_COMMENT)
    tail = pieces.pread(tail_begin, _END.size + _MAX_COMMENT)
    at = tail.rfind(ZIP_MAGICS[1], 0, max(0, len(tail) - _END.size + 4))
    if at < 0:
        return None
    end = tail_begin + at
    *_, table_bytes, table_offset, _ = _END.unpack_from(tail, at)
    if at >= _END_64_LOCATOR.size and tail[at - _END_64_LOCATOR.size : at].startswith(b"PK\x06\x07"):
        _, _, wide_offset, _ = _END_64_LOCATOR.unpack_from(tail, at - _END_64_LOCATOR.size)
        # Something may have been put before the archive: then its end is where it is, whatever offsets say.
        for offset in (wide_offset, end - _END_64_LOCATOR.size - _END_64.size):
            block = pieces.pread(offset, _END_64.size) if 0 <= offset < end else b""
            if len(block) == _END_64.size and block.startswith(b"PK\x06\x06"):
                *_, table_bytes, table_offset = _END_64.unpack(block)
                end = offset
                break
    begin = end - table_bytes
    return (begin, end, begin - table_offset) if begin >= table_offset else None


def _read_table(pieces: Pieces, begin: int, end: int, shift: int) -> Iterator[ZipEntry]:
    block, at, position = b"", 0, begin
    while position < end or at < len(block):
        if position < end and len(block) - at < _MAX_ENTRY_BYTES:
            block, at = block[at:] + pieces.pread(position, min(_CHUNK_BYTES, end - position)), 0
            position = min(position + _CHUNK_BYTES, end)
        ends = [len(block) + 1]
        if len(block) - at >= _CENTRAL.size and block[at : at + 4] == b"PK\x01\x02":
            fields = _CENTRAL.unpack_from(block, at)
            _, made_by, _, flags, method, _, _, _, compressed, size, *lengths, _, _, attributes, offset = fields
            ends = list(accumulate(lengths, initial=at + _CENTRAL.size))
        if ends[-1] > len(block):
            raise ArchiveError(f"its table of members is damaged near byte {position - len(block) + at}")
        size, compressed, offset = _wide(block[ends[1] : ends[2]], size, compressed, offset)
        offset += shift
        earliest_end = offset + _LOCAL.size + lengths[0] + compressed
        mode = attributes >> 16 if made_by >> 8 == _UNIX else 0
        yield ZipEntry(_text(block[ends[0] : ends[1]]), offset, earliest_end, flags, method, compressed, size, mode)
        at = ends[-1]


def _wide(extra: bytes, *values: int) -> tuple[int, ...]:
    """Replace the values that do not fit into 32 bits by those of the extra field that has 64."""
    while len(extra) >= 4:
        kind, size_bytes = struct.unpack_from("<HH", extra)
        if kind == 1:
            body = extra[4 : 4 + size_bytes]
            wide = iter(value for (value,) in struct.iter_unpack("<Q", body[: len(body) // 8 * 8]))
            return tuple(next(wide, value) if value == _NONE_32 else value for value in values)
        extra = extra[4 + size_bytes :]
    return values


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("cp437")
