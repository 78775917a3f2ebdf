"""Something-Something v2: JSON annotations and a folder of `{id}.webm`.

A clip's class is its `template` without square brackets, looked up in labels.json; `label` is the sentence with the
real objects, and not the class.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.records import (
    AMBIGUOUS,
    MISSING,
    Annotations,
    Failure,
    Record,
    VideoFile,
    check_name,
    file_digest,
    list_videos,
    raise_problems,
    ssv2_key,
    the_one_file,
)
from vast.dataset_format import UNLABELLED
from vast.errors import UserError

# Our split name to the stem of its file; the old distribution put "something-something-v2-" before each.
SPLIT_FILES = {"train": "train", "val": "validation", "test": "test"}
OLD_PREFIX = "something-something-v2-"

_ID = re.compile(r"[A-Za-z0-9_-]+")


def read_ssv2(
    annotations: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    *,
    name: str = "ssv2",
    splits: Sequence[str] = ("train", "val"),
) -> Annotations:
    """Read the annotation folder and match its entries with the folder of clips.

    Label ids are those of labels.json, never an order of our own: sorting the templates *with* their brackets moves 89
    of the 174 official ids. Ids of videos stay strings.

    Args:
        annotations: Folder with labels.json, train.json and validation.json, or their long old names.
        videos: Folder with the clips.
        name: Beginning of every key.
        splits: The splits to read; the entries of "test" have no template and stay unlabelled.

    Raises:
        UserError: A file is missing or malformed, a template is not in labels.json, or its ids are in another order.
    """
    check_name(name)
    folder = Path(annotations)
    labels_path = _annotation_file(folder, "labels")
    labels = _read_labels(labels_path)
    paths = {split: _split_file(folder, split) for split in splits}
    files: dict[str, list[VideoFile]] = defaultdict(list)
    for file in list_videos(videos):
        files[file.stem].append(file)

    records: list[Record] = []
    failures: list[Failure] = []
    used: set[str] = set()
    for split, path in paths.items():
        for video_id, label in _read_entries(path, labels, is_labelled=split != "test"):
            used.add(video_id)
            key = ssv2_key(name, video_id)
            found = files.get(video_id, [])
            if len(found) == 1:
                records.append(Record(key, split, video_id, label, found[0].path, found[0].source_name))
            elif found:
                names = ", ".join(file.source_name for file in found)
                failures.append(Failure(key, split, video_id, "", AMBIGUOUS, f"several files: {names}"))
            else:
                failures.append(Failure(key, split, video_id, "", MISSING, f"no {video_id}.webm"))
    return Annotations(
        name=name,
        classes=tuple(labels),
        records=tuple(records),
        failures=tuple(failures),
        digests={path.name: file_digest(path) for path in [labels_path, *paths.values()]},
        unlisted=tuple(file.source_name for stem, found in files.items() if stem not in used for file in found),
    )


def _split_file(folder: Path, split: str) -> Path:
    if split not in SPLIT_FILES:
        raise UserError(f"Something-Something has no split {split!r}; it has {', '.join(SPLIT_FILES)}")
    return _annotation_file(folder, SPLIT_FILES[split])


def _annotation_file(folder: Path, stem: str) -> Path:
    names = (f"{stem}.json", f"{OLD_PREFIX}{stem}.json")
    return the_one_file(folder, names)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def _read_labels(path: Path) -> dict[str, int]:
    """Return class text to label id, in the order of the ids."""
    content = _read_json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f'{path}: expected one object of class text to index, as {{"Opening something": "0", …}}')
    try:
        labels = {text: int(index) for text, index in content.items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: an index is not a number: {error}") from error
    for index, text in enumerate(sorted(labels)):
        if labels[text] != index:
            raise UserError(
                f"{path}: {text!r} has index {labels[text]}, expected {index}: the official ids run from 0 in the "
                "alphabetical order of the texts without brackets; get the published file again"
            )
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def _read_entries(path: Path, labels: Mapping[str, int], is_labelled: bool) -> list[tuple[str, int]]:
    entries = _read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of objects with id and template")
    found: list[tuple[str, int]] = []
    problems: list[str] = []
    for number, entry in enumerate(entries):
        video_id = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(video_id, str) or not _ID.fullmatch(video_id):
            problems.append(f"entry {number}: id is {video_id!r}; expected a string of A-Z a-z 0-9 _ -")
            continue
        if not is_labelled:
            found.append((video_id, UNLABELLED))
            continue
        template = entry.get("template")
        text = template.replace("[", "").replace("]", "") if isinstance(template, str) else ""
        if text in labels:
            found.append((video_id, labels[text]))
        else:
            problems.append(f"entry {number}, id {video_id}: template {template!r} is not in labels.json")
    raise_problems(str(path), problems)
    return found
