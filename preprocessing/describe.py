"""Describes a data set for people: what its manifest, indexes and failures say, without reading a shard."""

import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from preprocessing.object_stream import ObjectStream
from vast.dataset_format import FAILURES_KEY, UNLABELLED, Manifest, SplitInfo, read_manifest
from vast.errors import UserError
from vast.sample_index import SampleIndex, read_index
from vast.storage import Store, open_store


@dataclass(frozen=True)
class SplitDescription:
    """One split in numbers."""

    split: str
    records: int
    samples: int
    failures: int
    replaced: int
    """Samples whose raw file came from a set of replacements."""
    shards: int
    size_bytes: int
    """Bytes of the shards."""
    hours: float
    """Sum of the clips' durations."""
    duration_s: tuple[float, float, float] | None
    """Shortest, median and longest clip; None without samples."""
    sizes: dict[str, int]
    """Width and height, as "456x256", to the samples that have it; most frequent first."""
    fps: dict[float, int]
    """Frame rate, rounded to hundredths, to the samples that have it; most frequent first; empty for pictures."""
    classes: int
    """Classes that occur in the split."""
    unlabelled: int
    """Samples without a label."""
    empty_classes: tuple[str, ...]
    """Classes without a sample, in label order; none are named in a split without labels."""
    most_frequent: tuple[str, int] | None
    """The class with the most samples and their number; the first of several; None without labels."""
    least_frequent: tuple[str, int] | None
    """Of the classes that occur, the one with the fewest samples."""
    failures_by_reason: dict[str, int]
    """Most frequent first."""
    failures_by_stage: dict[str, dict[str, int]]
    """Stage to its reasons; both most frequent first."""
    class_counts: NDArray[np.int64] = field(compare=False, repr=False)
    """Samples of each class, by label id."""
    durations_s: NDArray[np.float64] = field(compare=False, repr=False)
    """Of each sample."""


def describe(url: str) -> tuple[Manifest, list[SplitDescription]]:
    """Return a data set's manifest and one description a split.

    Files that no record asks for are counted in the manifest. Of the indexes only five columns of numbers are read.

    Raises:
        UserError: There is no data set at `url`, or its failures are not what they should be.
        StoreError: The store failed.
    """
    manifest = read_manifest(url)
    failures = _count_failures(open_store(url))
    return manifest, [
        _describe(split, info, manifest, read_index(url, split), failures) for split, info in manifest.splits.items()
    ]


def _describe(
    split: str, info: SplitInfo, manifest: Manifest, index: SampleIndex, failures: Counter[tuple[str, str, str]]
) -> SplitDescription:
    columns = index.columns(["label", "duration_s", "width", "height", "video_fps"])
    label_N, durations_s = columns["label"], columns["duration_s"]
    num_classes = len(manifest.classes)
    known = (label_N >= 0) & (label_N < num_classes)
    counts = np.bincount(label_N[known], minlength=num_classes)
    occurring = np.flatnonzero(counts)
    most = int(occurring[np.argmax(counts[occurring])]) if len(occurring) else None
    least = int(occurring[np.argmin(counts[occurring])]) if len(occurring) else None
    by_stage = _by_stage(split, failures)
    by_reason = sum(by_stage.values(), Counter[str]())
    return SplitDescription(
        split=split,
        records=info.records,
        samples=info.samples,
        failures=info.failures,
        replaced=info.replaced,
        shards=len(info.shards),
        size_bytes=info.size_bytes,
        hours=float(durations_s.sum()) / 3600,
        duration_s=_three(durations_s),
        sizes=_sizes(columns["width"], columns["height"]),
        fps=_rates(columns["video_fps"]) if manifest.media == "video" else {},
        classes=len(occurring),
        unlabelled=int((label_N == UNLABELLED).sum()),
        empty_classes=tuple(manifest.classes[i] for i in np.flatnonzero(counts == 0)) if len(occurring) else (),
        most_frequent=None if most is None else (manifest.classes[most], int(counts[most])),
        least_frequent=None if least is None else (manifest.classes[least], int(counts[least])),
        failures_by_reason=dict(by_reason.most_common()),
        failures_by_stage={stage: dict(reasons.most_common()) for stage, reasons in by_stage.items()},
        class_counts=counts,
        durations_s=durations_s,
    )


def _count_failures(store: Store) -> Counter[tuple[str, str, str]]:
    """Return how many records failed, by split, stage and reason."""
    counts = Counter[tuple[str, str, str]]()
    for number, line in enumerate(ObjectStream(store, FAILURES_KEY).lines(), 1):
        try:
            entry = json.loads(line)
            counts[str(entry["split"]), str(entry["stage"]), str(entry["reason"])] += 1
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{store.url}/{FAILURES_KEY}, line {number} is no failure: {error!r}; "
                f"run `vast data verify {store.url}`"
            ) from error
    return counts


def _by_stage(split: str, failures: Counter[tuple[str, str, str]]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for of, stage, reason in sorted(failures):
        if of == split:
            found.setdefault(stage, Counter())[reason] = failures[of, stage, reason]
    return dict(sorted(found.items(), key=lambda item: -item[1].total()))


def _three(durations_s: NDArray[np.float64]) -> tuple[float, float, float] | None:
    if not len(durations_s):
        return None
    low, median, high = (round(float(value), 3) for value in np.percentile(durations_s, [0, 50, 100]))
    return low, median, high


def _sizes(width_N: NDArray[np.int32], height_N: NDArray[np.int32]) -> dict[str, int]:
    # As one number each: sorting pairs takes many times longer.
    pairs, counts = np.unique(width_N.astype(np.int64) << 32 | height_N, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {f"{pairs[i] >> 32}x{pairs[i] & 0xFFFFFFFF}": int(counts[i]) for i in order}


def _rates(fps_N: NDArray[np.float64]) -> dict[float, int]:
    rates, counts = np.unique(np.round(fps_N, 2), return_counts=True)
    return {float(rates[i]): int(counts[i]) for i in np.argsort(-counts, kind="stable")}
