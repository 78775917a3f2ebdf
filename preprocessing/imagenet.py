"""ImageNet-1k in the layouts in circulation: class folders, an archive a class, or flat pictures and a list.

A class is known by its WordNet id (wnid), such as n01440764, and its label id is the rank of that among the 1000. The
wnid stands in the name of a folder or of an archive, or in the picture's own name.
"""

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from preprocessing.class_lists import ClassList, class_list, read_class_file
from preprocessing.matching import ARCHIVE_SUFFIX, source_notes
from preprocessing.records import (
    AMBIGUOUS,
    MISSING,
    Annotations,
    Failure,
    Record,
    SampleKeys,
    check_name,
    file_digest,
    raise_problems,
    spaced,
    text_lines,
)
from preprocessing.sources import IMAGE_SUFFIXES, NESTED, Progress, VideoFile, list_sources
from vast.dataset_format import UNLABELLED
from vast.errors import UserError

SPLITS = ("train", "val", "test")
PUBLISHED = {"train": 1_281_167, "val": 50_000, "test": 100_000}
"""Pictures of ImageNet-1k."""

# Reasons of the stage "match".
NO_CLASS = "no class"
UNKNOWN_CLASS = "unknown class"

_SOLUTION = "LOC_val_solution.csv"
_TRUTHS = (
    "ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2014_clsloc_validation_ground_truth.txt",
    "ILSVRC2015_clsloc_validation_ground_truth.txt",
)
_SYNSETS = "map_clsloc.txt"
# Two pictures whose classes are known, to find out a list of numbers that other synsets belong to.
_KNOWN = {"ILSVRC2012_val_00000001": "n01751748", "ILSVRC2012_val_00000293": "n01440764"}
_SPLIT_FOLDER = re.compile(r"(?:ILSVRC2012_img_)?(train|val|test)(?:id|idation)?(?:_images(?:_\d+)?)?", re.IGNORECASE)
# n01440764_10026; as Hugging Face has them also n01440764_10026_n01440764 and ILSVRC2012_val_00000293_n01440764.
_WNID_IN_NAME = re.compile(r"(?:.*_)?(n\d{8})(?:_\d+)?")
_REPEATED_WNID = re.compile(r"_n\d{8}$")


@dataclass(frozen=True, slots=True)
class _Place:
    """What the folders of a picture say."""

    split: str
    """Empty where they name none."""
    holder: str
    """What holds the folder of the split; archives do not count."""
    folder: str
    """The class folder; empty for flat pictures."""
    label: int | None
    """None where no folder is a class."""


@dataclass
class _Split:
    """The pictures of a split, and what became of them."""

    name: str
    by_label: dict[int, list[VideoFile]] = field(default_factory=lambda: defaultdict(list))
    flat: list[VideoFile] = field(default_factory=list)
    """Neither their folder nor their name says a class."""
    unknown: dict[str, list[VideoFile]] = field(default_factory=lambda: defaultdict(list))
    """Folders that are no class."""
    holders: set[str] = field(default_factory=set)
    copies: list[str] = field(default_factory=list)
    """Source names of pictures that are there once more."""
    doubtful: dict[str, str] = field(default_factory=dict)
    """Source name of a picture to that of another of its name and class but not its size."""


def read_imagenet(
    folder: str | os.PathLike[str],
    *,
    name: str = "imagenet1k",
    splits: Sequence[str] = ("train", "val"),
    classes_file: str | os.PathLike[str] | None = None,
    scans: str | None = None,
    on_scan: Progress | None = None,
) -> Annotations:
    """Read the pictures of ImageNet, each of which is a record.

    Found are `train/<wnid>/*.JPEG`, the same below other folders (`ILSVRC/Data/CLS-LOC/train`) or in archives
    (`train/<wnid>.tar`, `val_images.tar.gz`). Flat validation pictures take their classes from LOC_val_solution.csv, or
    from ILSVRC2012_validation_ground_truth.txt with map_clsloc.txt: its numbers are no label ids. A picture that is
    there twice, in a folder and in the archive it came from, is read once.

    Args:
        folder: What holds the folders of the splits and, for flat ones, the list of classes, up to two folders deep.
        name: Beginning of every key.
        splits: The splits to read; pictures of "test" may be flat, and are unlabelled then.
        classes_file: A class list of one's own, one folder name a line in label-id order; ImageNet-1k's when None.
        scans: Where scans of archives are kept; see `list_sources`.
        on_scan: Called with (archives scanned, archives in all).

    Raises:
        UserError: A split is not there or lies in several places, none of its folders is a class, or its pictures are
            flat and nothing says their classes.
    """
    check_name(name)
    if strange := [split for split in splits if split not in SPLITS]:
        raise UserError(f"ImageNet has no split {strange[0]!r}; it has {', '.join(SPLITS)}")
    classes = class_list("imagenet1k") if classes_file is None else _own_classes(Path(classes_file))
    digests = {} if classes_file is None else {Path(classes_file).name: file_digest(classes_file)}
    sources = list_sources(folder, suffixes=IMAGE_SUFFIXES, scans=scans, on_progress=on_scan)
    found, unlisted = _sort(sources.files, list(dict.fromkeys(splits)), classes)
    records: list[Record] = []
    failures: list[Failure] = []
    notes: list[str] = []
    keys = SampleKeys(name)
    for split in found.values():
        _check_place(split, folder, sources.skipped.get(NESTED, 0))
        _set_copies_aside(split)
        answers: dict[str, int] = {}
        if split.flat and split.name == "val":
            answers, paths = _read_answers(Path(folder), classes)
            digests |= {path.name: file_digest(path) for path in paths}
        _check_classes(split, answers, classes)
        _add(split, answers, keys, records, failures)
        notes += _notes(split, answers, classes)
        unlisted += split.copies
    return Annotations(
        name=name,
        classes=classes.names,
        records=tuple(records),
        failures=tuple(failures),
        digests=digests,
        unlisted=tuple(sorted(unlisted)),
        notes=(*notes, *source_notes(sources, "the folder of pictures")),
        media="image",
    )


def _own_classes(path: Path) -> ClassList:
    """Read a class list; of lines as `n01440764 tench, Tinca tinca` only the wnid counts."""
    classes = read_class_file(path)
    wnids = tuple(found[0] for name in classes.names if (found := re.match(r"n\d{8}(?=\s|$)", name)))
    return ClassList(classes.name, wnids) if len(wnids) == len(classes.names) else classes


# --- where the pictures lie ---


def _sort(files: Iterable[VideoFile], splits: Sequence[str], classes: ClassList) -> tuple[dict[str, _Split], list[str]]:
    """Sort pictures by split and class; the names of those of no such split come second."""
    found = {name: _Split(name) for name in splits}
    places: dict[tuple[str, bool], _Place] = {}
    others: list[str] = []
    for file in files:
        folder = file.source_name.rpartition("/")[0]
        place = places.get((folder, file.archive is not None))
        if place is None:
            place = places[folder, file.archive is not None] = _place(folder, file.archive is not None, classes)
        split = found.get(place.split)
        if split is None:
            others.append(file.source_name)
            continue
        split.holders.add(place.holder)
        label = place.label
        if label is None and not place.folder and (wnid := _WNID_IN_NAME.fullmatch(file.stem)):
            label = classes.find(wnid[1])
        if label is not None:
            split.by_label[label].append(file)
        elif place.folder:
            split.unknown[place.folder].append(file)
        else:
            split.flat.append(file)
    return found, others


def _place(folder: str, is_archived: bool, classes: ClassList) -> _Place:
    parts = folder.split("/")
    is_archive = [is_archived and ARCHIVE_SUFFIX.search(part) is not None for part in parts]
    names = [ARCHIVE_SUFFIX.sub("", part) if is_it else part for part, is_it in zip(parts, is_archive, strict=True)]
    matches = [(i, match[1].lower()) for i, part in enumerate(names) if (match := _SPLIT_FOLDER.fullmatch(part))]
    if not matches:
        return _Place("", "", "", None)
    at, split = matches[-1]
    holder = "/".join(part for part, is_it in zip(parts[:at], is_archive[:at], strict=True) if not is_it)
    inner = names[at + 1 :]
    labels = [label for part in reversed(inner) if (label := classes.find(part)) is not None]
    return _Place(split, holder, inner[0] if inner else "", labels[0] if labels else None)


def _check_place(split: _Split, folder: str | os.PathLike[str], num_nested: int) -> None:
    if not split.holders:
        nested = (
            f". {spaced(num_nested)} archives lie in another archive, where they cannot be read: unpack "
            "ILSVRC2012_img_train.tar into a folder train; the archives in it may stay as they are"
        )
        raise UserError(
            f"{folder} has no pictures in a folder or archive called {split.name}; give the folder that holds "
            f"{split.name}/<wnid>/*.JPEG, at any depth{nested if num_nested else ''}"
        )
    if len(split.holders) > 1:
        several = ", ".join(f"{holder or '.'}/{split.name}" for holder in sorted(split.holders))
        raise UserError(f"{folder} has several folders of {split.name}: {several}; give the folder that holds the one")


def _set_copies_aside(split: _Split) -> None:
    """Keep one of the pictures that have name, class and size in common, rather a plain file than an archive's."""
    names: set[str] = set()
    for label, files in split.by_label.items():
        by_name: dict[str, VideoFile] = {}
        for file in sorted(files, key=lambda file: file.archive is not None):
            first = by_name.setdefault(file.source_name.rpartition("/")[2], file)
            if first is not file:
                split.copies.append(file.source_name)
                if first.size_bytes != file.size_bytes:
                    split.doubtful[first.source_name] = file.source_name
        if split.flat:
            names |= by_name.keys()
        split.by_label[label] = sorted(by_name.values(), key=lambda file: file.source_name)
    is_copy = [file.source_name.rpartition("/")[2] in names for file in split.flat]
    split.copies += [file.source_name for file, is_it in zip(split.flat, is_copy, strict=True) if is_it]
    split.flat = [file for file, is_it in zip(split.flat, is_copy, strict=True) if not is_it]


def _check_classes(split: _Split, answers: Mapping[str, int], classes: ClassList) -> None:
    if split.by_label or answers or (split.name == "test" and split.flat):
        return
    if split.flat:
        raise UserError(
            f"the {spaced(len(split.flat))} pictures of {split.name} lie in no class folder, and nothing says their "
            f"classes: sort them into class folders ({split.name}/<wnid>/), or put {_SOLUTION} beside them, or "
            f"{_TRUTHS[0]} and {_SYNSETS} of a development kit"
        )
    folders = ", ".join(map(repr, islice(split.unknown, 10)))
    raise UserError(
        f"{split.name}: none of {len(split.unknown)} class folders is in {classes.name}: {folders}; expected such as "
        f"{classes.names[0]!r}; for other classes give their list (classes_file)"
    )


# --- the classes of flat pictures ---


def _read_answers(folder: Path, classes: ClassList) -> tuple[dict[str, int], list[Path]]:
    """Return the label of each validation picture by its stem, and the files that say so."""
    if solution := _beside(folder, _SOLUTION):
        return _read_solution(solution, classes), [solution]
    truth = next((path for name in _TRUTHS if (path := _beside(folder, name))), None)
    synsets = _beside(folder, _SYNSETS)
    if truth and synsets:
        return _read_truth(truth, synsets, classes), [truth, synsets]
    return {}, []


def _beside(folder: Path, name: str) -> Path | None:
    for depth in ("", "*/", "*/*/", "*/*/data/"):
        if found := sorted(folder.glob(f"{depth}{name}")):
            return found[0]
    return None


def _read_solution(path: Path, classes: ClassList) -> dict[str, int]:
    rows = list(csv.reader(text_lines(path)))
    if not rows or [cell.strip() for cell in rows[0]] != ["ImageId", "PredictionString"]:
        raise UserError(
            f"{path}: expected a header ImageId,PredictionString; it is {','.join(rows[0] if rows else [])}"
        )
    answers: dict[str, int] = {}
    problems = []
    for number, row in enumerate(rows[1:], 2):
        words = row[1].split() if len(row) == 2 else []
        label = classes.find(words[0]) if words else None
        if label is None:
            problems.append(f"line {number}: {','.join(row)[:80]!r} begins with no class of {classes.name}")
        elif answers.setdefault(row[0].strip(), label) != label:
            problems.append(f"line {number}: {row[0]} is there with another class already")
    raise_problems(str(path), problems)
    return answers


def _read_truth(path: Path, synsets: Path, classes: ClassList) -> dict[str, int]:
    """Read numbers of classes, one a line for one picture; only `synsets` can tell whose numbers they are."""
    labels: dict[str, int] = {}
    problems = []
    for number, line in enumerate(text_lines(synsets), 1):
        words = line.split()
        label = classes.find(words[0]) if len(words) >= 2 else None
        if label is None or words[1] in labels:
            problems.append(f"line {number}: {line.strip()[:80]!r}, expected a wnid and a number of its own")
        else:
            labels[words[1]] = label
    raise_problems(str(synsets), problems)
    numbers = [line.strip() for line in text_lines(path)]
    unknown = [
        f"line {i}: {text[:80]!r} is not in {synsets.name}" for i, text in enumerate(numbers, 1) if text not in labels
    ]
    raise_problems(str(path), unknown)
    answers = {f"ILSVRC2012_val_{i:08d}": labels[text] for i, text in enumerate(numbers, 1)}
    for stem, wnid in _KNOWN.items():
        if stem in answers and classes.find(wnid) not in (None, answers[stem]):
            raise UserError(
                f"by {path.name} and {synsets.name}, {stem} is {classes.names[answers[stem]]}, but it is known to be "
                f"{wnid}: they belong to different development kits; take {_SOLUTION}"
            )
    return answers


# --- records, failures, notes ---


def _add(
    split: _Split, answers: Mapping[str, int], keys: SampleKeys, records: list[Record], failures: list[Failure]
) -> None:
    def key_and_id(file: VideoFile) -> tuple[str, str]:
        picture_id = _REPEATED_WNID.sub("", file.stem)
        return keys.make(split.name, picture_id, file.source_name), picture_id

    def fail(file: VideoFile, reason: str, detail: str) -> None:
        key, picture_id = key_and_id(file)
        failures.append(Failure(key, split.name, picture_id, file.source_name, "match", reason, detail))

    for label in sorted(split.by_label):
        for file in split.by_label[label]:
            if other := split.doubtful.get(file.source_name):
                fail(file, AMBIGUOUS, f"{other} has the same name and class but not the same size")
            else:
                key, picture_id = key_and_id(file)
                records.append(Record(key, split.name, picture_id, label, file))
    for folder, files in sorted(split.unknown.items()):
        for file in files:
            fail(file, UNKNOWN_CLASS, f"{folder!r} is not in the class list")
    present = {file.stem for files in split.by_label.values() for file in files} if answers else set()
    for file in split.flat:
        flat_label = UNLABELLED if split.name == "test" else answers.get(file.stem)
        present.add(file.stem)
        if flat_label is None:
            fail(
                file, NO_CLASS, "it lies in no class folder" + (", and the list has no line for it" if answers else "")
            )
        else:
            key, picture_id = key_and_id(file)
            records.append(Record(key, split.name, picture_id, flat_label, file))
    for stem in sorted(answers.keys() - present):
        key = keys.make(split.name, stem, stem)
        failures.append(Failure(key, split.name, stem, "", "match", MISSING, f"no picture is called {stem}"))


def _notes(split: _Split, answers: Mapping[str, int], classes: ClassList) -> list[str]:
    num = sum(map(len, split.by_label.values())) + len(split.flat)
    published = ""
    if classes.names == class_list("imagenet1k").names:
        far = "; far fewer are here" if num < 0.9 * PUBLISHED[split.name] else ""
        published = f"; published: {spaced(PUBLISHED[split.name])}{far}"
    notes = [f"{split.name}: {spaced(num)} pictures{published}"]
    present = {*split.by_label, *(answers[file.stem] for file in split.flat if file.stem in answers)}
    absent = [name for label, name in enumerate(classes.names) if label not in present]
    if absent and split.name != "test":
        notes.append(
            f"{split.name}: no picture of {len(absent)} classes: {', '.join(absent[:5])}" + " …" * (len(absent) > 5)
        )
    if split.unknown:
        folders = Counter({folder: len(files) for folder, files in split.unknown.items()}).most_common(5)
        named = ", ".join(f"{folder!r} ({spaced(count)} pictures)" for folder, count in folders)
        notes.append(f"{split.name}: {len(split.unknown)} folders are no class: {named}")
    if split.copies:
        notes.append(f"{split.name}: {spaced(len(split.copies))} pictures are there twice, and read once")
    return notes
