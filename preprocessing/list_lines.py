"""The lines of other toolboxes' lists, one row each: the path of a video, and its label.

Which toolbox wrote a list shows in the line itself, as a rule: the path ends with the suffix of a video, and what
follows it is the delimiter.
"""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preprocessing.records import MAX_PROBLEMS, raise_problems, text_lines
from preprocessing.sources import VIDEO_SUFFIXES
from vast.errors import UserError

Format = Literal["auto", "mmaction2", "slowfast", "xvit", "uniformer", "videomae", "tsm", "video2dataset"]
"""Who wrote a list. It only matters where a path of a video is followed by two numbers: `auto` asks, mmaction2 and
VideoMAE mean two labels, the others a count of frames and the label."""

SPLIT_WORDS = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validate": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}

Label = int | str | None

_LIST_SUFFIXES = (".csv", ".txt", ".list", ".lst", ".tsv", ".parquet")
_WITH_FRAMES = ("slowfast", "xvit", "uniformer", "tsm")
_SUFFIX = "|".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))
_TAIL = r"(?:(?P<delimiter>\s*[,;|]\s*|\s+)(?P<rest>.*))?"
_QUOTED = re.compile(rf'"(?P<path>(?:[^"]|"")*)"{_TAIL}')
_VIDEO = re.compile(rf"(?P<path>.*\.(?:{_SUFFIX})){_TAIL}", re.IGNORECASE)
_INTEGER = re.compile(r"-?\d{1,9}")
_PATH_COLUMNS = ("path", "video_path", "video", "filename")
_LABEL_COLUMNS = ("label", "class", "class_name")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a list."""

    split: str
    file_name: str
    """Of the list."""
    number: int
    path: str
    label: Label
    """A number of the list's own, a class name, or None where the video has none."""

    @property
    def line(self) -> str:
        """Where it stands, for people."""
        return f"{self.file_name} line {self.number}"

    @property
    def place(self) -> tuple[str, str]:
        """What decides which file is meant."""
        return self.split, self.path


def list_paths(given: Mapping[str, str | os.PathLike[str]] | str | os.PathLike[str]) -> dict[str, Path]:
    """Return the list of each split, given so or as a folder of lists or one list, known by the split in its name.

    Raises:
        UserError: There is no list, or a split has several.
    """
    if isinstance(given, Mapping):
        return {split: Path(path) for split, path in given.items()}
    return _lists_at(Path(given))


def _lists_at(place: Path) -> dict[str, Path]:
    if place.is_file():
        words = splits_in(place.stem)
        return {words.pop() if len(words) == 1 else "train": place}
    if not place.is_dir():
        raise UserError(f"there is no list and no folder of lists at {place}")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(place.iterdir()):
        words = splits_in(path.stem)
        if path.suffix.lower() in _LIST_SUFFIXES and len(words) == 1 and path.is_file():
            found[words.pop()].append(path)
    for split, paths in found.items():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise UserError(f"{place} has {names} for {split}; leave one there, or read the lists one by one")
    if not found:
        raise UserError(f"{place} has no train.csv, val.txt or the like; lists are known by the split in their name")
    return {split: found[split][0] for split in ("train", "val", "test") if split in found}


def splits_in(name: str) -> set[str]:
    """Return the splits that the words of a name or path mean."""
    return {SPLIT_WORDS[word] for word in re.split("[^a-z]+", name.lower()) if word in SPLIT_WORDS}


def has_suffix(path: str) -> bool:
    """Tell whether a path ends as a video's does."""
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


def read_rows(path: Path, split: str, format: Format) -> list[Row]:
    """Read the list of a split, of text or in a parquet file.

    Raises:
        UserError: It cannot be read, is one of frames, or has lines without a path, with several labels, or with two
            numbers of which `format` does not say what they are.
    """
    problems: list[str] = []
    rows = []
    cells = _parquet_cells(path) if path.suffix.lower() == ".parquet" else _text_cells(path)
    for number, video, columns in cells:
        try:
            if not video:
                raise ValueError("there is no path")
            label = _label(columns, has_suffix(video), format)
        except ValueError as error:
            problems.append(f"{path.name} line {number}: {error}")
            if len(problems) == MAX_PROBLEMS:
                break
            continue
        rows.append(Row(split, path.name, number, video, label))
    raise_problems(str(path), problems)
    return rows


def _parquet_cells(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        video, label = _columns(path, names)
        table = pq.read_table(path, columns=[video, *([label] if label else [])])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is no parquet file: {error}") from None
    labels = table.column(label).to_pylist() if label else [None] * len(table)
    for number, (one, its) in enumerate(zip(table.column(video).to_pylist(), labels, strict=True), 1):
        whole = int(its) if isinstance(its, float) and its.is_integer() else its
        yield number, str(one or ""), [] if its is None else [str(whole)]


def _columns(path: Path, names: Sequence[str]) -> tuple[str, str | None]:
    by_lower = {name.strip().lower(): name for name in names}
    video = next((by_lower[name] for name in _PATH_COLUMNS if name in by_lower), None)
    label = next((by_lower[name] for name in _LABEL_COLUMNS if name in by_lower), None)
    if video is None:
        hint = "; a Kinetics file is read by read_kinetics" if "youtube_id" in by_lower else ""
        raise UserError(f"{path}: no column {' or '.join(_PATH_COLUMNS)}; the header is: {', '.join(names)}{hint}")
    return video, label


def _text_cells(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield each line's number, its path and the columns behind it."""
    if path.suffix.lower() in (".json", ".h5", ".pkl"):
        raise UserError(f"{path}: {path.suffix} lists are not read; write one line a video, as `path.mp4 12`")
    header: list[str] | None = None
    for number, text in enumerate(text_lines(path), 1):
        line = text.strip()
        if not line:
            continue
        if header is None:
            header = _header(path, line)
            if header:
                continue
        if header:
            cells = next(csv.reader([line], delimiter=header[0], skipinitialspace=True))
            named = dict(zip(header[1:], cells, strict=False))
            video, label = _columns(path, header[1:])
            yield number, named.get(video, ""), [named[label]] if label and named.get(label) else []
        else:
            yield number, *_split_line(line)


def _header(path: Path, line: str) -> list[str]:
    """Return the delimiter and the column names if the first line is a header, else nothing."""
    words = [word.strip(' "') for word in re.split(r"[,;|\t ]", line.lower())]
    if {"original_vido_id", "frame_id"} & set(words):
        raise UserError(f"{path} lists frames, one a line; expected one line a video, as `path.mp4 12`")
    has_names = {*_PATH_COLUMNS, "youtube_id"} & set(words) and len(words) > 1
    if not has_names or _VIDEO.fullmatch(line) or any(map(_INTEGER.fullmatch, words)):
        return []
    delimiter = next(character for character in ",;|\t " if character in line)
    return [delimiter, *next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _split_line(line: str) -> tuple[str, list[str]]:
    if found := _QUOTED.fullmatch(line):
        return found["path"].replace('""', '"'), _split_rest(found["rest"] or "", (found["delimiter"] or "").strip())
    if found := _VIDEO.fullmatch(line):
        return found["path"], _split_rest(found["rest"] or "", (found["delimiter"] or "").strip())
    for delimiter in (None, ","):
        words = [word.strip() for word in line.split(delimiter)]
        # Paths without a suffix may hold spaces and commas; numbers at the end are columns.
        num = next((i for i, word in enumerate(reversed(words[1:])) if not _INTEGER.fullmatch(word)), len(words) - 1)
        if num and not words[-1 - num].endswith(","):
            return line.rsplit(delimiter, num)[0].strip(), words[-num:]
    path, _, rest = line.partition(",")
    return path.strip(), _split_rest(rest.strip(), ",")


def _split_rest(rest: str, delimiter: str) -> list[str]:
    """Return numbers one by one, and anything else whole: class names hold spaces and commas."""
    if len(rest) > 1 and rest[0] == rest[-1] == '"':
        return [rest[1:-1].replace('""', '"')]
    if not rest:
        return []
    cells = next(csv.reader([rest], delimiter=delimiter, skipinitialspace=True)) if delimiter else rest.split()
    if len(cells) == 1 or all(_INTEGER.fullmatch(cell.strip()) for cell in cells):
        return [cell.strip() for cell in cells]
    return [rest]


def _label(columns: Sequence[str], is_video: bool, format: Format) -> Label:
    if len(columns) == 2:
        if is_video and format == "auto":
            raise ValueError(
                f"two numbers, {' '.join(columns)}: say who wrote the list (format), slowfast for a count of frames "
                "and a label; several labels a video are not supported"
            )
        if not is_video or format in _WITH_FRAMES:
            columns = columns[1:]
    if len(columns) > 1:
        raise ValueError(f"{len(columns)} labels, {' '.join(columns)}: several labels a video are not supported")
    if not columns or not columns[0]:
        return None
    if not _INTEGER.fullmatch(columns[0]):
        return columns[0]
    if (number := int(columns[0])) < -1:
        raise ValueError(f"the label is {number}; expected a number from 0, a class name, or -1 for none")
    return number if number >= 0 else None
