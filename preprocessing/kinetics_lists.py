"""Kinetics' annotation lists, in every format they come in, as columns of clips.

The releases differ in their columns, so these are found by header name; lists without a header (K600's `train.txt`)
are found out by what their columns hold.
"""

import csv
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from preprocessing.class_lists import ClassList, lists_with, unknown_label
from preprocessing.records import MAX_PROBLEMS, raise_problems, read_json, spaced, text_lines
from vast.dataset_format import UNLABELLED
from vast.errors import UserError

# Our split name to those of files and of the column `split`: DeepMind's archives say "validate", CVDF's mirror "val".
SPLIT_NAMES = {"train": ("train",), "val": ("val", "validate", "validation"), "test": ("test",)}
REQUIRED_COLUMNS = ("youtube_id", "time_start", "time_end")

# An id has 11 characters and may itself hold "_" or begin with "-".
VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{11}")
CLIP_NAME = re.compile(r"([A-Za-z0-9_-]{11})_(\d{1,9})(?:_(\d{1,9}))?", re.ASCII)

MAX_TIME_S = 999_999
"""File names hold six digits; the largest start in the published lists is 23 770."""

_LIST_FILE = re.compile(
    r"(?:k(?:inetics)?[-_]?(?P<number>\d{3})?(?:[-_]2020)?[-_])?(?P<split>[a-z]+)\.(?P<suffix>csv|json|txt)", re.I
)
_DELIMITERS = ",\t;"
_NUM_SNIFFED = 20

_RawRow = tuple[int, str, str, str, str, str]
"""Line, id, start, end, label, split, as they are written."""


@dataclass(frozen=True)
class ClipList:
    """The lines of one split, as columns: a million objects beside the records would be too many."""

    split: str
    path: Path
    ids: list[str] = field(default_factory=list)
    starts_s: list[int] = field(default_factory=list)
    ends_s: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    """Label ids, or `UNLABELLED` where the list has no labels at all."""
    is_labelled: bool = True
    notes: list[str] = field(default_factory=list)


def find_list(folder: Path, split: str, version: str) -> tuple[Path, list[str]]:
    """Return the file that lists a split, and notes about the choice.

    A CSV is preferred to DeepMind's JSON, which is keyed by the id alone and so cannot hold two clips of a video. Of
    Kinetics-600's, the .txt is preferred: the mirror marks its CSVs as incomplete.

    Raises:
        UserError: There is no such split or file, or more than one file of a kind.
    """
    if split not in SPLIT_NAMES:
        raise UserError(f"Kinetics has no split {split!r}; it has {', '.join(SPLIT_NAMES)}")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of annotation files")
    found: dict[str, list[Path]] = {}
    others: list[str] = []
    for path in sorted(folder.iterdir()):
        match = _LIST_FILE.fullmatch(path.name)
        if match is None or match["split"].lower() not in SPLIT_NAMES[split] or not path.is_file():
            continue
        if match["number"] in (None, version[-3:]):
            found.setdefault(match["suffix"].lower(), []).append(path)
        else:
            others.append(path.name)
    order = ("txt", "csv", "json") if version == "kinetics600" else ("csv", "json", "txt")
    chosen = next((found[suffix] for suffix in order if suffix in found), [])
    if not chosen:
        names = ", ".join([f"{name}.csv" for name in SPLIT_NAMES[split]] + [f"kinetics-{version[-3:]}_{split}.csv"])
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        hint = f"{', '.join(others)} is of another version; " if others else ""
        raise UserError(f"{folder} has no list of the split {split!r} ({names}); {hint}it holds {there}")
    if len(chosen) > 1:
        raise UserError(f"{folder} has both {' and '.join(path.name for path in chosen)}; keep the one to be used")
    if chosen[0].suffix.lower() == ".txt" and "csv" in found:
        csvs = ", ".join(path.name for path in found["csv"])
        return chosen[0], [f"{split}: {chosen[0].name} is read and {csvs} is not: the mirror marks it as incomplete"]
    return chosen[0], []


def read_clip_list(path: Path, split: str, classes: ClassList) -> ClipList:
    """Read a list, whatever its format.

    Raises:
        UserError: It cannot be read, has no such columns, a line is malformed, or a label is not in `classes`.
    """
    try:
        is_labelled, rows = _json_rows(path) if path.suffix.lower() == ".json" else _text_rows(path, classes)
        return _collect(ClipList(split, path, is_labelled=is_labelled), rows, classes)
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}; is a quote left open?") from error


def _collect(clips: ClipList, rows: Iterable[_RawRow], classes: ClassList) -> ClipList:
    problems: list[str] = []
    labels = _Labels(classes)
    seconds = lru_cache(maxsize=1 << 16)(_seconds)  # also lets equal times share one object
    splits: Counter[str] = Counter()
    num_empty = 0
    word = "entry" if clips.path.suffix.lower() == ".json" else "line"
    for number, video_id, start, end, label, named_split in rows:
        place = f"{word} {number}"
        if max(len(problems), len(labels.unknown)) >= MAX_PROBLEMS:
            break
        try:
            start_s, end_s = seconds(start), seconds(end)
        except ValueError:
            problems.append(f"{place}: time_start, time_end are {start[:40]!r}, {end[:40]!r}; expected seconds")
            continue
        if not VIDEO_ID.fullmatch(video_id):
            problems.append(f"{place}: {_bad_id(video_id)}")
        if not 0 <= start_s < end_s <= MAX_TIME_S:
            problems.append(f"{place}: time_start {start_s}, time_end {end_s}; expected 0 <= start < end")
        if clips.is_labelled and not label:
            num_empty += 1
            if clips.split != "test":
                problems.append(f"{place}: the label is empty")
        splits[named_split if len(splits) < MAX_PROBLEMS else ""] += 1
        clips.ids.append(video_id)
        clips.starts_s.append(start_s)
        clips.ends_s.append(end_s)
        clips.labels.append(labels.get(label, place) if clips.is_labelled else UNLABELLED)
    if 0 < num_empty < len(clips.ids) and not problems:
        problems.append(f"{num_empty} of {len(clips.ids)} labels are empty; expected all or none")
    raise_problems(str(clips.path), problems)
    labels.raise_unknown(clips.path)
    clips.notes.extend(_split_notes(clips, splits))
    return replace(clips, is_labelled=clips.is_labelled and num_empty == 0)


class _Labels:
    """Label ids by what lists write; a class list's `find` for a million lines."""

    def __init__(self, classes: ClassList) -> None:
        self._classes = classes
        self._ids: dict[str, int] = {"": UNLABELLED}
        self.unknown: dict[str, str] = {}

    def get(self, label: str, place: str) -> int:
        label_id = self._ids.get(label)
        if label_id is None:
            found = self._classes.find(label)
            if found is None:
                self.unknown.setdefault(label, place)
                return UNLABELLED
            label_id = self._ids[label] = found
        return label_id

    def raise_unknown(self, path: Path) -> None:
        if not self.unknown:
            return
        problems = [f"{place}: label {unknown_label(label, self._classes)}" for label, place in self.unknown.items()]
        others = [name for name in lists_with(list(self.unknown)) if name != self._classes.name]
        if others:
            problems.insert(0, f"all {len(self.unknown)} unknown labels are classes of {' and '.join(others)}")
        raise_problems(str(path), problems)


def _seconds(text: str) -> int:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return int(value)


def _bad_id(text: str) -> str:
    hint = "; a spreadsheet has rewritten it" if text[:1] in ("#", "=", "'") else ""
    return f"youtube_id is {text[:80]!r}; expected 11 of A-Z a-z 0-9 _ -{hint}"


def _split_notes(clips: ClipList, splits: Counter[str]) -> list[str]:
    others = {name: count for name, count in splits.items() if name and name.lower() not in SPLIT_NAMES[clips.split]}
    said = ", ".join(f"{name[:40]!r} {spaced(count)}" for name, count in sorted(others.items())[:5])
    return [f"{clips.split}: lines of {clips.path.name} say that they are of another split: {said}"] if said else []


# --- text -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Where in a row things are; `clip` is a file name that holds id, start and end."""

    video_id: int | None = None
    start: int | None = None
    end: int | None = None
    label: int | None = None
    split: int | None = None
    clip: int | None = None


def _text_rows(path: Path, classes: ClassList) -> tuple[bool, Iterator[_RawRow]]:
    lines = text_lines(path)
    head = list(itertools.islice(lines, _NUM_SNIFFED))
    columns, delimiter, has_header = _sniff(path, head, classes)
    reader = csv.reader(itertools.chain(head, lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    if has_header:
        next(row for row in reader if any(row))
    if columns.clip is None:
        return columns.label is not None, _delimited(reader, columns)
    names = [_cells(line, delimiter)[columns.clip] for line in head if line.strip()]
    is_labelled = columns.label is not None or any(_folder_label(name, classes) for name in names)
    return is_labelled, _named(reader, columns, classes)


def _delimited(reader: Any, columns: _Columns) -> Iterator[_RawRow]:
    wanted = (columns.video_id, columns.start, columns.end, columns.label, columns.split)
    video_id, start, end, label, split = (-1 if column is None else column for column in wanted)
    for cells in reader:
        if not any(cells):
            continue
        cells.append("")  # what an absent column holds
        try:
            row = (cells[video_id].strip(), cells[start], cells[end], cells[label].strip(), cells[split].strip())
        except IndexError:
            row = ("", "", "", "", "")
        yield (reader.line_num, *row)


def _named(reader: Any, columns: _Columns, classes: ClassList) -> Iterator[_RawRow]:
    clip = columns.clip or 0
    for cells in reader:
        if not any(cells):
            continue
        name = cells[clip] if clip < len(cells) else ""
        match = CLIP_NAME.fullmatch(PurePosixPath(name.strip()).stem)
        label = cells[columns.label].strip() if columns.label is not None else _folder_label(name, classes)
        yield (reader.line_num, *(match.groups("") if match else (name, "", "")), label, "")


def _folder_label(name: str, classes: ClassList) -> str:
    folder = PurePosixPath(name.strip()).parent.name
    return folder if classes.find(folder) is not None else ""


def _sniff(path: Path, head: Sequence[str], classes: ClassList) -> tuple[_Columns, str, bool]:
    """Return where things are, what parts them, and whether the first line is a header."""
    filled = [line for line in head if line.strip()]
    if not filled:
        raise UserError(f"{path} is empty; expected a header with {', '.join(REQUIRED_COLUMNS)}")
    for delimiter in _DELIMITERS:
        header = [cell.strip().lower() for cell in _cells(filled[0], delimiter)]
        if all(column in header for column in REQUIRED_COLUMNS):
            video_id, start, end = map(header.index, REQUIRED_COLUMNS)
            label, split = (header.index(name) if name in header else None for name in ("label", "split"))
            return _Columns(video_id, start, end, label, split), delimiter, True
    for delimiter in _DELIMITERS:
        columns = _by_content([_cells(line, delimiter) for line in filled], classes)
        if columns is not None:
            return columns, delimiter, False
    header = [cell.strip() for cell in _cells(filled[0], ",")]
    lacking = ", ".join(column for column in REQUIRED_COLUMNS if column not in header)
    away = "; move it away to read the CSV beside it" if path.suffix.lower() == ".txt" else ""
    raise UserError(
        f"{path}: no column {lacking}; the header is: {', '.join(header)[:200]} "
        f"(lists of other toolboxes are read as `folder`{away})"
    )


def _by_content(rows: Sequence[Sequence[str]], classes: ClassList) -> _Columns | None:
    """Find the columns of a list without a header; None where they are not plain to see."""
    columns = [[cell.strip() for cell in column] for column in zip(*rows, strict=False)]
    labels = [place for place, cells in enumerate(columns) if all(classes.find(cell) is not None for cell in cells)]
    label = labels[0] if labels else None
    ids = [place for place, cells in enumerate(columns) if place != label and all(map(VIDEO_ID.fullmatch, cells))]
    numbers = [place for place, cells in enumerate(columns) if place not in ids and all(map(_is_seconds, cells))]
    times = [
        (start, end)
        for start, end in itertools.pairwise(numbers)
        if all(_seconds(a) < _seconds(b) for a, b in zip(columns[start], columns[end], strict=True))
    ]
    if len(ids) == 1 and times:
        return _Columns(ids[0], times[0][0], times[0][1], label)
    for place, cells in enumerate(columns):
        clips = [CLIP_NAME.fullmatch(PurePosixPath(cell).stem) for cell in cells]
        if all(clip is not None and clip[3] for clip in clips):
            return _Columns(label=label, clip=place)
    return None


def _is_seconds(text: str) -> bool:
    try:
        return _seconds(text) >= 0
    except ValueError:
        return False


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return [line]


# --- DeepMind's JSON --------------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> tuple[bool, Iterator[_RawRow]]:
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(
            f'{path}: expected an object of ids, as {{"<id>": {{"annotations": {{"segment": [84.0, 94.0]}}}}}}'
        )
    is_labelled = any(_json_row(0, "", entry)[4] for entry in content.values())
    return is_labelled, (_json_row(number, *item) for number, item in enumerate(content.items(), 1))


def _json_row(number: int, video_id: str, entry: Any) -> _RawRow:
    entry = entry if isinstance(entry, dict) else {}
    annotations = entry.get("annotations")
    annotations = annotations if isinstance(annotations, dict) else {}
    segment, label, split = annotations.get("segment"), annotations.get("label"), entry.get("subset")
    start, end = segment if isinstance(segment, list) and len(segment) == 2 else ("", "")
    label, split = (text if isinstance(text, str) else "" for text in (label, split))
    return number, video_id, str(start), str(end), label.strip(), split.strip()
