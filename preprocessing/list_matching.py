"""Which video a row of a list means.

Paths are those of another machine, so a row finds its video by file name and, among several of one name, by the folders
that both paths end with.
"""

import functools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from preprocessing.list_lines import Label, Row, has_suffix, splits_in
from preprocessing.matching import ARCHIVE_SUFFIX, several_files
from preprocessing.records import AMBIGUOUS, CONFLICT, DUPLICATE, MISSING, Failure, Record, SampleKeys, spaced
from preprocessing.sources import VIDEO_SUFFIXES, VideoFile

_WINDOWS = re.compile(r"(?:[A-Za-z]:|\.)\\")
_KINETICS_CLIP = re.compile(r"[A-Za-z0-9_-]{11}_\d{6}_\d{6}")


@dataclass
class Finds:
    """The videos that were found for rows."""

    found: dict[tuple[str, str], Sequence[VideoFile]]
    """Split and path to the files that may be meant."""
    rivals: dict[tuple[str, str], str] = field(default_factory=dict)
    """Split and path to another path that leads to the same file, and no less well."""
    notes: list[str] = field(default_factory=list)

    def file(self, row: Row) -> VideoFile | None:
        """Return the one file that a line means."""
        found = self.found[row.place]
        return found[0] if len(found) == 1 and row.place not in self.rivals else None


class Finder:
    """Videos by the names that lists have for them."""

    def __init__(self, files: Iterable[VideoFile]) -> None:
        self._by_stem: dict[str, list[VideoFile]] = defaultdict(list)
        self._by_folder: dict[str, dict[str, list[VideoFile]]] = {}
        for file in files:
            self._by_stem[file.stem].append(file)

    @functools.cached_property
    def _by_youtube_id(self) -> dict[str, list[VideoFile]]:
        found: dict[str, list[VideoFile]] = defaultdict(list)
        for stem, files in self._by_stem.items():
            if _KINETICS_CLIP.fullmatch(stem):
                found[stem[:11]] += files
        return found

    def find_all(self, rows: Iterable[Row]) -> Finds:
        """Find the videos of all rows at once, so that no two paths get the same file unless they may be one path."""
        finds = Finds({})
        owners: dict[str, tuple[str, str]] = {}
        contested: dict[str, list[tuple[str, str]]] = defaultdict(list)
        num_renamed = 0
        for place in dict.fromkeys(row.place for row in rows):
            found = finds.found[place] = self._find(*place)
            if len(found) == 1:
                name = found[0].source_name
                owner = owners.setdefault(name, place)
                if not _is_same(owner[1], place[1]):
                    contested[name].append(place)
                num_renamed += name.rpartition("/")[2] != place[1].rpartition("/")[2] and has_suffix(place[1])
        for name, places in contested.items():
            # Two videos of one name in two folders, of which one is missing, must not get the same file.
            claims = [(_closeness(path, name), path, split) for split, path in (owners[name], *places)]
            best, winner, its_split = max(claims)
            for closeness, path, split in claims:
                if not _is_same(path, winner):
                    finds.rivals[split, path] = winner
                    if closeness == best:
                        finds.rivals[its_split, winner] = path
        if num_renamed:
            finds.notes.append(f"{spaced(num_renamed)} paths of the lists mean files of another name or suffix")
        return finds

    def _find(self, split: str, path: str) -> Sequence[VideoFile]:
        parts = path_parts(path)
        stem = _stem(parts[-1])
        found = self._by_stem.get(stem, [])
        if not found and _KINETICS_CLIP.fullmatch(stem):
            found = self._by_stem.get(stem[:11], [])
        if not found and len(stem) == 11:
            found = self._by_youtube_id.get(stem, [])
        if len(found) < 2:
            return found
        if stem not in self._by_folder:
            folders = self._by_folder[stem] = defaultdict(list)
            for file in found:
                folders["/".join(path_parts(file.source_name)[-2:-1])].append(file)
        found = self._by_folder[stem].get("/".join(parts[-2:-1]), found)
        best = max(_closeness(path, file.source_name) for file in found)
        found = [file for file in found if _closeness(path, file.source_name) == best]
        found = [file for file in found if file.source_name == path] or found
        # Lists of some toolboxes are relative to a folder of their split, such as videos_train.
        return [file for file in found if split in splits_in(file.source_name.rpartition("/")[0])] or found


def match_rows(
    rows: Sequence[Row], finds: Finds, ids: Mapping[Label, int], name: str
) -> tuple[list[Record], list[Failure]]:
    """Make each row a record, or a failure where it has no video of its own or its video has several labels.

    Args:
        rows: Those of the splits to be read.
        finds: What a finder has found for them.
        ids: What the lists say to label ids.
        name: Beginning of every key.
    """
    keys = SampleKeys(name)
    files = [finds.file(row) for row in rows]
    source_ids = SourceIds((row.split, file) for row, file in zip(rows, files, strict=True) if file is not None)
    conflicts = _conflicts(rows, files, ids)
    first: dict[str, dict[str, tuple[Row, str]]] = defaultdict(dict)
    records, failures = [], []
    for row, file in zip(rows, files, strict=True):
        if file is None:
            stem = _stem(path_parts(row.path)[-1])
            key = keys.make(row.split, stem, row.path)
            failures.append(Failure(key, row.split, _youtube_id(stem) or stem, "", "match", *_why_not(row, finds)))
            continue
        if file.source_name not in first[row.split]:
            first[row.split][file.source_name] = (row, keys.make(row.split, file.stem, file.source_name))
        earlier, key = first[row.split][file.source_name]
        place = (key, row.split, source_ids.of(file), file.source_name)
        if several := conflicts.get((row.split, file.source_name)):
            detail = f"{row.line} gives label {row.label!r}; the lines of this video give {len(several)} labels"
            failures.append(Failure(*place, "match", CONFLICT, detail))
        elif earlier is not row:
            failures.append(Failure(*place, "match", DUPLICATE, f"{row.line} repeats {earlier.line}"))
        else:
            records.append(Record(key, row.split, place[2], ids[row.label], file))
    return records, failures


def _conflicts(
    rows: Iterable[Row], files: Iterable[VideoFile | None], ids: Mapping[Label, int]
) -> dict[tuple[str, str], set[int]]:
    """Return the labels of videos that have several, by split and source name."""
    labels: dict[str, dict[str, int]] = defaultdict(dict)
    conflicts: dict[tuple[str, str], set[int]] = {}
    for row, file in zip(rows, files, strict=True):
        if file is not None:
            label = labels[row.split].setdefault(file.source_name, ids[row.label])
            if label != ids[row.label]:
                conflicts.setdefault((row.split, file.source_name), {label}).add(ids[row.label])
    return conflicts


def _why_not(row: Row, finds: Finds) -> tuple[str, str]:
    found = finds.found[row.place]
    if not found:
        return MISSING, f"no video is called {path_parts(row.path)[-1]}"
    if len(found) > 1:
        return AMBIGUOUS, several_files(found)
    return AMBIGUOUS, f"{row.path} and {finds.rivals[row.place]} of the lists both lead to {found[0].source_name}"


class SourceIds:
    """Source ids: Kinetics' id, or the stem, or the whole path where stems are mere numbers in a folder.

    Stems are what data sets have in common, so that a video that is in two of them is found out.
    """

    def __init__(self, files: Iterable[tuple[str, VideoFile]]) -> None:
        names: dict[str, dict[str, str]] = defaultdict(dict)
        self._by_stem = all(
            names[split].setdefault(file.stem, file.source_name) == file.source_name for split, file in files
        )

    def of(self, file: VideoFile) -> str:
        """Return the source id of one of the files."""
        return _youtube_id(file.stem) or (file.stem if self._by_stem else os.path.splitext(file.source_name)[0])


def _youtube_id(stem: str) -> str:
    """Return the id in a name as Kinetics gives its clips, which several clips share; empty for another name."""
    return stem[:11] if _KINETICS_CLIP.fullmatch(stem) else ""


def shared_notes(records: Iterable[Record]) -> list[str]:
    """Say which splits share videos: a model is then scored on what it was trained on."""
    names: dict[str, set[str]] = defaultdict(set)
    for record in records:
        names[record.split].add(record.source_name)
    splits = list(names)
    notes = []
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            if shared := len(names[one] & names[other]):
                same = " (they are the same list)" if names[one] == names[other] else ""
                notes.append(f"{one} and {other} share {spaced(shared)} videos{same}")
    return notes


def path_parts(path: str) -> tuple[str, ...]:
    """Return the parts of a path as copies have them in common: archives count as folders, "_" as a space."""
    if _WINDOWS.match(path):
        path = path.replace("\\", "/")
    folder, _, name = path.rpartition("/")
    return (*_folders(folder), name)


@functools.lru_cache(maxsize=100_000)
def _folders(folder: str) -> tuple[str, ...]:
    parts = (part for part in folder.split("/") if part not in ("", "."))
    return tuple(ARCHIVE_SUFFIX.sub("", part).replace("_", " ") for part in parts)


def _closeness(path: str, source_name: str) -> tuple[int, bool]:
    """Return in how many parts a path of a list and a file's end alike, and whether in the whole name."""
    parts, others = path_parts(path), path_parts(source_name)
    return _num_common(parts, others), parts[-1] == others[-1]


def _num_common(one: Sequence[str], other: Sequence[str]) -> int:
    num = 1
    for mine, theirs in zip(reversed(one[:-1]), reversed(other[:-1]), strict=False):
        if mine != theirs:
            break
        num += 1
    return num


def _is_same(one: str, other: str) -> bool:
    """Tell whether two paths may be one, written in full and from some folder on."""
    if one == other:
        return True
    parts, others = path_parts(one), path_parts(other)
    return parts[-1] == others[-1] and _num_common(parts, others) == min(len(parts), len(others))


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name
