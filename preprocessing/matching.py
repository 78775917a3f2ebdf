"""Which raw file belongs to which annotation line, for a million of each.

Names are compared as fixed-width bytes in sorted arrays: dicts and sets of a million strings would take more memory
than all the records.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from preprocessing.class_lists import ClassList
from preprocessing.records import spaced
from preprocessing.sources import Sources, VideoFile
from vast.dataset_format import UNLABELLED

Keys = NDArray[np.bytes_]
Positions = NDArray[np.intp]

PASSED_OVER = "passed over"
"""Beginning of the notes about entries of the folder of raw files that are no candidates at all."""

ARCHIVE_SUFFIX = re.compile(r"\.(tar|tar\.gz|tgz|zip)$", re.IGNORECASE)
"""What follows the name of a split or a class in an archive's."""

_MAX_NAMES = 5
_MAX_PLACES = 50_000

SAME_LIST = ": they are the same list"


class FileIndex:
    """Files by what their names say about them, and which of them a line has asked for."""

    def __init__(self, files: Sequence[VideoFile], key_of: Callable[[str], bytes], width: int) -> None:
        """Index `files`.

        Args:
            files: The files.
            key_of: Gives the key in a file's stem, or b"" for a name that is none of the data set's.
            width: No key is longer.
        """
        keys = np.zeros(len(files), dtype=f"S{width}")
        for position, file in enumerate(files):
            keys[position] = key_of(file.stem)
        self._files = files
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._is_used = np.zeros(len(files), dtype=bool)

    def find(self, keys: Keys) -> tuple[Positions, Positions]:
        """Return for each key where its files begin, for `files`, and how many they are."""
        first = np.searchsorted(self._keys, keys, side="left")
        return first, np.searchsorted(self._keys, keys, side="right") - first

    def files(self, first: int, count: int) -> list[VideoFile]:
        """Return files that `find` has found, and remember that a line asks for them."""
        if count == 1:  # nearly always, and a slice takes its time
            position = self._order.item(first)
            self._is_used[position] = True
            return [self._files[position]]
        positions = self._order[first : first + count].tolist()
        self._is_used[positions] = True
        return [self._files[position] for position in positions]

    def unlisted(self) -> list[str]:
        """Return the source names of files that no line has asked for."""
        return [self._files[position].source_name for position in np.flatnonzero(~self._is_used).tolist()]


class Places:
    """The class that a file's folder or archive is named after, as in per-class tars and sorted copies."""

    def __init__(self, classes: ClassList) -> None:
        self._classes = classes
        self._labels: dict[str, int] = {}

    def label(self, file: VideoFile) -> int:
        """Return the label id of the innermost folder or archive with a class name, or `UNLABELLED`."""
        place = file.source_name.rpartition("/")[0]
        label = self._labels.get(place)
        if label is None:
            if len(self._labels) >= _MAX_PLACES:
                self._labels.clear()  # every file has a folder of its own; a cache is then of no use
            label = self._labels[place] = self._read(place)
        return label

    def _read(self, place: str) -> int:
        for part in reversed(place.split("/")):
            found = self._classes.find(ARCHIVE_SUFFIX.sub("", part))
            if found is not None:
                return found
        return UNLABELLED


def as_keys(names: Iterable[str], count: int, width: int) -> Keys:
    """Return names as an array; they are ASCII and no longer than `width`."""
    return np.fromiter((name.encode("ascii") for name in names), dtype=f"S{width}", count=count)


def distinct(keys: Keys) -> Keys:
    """Return the different keys, sorted; `np.unique` would build a hash table several times their size."""
    ordered = np.sort(keys)
    is_new = np.ones(len(ordered), dtype=bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_new]


def duplicates(keys: Keys) -> dict[int, int]:
    """Return each line of a split that repeats a key, to the first line that has it."""
    if len(distinct(keys)) == len(keys):
        return {}
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    first = first[inverse]
    repeated = np.flatnonzero(first != np.arange(len(keys)))
    return dict(zip(repeated.tolist(), first[repeated].tolist(), strict=True))


def overlap_notes(keys: Mapping[str, Keys], what: str, when_all: str = "") -> dict[tuple[str, str], str]:
    """Say which splits share clips or videos: a model is then scored on what it was trained on.

    Args:
        keys: Those of each split's lines.
        what: What a key stands for, in the plural.
        when_all: What to add when both splits have the same keys.
    """
    if len(keys) < 2:
        return {}
    own = {split: distinct(one) for split, one in keys.items()}
    notes = {}
    for left, right in combinations(own, 2):
        shared = np.intersect1d(own[left], own[right], assume_unique=True).size
        if shared and shared == own[left].size == own[right].size:
            notes[left, right] = f"{left} and {right} share all their {spaced(shared)} {what}{when_all}"
        elif shared:
            sizes = f"{spaced(own[left].size)} and {spaced(own[right].size)}"
            notes[left, right] = f"{left} and {right} share {spaced(shared)} {what} (of {sizes})"
    return notes


def source_notes(sources: Sources, folder: str) -> list[str]:
    """Say what a folder of raw files holds that is no candidate."""
    skipped = ", ".join(f"{reason} {spaced(count)}" for reason, count in sorted(sources.skipped.items()))
    return [*([f"{PASSED_OVER} in {folder}: {skipped}"] if skipped else []), *sources.problems]


def several_files(files: Sequence[VideoFile]) -> str:
    """Say that one line has several files."""
    names = sorted(file.source_name for file in files)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"several files: {', '.join(names[:_MAX_NAMES])}{more}"
