"""What the readers of tar and zip have in common: bytes by offset, rules for names, and the list of what was found."""

import io
import os
import re
import stat
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

# Why an entry of a folder or an archive is passed over.
APPLE_DOUBLE = "AppleDouble"
HIDDEN = "hidden"
UNSAFE_NAME = "unsafe name"
LINK = "link"
DEVICE = "device"
FIFO = "FIFO"
SPARSE = "sparse file"
FOLDER = "folder named as a file"
OTHER_TYPE = "no plain file"
DUPLICATE = "duplicate member"
CUT_SHORT = "cut short"
BAD_SIZE = "impossible size"
TOO_LARGE = "too large"

MAX_MEMBER_BYTES = 16 << 30
"""No clip or picture comes near; a member that claims more would only fill the disk of whoever reads it."""
MAX_MEMBERS = 10_000_000
"""Of one archive; eight times ImageNet. A few hundred megabytes of gzip can hold so many headers of nothing."""

_MAX_NAME = 4096
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_APPLE = frozenset({".DS_Store", "__MACOSX"})
_NO_UTF8 = re.compile(r"[\udc80-\udcff]|\\(?=x(?:[89a-f][0-9a-f]|5c))")
_ESCAPE = re.compile(r"\\x([89a-f][0-9a-f]|5c)")


class ArchiveError(Exception):
    """What is wrong with an archive or a member of it, in words that name no path."""


class Pieces:
    """Files, or ranges of files, that follow one another, read by offset as if they were one file.

    There is no position, so threads and forked processes may share it. The files are closed with the last reference.
    """

    def __init__(self, ranges: Sequence[tuple[str, int, int | None]]) -> None:
        """Open the files.

        Args:
            ranges: Path, first byte, and size in bytes; to the end of the file when None.

        Raises:
            OSError: A file cannot be opened.
            ArchiveError: It is no regular file.
        """
        self._open: dict[str, int] = {}
        self._pieces: list[tuple[int, int]] = []
        self.times_ns: list[int] = []
        """When each file was changed last."""
        sizes = []
        for path, start, size in ranges:
            if path not in self._open:
                # Opening a FIFO would wait for whoever writes to it.
                self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            found = os.fstat(self._open[path])
            if not stat.S_ISREG(found.st_mode):
                raise ArchiveError("not a regular file")
            self.times_ns.append(found.st_mtime_ns)
            self._pieces.append((self._open[path], start))
            sizes.append(found.st_size - start if size is None else size)
        self._ends = list(accumulate(sizes))
        self.size_bytes = self._ends[-1]

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for descriptor in self._open.values():
            close(descriptor)

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """Read from `offset`; fewer bytes than asked for mean the end."""
        parts = []
        while size_bytes > 0 and offset < self.size_bytes:
            number = bisect_right(self._ends, offset)
            begin = self._ends[number - 1] if number else 0
            descriptor, start = self._pieces[number]
            data = os.pread(descriptor, min(size_bytes, self._ends[number] - offset), start + offset - begin)
            if not data:
                break
            parts.append(data)
            offset += len(data)
            size_bytes -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield where each file begins and ends."""
        yield from pairwise([0, *self._ends])

    def reader(self) -> "PiecesReader":
        """Return a file object for libraries that want one."""
        return PiecesReader(self)


class PiecesReader(io.RawIOBase):
    """A read-only file object over `Pieces`, with a position of its own."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._position = 0

    def readable(self) -> bool:
        """See io."""
        return True

    def seekable(self) -> bool:
        """See io."""
        return True

    def tell(self) -> int:
        """See io."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._pieces.size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """See io."""
        data = self._pieces.pread(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@dataclass
class Listing:
    """The plain files in an archive, as columns: a million of them as objects would take a gigabyte."""

    names: list[str] = field(default_factory=list)
    """Tidied and escaped, relative to the archive."""
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    """First byte of the content in the decompressed archive; in a zip, of the member's own header."""
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    skipped: Counter[str] = field(default_factory=Counter)
    """Why other entries were passed over, to how many."""
    problem: str = ""
    """Why the archive could not be read to its end."""

    def take(self, raw_name: str, offset: int, size_bytes: int) -> None:
        """Add a plain file, unless its name or its size says that it should not be touched."""
        name = tidy_name(raw_name)
        reason = UNSAFE_NAME if name is None else reason_to_hide(name)
        if size_bytes > MAX_MEMBER_BYTES:
            reason = TOO_LARGE
        if name is None or reason:
            self.skipped[reason] += 1
        elif len(self.names) >= MAX_MEMBERS:
            raise ArchiveError(f"holds more than {MAX_MEMBERS} files")
        else:
            self.names.append(escape_name(name))
            self.offsets.append(offset)
            self.sizes.append(size_bytes)

    def forget_members(self) -> None:
        """Take back what has been listed: it cannot be read after all."""
        del self.names[:], self.offsets[:], self.sizes[:]

    def drop_duplicates(self) -> None:
        """Keep the last of the members that share a name, as unpacking would."""
        last = {name: position for position, name in enumerate(self.names)}
        num_dropped = len(self.names) - len(last)
        if num_dropped:
            self.skipped[DUPLICATE] += num_dropped
            kept = sorted(last.values())
            self.names = [self.names[position] for position in kept]
            self.offsets = array("q", (self.offsets[position] for position in kept))
            self.sizes = array("q", (self.sizes[position] for position in kept))


def tidy_name(raw: str) -> str | None:
    """Return a member's name without "./" and the like; None when no honest archive would hold it."""
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if raw.startswith("/") or not parts or ".." in parts or len(raw) > _MAX_NAME or _CONTROL.search(raw):
        return None
    return "/".join(parts)


def reason_to_hide(name: str) -> str:
    """Return why no one means an entry of this name as data, or nothing; `name` may be a path."""
    if not name.startswith((".", "__MACOSX")) and "/." not in name and "/__MACOSX" not in name:
        return ""
    parts = name.split("/")
    if any(part.startswith("._") or part in _APPLE for part in parts):
        return APPLE_DOUBLE
    return HIDDEN if any(part.startswith(".") for part in parts) else ""


def looks_like_a_file(name: str) -> bool:
    """Tell whether a folder has a file's name, so that someone may look for it in vain."""
    return bool(os.path.splitext(name.rstrip("/"))[1])


def escape_name(name: str) -> str:
    r"""Return a name that can be written down: bytes that are not UTF-8 become `\xff`, and nothing is lost.

    Only such names change, and those that would be taken for one that was changed.
    """
    if name.isascii() and "\\" not in name:
        return name
    return _NO_UTF8.sub(lambda match: "\\x5c" if match[0] == "\\" else f"\\x{ord(match[0]) - 0xDC00:02x}", name)


def unescape_name(name: str) -> str:
    """Return what `escape_name` was given, for the file system."""
    if "\\" not in name:
        return name
    return _ESCAPE.sub(lambda match: "\\" if match[1] == "5c" else chr(0xDC00 + int(match[1], 16)), name)
