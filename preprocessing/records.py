"""What an annotation file asks for: records, and the reasons why some cannot be had."""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from preprocessing.sources import VideoFile
from vast.errors import UserError

# Reasons of the stage "match".
MISSING = "missing"
AMBIGUOUS = "ambiguous"
DUPLICATE = "duplicate"
CONFLICT = "conflict"

MAX_LINE_BYTES = 64 * 1024
"""No line of a published list is a hundredth of this; a longer one is another kind of file."""
MAX_PROBLEMS = 100
"""Readers stop looking for problems in a file after so many."""

_KEY_PART = re.compile(r"[A-Za-z0-9_-]+")
_STEM = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of an annotation file whose raw file is there, before encoding."""

    key: str
    """Unique in its split; only A-Z a-z 0-9 _ -, so that WebDataset readers keep it whole."""
    split: str
    source_id: str
    """The video's id in its data set of origin; clips of one video share it."""
    label: int
    """Label id, or `vast.dataset_format.UNLABELLED`."""
    file: VideoFile
    start_s: int | None = None
    """Where the clip starts in its original video; None where that has no meaning."""
    end_s: int | None = None
    """Where it ends there."""
    replaced: bool = False
    """The file comes from a set of replacements for broken ones."""

    @property
    def source_name(self) -> str:
        """The file's path as it is written down: relative to the folder of raw files, so it names no machine."""
        return self.file.source_name


Stage = Literal["match", "read", "transcode", "prove"]
"""Where a record was lost: finding its file, opening it, decoding and encoding it, or proving the result."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A record that is in no shard, and why."""

    key: str
    split: str
    source_id: str
    source_name: str
    """The raw file relative to its folder; empty when there is none."""
    stage: Stage
    reason: str
    """A few plain words, the same for all failures of a kind: "missing", "empty", "unreadable" …"""
    detail: str = ""
    """What exactly was found, with the decoder's own message; the same in every run."""


@dataclass(frozen=True)
class Annotations:
    """A whole data set as its annotation files and its raw files describe it."""

    name: str
    classes: tuple[str, ...]
    """Class names; the position is the label id."""
    records: tuple[Record, ...]
    failures: tuple[Failure, ...]
    """Lines without a usable file."""
    digests: Mapping[str, str]
    """Name of each annotation file to its hex sha256."""
    unlisted: tuple[str, ...]
    """Source names of files that no line asks for."""
    notes: tuple[str, ...] = ()
    """What a person should know: sizes that are far from the published ones, entries passed over, names found."""
    media: Literal["video", "image"] = "video"


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


class SampleKeys:
    """Makes keys out of file names: the name where it can be a key and is new in its split, else with a hash."""

    def __init__(self, name: str) -> None:
        self._name = check_name(name)
        self._seen: dict[str, set[str]] = defaultdict(set)

    def make(self, split: str, stem: str, path: str) -> str:
        """Return a new key for the file at `path`, whatever is in its name."""
        key = f"{self._name}_{stem}"
        if not _STEM.fullmatch(stem) or key in self._seen[split]:
            digest = hashlib.sha256(path.encode(errors="surrogatepass")).hexdigest()[:12]
            key = f"{self._name}_{re.sub('[^A-Za-z0-9_-]', '_', stem[:80])}_{digest}"
        self._seen[split].add(key)
        return key


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


def text_lines(path: str | os.PathLike[str], max_bytes: int = MAX_LINE_BYTES) -> Iterator[str]:
    """Yield a text file's lines with their ends, one at a time; a byte order mark is passed over.

    Raises:
        UserError: The file cannot be read, or a line is not UTF-8, holds a NUL byte or is longer than `max_bytes`.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(max_bytes + 1), b""), 1):
                if len(line) > max_bytes:
                    raise UserError(f"{path} line {number} is longer than {max_bytes} bytes; that is no such list")
                if b"\0" in line:
                    raise UserError(f"{path} line {number} holds a NUL byte; expected UTF-8 text")
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
                    raise UserError(f"{path} line {number} is not UTF-8: {byte}; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return what a JSON file holds.

    Raises:
        UserError: It cannot be read, is not JSON, or gives one key of an object twice, of which a reader would silently
            drop the first.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_without_twins)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} occurs twice in one object")
            seen.add(key)
    return content


def spaced(number: int) -> str:
    """Write a count for people: 19906 is "19 906"."""
    return f"{number:,}".replace(",", " ")


def raise_problems(source: str, problems: list[str], shown: int = 10) -> None:
    """Raise one error for all the problems found in an annotation file, the first few in full.

    Raises:
        UserError: There are problems.
    """
    if problems:
        more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
        raise UserError("\n  ".join([f"{source}: {len(problems)} problem(s)", *problems[:shown], *more]))
