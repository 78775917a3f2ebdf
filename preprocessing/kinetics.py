"""Kinetics-400/600/700: annotation lists and raw clips, as the copies in circulation have them.

Clips are named `{id}_{start:06d}_{end:06d}.mp4` by the usual download scripts and `{id}.mp4` by some mirrors; they lie
flat, in class folders or in archives, one a class or cut by size.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from preprocessing.class_lists import ClassList, class_list, read_class_file
from preprocessing.kinetics_lists import CLIP_NAME, VIDEO_ID, ClipList, find_list, read_clip_list
from preprocessing.matching import (
    SAME_LIST,
    FileIndex,
    Keys,
    Places,
    as_keys,
    distinct,
    duplicates,
    overlap_notes,
    several_files,
    source_notes,
)
from preprocessing.records import (
    AMBIGUOUS,
    CONFLICT,
    DUPLICATE,
    MISSING,
    Annotations,
    Failure,
    Record,
    check_name,
    file_digest,
    kinetics_key,
    spaced,
)
from preprocessing.sources import Progress, Sources, VideoFile, list_sources
from vast.dataset_format import UNLABELLED
from vast.errors import UserError

VERSIONS = ("kinetics400", "kinetics600", "kinetics700")

# The mirror's name for its set of sound copies of corrupted clips, as a folder or an archive.
REPLACEMENTS = "replacement_for_corrupted"

# Lines of the lists and files of the copies that are about; no two sources agree, so none of them is an error.
PUBLISHED: Mapping[str, Mapping[str, tuple[tuple[int, str], ...]]] = {
    "kinetics400": {
        "train": ((246_534, "the original list"), (240_436, "OpenMMLab's copy"), (240_258, "CVDF's files")),
        "val": ((19_906, "the original list"), (19_881, "CVDF's files"), (19_796, "OpenMMLab's copy")),
        "test": ((39_805, "CVDF's list"), (38_685, "ActivityNet's list")),
    },
    "kinetics600": {
        "train": ((427_549, "CVDF's files"), (383_393, "OpenMMLab's copy"), (370_582, "DeepMind's list")),
        "val": ((30_000, "ActivityNet's list"), (29_793, "CVDF's files"), (28_313, "DeepMind's list")),
        "test": ((72_924, "ActivityNet's list"), (56_618, "DeepMind's list")),
    },
    "kinetics700": {
        "train": ((542_352, "DeepMind's list of 2020"), (534_073, "CVDF's files")),
        "val": ((34_125, "DeepMind's list of 2020"), (33_914, "CVDF's files")),
        "test": ((67_433, "DeepMind's list of 2020"), (64_260, "CVDF's files")),
    },
}

_ID_WIDTH, _CLIP_WIDTH = 11, 17
_CHUNK = 1 << 16


def read_kinetics(
    annotations: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    *,
    version: str = "kinetics400",
    name: str = "",
    splits: Sequence[str] = ("train", "val"),
    classes_file: str | os.PathLike[str] | None = None,
    replacements: str | os.PathLike[str] | None = None,
    scans: str | None = None,
    on_scan: Progress | None = None,
) -> Annotations:
    """Read the annotation lists and match their lines with the raw files.

    A clip is identified by (id, start): six ids of Kinetics-600's validation set occur with two starts. Label ids are
    those of the version's class list, whatever labels are present.

    Args:
        annotations: Folder with train.csv and val.csv, or what other releases call them.
        videos: Folder with the clips, as files or in archives, or one archive.
        version: One of `VERSIONS`; the 2020 edition of Kinetics-700 has Kinetics-700's classes.
        name: Beginning of every key; "k400" for kinetics400 when empty.
        splits: The splits to read.
        classes_file: A class list of one's own, in label-id order.
        replacements: Folder or archive with clips that take the place of those of the same id and start. The mirror's
            set is also known by its name when it lies in `videos`.
        scans: Where scans of archives are kept; see `list_sources`.
        on_scan: Called with (archives scanned, archives in all), of the videos and then of the
            replacements.

    Raises:
        UserError: A file or column is missing, lines are malformed, or a label is not in the class list.
    """
    if version not in VERSIONS:
        raise UserError(f"no Kinetics version {version!r}; there are {', '.join(VERSIONS)}")
    if not splits:
        raise UserError("no split was asked for")
    name = check_name(name or f"k{version[-3:]}")
    classes = class_list(version)
    if classes_file is not None:
        classes = read_class_file(Path(classes_file), classes)
    found = {split: find_list(Path(annotations), split, version) for split in dict.fromkeys(splits)}
    lists = [read_clip_list(path, split, classes) for split, (path, _) in found.items()]
    sources = list_sources(videos, scans=scans, on_progress=on_scan)
    replacing = None if replacements is None else list_sources(replacements, scans=scans, on_progress=on_scan)
    match = _Match(name, lists, sources, replacing, classes)
    for clips in lists:
        match.take(clips)
    list_notes = [note for _, notes in found.values() for note in notes]
    for clips in lists:
        list_notes += [*size_notes(version, clips.split, len(clips.ids)), *clips.notes]
    paths = [path for path, _ in found.values()] + ([] if classes_file is None else [Path(classes_file)])
    return Annotations(
        name=name,
        classes=classes.names,
        records=tuple(match.records),
        failures=tuple(match.failures),
        digests={path.name: file_digest(path) for path in paths},
        unlisted=tuple(match.unlisted()),
        notes=(*list_notes, *match.notes()),
    )


def size_notes(version: str, split: str, num_lines: int) -> list[str]:
    """Put the published sizes of a list beside that which was found."""
    known = PUBLISHED[version][split]
    said = ", ".join(f"{spaced(size)} ({what})" for size, what in known)
    far = "; this one is far shorter" if num_lines < 0.9 * min(size for size, _ in known) else ""
    return [f"{split}: {spaced(num_lines)} lines; published for {version}: {said}{far}"]


def file_key(stem: str) -> bytes:
    """Return id and start in a file's stem, the id alone, or nothing: what `FileIndex` sorts by."""
    if clip := CLIP_NAME.fullmatch(stem):
        start_s = int(clip[2])
        return f"{clip[1]}{start_s:06d}".encode() if start_s < 1_000_000 else b""
    return stem.encode() if VIDEO_ID.fullmatch(stem) else b""


class _Match:
    """Lines that have found their file, and those that have not."""

    def __init__(
        self, name: str, lists: Sequence[ClipList], sources: Sources, replacing: Sources | None, classes: ClassList
    ) -> None:
        own: Sequence[VideoFile] = sources.files
        marked = [file for file in own if REPLACEMENTS in file.source_name]
        if marked:
            own = [file for file in own if REPLACEMENTS not in file.source_name]
        marked += replacing.files if replacing else ()
        self.records: list[Record] = []
        self.failures: list[Failure] = []
        self._name = name
        self._classes = classes.names
        self._places = Places(classes)
        self._own = FileIndex(own, file_key, _CLIP_WIDTH)
        self._replacements = FileIndex(marked, file_key, _CLIP_WIDTH)
        self._clips = {clips.split: _clip_keys(clips) for clips in lists}
        self._all_clips = distinct(np.concatenate(list(self._clips.values())))
        self._notes = source_notes(sources, "the folder of videos")
        self._notes += source_notes(replacing, "the folder of replacements") if replacing else []
        self._num_overridden = 0

    def take(self, clips: ClipList) -> None:
        """Find the file of every line of a split."""
        begun = len(self.records)
        twins = duplicates(self._clips[clips.split])
        for start in range(0, len(clips.ids), _CHUNK):  # else the arrays would outweigh what they are about
            keys = self._clips[clips.split][start : start + _CHUNK]
            num_clips = self._num_clips(keys)
            own, other = (_find(index, keys) for index in (self._own, self._replacements))
            for place in range(len(keys)):
                line = start + place
                if line in twins:
                    self._fail(clips, line, [], (DUPLICATE, _twin(clips, line, twins[line])))
                    continue
                # A bare name cannot say which clip of its video it replaces; the broken one then stays as it is.
                is_vague = num_clips[place] > 1
                replacing = [] if is_vague and other.is_bare[place] else other.files(place)
                files = own.files(place)
                self._num_overridden += len(files) if replacing else 0
                is_vague &= own.is_bare[place] and not replacing
                self._settle(clips, line, replacing or files, bool(replacing), num_clips[place] if is_vague else 1)
        if not clips.is_labelled:
            self._label_by_place(clips.split, begun)

    def _settle(
        self, clips: ClipList, line: int, files: Sequence[VideoFile], is_replaced: bool, num_clips: int
    ) -> None:
        """Make a line a record or a failure; its file may stand for any of `num_clips` clips."""
        problem = self._problem(clips, line, files, num_clips)
        if problem is not None:
            self._fail(clips, line, files, problem)
            return
        video_id, start_s = clips.ids[line], clips.starts_s[line]
        key = kinetics_key(self._name, video_id, start_s)
        span = (start_s, clips.ends_s[line])
        self.records.append(Record(key, clips.split, video_id, clips.labels[line], files[0], *span, is_replaced))

    def unlisted(self) -> list[str]:
        """Return the source names of files that no line asks for."""
        return [*self._own.unlisted(), *self._replacements.unlisted()]

    def notes(self) -> list[str]:
        """Say what a person should know of files and splits."""
        notes = list(self._notes)
        if num_replaced := sum(record.replaced for record in self.records):
            overridden = f"{spaced(self._num_overridden)} files gave way to them"
            notes.append(f"{spaced(num_replaced)} records have a file of the replacement set; {overridden}")
        videos = {split: _ids(keys) for split, keys in self._clips.items()}
        overlaps = overlap_notes(videos, "videos") | overlap_notes(self._clips, "clips", SAME_LIST)
        return notes + list(overlaps.values())

    def _num_clips(self, keys: Keys) -> list[int]:
        """Return how many clips of the same video the lists of all splits have, for each of some lines."""
        ids = _ids(keys).astype(f"S{_CLIP_WIDTH}")
        ends = np.char.add(_ids(keys), b"~")  # sorts after every digit
        counts: list[int] = (np.searchsorted(self._all_clips, ends) - np.searchsorted(self._all_clips, ids)).tolist()
        return counts

    def _problem(
        self, clips: ClipList, line: int, files: Sequence[VideoFile], num_clips: int
    ) -> tuple[str, str] | None:
        if not files:
            video_id, start_s, end_s = clips.ids[line], clips.starts_s[line], clips.ends_s[line]
            return MISSING, f"no {video_id}_{start_s:06d}_{end_s:06d} and no {video_id} with a video suffix"
        if len(files) > 1:
            return AMBIGUOUS, several_files(files)
        if num_clips > 1:
            return AMBIGUOUS, f"{files[0].source_name} does not say which of {num_clips} clips of this video it is"
        label, place = clips.labels[line], self._places.label(files[0])
        if UNLABELLED not in (label, place) and label != place:
            return CONFLICT, f"the line says {self._classes[label]!r}, the file's place {self._classes[place]!r}"
        return None

    def _fail(self, clips: ClipList, line: int, files: Sequence[VideoFile], problem: tuple[str, str]) -> None:
        key = kinetics_key(self._name, clips.ids[line], clips.starts_s[line])
        source_name = files[0].source_name if len(files) == 1 else ""
        self.failures.append(Failure(key, clips.split, clips.ids[line], source_name, "match", *problem))

    def _label_by_place(self, split: str, begun: int) -> None:
        """Label a split whose list has no labels by its files' places, if every one of them tells a class."""
        labels = [self._places.label(record.file) for record in self.records[begun:]]
        if UNLABELLED in labels or not labels:
            self._notes.append(
                f"{split}: the list has no labels; it can be packed and predicted, not trained or scored on"
            )
            return
        self._notes.append(f"{split}: the list has no labels; they are those of the folders or archives of the files")
        for place, label in enumerate(labels, begun):
            self.records[place] = replace(self.records[place], label=label)


@dataclass(frozen=True)
class _Found:
    """Where the files of some lines are in one index."""

    index: FileIndex
    first: list[int]
    count: list[int]
    is_bare: list[bool]
    """The file's name is the id alone."""

    def files(self, place: int) -> list[VideoFile]:
        return self.index.files(self.first[place], self.count[place]) if self.count[place] else []


def _find(index: FileIndex, keys: Keys) -> _Found:
    first, count = index.find(keys)
    bare_first, bare_count = index.find(_ids(keys))
    is_bare = count == 0
    first, count = np.where(is_bare, bare_first, first), np.where(is_bare, bare_count, count)
    return _Found(index, first.tolist(), count.tolist(), is_bare.tolist())


def _ids(keys: Keys) -> Keys:
    return keys.astype(f"S{_ID_WIDTH}")


def _twin(clips: ClipList, line: int, first: int) -> str:
    other = "" if clips.labels[line] == clips.labels[first] else " and another label"
    return f"an earlier line has the same id and start{other}"


def _clip_keys(clips: ClipList) -> Keys:
    names = (f"{video_id}{start_s:06d}" for video_id, start_s in zip(clips.ids, clips.starts_s, strict=True))
    return as_keys(names, len(clips.ids), _CLIP_WIDTH)
