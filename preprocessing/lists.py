"""Lists of other toolboxes, and folders named after classes, as annotations."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from preprocessing.list_classes import classes_of_list, named_classes
from preprocessing.list_lines import SPLIT_WORDS, Format, has_suffix, list_paths, read_rows
from preprocessing.list_matching import Finder, SourceIds, match_rows, shared_notes
from preprocessing.matching import ARCHIVE_SUFFIX, source_notes
from preprocessing.records import Annotations, Failure, Record, SampleKeys, check_name, file_digest
from preprocessing.sources import Progress, VideoFile, list_sources
from vast.errors import UserError


def read_list(
    list_files: Mapping[str, str | os.PathLike[str]] | str | os.PathLike[str],
    videos: str | os.PathLike[str],
    *,
    name: str,
    splits: Sequence[str] = (),
    classes_file: str | os.PathLike[str] | None = None,
    format: Format = "auto",
    scans: str | None = None,
    on_scan: Progress | None = None,
) -> Annotations:
    """Read lists of mmaction2, SlowFast, pytorchvideo, X-ViT, UniFormer, VideoMAE, TSM or video2dataset.

    Label ids are made so that they agree with everyone else's: a list whose classes are those of a published data set
    in another order (UniFormer's) gets the published ids. Where labels are numbers and nothing names their classes,
    names are taken from class folders in the paths, or made up; the notes say so.

    Args:
        list_files: Split name to its list; or a folder with train.csv, val.txt, kinetics_train_list.txt and the like;
            or one such list.
        videos: Folder with the videos.
        name: Beginning of every key.
        splits: The splits to read; all that have a list when empty.
        classes_file: The class list, one name a line, in the order in which the lists count.
        format: Who wrote the lists.
        scans: Where scans of archives are kept; see `list_sources`.
        on_scan: Called with (archives scanned, archives in all).

    Raises:
        UserError: A list cannot be read or is one of frames or of several labels a video, a label is not in the class
            list, or the class list is evidently not that of the lists.
    """
    check_name(name)
    if format not in get_args(Format):
        raise UserError(f"format is {format!r}; expected one of {', '.join(get_args(Format))}")
    paths = list_paths(list_files)
    if absent := [split for split in splits if split not in paths]:
        raise UserError(f"there is no list of {absent[0]}; there are lists of {', '.join(paths)}")
    rows = [row for split, path in paths.items() for row in read_rows(path, split, format)]
    if not rows:
        raise UserError(f"{', '.join(map(str, paths.values()))}: no line names a video")
    sources = list_sources(videos, scans=scans, on_progress=on_scan)
    finds = Finder(sources.files).find_all(rows)
    if not any(finds.found.values()) and not any(has_suffix(row.path) for row in rows):
        raise UserError(
            f"{rows[0].line} names {rows[0].path!r}, which has no video suffix, and no video in {videos} has this or "
            "any other name of the lists: they seem to list folders of frames. Give the folder of the videos that the "
            "frames were taken from"
        )
    # All lists have a say in the classes: which splits are read must not move a label id.
    classes = classes_of_list(rows, finds, classes_file)
    wanted = [row for row in rows if row.split in splits or not splits]
    records, failures = match_rows(wanted, finds, classes.ids, name)
    used = {file.source_name for row in wanted for file in finds.found[row.place]}
    return Annotations(
        name=name,
        classes=classes.names,
        records=tuple(records),
        failures=tuple(failures),
        digests=_digests([*paths.values(), *([Path(classes_file)] if classes_file is not None else [])]),
        unlisted=tuple(file.source_name for file in sources.files if file.source_name not in used),
        notes=(*classes.notes, *finds.notes, *shared_notes(records), *source_notes(sources, "the folder of videos")),
    )


def read_folder(
    videos: str | os.PathLike[str],
    *,
    name: str,
    splits: Sequence[str] = (),
    classes_file: str | os.PathLike[str] | None = None,
    scans: str | None = None,
    on_scan: Progress | None = None,
) -> Annotations:
    """Read folders named after classes, `train/<class>/x.mp4` or `<class>/x.mp4`, as torchvision's ImageFolder does.

    Label ids are ranks of the sorted folder names; where nearly all names of a published data set are there, they are
    that list's ids, so that a class without videos moves no other.

    Args:
        videos: Folder with the videos; archives in it count as folders.
        name: Beginning of every key.
        splits: The splits to read; all that have a folder when empty.
        classes_file: The class list, one name a line, in label-id order.
        scans: Where scans of archives are kept; see `list_sources`.
        on_scan: Called with (archives scanned, archives in all).

    Raises:
        UserError: There is no class folder or none of a split, or one is not in the class list.
    """
    keys = SampleKeys(name)
    sources = list_sources(videos, scans=scans, on_progress=on_scan)
    places = [(file, *_place(file)) for file in sources.files]
    has_splits = any(split for _, split, _ in places)
    # Beside folders of splits, other folders are something else; without them, everything is for training.
    places = [(file, split if has_splits else "train", label) for file, split, label in places]
    wanted = {split for _, split, _ in places if split and (split in splits or not splits)}
    if absent := [split for split in splits if split not in wanted]:
        raise UserError(f"{videos} has no folder called {absent[0]}")
    # All folders have a say in the classes: which splits are read must not move a label id.
    labels = {label for _, split, label in places if label and split}
    if not labels or (len(labels) == 1 and classes_file is None):
        found = f"all videos lie in the folder {labels.pop()!r}" if labels else "no video lies in a class folder"
        raise UserError(f"{videos}: {found}; give the folder that holds train/<class>/x.mp4 or <class>/x.mp4")
    classes = named_classes(labels, classes_file)
    if not has_splits:
        classes.notes.append("no folder is called train or val: all videos are taken for training")
    chosen = [place for place in places if place[1] in wanted]
    source_ids = SourceIds((split, file) for file, split, _ in chosen)
    records, failures = [], []
    for file, split, label in chosen:
        key = keys.make(split, file.stem, file.source_name)
        if label or split == "test":
            records.append(Record(key, split, source_ids.of(file), classes.ids[label or None], file))
        else:
            place = (key, split, source_ids.of(file), file.source_name)
            failures.append(Failure(*place, "match", "no class", "it lies beside the class folders, not in one"))
    return Annotations(
        name=name,
        classes=classes.names,
        records=tuple(records),
        failures=tuple(failures),
        digests=_digests([Path(classes_file)] if classes_file is not None else []),
        unlisted=tuple(file.source_name for file, split, _ in places if split not in wanted),
        notes=(*classes.notes, *shared_notes(records), *source_notes(sources, "the folder of videos")),
    )


def _place(file: VideoFile) -> tuple[str, str]:
    """Return split and class folder of a file; empty where there is none."""
    parts = file.source_name.split("/")[:-1]
    folders = [ARCHIVE_SUFFIX.sub("", part) for part in parts] if file.archive is not None else parts
    if folders != parts:
        # An archive is named after its split, or after its class if it has no folders inside.
        at = next(i for i, part in enumerate(parts) if folders[i] != part)
        if at + 1 < len(folders) and (folders[at].lower() not in SPLIT_WORDS or folders[at] == folders[at + 1]):
            del folders[at]
    split = SPLIT_WORDS.get(folders[0].lower(), "") if folders else ""
    rest = folders[1:] if split else folders
    return split, rest[0] if rest else ""


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    num = Counter(path.name for path in paths)
    return {
        path.name if num[path.name] == 1 else f"{path.parent.name}/{path.name}": file_digest(path) for path in paths
    }
