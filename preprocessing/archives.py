"""Archives read in place: which there are in a folder, and any member's bytes without unpacking the rest.

Kinds are told by an archive's first bytes, as copies of Kinetics hold plain tars named .tar.gz. Something-Something's
`20bn-something-something-v2-00` … `-19` are pieces of one gzipped tar, and are also read where the download has left
them: in two zips that hold them just as they are.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from preprocessing.gzip_index import GZIP_MAGIC, inflated_chunks
from preprocessing.members import ArchiveError, Pieces
from preprocessing.tar_members import BLOCK, check_member, looks_like_tar, plain_chunks
from preprocessing.zip_members import ZIP_MAGICS, zip_chunks, zip_data_offset, zip_entries
from vast.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")

SAME_PARTS = "zip of parts that are there unzipped"

Kind = Literal["tar", "tar.gz", "zip"]

_PART = re.compile(r"(20bn-[\w-]+-v\d+)-(\d\d)", re.ASCII)
_PART_ZIP = re.compile(_PART.pattern + r"\.zip", re.ASCII)
_IN_ZIP = re.compile(r"(.+?\.zip)/(.+)", re.S)
_OTHERS = {
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
}


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar, a gzipped tar or a zip, whole or cut into parts that follow one another."""

    paths: tuple[str, ...]
    """Absolute paths of the parts, in order; a part that lies in a zip has the zip's path and its name there."""
    kind: Kind
    scan: str = ""
    """URL of the file that lets a reader jump into a gzipped tar; empty where none is needed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an archive is said to be, before anyone has looked into it."""

    source_name: str
    """Its path relative to the folder that was listed; for parts with ?? instead of their numbers."""
    paths: tuple[str, ...]
    """See `Archive`."""


def is_archive_name(name: str) -> bool:
    """Tell whether a file's name says that it is an archive or a part of one; what it is, its bytes will say."""
    return name.lower().endswith(SUFFIXES) or bool(_PART.fullmatch(os.path.basename(name)))


def set_of(name: str) -> str:
    """Return the name of the archive that a file is a part of, or a zip of parts; nothing for other files."""
    match = _PART.fullmatch(name) or _PART_ZIP.fullmatch(name)
    return match[1] if match else ""


def find_archives(candidates: Iterable[tuple[str, str]], skipped: Counter[str]) -> list[Place]:
    """Put the parts of archives together.

    Args:
        candidates: Source name and path of each file that may be an archive or a part of one.
        skipped: Counts what is passed over.

    Raises:
        UserError: A part is missing, is there twice, or is compressed once more in a zip.
    """
    places = []
    sets: dict[str, dict[int, list[Place]]] = defaultdict(lambda: defaultdict(list))
    zips: list[tuple[Place, list[tuple[str, int, str]]]] = []
    for source_name, path in sorted(candidates):
        place = Place(source_name, (path,))
        if part := _PART.fullmatch(os.path.basename(path)):
            sets[part[1]][int(part[2])].append(place)
        elif parts := _parts_in_zip(source_name, path):
            zips.append((place, parts))
        else:
            places.append(place)
    unzipped = {(name, number) for name, numbers in sets.items() for number in numbers}
    for place, parts in zips:
        needed = [part for part in parts if part[:2] not in unzipped]
        for name, number, member in needed:
            sets[name][number].append(Place(place.source_name, (f"{place.paths[0]}/{member}",)))
        skipped[SAME_PARTS] += not needed
    return places + [_whole_set(name, numbers) for name, numbers in sorted(sets.items())]


def open_archive(paths: tuple[str, ...]) -> Pieces:
    """Open an archive's files; a process keeps the last few archives open.

    Raises:
        OSError: A file cannot be opened.
        ArchiveError: A zip no longer holds the part that it held.
    """
    # Of a file that has been replaced, the open one would go on to show the old content.
    found = [os.stat(zip_path or path) for path, zip_path in zip(paths, map(_zip_of, paths), strict=True)]
    return _open(paths, tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found))


def kind_of(pieces: Pieces) -> Kind:
    """Tell by its first bytes what an archive is.

    Raises:
        ArchiveError: It is none that can be read.
    """
    head = pieces.pread(0, BLOCK)
    if head.startswith(GZIP_MAGIC):
        return "tar.gz"
    if head.startswith(ZIP_MAGICS):
        return "zip"
    if looks_like_tar(head):
        return "tar"
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise ArchiveError(f"compressed with {name}, which cannot be read in place; unpack it, or make a tar of it")
    raise ArchiveError(f"no tar, gzip or zip archive; it begins with {head[:16]!r}" if head else "empty")


def member_chunks(archive: Archive, offset: int, size_bytes: int) -> Iterator[bytes]:
    """Yield the content of a member, with its offset and size as they were listed.

    In a plain tar that is a seek and a read. In a gzipped one, half the spacing of the seek index is inflated first.

    Raises:
        ArchiveError: The member is damaged, or the archive is no longer the one that was listed.
        OSError: The archive cannot be read.
        StoreError: The seek index cannot be read.
    """
    pieces = open_archive(archive.paths)
    if archive.kind == "zip":
        return zip_chunks(pieces, offset, size_bytes)
    # The member's header comes along, as proof that the archive still holds it there.
    begin, length = offset - BLOCK, size_bytes + BLOCK
    if archive.kind == "tar":
        return check_member(plain_chunks(pieces, begin, length), size_bytes)
    return check_member(inflated_chunks(pieces, archive.scan, begin, length), size_bytes)


@lru_cache(maxsize=16)
def _open(paths: tuple[str, ...], identity: tuple[tuple[int, ...], ...]) -> Pieces:
    ranges: list[tuple[str, int, int | None]] = []
    for path in paths:
        if zip_path := _zip_of(path):
            ranges.append((zip_path, *_range_in_zip(zip_path, path.removeprefix(f"{zip_path}/"))))
        else:
            ranges.append((path, 0, None))
    return Pieces(ranges)


def _zip_of(path: str) -> str:
    """Return the zip in which a part lies, or nothing for a file of its own."""
    match = _IN_ZIP.fullmatch(path) if _PART.fullmatch(os.path.basename(path)) else None
    return match[1] if match and os.path.isfile(match[1]) else ""


def _range_in_zip(path: str, member: str) -> tuple[int, int]:
    pieces = Pieces([(path, 0, None)])
    entries = [entry for entry in zip_entries(pieces) if entry.name == member and entry.is_stored()]
    if not entries:
        raise ArchiveError("the zip no longer holds the part that it held")
    return zip_data_offset(pieces, entries[-1].offset), entries[-1].size_bytes


def _parts_in_zip(source_name: str, path: str) -> list[tuple[str, int, str]]:
    """Return set, number and name of the parts that a zip holds; most zips hold none, and are not read for that."""
    try:
        pieces = Pieces([(path, 0, None)])
        if not pieces.pread(0, 4).startswith(ZIP_MAGICS):
            return []
        first = next(zip_entries(pieces), None)
        names = [os.path.basename(path), os.path.basename(first.name) if first else ""]
        if not any(_PART.match(name) for name in names):
            return []
        return _parts_among(source_name, pieces)
    except (ArchiveError, OSError):
        return []  # whoever lists its members will say what is wrong with it


def _parts_among(source_name: str, pieces: Pieces) -> list[tuple[str, int, str]]:
    parts = []
    for entry in zip_entries(pieces):
        if part := _PART.fullmatch(os.path.basename(entry.name)):
            if not entry.is_stored():
                raise UserError(
                    f"{source_name} holds {part[0]} compressed once more, which cannot be read in place; "
                    f"unzip {source_name} once, and leave the parts in it as they are"
                )
            parts.append((part[1], int(part[2]), entry.name))
    return parts


def _whole_set(name: str, numbers: Mapping[int, Sequence[Place]]) -> Place:
    for number in range(max(numbers) + 1):
        if number not in numbers:
            around = f"between -{number - 1:02d} and -{max(numbers):02d}" if number else f"before -{min(numbers):02d}"
            raise UserError(
                f"part {name}-{number:02d} is missing {around}; download it, or take the other parts out of the folder"
            )
        if len(places := numbers[number]) > 1:
            found = " and ".join(place.source_name for place in places)
            raise UserError(f"part {name}-{number:02d} is there more than once: {found}; keep one of them")
    folder = os.path.dirname(numbers[0][0].source_name)
    ordered = tuple(numbers[number][0].paths[0] for number in sorted(numbers))
    return Place(os.path.join(folder, f"{name}-??"), ordered)
