"""Kinetics-400/600/700: CSV annotations and a folder of clips, as the copies in circulation have them.

The CSV files of the releases differ in their columns, so they are read by header name; files are named
`{id}_{start:06d}_{end:06d}.mp4` by the usual download scripts and `{id}.mp4` by some mirrors, flat or in class folders.
"""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.records import (
    AMBIGUOUS,
    MISSING,
    Annotations,
    Failure,
    Record,
    VideoFile,
    check_name,
    file_digest,
    kinetics_key,
    list_videos,
    raise_problems,
    the_one_file,
)
from vast.dataset_format import UNLABELLED
from vast.errors import UserError

# Our split name to the names of its file: DeepMind's archives say "validate", CVDF's mirror says "val".
SPLIT_FILES = {"train": ("train.csv",), "val": ("val.csv", "validate.csv"), "test": ("test.csv",)}
REQUIRED_COLUMNS = ("youtube_id", "time_start", "time_end")

# An id has 11 characters and may itself hold "_" or begin with "-".
_CLIP_STEM = re.compile(r"([A-Za-z0-9_-]{11})_(\d+)(?:_\d+)?")
_ID = re.compile(r"[A-Za-z0-9_-]{11}")


@dataclass(frozen=True)
class _Row:
    split: str
    youtube_id: str
    start_s: int
    end_s: int
    label: str
    line: str


def read_kinetics(
    annotations: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    *,
    name: str = "k400",
    splits: Sequence[str] = ("train", "val"),
    classes_file: str | os.PathLike[str] | None = None,
) -> Annotations:
    """Read the annotation folder and match its rows with the folder of clips.

    A clip is identified by (id, start): six ids of Kinetics-600's validation set occur with two starts. Label ids are
    positions in `classes_file` (one name a line) or in the sorted union of all the labels found; the published orders
    are sorted, but a list cut short would move every later id, so give the file when the lists are not whole.

    Args:
        annotations: Folder with train.csv and val.csv (or validate.csv).
        videos: Folder with the clips.
        name: Beginning of every key, such as "k400".
        splits: The splits to read.
        classes_file: The class list, in label-id order.

    Raises:
        UserError: A file or column is missing, rows are malformed, or a label is not in the class list.
    """
    check_name(name)
    paths = {split: _annotation_file(Path(annotations), split) for split in splits}
    rows = [row for split, path in paths.items() for row in _read_csv(path, split)]
    listed = [Path(classes_file)] if classes_file is not None else []
    classes = _read_classes(listed[0]) if listed else sorted({row.label for row in rows if row.label})
    if not classes:
        raise UserError(f"{annotations}: no row has a label; give the class list (classes_file)")
    labels = _label_ids(rows, classes)
    files = list_videos(videos)
    records, failures, unlisted = _match(rows, labels, files, name)
    return Annotations(
        name=name,
        classes=tuple(classes),
        records=tuple(records),
        failures=tuple(failures),
        digests={path.name: file_digest(path) for path in [*paths.values(), *listed]},
        unlisted=tuple(unlisted),
    )


def _annotation_file(folder: Path, split: str) -> Path:
    names = SPLIT_FILES.get(split)
    if names is None:
        raise UserError(f"Kinetics has no split {split!r}; it has {', '.join(SPLIT_FILES)}")
    return the_one_file(folder, names)


def _read_csv(path: Path, split: str) -> list[_Row]:
    rows: list[_Row] = []
    problems: list[str] = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        header = reader.fieldnames or []
        lacking = [column for column in REQUIRED_COLUMNS if column not in header]
        if lacking:
            raise UserError(f"{path}: no column {', '.join(lacking)}; the header is: {', '.join(header) or 'empty'}")
        for cells in reader:
            line = f"line {reader.line_num}"
            youtube_id = (cells["youtube_id"] or "").strip()
            label = (cells.get("label") or "").strip().strip('"')
            try:
                start_s, end_s = (int(float(cells[column])) for column in ("time_start", "time_end"))
            except (TypeError, ValueError):
                times = f"{cells['time_start']!r}, {cells['time_end']!r}"
                problems.append(f"{line}: time_start, time_end are {times}; expected seconds")
                continue
            if not _ID.fullmatch(youtube_id):
                problems.append(f"{line}: youtube_id is {youtube_id!r}; expected 11 of A-Z a-z 0-9 _ -")
            if start_s < 0 or end_s <= start_s:
                problems.append(f"{line}: time_start {start_s}, time_end {end_s}; expected 0 <= start < end")
            if "label" in header and not label:
                problems.append(f"{line}: the label is empty")
            rows.append(_Row(split, youtube_id, start_s, end_s, label, f"{path.name} {line}"))
    raise_problems(str(path), problems)
    return rows


def _read_classes(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the class list {path}: {error.strerror}") from error
    return [line.strip() for line in lines if line.strip()]


def _label_ids(rows: Iterable[_Row], classes: Sequence[str]) -> dict[str, int]:
    """Give each label its id; case, underscores and quotes differ between copies and do not count."""
    ids: dict[str, int] = {"": UNLABELLED}
    by_normal: dict[str, int] = {}
    for label_id, label in enumerate(classes):
        other = by_normal.setdefault(_normal(label), label_id)
        if other != label_id:
            raise UserError(f"classes {classes[other]!r} and {label!r} differ only in case, underscores or quotes")
        ids[label] = label_id
    problems = []
    for row in rows:
        if row.label not in ids:
            label_id = by_normal.get(_normal(row.label), UNLABELLED)
            if label_id == UNLABELLED:
                problems.append(f"{row.line}: label {row.label!r} is not in the class list")
            ids[row.label] = label_id
    raise_problems("labels", problems)
    return ids


def _normal(label: str) -> str:
    return label.casefold().replace("_", " ").replace('"', "").replace("'", "")


def _match(
    rows: Sequence[_Row], labels: dict[str, int], files: Sequence[VideoFile], name: str
) -> tuple[list[Record], list[Failure], list[str]]:
    by_clip: dict[tuple[str, int], list[VideoFile]] = defaultdict(list)
    by_id: dict[str, list[VideoFile]] = defaultdict(list)
    for file in files:
        if clip := _CLIP_STEM.fullmatch(file.stem):
            by_clip[clip[1], int(clip[2])].append(file)
        elif _ID.fullmatch(file.stem):
            by_id[file.stem].append(file)
    starts: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        starts[row.youtube_id].add(row.start_s)

    records: list[Record] = []
    failures: list[Failure] = []
    used: set[str] = set()
    for row in rows:
        key = kinetics_key(name, row.youtube_id, row.start_s)
        named = by_clip.get((row.youtube_id, row.start_s), [])
        found = named or by_id.get(row.youtube_id, [])
        used.update(file.source_name for file in found)
        problem = _why_not(row, found, is_bare=not named, num_starts=len(starts[row.youtube_id]))
        if problem:
            failures.append(Failure(key, row.split, row.youtube_id, "", *problem))
        else:
            file = found[0]
            label = labels[row.label]
            place = (file.path, file.source_name, row.start_s, row.end_s)
            records.append(Record(key, row.split, row.youtube_id, label, *place))
    return records, failures, [file.source_name for file in files if file.source_name not in used]


def _why_not(row: _Row, found: Sequence[VideoFile], is_bare: bool, num_starts: int) -> tuple[str, str] | None:
    if not found:
        return (
            MISSING,
            f"no {row.youtube_id}_{row.start_s:06d}_{row.end_s:06d} and no {row.youtube_id} with a video suffix",
        )
    if len(found) > 1:
        return AMBIGUOUS, "several files: " + ", ".join(file.source_name for file in found)
    if is_bare and num_starts > 1:
        return AMBIGUOUS, f"{found[0].source_name} does not say which of {num_starts} clips of this video it is"
    return None
