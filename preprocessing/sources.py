"""The raw files of a data set: plain files of a folder and members of the archives in it, listed once and in order."""

import contextlib
import heapq
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from preprocessing.archives import (
    Archive,
    find_archives,
    is_archive_name,
    kind_of,
    member_chunks,
    open_archive,
    set_of,
)
from preprocessing.members import ArchiveError, escape_name, reason_to_hide, unescape_name
from preprocessing.scans import Progress, scan_archives
from vast.errors import StoreError, UserError

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Archive",
    "Progress",
    "SourceError",
    "Sources",
    "VideoFile",
    "list_sources",
    "local_file",
]

VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v"})
IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})

NO_MEDIA = "not a media file"
NESTED = "archive in an archive"
LOOP = "link to a folder around it"
LISTED = "linked folder that is listed already"
NO_FILE = "not a file"

MISSING = "missing"
UNREADABLE = "unreadable"
EMPTY = "empty"

_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video or picture as it was published: a file of the folder, or a member of an archive there."""

    folder: str
    """Absolute path of the folder that was listed, the same on every node that encodes."""
    source_name: str
    r"""Path relative to that folder, what is written down; a member's is `<archive>/<member>`. Bytes that are not UTF-8
    are written as `\xff`."""
    size_bytes: int
    archive: Archive | None = None
    offset: int = 0
    """First byte of a member's content in its archive, decompressed; in a zip, of the member's own header."""

    @property
    def path(self) -> str:
        """Absolute path of a plain file."""
        return os.path.join(self.folder, unescape_name(self.source_name))

    @property
    def stem(self) -> str:
        """File name without folders and suffix."""
        return os.path.splitext(self.source_name.rpartition("/")[2])[0]


@dataclass(frozen=True)
class Sources:
    """What a folder of raw files holds."""

    files: tuple[VideoFile, ...]
    """Sorted by source name."""
    skipped: Mapping[str, int]
    """Why other entries were passed over, to how many: "AppleDouble", "not a media file", "unsafe name" …"""
    problems: tuple[str, ...] = ()
    """Archives that could not be read to their end, and folders that could not be listed, one sentence each."""


class SourceError(Exception):
    """A raw file cannot be given to a decoder."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        """A few plain words, the same for all failures of a kind."""
        self.detail = detail
        """What was found; names no path of the machine."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def list_sources(
    folder: str | os.PathLike[str],
    *,
    suffixes: frozenset[str] = VIDEO_SUFFIXES,
    scans: str | None = None,
    on_progress: Progress | None = None,
) -> Sources:
    """List a folder of raw files, archives in it included; nothing is opened but the archives.

    Links are followed, but no folder is listed twice. A million files take some seconds and about 250 MB.

    Args:
        folder: The folder, or a single archive.
        suffixes: Of the files that count, in lower case.
        scans: URL of a store, a local folder or s3://, where lists and seek indexes of archives are kept and looked
            for, so that the next call need not read the archives again; see `scans.delete_scans`. On a cluster all
            nodes must see it. None for a temporary folder of this process.
        on_progress: See `Progress`.

    Raises:
        UserError: There is no such folder, or a part of a divided archive is missing.
        StoreError: The store of the scans failed.
    """
    root = Path(folder).expanduser().absolute()
    walk = _Walk(str(root if root.is_dir() else root.parent), suffixes)
    if root.is_dir():
        walk.run()
    else:
        walk.archives = _lone_archive(root, folder)
    places = find_archives(walk.archives, walk.skipped)
    for place, scan in zip(places, scan_archives(places, scans, on_progress), strict=True):
        listing = scan.listing
        walk.skipped += listing.skipped
        if listing.problem:
            used = f"; the {len(listing.names)} files before that are used" if listing.names else ""
            walk.problems.append(f"{place.source_name}: {listing.problem}{used}")
        for name, offset, size_bytes in zip(listing.names, listing.offsets, listing.sizes, strict=True):
            if walk.is_media(name):
                source_name = f"{place.source_name}/{name}"
                walk.files.append(VideoFile(walk.root, source_name, size_bytes, scan.archive, offset))
            else:
                walk.skipped[NESTED if is_archive_name(name) else NO_MEDIA] += 1
    walk.files.sort(key=attrgetter("source_name"))
    return Sources(tuple(walk.files), dict(walk.skipped), tuple(sorted(walk.problems)))


class _Walk:
    """A walk over a folder and what it has met."""

    def __init__(self, root: str, suffixes: frozenset[str]) -> None:
        self.root = root
        self.files: list[VideoFile] = []
        self.archives: list[tuple[str, str]] = []
        self.skipped: Counter[str] = Counter()
        self.problems: list[str] = []
        self._suffixes = tuple(suffixes)
        self._listed: set[tuple[int, int]] = set()
        self._links: list[tuple[str, str]] = []

    def is_media(self, name: str) -> bool:
        """Tell by its suffix whether a file counts."""
        return name.lower().endswith(self._suffixes)

    def run(self) -> None:
        """List the folder and all below, folders that are really there before those that are linked.

        So a folder is listed under its own name if it has one here, and otherwise under the first of its links.
        """
        self._list_below("", self.root)
        while self._links:
            prefix, path = heapq.heappop(self._links)
            target, place = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
            if os.path.commonpath([target, place]) == target:
                self.skipped[LOOP] += 1
            else:
                self._list_below(prefix, path)

    def _list_below(self, prefix: str, path: str) -> None:
        pending = [(prefix, path)]
        while pending:
            prefix, path = pending.pop()
            try:
                found = os.stat(path)
                if (found.st_dev, found.st_ino) in self._listed:
                    self.skipped[LISTED] += 1
                    continue
                self._listed.add((found.st_dev, found.st_ino))
                with os.scandir(path) as entries:
                    for entry in entries:
                        pending += self._meet(prefix, entry)
            except OSError as error:
                if not prefix:
                    raise UserError(f"{self.root} cannot be listed: {error.strerror}") from None
                self.problems.append(f"{prefix}: cannot be listed: {error.strerror}")

    def _meet(self, prefix: str, entry: "os.DirEntry[str]") -> list[tuple[str, str]]:
        """Take in an entry of a folder; return it if it is a folder to be listed now."""
        name = entry.name
        if reason := reason_to_hide(name):
            self.skipped[reason] += 1
        elif entry.is_dir(follow_symlinks=False):
            return [(f"{prefix}{escape_name(name)}/", entry.path)]
        elif entry.is_symlink() and os.path.isdir(entry.path):
            heapq.heappush(self._links, (f"{prefix}{escape_name(name)}/", entry.path))
        elif self.is_media(name):
            # Also what is no file at all: if a record asks for it, its failure then says what it is.
            self.files.append(VideoFile(self.root, prefix + escape_name(name), _size_bytes(entry)))
        elif not is_archive_name(name):
            self.skipped[NO_MEDIA] += 1
        elif os.path.isfile(entry.path):
            self.archives.append((prefix + escape_name(name), entry.path))
        else:
            self.skipped[NO_FILE] += 1
        return []


def _size_bytes(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0  # a link to nothing, or to itself


def _lone_archive(path: Path, given: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return the files of the archive that `path` is, or is a part of."""
    try:
        kind_of(open_archive((str(path),)))
    except FileNotFoundError:
        raise UserError(f"{given} does not exist; expected a folder of videos or an archive of them") from None
    except OSError as error:
        raise UserError(f"{given} cannot be read: {error.strerror}") from None
    except ArchiveError as error:
        if not set_of(path.name):
            raise UserError(f"{given} is neither a folder of videos nor an archive of them: {error}") from None
    name = set_of(path.name)
    parts = [each for each in path.parent.iterdir() if set_of(each.name) == name and each.is_file()] if name else [path]
    return [(escape_name(part.name), str(part)) for part in parts]


@contextlib.contextmanager
def local_file(file: VideoFile, scratch: Path) -> Iterator[str]:
    """Give the absolute path of a plain file with the content of `file`, for as long as the `with` block runs.

    A plain file is given itself. A member's bytes go to one file in `scratch`, under a name of ours, as they are read.

    Args:
        file: A file that `list_sources` has found.
        scratch: An existing folder for temporary files.

    Raises:
        SourceError: The file is missing, empty, unreadable or no file at all.
        StoreError: The archive's seek index cannot be read.
        UserError: `scratch` does not take the content.
    """
    if file.archive is None:
        yield _checked(file.path)
        return
    if not file.size_bytes:
        raise SourceError(EMPTY, "0 bytes")
    with _in_scratch(scratch):
        descriptor, path = tempfile.mkstemp(prefix="member-", dir=scratch)
    try:
        try:
            for chunk in _chunks(file.archive, file):
                with _in_scratch(scratch):
                    while chunk:
                        chunk = chunk[os.write(descriptor, chunk) :]
        finally:
            os.close(descriptor)
        yield path
    finally:
        os.unlink(path)


def _checked(path: str) -> str:
    """Return the path of a regular file with something in it; nothing else is ever opened."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise SourceError(NO_FILE, f"it is a {_KINDS.get(stat.S_IFMT(found.st_mode), 'special file')}")
        if not found.st_size:
            raise SourceError(EMPTY, "0 bytes")
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(MISSING, "the file, or what it is a link to, is not there") from None
    except OSError as error:
        raise SourceError(UNREADABLE, error.strerror or "it cannot be opened") from None
    return path


def _chunks(archive: Archive, file: VideoFile) -> Iterator[bytes]:
    try:
        yield from member_chunks(archive, file.offset, file.size_bytes)
    except StoreError:
        raise
    except FileNotFoundError:
        raise SourceError(MISSING, "its archive is no longer there") from None
    except OSError as error:
        raise SourceError(UNREADABLE, error.strerror or "its archive cannot be read") from None
    except ArchiveError as error:
        raise SourceError(UNREADABLE, str(error)) from None


@contextlib.contextmanager
def _in_scratch(scratch: Path) -> Iterator[None]:
    """Tell a full disk from a bad archive: it is no record's fault."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--scratch: cannot write to {scratch}: {error.strerror}") from error
