import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import preprocessing.build
from preprocessing.build import build_dataset
from preprocessing.records import Annotations, Failure, Record
from preprocessing.transcode import TranscodeSettings
from preprocessing.write import ShardReport
from vast.dataset_format import read_index, read_manifest
from vast.errors import UserError

SETTINGS = TranscodeSettings(short_side=32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> Annotations:
    """Seven clips, one of them empty, and one record without a file."""
    folder = tmp_path_factory.mktemp("videos")
    records = []
    for number in range(7):
        path = make_clip(folder / f"{number}.mp4", num_frames=6 + number, seed=number)
        split = "val" if number > 4 else "train"
        records.append(Record(f"x_{number}", split, str(number), number % 2, str(path), path.name, 0, 10))
    (folder / "3.mp4").write_bytes(b"")
    missing = Failure("x_9", "val", "9", "", "missing", "no 9.mp4")
    return Annotations("x", ("a", "b"), tuple(records), (missing,), {"train.csv": "aa"}, ())


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def build(folder: Path, source: Annotations, **changes: object) -> preprocessing.build.BuildResult:
    options = {"samples_per_shard": 2, "num_workers": 0, **changes}
    return build_dataset(str(folder), source, SETTINGS, **options)  # type: ignore[arg-type]


def test_every_record_is_a_sample_or_a_failure_with_its_reason(tmp_path: Path, source: Annotations) -> None:
    steps: list[tuple[int, int, int]] = []
    result = build(tmp_path, source, on_progress=lambda *step: steps.append(step))
    manifest = result.manifest
    assert manifest == read_manifest(str(tmp_path))
    counts = {split: (info.records, info.samples, info.failures) for split, info in manifest.splits.items()}
    assert counts == {"train": (5, 4, 1), "val": (3, 2, 1)}
    assert [shard.samples for shard in manifest.splits["train"].shards].count(2) == 1
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(line["key"], line["reason"], line["source_name"]) for line in failures] == [
        ("x_3", "empty", "3.mp4"),
        ("x_9", "missing", ""),
    ]
    index = read_index(str(tmp_path), "train")
    assert {index.row(i).source_id: index.row(i).num_frames for i in range(4)} == {"0": 6, "1": 7, "2": 8, "4": 10}
    assert steps[0] == (1, 8, 1)
    assert steps[-1] == (8, 8, 2)
    assert steps == sorted(steps)
    shards = {shard.name for info in manifest.splits.values() for shard in info.shards}
    assert set(content(tmp_path)) == {*shards, "manifest.json", "failures.jsonl", "train.parquet", "val.parquet"}


def test_the_same_build_twice_is_the_same_to_the_last_byte(
    tmp_path: Path, source: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    build(tmp_path / "a", source)
    build(tmp_path / "b", replace(source, records=source.records[::-1]))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert read_manifest(str(tmp_path / "a")).created == "1970-01-02T00:00:00Z"


def test_a_complete_data_set_is_left_alone_and_another_is_not_overwritten(tmp_path: Path, source: Annotations) -> None:
    first = build(tmp_path, source)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = build(tmp_path, source)
    assert again.was_complete
    assert not first.was_complete
    assert again.manifest == first.manifest
    with pytest.raises(UserError, match=r"holds another complete data set, 'x' of .* overwrite=True"):
        build(tmp_path, source, samples_per_shard=50)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    (tmp_path / "notes-000000.tar").write_bytes(b"not ours")
    replaced = build(tmp_path, source, samples_per_shard=50, overwrite=True)
    assert [shard.name for shard in replaced.manifest.splits["train"].shards] == ["train-000000.tar"]
    assert {path.name for path in tmp_path.glob("*.tar")} == {"train-000000.tar", "val-000000.tar", "notes-000000.tar"}


def test_a_damaged_manifest_stops_a_build_unless_it_may_be_replaced(tmp_path: Path, source: Annotations) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        build(tmp_path, source)
    assert build(tmp_path, source, overwrite=True).manifest == read_manifest(str(tmp_path))


def test_a_build_that_broke_off_goes_on_and_ends_the_same(
    tmp_path: Path, source: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    build(tmp_path / "whole", source)
    write_shard, calls = preprocessing.build.write_shard, []

    def dies_at_the_third(*arguments: object) -> ShardReport:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write_shard(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(preprocessing.build, "write_shard", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "broken", source)
    with pytest.raises(UserError, match="no data set"):
        read_manifest(str(tmp_path / "broken"))
    # One of the two finished shards gets lost, and must be noticed.
    min((tmp_path / "broken").glob("*.tar")).unlink()
    result = build(tmp_path / "broken", source)
    assert result.reused_shards == 1
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_shards_of_another_plan_that_broke_off_do_not_stay(
    tmp_path: Path, source: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(preprocessing.build, "_complete", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(tmp_path, source, samples_per_shard=1)
    assert len(list(tmp_path.glob("train-*.tar"))) == 5
    result = build(tmp_path, source)
    assert result.reused_shards == 0
    assert len(list(tmp_path.glob("train-*.tar"))) == 3
    assert not list(tmp_path.glob("unfinished-*"))


def test_a_build_in_which_nothing_could_be_encoded_says_why(tmp_path: Path, source: Annotations) -> None:
    empty = replace(source, records=source.records[3:4], failures=())
    with pytest.raises(UserError, match=r"no record could be encoded \(empty 1\); the first: 0 bytes"):
        build(tmp_path, empty)
    assert not (tmp_path / "manifest.json").exists()


def test_without_ray_the_error_names_both_ways_out(
    tmp_path: Path, source: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test's Ray may be running
    with pytest.raises(UserError, match=r"ray\.init\(\) first, or use num_workers=0"):
        build(tmp_path, source, num_workers=2)
    whole = build(tmp_path, source)
    with pytest.raises(UserError, match="Ray has not been started"):
        build(tmp_path, source, num_workers=2, samples_per_shard=50, overwrite=True)
    assert build(tmp_path, source).manifest == whole.manifest, "nothing may be replaced before all is known to be well"
