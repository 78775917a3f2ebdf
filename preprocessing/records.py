"""What an annotation file asks for: records, and the reasons why some cannot be had."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vast.errors import UserError

VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v"})
MISSING = "missing"
AMBIGUOUS = "ambiguous"

_KEY_PART = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Record:
    """One line of an annotation file whose video file is there, before encoding."""

    key: str
    """Unique in its split; only A-Z a-z 0-9 _ -, so that WebDataset readers keep it whole."""
    split: str
    source_id: str
    """The video's id in its data set of origin; clips of one video share it."""
    label: int
    """Label id, or `vast.dataset_format.UNLABELLED`."""
    path: str
    """Absolute path of the video, on every node that encodes."""
    source_name: str
    """The same relative to the folder of videos: what is written down, as it names no machine."""
    start_s: int | None = None
    """Where the clip starts in its original video; None where that has no meaning."""
    end_s: int | None = None
    """Where it ends there."""


@dataclass(frozen=True)
class Failure:
    """A record that is in no shard, and why."""

    key: str
    split: str
    source_id: str
    source_name: str
    """The video file relative to the folder of videos; empty when there is none."""
    reason: str
    """A few plain words, the same for all failures of a kind: "missing", "empty", "unreadable" …"""
    detail: str = ""
    """What exactly was found, with the decoder's own message."""


@dataclass(frozen=True)
class Annotations:
    """A whole data set as its annotation files and its folder of videos describe it."""

    name: str
    classes: tuple[str, ...]
    """Class names; the position is the label id."""
    records: tuple[Record, ...]
    failures: tuple[Failure, ...]
    """Lines without a usable file."""
    digests: Mapping[str, str]
    """Name of each annotation file to its hex sha256."""
    unlisted: tuple[str, ...]
    """Video files that no line asks for, relative to the folder of videos."""


@dataclass(frozen=True)
class VideoFile:
    """A file of the folder of videos."""

    path: str
    source_name: str
    stem: str


def kinetics_key(name: str, youtube_id: str, start_s: int) -> str:
    """Return a Kinetics clip's key; the id alone does not identify a clip, as a video may give several."""
    return f"{name}_{youtube_id}_{start_s:06d}"


def ssv2_key(name: str, video_id: str) -> str:
    """Return a Something-Something clip's key."""
    return f"{name}_{video_id}"


def check_name(name: str) -> str:
    """Return a data set's name when it can begin its keys.

    Raises:
        UserError: It cannot.
    """
    if not _KEY_PART.fullmatch(name):
        raise UserError(f"data set name {name!r}: only A-Z a-z 0-9 _ - may be in it, as it begins every sample's key")
    return name


def list_videos(folder: str | os.PathLike[str]) -> list[VideoFile]:
    """Walk a folder of videos once, sub-folders included, in sorted order; hidden files are passed over.

    Archives made on a Mac carry a `._name.mp4` beside each `name.mp4`: hidden, and no video.

    Raises:
        UserError: There is no such folder.
    """
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"{folder} is not a folder of videos")
    videos = []
    for parent, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                path = Path(parent, name)
                videos.append(VideoFile(str(path), path.relative_to(root).as_posix(), stem))
    return videos


def the_one_file(folder: Path, names: Sequence[str]) -> Path:
    """The file of `folder` that has one of these names.

    Raises:
        UserError: None is there, or more than one.
    """
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} has no {' or '.join(names)}")
    if len(found) > 1:
        raise UserError(f"{folder} has both {' and '.join(names)}; keep the one to be used")
    return found[0]


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return a file's hex sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def raise_problems(source: str, problems: list[str], shown: int = 10) -> None:
    """Raise one error for all the problems found in an annotation file, the first few in full.

    Raises:
        UserError: There are problems.
    """
    if problems:
        more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
        raise UserError("\n  ".join([f"{source}: {len(problems)} problem(s)", *problems[:shown], *more]))
