import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import preprocessing.build
from preprocessing.build import build_dataset
from preprocessing.diagnosis import parse_limit
from preprocessing.plan import ShardPlan
from preprocessing.records import Annotations, Failure, Record
from preprocessing.sources import VideoFile
from preprocessing.transcode import TranscodeSettings
from preprocessing.write import ShardReport
from vast.dataset_format import read_manifest
from vast.errors import StoreError, UserError
from vast.sample_index import read_index

SETTINGS = TranscodeSettings(short_side=32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> Annotations:
    """Seven clips, one of them empty, and one record without a file."""
    folder = tmp_path_factory.mktemp("videos")
    records = []
    for number in range(7):
        path = make_clip(folder / f"{number}.mp4", num_frames=6 + number, seed=number)
        split = "val" if number > 4 else "train"
        if number == 3:
            path.write_bytes(b"")
        file = VideoFile(str(folder), path.name, path.stat().st_size)
        records.append(Record(f"x_{number}", split, str(number), number % 2, file, 0, 10, replaced=number == 4))
    missing = Failure("x_9", "val", "9", "", "match", "missing", "no 9.mp4")
    return Annotations("x", ("a", "b"), tuple(records), (missing,), {"train.csv": "aa"}, ("b/z.mp4", "a.mp4"))


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def number_of_tries(monkeypatch: pytest.MonkeyPatch, dies_at: int = 0) -> list[str]:
    """Count shards as they are begun; at the given one the build is interrupted."""
    write_shard, calls = preprocessing.build.write_shard, []

    def counting(plan: ShardPlan, *arguments: object) -> ShardReport:
        calls.append(plan.name)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        return write_shard(plan, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(preprocessing.build, "write_shard", counting)
    return calls


def build(folder: Path, source: Annotations, **changes: object) -> preprocessing.build.BuildResult:
    options = {"samples_per_shard": 2, "num_workers": 0, **changes}
    return build_dataset(str(folder), source, SETTINGS, **options)  # type: ignore[arg-type]


def break_off(
    monkeypatch: pytest.MonkeyPatch, folder: Path, source: Annotations, dies_at: int, **changes: object
) -> None:
    """Begin a build that is interrupted as it begins the given shard."""
    with monkeypatch.context() as patch:
        number_of_tries(patch, dies_at)
        with pytest.raises(KeyboardInterrupt):
            build(folder, source, **changes)


def test_every_record_is_a_sample_or_a_failure_with_its_reason(tmp_path: Path, source: Annotations) -> None:
    steps: list[tuple[int, int, int]] = []
    result = build(tmp_path, source, on_progress=lambda *step: steps.append(step))
    manifest = result.manifest
    assert manifest == read_manifest(str(tmp_path))
    counts = {split: (info.records, info.samples, info.failures) for split, info in manifest.splits.items()}
    assert counts == {"train": (5, 4, 1), "val": (3, 2, 1)}
    assert [shard.samples for shard in manifest.splits["train"].shards].count(2) == 1
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(line["key"], line["stage"], line["reason"], line["source_name"]) for line in failures] == [
        ("x_3", "read", "empty", "3.mp4"),
        ("x_9", "match", "missing", ""),
    ]
    assert (tmp_path / "unlisted.jsonl").read_text() == '{"source_name": "a.mp4"}\n{"source_name": "b/z.mp4"}\n'
    assert manifest.unlisted == 2
    assert manifest.splits["train"].replaced == 1
    index = read_index(str(tmp_path), "train")
    assert {index.row(i).source_id: index.row(i).num_frames for i in range(4)} == {"0": 6, "1": 7, "2": 8, "4": 10}
    assert steps[0] == (1, 8, 1)
    assert steps[-1] == (8, 8, 2)
    assert steps == sorted(steps)
    shards = {shard.name for info in manifest.splits.values() for shard in info.shards}
    lists = {"manifest.json", "failures.jsonl", "unlisted.jsonl", "train.parquet", "val.parquet"}
    assert set(content(tmp_path)) == {*shards, *lists}


def test_the_same_build_twice_is_the_same_to_the_last_byte(tmp_path: Path, source: Annotations) -> None:
    build(tmp_path / "a", source)
    build(tmp_path / "b", replace(source, records=source.records[::-1]))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_complete_data_set_is_left_alone_and_another_is_not_overwritten(tmp_path: Path, source: Annotations) -> None:
    first = build(tmp_path, source)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = build(tmp_path, source)
    assert again.was_complete
    assert not first.was_complete
    assert again.manifest == first.manifest
    with pytest.raises(UserError, match=r"holds another complete data set, 'x' with .* --overwrite"):
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
    build(tmp_path / "whole", source)
    break_off(monkeypatch, tmp_path / "broken", source, dies_at=3)
    with pytest.raises(UserError, match="no data set"):
        read_manifest(str(tmp_path / "broken"))
    # One of the two finished shards gets lost, and must be noticed; a put that was killed leaves its temporary file.
    min((tmp_path / "broken").glob("*.tar")).unlink()
    (tmp_path / "broken" / f".train-000000.tar.{'0' * 32}.tmp").write_bytes(b"half")
    calls = number_of_tries(monkeypatch)
    result = build(tmp_path / "broken", source)
    assert result.reused_shards == 1
    assert len(calls) == 4 - 1
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_a_shard_that_another_has_overwritten_is_written_again(
    tmp_path: Path, source: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "whole", source)
    break_off(monkeypatch, tmp_path / "set", source, dies_at=3)
    first, second = sorted((tmp_path / "set").glob("*.tar"))
    data = bytearray(first.read_bytes())
    data[600] ^= 1
    first.write_bytes(data)  # other bytes of the same size
    second.write_bytes(second.read_bytes())  # the same bytes, put again by a worker that outlived its build
    assert build(tmp_path / "set", source).reused_shards == 1
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_a_shard_replaced_during_the_build_is_noticed_before_the_manifest(
    tmp_path: Path, source: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard = preprocessing.build.write_shard

    def spoils_the_first(plan: ShardPlan, *arguments: object) -> ShardReport:
        if plan.name == "val-000000.tar":
            (tmp_path / "train-000000.tar").write_bytes(b"another's")
        return write_shard(plan, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(preprocessing.build, "write_shard", spoils_the_first)
    with pytest.raises(StoreError, match=r"train-000000\.tar cannot be seen from here or were replaced"):
        build(tmp_path, source)
    assert not (tmp_path / "manifest.json").exists()
    monkeypatch.undo()
    build(tmp_path, source)
    build(tmp_path / "whole", source)
    whole = content(tmp_path / "whole")
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*.*")} == whole


def test_killed_after_the_manifest_the_next_call_only_tidies_up(
    tmp_path: Path, source: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(preprocessing.build, "_tidy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(tmp_path, source)
    assert list(tmp_path.glob("unfinished-*"))
    calls = number_of_tries(monkeypatch)
    assert build(tmp_path, source).was_complete
    assert calls == []
    build(tmp_path.with_name(f"{tmp_path.name}-whole"), source)
    assert content(tmp_path) == content(tmp_path.with_name(f"{tmp_path.name}-whole"))


def test_two_builds_of_one_prefix_are_refused_and_not_mixed(
    tmp_path: Path, source: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = []

    def second_build(*_: object) -> ShardReport:
        with pytest.raises(UserError) as refusal:
            build(tmp_path, source)
        refusals.append(str(refusal.value))
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocessing.build, "write_shard", second_build)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, source)
    assert len(refusals) == 1
    assert f"process {os.getpid()} on" in refusals[0]
    monkeypatch.undo()
    assert not build(tmp_path, source).was_complete


def test_tars_that_no_build_has_written_are_not_overwritten(tmp_path: Path, source: Annotations) -> None:
    (tmp_path / "train-000001.tar").write_bytes(b"somebody's own")
    with pytest.raises(UserError, match=r"holds 1 file.*train-000001\.tar.*--overwrite"):
        build(tmp_path, source)
    assert (tmp_path / "train-000001.tar").read_bytes() == b"somebody's own"
    build(tmp_path, source, overwrite=True)


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_replacement_that_broke_off_leaves_nothing_of_the_old_set(
    tmp_path: Path, source: Annotations, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    build(tmp_path / "set", source, samples_per_shard=1)
    break_off(monkeypatch, tmp_path / "set", source, dies_at, samples_per_shard=3, overwrite=True)
    build(tmp_path / "set", source)
    build(tmp_path / "whole", source)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_too_many_records_without_a_file_stop_the_build_before_it_begins(tmp_path: Path, source: Annotations) -> None:
    lost = tuple(Failure(f"x_{i}", "train", str(i), "", "match", "missing", f"no {i}.mp4") for i in range(10, 20))
    with pytest.raises(UserError, match=r"11 of 18 records have no usable file; --max-failures allows 50"):
        build(tmp_path / "set", replace(source, failures=source.failures + lost), max_failures=parse_limit("50%"))
    assert not (tmp_path / "set").exists()


def test_too_many_records_that_cannot_be_encoded_stop_the_build(tmp_path: Path, source: Annotations) -> None:
    with pytest.raises(UserError, match=r"1 of the \d tried so far could not be encoded; --max-failures allows 20"):
        build(tmp_path / "set", source, max_failures=parse_limit("20%"))
    assert not (tmp_path / "set" / "manifest.json").exists()
    assert build(tmp_path / "set", source, max_failures=parse_limit("30%")).reused_shards > 0, (
        "what was done is used again"
    )


def test_shards_of_another_plan_that_broke_off_do_not_stay(
    tmp_path: Path, source: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(preprocessing.build, "complete", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(tmp_path, source, samples_per_shard=1)
    assert len(list(tmp_path.glob("train-*.tar"))) == 5
    result = build(tmp_path, source)
    assert result.reused_shards == 1, "one record of train is left over in both plans, and its shard the same"
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
