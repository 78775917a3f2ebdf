from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.plan import Plan, make_plan
from preprocessing.records import Annotations, Failure, Record
from preprocessing.transcode import TranscodeSettings
from vast.errors import UserError

SETTINGS = TranscodeSettings()


def record(number: int, split: str = "train", **changes: object) -> Record:
    values = {"key": f"x_{number}", "source_id": str(number), "label": number % 3, "path": f"/none/{number}.mp4"}
    return Record(**{**values, "split": split, "source_name": f"{number}.mp4", **changes})  # type: ignore[arg-type]


def annotations(*records: Record, failures: tuple[Failure, ...] = ()) -> Annotations:
    return Annotations("x", ("a", "b", "c"), records, failures, {}, ())


def order(plan: Plan) -> list[str]:
    return [record.key for shard in plan.shards for record in shard.records]


@given(sizes=st.tuples(st.integers(1, 60), st.integers(0, 9)), samples_per_shard=st.integers(1, 20))
def test_every_record_is_dealt_once_to_shards_of_equal_counts(sizes: tuple[int, int], samples_per_shard: int) -> None:
    records = [record(n) for n in range(sizes[0])] + [record(n, "val") for n in range(sizes[1])]
    plan = make_plan(annotations(*records), SETTINGS, samples_per_shard=samples_per_shard)
    dealt = [record for shard in plan.shards for record in shard.records]
    assert Counter(dealt) == Counter(records)
    assert plan.num_records == Counter(record.split for record in records)
    for split in ("train", "val"):
        shards = [shard for shard in plan.shards if shard.split == split]
        counts = [len(shard.records) for shard in shards]
        assert not counts or (max(counts) <= samples_per_shard and max(counts) - min(counts) <= 1)
        assert [shard.name for shard in shards] == [f"{split}-{index:06d}.tar" for index in range(len(shards))]
        assert all(record.split == split for shard in shards for record in shard.records)


@given(st.permutations(range(12)))
def test_the_order_of_the_annotation_file_leaves_no_trace(numbers: list[int]) -> None:
    expected = make_plan(annotations(*map(record, range(12))), SETTINGS, samples_per_shard=5)
    assert make_plan(annotations(*map(record, numbers)), SETTINGS, samples_per_shard=5) == expected


def test_the_seed_changes_the_order_and_nothing_else() -> None:
    given_ = annotations(*map(record, range(30)))
    orders = [order(make_plan(given_, SETTINGS, seed=seed)) for seed in range(3)]
    assert len({tuple(keys) for keys in orders}) == 3
    assert len({frozenset(keys) for keys in orders}) == 1
    assert orders[0] != [record.key for record in given_.records]


def test_the_digest_sees_all_that_changes_the_shards_and_no_machine(tmp_path: Path) -> None:
    (tmp_path / "1.mp4").write_bytes(b"12")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "1.mp4").write_bytes(b"12")
    one = record(1, path=str(tmp_path / "1.mp4"))
    base = make_plan(annotations(one), SETTINGS).digest
    assert make_plan(annotations(replace(one, path=str(tmp_path / "copy" / "1.mp4"))), SETTINGS).digest == base
    others = {
        make_plan(annotations(one), SETTINGS, seed=1).digest,
        make_plan(annotations(one), SETTINGS, samples_per_shard=7).digest,
        make_plan(annotations(one), TranscodeSettings(crf=24)).digest,
        make_plan(annotations(replace(one, label=2)), SETTINGS).digest,
        make_plan(annotations(one, record(2)), SETTINGS).digest,
        make_plan(annotations(one, failures=(Failure("x_2", "train", "2", "", "missing"),)), SETTINGS).digest,
        make_plan(replace(annotations(one), classes=("b", "a", "c")), SETTINGS).digest,
    }
    (tmp_path / "1.mp4").write_bytes(b"123")
    others.add(make_plan(annotations(one), SETTINGS).digest)
    assert len(others - {base}) == 8


def test_a_key_that_comes_again_in_its_split_is_a_failure() -> None:
    plan = make_plan(annotations(record(1), record(1), record(1, label=0), record(1, "val")), SETTINGS)
    assert order(plan) == ["x_1", "x_1"]
    assert [(failure.reason, "another label" in failure.detail) for failure in plan.failures] == [
        ("duplicate", False),
        ("duplicate", True),
    ]
    assert plan.num_records == {"train": 3, "val": 1}


def test_nothing_to_encode_is_the_users_mistake() -> None:
    missing = Failure("x_2", "train", "2", "", "missing")
    with pytest.raises(UserError, match=r"x: no record has a video file \(missing 1\)"):
        make_plan(annotations(failures=(missing,)), SETTINGS)
    with pytest.raises(UserError, match="samples_per_shard is 0"):
        make_plan(annotations(record(1)), SETTINGS, samples_per_shard=0)
