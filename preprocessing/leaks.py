"""Videos that two splits have in common: a model scored on what it was trained on scores too well.

Kinetics-400's validation videos are largely in Kinetics-700's training set, and some published lists have one split
twice. What counts is the source id, which is the video's id in its data set of origin, whatever its clip is.
"""

from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vast.dataset_format import read_manifest
from vast.errors import UserError
from vast.sample_index import read_index
from vast.storage import open_store

NUM_EXAMPLES = 5


@dataclass(frozen=True)
class SharedSources:
    """What a split of one data set has in common with a split of another, or of the same."""

    split_a: str
    split_b: str
    num_shared: int
    """Source ids in both."""
    samples_a: int
    samples_b: int
    shared_samples_a: int
    """Samples of the first split whose source id is in the second; several clips of a video share its id."""
    shared_samples_b: int
    examples: tuple[str, ...]
    """The first few of the shared ids, sorted."""

    @property
    def share_a(self) -> float:
        """Part of the first split's samples that the second has sources of, 0 to 1."""
        return self.shared_samples_a / self.samples_a if self.samples_a else 0.0

    @property
    def share_b(self) -> float:
        """Part of the second split's samples that the first has sources of, 0 to 1."""
        return self.shared_samples_b / self.samples_b if self.samples_b else 0.0

    def __str__(self) -> str:
        if not self.num_shared:
            return f"{self.split_a} and {self.split_b} share no source"
        examples = ", ".join(self.examples) + (" …" if self.num_shared > len(self.examples) else "")
        return (
            f"{self.split_a} and {self.split_b} share {self.num_shared} sources: "
            f"{self.shared_samples_a} of {self.samples_a} samples ({100 * self.share_a:.1f} %) and "
            f"{self.shared_samples_b} of {self.samples_b} ({100 * self.share_b:.1f} %): {examples}"
        )


@dataclass(frozen=True)
class LeakReport:
    """What was compared, and what was found."""

    url_a: str
    url_b: str
    pairs: tuple[SharedSources, ...]
    """Every pair of splits that was compared."""

    @property
    def leaks(self) -> tuple[SharedSources, ...]:
        """The pairs that share a source."""
        return tuple(pair for pair in self.pairs if pair.num_shared)


def find_leaks(url_a: str, url_b: str, split_a: str | None = None, split_b: str | None = None) -> LeakReport:
    """Look for sources that two data sets share, or that different splits of one data set share.

    Only the source ids of the sample indexes are read. An id says nothing of where it is from, so data sets whose
    videos are merely numbered may seem to share some.

    Args:
        url_a: A data set.
        url_b: Another one, or the same.
        split_a: The split of the first; all of them when None.
        split_b: The split of the second; all of them when None.

    Raises:
        UserError: There is no such data set or split, or there is nothing to compare.
    """
    is_same = open_store(url_a).url == open_store(url_b).url
    splits_a = [split_a] if split_a is not None else sorted(read_manifest(url_a).splits)
    splits_b = [split_b] if split_b is not None else sorted(read_manifest(url_b).splits)
    if is_same and split_a is None and split_b is None:
        pairs = list(combinations(splits_a, 2))
    else:
        pairs = [(one, other) for one, other in product(splits_a, splits_b) if not is_same or one != other]
    if not pairs:
        raise UserError(f"{url_a}: a split shares everything with itself; name two data sets or two splits")
    ids_a = {split: _source_ids(url_a, split) for split in sorted({one for one, _ in pairs})}
    ids_b = {split: _source_ids(url_b, split) for split in sorted({other for _, other in pairs})}
    return LeakReport(url_a, url_b, tuple(_compare(one, ids_a[one], other, ids_b[other]) for one, other in pairs))


def _source_ids(url: str, split: str) -> Any:
    return pa.array(read_index(url, split).column("source_id"), pa.string())


def _compare(split_a: str, ids_a: Any, split_b: str, ids_b: Any) -> SharedSources:
    # Nothing is known of samples whose id is empty.
    known_a, known_b = (pc.filter(pc.unique(ids), pc.not_equal(pc.unique(ids), "")) for ids in (ids_a, ids_b))
    shared = pc.filter(known_a, pc.is_in(known_a, value_set=known_b))
    return SharedSources(
        split_a=split_a,
        split_b=split_b,
        num_shared=len(shared),
        samples_a=len(ids_a),
        samples_b=len(ids_b),
        shared_samples_a=pc.sum(pc.is_in(ids_a, value_set=shared)).as_py() or 0,
        shared_samples_b=pc.sum(pc.is_in(ids_b, value_set=shared)).as_py() or 0,
        examples=tuple(shared.take(pc.sort_indices(shared)[:NUM_EXAMPLES]).to_pylist()),
    )
