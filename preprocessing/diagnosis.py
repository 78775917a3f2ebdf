"""Why so many records have failed: sentences that only say what was counted, and guesses that say they are guesses."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preprocessing.kinetics_lists import CLIP_NAME, VIDEO_ID
from preprocessing.matching import PASSED_OVER, Keys, as_keys, distinct
from preprocessing.records import AMBIGUOUS, CONFLICT, DUPLICATE, MISSING, Annotations, Failure, spaced
from vast.errors import UserError

_WIDTH = 32
_PLAIN_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{_WIDTH}}}")
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_BY_NUMBER, _OTHERWISE = "named by a number", "of other names"
_NUM_COMPARED = 50_000
"""Unlisted files that are looked at, spread evenly; more would say nothing new."""
_NUM_SEARCHED = 500
"""Of these, names of no known form in which ids are looked for."""


@dataclass(frozen=True)
class FailureLimit:
    """How many records may fail: a share of them from 0 to 1, or a number."""

    value: float
    is_share: bool

    def share_of(self, num_records: int) -> float:
        """Return the limit as a share of a number of records; times that number it is no less than the limit."""
        if self.is_share or not self.value:
            return self.value
        return min(1.0, math.nextafter(self.value / max(1, num_records), math.inf))


def parse_limit(text: str) -> FailureLimit:
    """Read "5%" or "0.05", a share of the records, or "120", a number of them.

    Raises:
        UserError: It is none of these, or more than all.
    """
    plain = text.strip()
    if re.fullmatch(r"\d+", plain, re.ASCII):
        return FailureLimit(float(plain[:18]), is_share=False)
    number = re.fullmatch(r"(\d*\.?\d+|\d+\.)\s*(%?)", plain, re.ASCII)
    share = float(number[1]) / (100 if number[2] else 1) if number else math.nan
    if not 0 <= share <= 1:
        raise UserError(f"{text!r} is no limit of failures; expected a share as 5% or 0.05, or a number as 120")
    return FailureLimit(share, is_share=True)


def diagnose(annotations: Annotations) -> list[str]:
    """Say what is known of records that have no usable file, the likely cause first."""
    by_reason: dict[str, list[Failure]] = {}
    for failure in annotations.failures:
        by_reason.setdefault(failure.reason, []).append(failure)
    total = len(annotations.records) + len(annotations.failures)
    sentences = _missing(annotations, by_reason[MISSING], total) if MISSING in by_reason else []
    if several := by_reason.get(AMBIGUOUS):
        sentences.append(f"{_of(several, total)} could have more than one file or clip, as: {several[0].detail}")
    if conflicts := by_reason.get(CONFLICT):
        detail, count = Counter(failure.detail for failure in conflicts).most_common(1)[0]
        sentences.append(
            f"{_of(conflicts, total)} have a file in the place of another class; {spaced(count)}: {detail}"
        )
    if twins := by_reason.get(DUPLICATE):
        sentences.append(f"{_of(twins, total)} repeat an earlier line, as {twins[0].key}")
    return sentences


def _of(failures: Sequence[Failure], total: int) -> str:
    return f"{spaced(len(failures))} of {spaced(total)} records"


def _missing(annotations: Annotations, missing: Sequence[Failure], total: int) -> list[str]:
    found = total - len(missing)
    first = f"{_of(missing, total)} have no file; {spaced(found)} names match. The first: {missing[0].detail}"
    sentences = [first, *_whole_splits(annotations, missing)]
    if not annotations.unlisted:
        if not found:
            sentences.append("the folder of raw files has no file that could be asked for")
        return [*sentences, *(note for note in annotations.notes if note.startswith(PASSED_OVER))]
    return sentences + _unlisted(annotations, missing)


def _whole_splits(annotations: Annotations, missing: Sequence[Failure]) -> list[str]:
    """Say which splits have no file at all while others have."""
    lost = Counter(failure.split for failure in missing)
    there = Counter(record.split for record in annotations.records)
    sentences = []
    for split, count in lost.items():
        if there and not there[split]:
            others = ", ".join(f"{other} has {spaced(there[other])}" for other in sorted(there))
            sentences.append(
                f"no record of {split} has a file ({spaced(count)} missing) but {others}: is it elsewhere?"
            )
    return sentences


def _unlisted(annotations: Annotations, missing: Sequence[Failure]) -> list[str]:
    """Compare the names that are there with those that are asked for."""
    step = -(-len(annotations.unlisted) // _NUM_COMPARED)
    files = _Files(annotations.unlisted[::step])
    looked = f"; of {spaced(len(files.names))} of them" if step > 1 else ""
    sentences = [f"{spaced(len(annotations.unlisted))} files are asked for by no record{looked}: {files.forms()}"]
    wanted = distinct(_keys([failure.source_id for failure in missing]))
    found = distinct(_keys([record.source_id for record in annotations.records]))
    is_wanted = _is_in(files.ids, wanted)
    if is_wanted.any():
        sentences.append(
            f"{files.count(is_wanted)} are of videos whose records have no file, but with another start: "
            "perhaps cut for another edition of the lists"
        )
    elif files.are_clips() and not _is_in(files.ids, found).any():
        splits = " and ".join(sorted({failure.split for failure in missing}))
        sentences.append(f"none of these is of a listed video: perhaps of another split or version than {splits} here")
    is_other_case = _is_in(np.char.lower(files.ids), distinct(np.char.lower(wanted))) & ~is_wanted
    if is_other_case.any():
        sentences.append(f"{files.count(is_other_case)} are ids of missing records but for upper and lower case")
    is_padded = _is_in(np.char.lstrip(files.ids, b"0"), wanted) & ~is_wanted
    if is_padded.any():
        sentences.append(f"{files.count(is_padded)} are ids of missing records but for zeros in front")
    holding = [name for name, stem in files.others()[:_NUM_SEARCHED] if _holds_id(stem, wanted)]
    if holding:
        sentences.append(
            f"{spaced(len(holding))} of {spaced(min(_NUM_SEARCHED, len(files.others())))} other names hold the id of a "
            f"missing record, as {holding[0]}: rename them to the id, or to id_start_end"
        )
    return sentences


class _Files:
    """Files that no record asks for."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._stems = [name.rpartition("/")[2].rpartition(".")[0] for name in names]
        self._forms = [_form(stem) for stem in self._stems]
        clips = map(CLIP_NAME.fullmatch, self._stems)
        self.ids = _keys([clip[1] if clip else stem for clip, stem in zip(clips, self._stems, strict=True)])

    def count(self, is_meant: NDArray[np.bool_]) -> str:
        """Say how many files are meant, with the first of them."""
        return f"{spaced(int(is_meant.sum()))} of these, as {self.names[int(np.argmax(is_meant))]},"

    def forms(self) -> str:
        """Say what names and folders look like."""
        examples = dict(zip(reversed(self._forms), reversed(self.names), strict=True))
        counts = Counter(self._forms).most_common()
        said = ", ".join(f"{spaced(count)} {form} as {examples[form]}" for form, count in counts)
        folders = Counter(folder for name in self.names if (folder := name.rpartition("/")[0]))
        if not folders:
            return said
        where = f"{spaced(len(folders))} sub-folders or archives as {next(iter(folders))}"
        return f"{said}; {spaced(folders.total())} lie in {where}"

    def are_clips(self) -> bool:
        """Tell whether all names are those of Kinetics clips."""
        return not {_BY_NUMBER, _OTHERWISE} & set(self._forms)

    def others(self) -> list[tuple[str, str]]:
        """Return names of no known form, with their stems."""
        triples = zip(self.names, self._stems, self._forms, strict=True)
        return [(name, stem) for name, stem, form in triples if form == _OTHERWISE]


def _form(stem: str) -> str:
    if clip := CLIP_NAME.fullmatch(stem):
        return "named id_start_end" if clip[3] else "named id_start"
    if VIDEO_ID.fullmatch(stem):
        return "named by an id of 11 characters"
    return _BY_NUMBER if _NUMBER.fullmatch(stem) else _OTHERWISE


def _holds_id(stem: str, wanted: Keys) -> bool:
    parts = [stem[start : start + 11] for start in range(len(stem) - 10)] if len(stem) <= 255 else []
    parts = [part for part in parts if VIDEO_ID.fullmatch(part)]
    return bool(parts) and bool(_is_in(_keys(parts), wanted).any())


def _keys(ids: Sequence[str]) -> Keys:
    """Return ids as an array, with nothing for those of a form that no video data set has."""
    return as_keys((text if _PLAIN_ID.fullmatch(text) else "" for text in ids), len(ids), _WIDTH)


def _is_in(keys: Keys, ordered: Keys) -> NDArray[np.bool_]:
    """Tell of each key whether it is among sorted ones; nothing is in none."""
    if not len(ordered):
        return np.zeros(len(keys), dtype=bool)
    place = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return np.asarray((ordered[place] == keys) & (keys != b""), dtype=bool)
