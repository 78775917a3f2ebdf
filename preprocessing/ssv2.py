"""Something-Something v2: JSON annotations and raw clips called `{id}.webm`.

A clip's class is its `template` without square brackets, looked up in labels.json; `label` is the sentence with the
real objects, and not the class.
"""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.class_lists import class_list
from preprocessing.matching import SAME_LIST, FileIndex, as_keys, duplicates, overlap_notes, several_files, source_notes
from preprocessing.records import (
    AMBIGUOUS,
    DUPLICATE,
    MAX_PROBLEMS,
    MISSING,
    Annotations,
    Failure,
    Record,
    check_name,
    file_digest,
    raise_problems,
    read_json,
    spaced,
    ssv2_key,
    text_lines,
    the_one_file,
)
from preprocessing.sources import Progress, list_sources
from vast.dataset_format import UNLABELLED
from vast.errors import UserError

# Our split name to the stem of its file; the old distribution put "something-something-v2-" before each.
SPLIT_FILES = {"train": "train", "val": "validation", "test": "test"}
OLD_PREFIX = "something-something-v2-"
PUBLISHED = {"train": 168_913, "val": 24_777, "test": 27_157}
"""Lines of the published lists."""

_ID_WIDTH = 32
_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{_ID_WIDTH}}}")
_INDEX = re.compile(r"\d{1,6}", re.ASCII)

_Lines = list[tuple[str, int]]
"""Video id and label id."""


def read_ssv2(
    annotations: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    *,
    name: str = "ssv2",
    splits: Sequence[str] = ("train", "val"),
    scans: str | None = None,
    on_scan: Progress | None = None,
) -> Annotations:
    """Read the annotation files and match their entries with the raw files.

    Label ids are those of labels.json, never an order of our own: sorting the templates *with* their brackets moves 89
    of the 174 official ids. Ids of videos stay strings.

    Args:
        annotations: Folder with labels.json, train.json and validation.json or their long old names, or the folder
            above it when it is called `labels`.
        videos: Folder with the clips, as files or in archives, or one archive.
        name: Beginning of every key.
        splits: The splits to read; "test" is labelled by test-answers.csv where that is there.
        scans: Where scans of archives are kept; see `list_sources`.
        on_scan: Called with (archives scanned, archives in all).

    Raises:
        UserError: A file is missing or malformed, a template is not in labels.json, or its ids are in another order.
    """
    check_name(name)
    folder = _annotation_folder(Path(annotations))
    labels_path = the_one_file(folder, _names("labels"))
    labels = _read_labels(labels_path)
    found = {split: _read_split(folder, split, labels) for split in dict.fromkeys(splits)}
    lists = {split: lines for split, (_, lines) in found.items()}
    paths = [labels_path, *(path for split_paths, _ in found.values() for path in split_paths)]
    sources = list_sources(videos, scans=scans, on_progress=on_scan)
    index = FileIndex(sources.files, _file_key, _ID_WIDTH)
    records: list[Record] = []
    failures: list[Failure] = []
    for split, lines in lists.items():
        _match(name, split, lines, index, records, failures)
    ids = {split: as_keys((video_id for video_id, _ in lines), len(lines), _ID_WIDTH) for split, lines in lists.items()}
    return Annotations(
        name=name,
        classes=tuple(labels),
        records=tuple(records),
        failures=tuple(failures),
        digests={path.name: file_digest(path) for path in paths},
        unlisted=tuple(index.unlisted()),
        notes=(
            f"annotation files: {', '.join(path.name for path in paths)}",
            *(_size_note(split, lines) for split, lines in lists.items()),
            *source_notes(sources, "the folder of videos"),
            *overlap_notes(ids, "videos", SAME_LIST).values(),
        ),
    )


def _match(
    name: str, split: str, lines: _Lines, index: FileIndex, records: list[Record], failures: list[Failure]
) -> None:
    """Find the file of every line of a split."""
    keys = as_keys((video_id for video_id, _ in lines), len(lines), _ID_WIDTH)
    twins = duplicates(keys)
    first, count = index.find(keys)
    for line, (video_id, label) in enumerate(lines):
        key = ssv2_key(name, video_id)
        files = index.files(int(first[line]), int(count[line])) if count[line] else []
        if (earlier := twins.get(line)) is not None:
            other = "" if lines[earlier][1] == label else " and another template"
            problem = (DUPLICATE, f"an earlier entry has the same id{other}")
        elif not files:
            problem = (MISSING, f"no {video_id} with a video suffix")
        elif len(files) > 1:
            problem = (AMBIGUOUS, several_files(files))
        else:
            records.append(Record(key, split, video_id, label, files[0]))
            continue
        source_name = files[0].source_name if len(files) == 1 else ""
        failures.append(Failure(key, split, video_id, source_name, "match", *problem))


def _file_key(stem: str) -> bytes:
    return stem.encode() if _ID.fullmatch(stem) else b""


def _size_note(split: str, lines: _Lines) -> str:
    published = PUBLISHED[split]
    far = "; this one is far shorter" if len(lines) < 0.9 * published else ""
    unlabelled = "; it has no labels" if lines and lines[0][1] == UNLABELLED else ""
    return f"{split}: {spaced(len(lines))} entries; the published list has {spaced(published)}{far}{unlabelled}"


# --- annotation files -------------------------------------------------------------------------------------------------


def _annotation_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of annotation files")
    has_labels = any((folder / name).is_file() for name in _names("labels"))
    return folder / "labels" if not has_labels and (folder / "labels").is_dir() else folder


def _names(stem: str, suffix: str = "json") -> tuple[str, str]:
    return f"{stem}.{suffix}", f"{OLD_PREFIX}{stem}.{suffix}"


def _read_split(folder: Path, split: str, labels: Mapping[str, int]) -> tuple[list[Path], _Lines]:
    """Return a split's entries and the files they come from."""
    if split not in SPLIT_FILES:
        raise UserError(f"Something-Something has no split {split!r}; it has {', '.join(SPLIT_FILES)}")
    path = the_one_file(folder, _names(SPLIT_FILES[split]))
    if split != "test":
        return [path], _read_entries(path, labels, is_labelled=True)
    lines = _read_entries(path, labels, is_labelled=False)
    names = _names("test-answers", "csv")
    if not any((folder / name).is_file() for name in names):
        return [path], lines
    answers_path = the_one_file(folder, names)
    answers = _read_answers(answers_path, labels)
    lacking = [video_id for video_id, _ in lines if video_id not in answers]
    if lacking:
        raise UserError(
            f"{answers_path} answers {len(lines) - len(lacking)} of the {len(lines)} entries of {path.name}, not "
            f"{lacking[0]!r}; get the published file again, or move it away to read the split without labels"
        )
    return [path, answers_path], [(video_id, answers[video_id]) for video_id, _ in lines]


def _read_labels(path: Path) -> dict[str, int]:
    """Return class text to label id, in the order of the ids."""
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f'{path}: expected one object of class text to index, as {{"Opening something": "0", …}}')
    labels: dict[str, int] = {}
    for text, index in content.items():
        if isinstance(index, bool) or not _INDEX.fullmatch(str(index)):
            raise UserError(f'{path}: the index of {text!r} is {index!r}; expected a number such as "0"')
        labels[text] = int(index)
    for index, text in enumerate(sorted(labels)):
        if labels[text] != index:
            raise UserError(
                f"{path}: {text!r} has index {labels[text]}, expected {index}: the official ids run from 0 in the "
                "alphabetical order of the texts without brackets; get the published file again"
            )
    _check_published(path, sorted(labels))
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def _check_published(path: Path, texts: Sequence[str]) -> None:
    """Refuse a list of the published length with other texts; shorter ones are data sets of someone's own."""
    published = class_list("ssv2").names
    if len(texts) != len(published):
        return
    for index, (text, expected) in enumerate(zip(texts, published, strict=True)):
        if text != expected:
            raise UserError(
                f"{path}: index {index} is {text!r}; the published list of {len(published)} classes has {expected!r} "
                "there: is this another data set's list, or another version's?"
            )


def _read_entries(path: Path, labels: Mapping[str, int], is_labelled: bool) -> _Lines:
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of objects with id and template")
    found: _Lines = []
    problems: list[str] = []
    for number, entry in enumerate(entries):
        if len(problems) >= MAX_PROBLEMS:
            break
        video_id = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(video_id, str) or not _ID.fullmatch(video_id):
            problems.append(f"entry {number}: id is {_short(video_id)}; expected a string of A-Z a-z 0-9 _ -")
        elif not is_labelled:
            found.append((video_id, UNLABELLED))
        else:
            template = entry.get("template")
            label = labels.get(_without_brackets(template)) if isinstance(template, str) else None
            if label is None:
                problems.append(f"entry {number}, id {video_id}: template {_short(template)} is not in labels.json")
            else:
                found.append((video_id, label))
    raise_problems(str(path), problems)
    return found


def _read_answers(path: Path, labels: Mapping[str, int]) -> dict[str, int]:
    """Return video id to label id from lines such as `1420;Throwing something`."""
    answers: dict[str, int] = {}
    problems: list[str] = []
    try:
        reader = csv.reader(text_lines(path), delimiter=";", strict=True)
        for cells in reader:
            if not cells or len(problems) >= MAX_PROBLEMS:
                continue
            label = labels.get(_without_brackets(cells[1].strip())) if len(cells) == 2 else None
            if label is None:
                line = ";".join(cells)
                problems.append(f"line {reader.line_num}: {_short(line)}; expected an id, a semicolon and a class text")
            elif answers.setdefault(cells[0].strip(), label) != label:
                problems.append(f"line {reader.line_num}: a second answer for id {_short(cells[0])}")
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}") from error
    raise_problems(str(path), problems)
    return answers


def _without_brackets(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
