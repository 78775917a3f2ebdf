import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing.describe import SplitDescription, describe
from vast.dataset_format import (
    UNLABELLED,
    Manifest,
    SampleRow,
    ShardInfo,
    SplitInfo,
    classes_digest,
    dataset_digest,
    read_manifest,
    write_manifest,
)
from vast.errors import UserError
from vast.sample_index import write_index

CLASSES = ["a", "b", "c", "d"]


def row(number: int, label: int, duration_s: float = 10.0, fps: float = 30.0, size: tuple[int, int] = (456, 256)):
    return SampleRow(f"x_{number}", "s.tar", 0, 1, label, str(number), duration_s, fps, *size, 300, "00")


def write_set(folder: Path, splits: dict[str, list[SampleRow]], failures: list[tuple[str, str, str]], **fields: Any):
    """Write what a description is made from: manifest, indexes and failures, without the shards."""
    folder.mkdir(exist_ok=True)
    infos = {}
    for split, rows in splits.items():
        num_failures = sum(of == split for of, _, _ in failures)
        infos[split] = SplitInfo(
            records=len(rows) + num_failures,
            samples=len(rows),
            failures=num_failures,
            replaced=min(1, len(rows)),
            size_bytes=7,
            index_sha256=write_index(str(folder), split, rows),
            shards=[ShardInfo(name="s.tar", size_bytes=7, sha256="00", samples=len(rows))],
        )
    lines = [json.dumps({"split": split, "stage": stage, "reason": reason}) for split, stage, reason in failures]
    (folder / "failures.jsonl").write_text("".join(line + "\n" for line in lines))
    about = {"annotations": {}, "transcode": {}, "software": {}, "plan_digest": "", "digest": dataset_digest(infos)}
    digest = classes_digest(CLASSES)
    write_manifest(
        str(folder), Manifest(name="x", classes=CLASSES, classes_digest=digest, splits=infos, **about, **fields)
    )


def described(folder: Path, rows: list[SampleRow], **fields: Any) -> SplitDescription:
    write_set(folder, {"train": rows}, [], **fields)
    return describe(str(folder))[1][0]


def test_every_number_is_that_of_the_split(tmp_path: Path) -> None:
    train = [row(0, 1), row(1, 1, 4.0, 29.97003), row(2, 3, 8.0, 29.97001), row(3, 1, 2.0, 25.0, (256, 456))]
    failures = [("train", "transcode", "cut short"), ("train", "match", "missing"), ("val", "read", "empty")]
    write_set(tmp_path, {"train": train, "val": [row(4, 0)]}, [*failures, ("train", "match", "missing")], unlisted=5)
    manifest, (first, second) = describe(str(tmp_path))
    assert manifest == read_manifest(str(tmp_path))
    assert (first.split, first.records, first.samples, first.failures) == ("train", 7, 4, 3)
    assert (first.replaced, first.shards, first.size_bytes) == (1, 1, 7)
    assert first.hours == pytest.approx(24 / 3600)
    assert first.duration_s == (2.0, 6.0, 10.0)
    assert list(first.sizes.items()) == [("456x256", 3), ("256x456", 1)]
    assert list(first.fps.items()) == [(29.97, 2), (25.0, 1), (30.0, 1)]
    assert (first.classes, first.unlabelled, first.empty_classes) == (2, 0, ("a", "c"))
    assert (first.most_frequent, first.least_frequent) == (("b", 3), ("d", 1))
    assert list(first.failures_by_reason.items()) == [("missing", 2), ("cut short", 1)]
    assert list(first.failures_by_stage.items()) == [("match", {"missing": 2}), ("transcode", {"cut short": 1})]
    assert first.class_counts.tolist() == [0, 3, 0, 1]
    assert sorted(first.durations_s) == [2.0, 4.0, 8.0, 10.0]
    assert (second.samples, second.failures_by_reason) == (1, {"empty": 1})
    assert second.most_frequent == second.least_frequent == ("a", 1)


def test_counts_add_up_to_the_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        row(i, int(rng.integers(-1, 4)), 1.0, float(rng.integers(24, 27)), tuple(rng.integers(18, 21, 2).tolist()))
        for i in range(300)
    ]
    one = described(tmp_path, rows)
    assert sum(one.sizes.values()) == sum(one.fps.values()) == 300
    assert one.unlabelled + one.class_counts.sum() == 300
    assert one.sizes == {name: sum(f"{each.width}x{each.height}" == name for each in rows) for name in one.sizes}
    assert list(one.sizes.values()) == sorted(one.sizes.values(), reverse=True)


def test_a_split_without_labels_misses_no_class(tmp_path: Path) -> None:
    one = described(tmp_path, [row(0, UNLABELLED), row(1, UNLABELLED)])
    assert (one.classes, one.unlabelled, one.empty_classes) == (0, 2, ())
    assert (one.most_frequent, one.least_frequent) == (None, None)


def test_an_empty_split_has_no_durations(tmp_path: Path) -> None:
    one = described(tmp_path, [])
    assert (one.samples, one.duration_s, one.sizes, one.fps, one.hours) == (0, None, {}, {}, 0)


def test_pictures_have_no_frame_rate(tmp_path: Path) -> None:
    one = described(tmp_path, [row(0, 1, 0.0, 0.0)], media="image")
    assert one.fps == {}
    assert one.sizes == {"456x256": 1}


def test_what_cannot_be_described_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set at"):
        describe(str(tmp_path))
    write_set(tmp_path, {"train": [row(0, 0)]}, [("train", "match", "missing")])
    for line in ("{}", "nothing", "[1]", '{"split": "train", "stage": "match"}'):
        (tmp_path / "failures.jsonl").write_text('{"split": "x", "stage": "x", "reason": "x"}\n' + line + "\n")
        with pytest.raises(UserError, match=r"failures.jsonl, line 2 is no failure.*run `vast data verify"):
            describe(str(tmp_path))
