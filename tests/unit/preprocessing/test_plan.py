import pickle
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from preprocessing.plan import Plan, ShardPlan, make_plan
from preprocessing.records import Annotations, Failure, Record
from preprocessing.sources import VideoFile
from vast.errors import UserError


class Settings(BaseModel):
    """Stands for the settings of videos or of pictures: a plan only identifies them."""

    short_side: int = 256


SETTINGS = Settings()
MISSING = Failure("x_2", "train", "2", "", "match", "missing")


def record(number: int, split: str = "train", **changes: object) -> Record:
    file = VideoFile("/none", f"{number}.mp4", 1000 + number)
    values = {"key": f"x_{number}", "source_id": str(number), "label": number % 3, "file": file}
    return Record(**{**values, "split": split, **changes})  # type: ignore[arg-type]


def annotations(*records: Record, failures: tuple[Failure, ...] = ()) -> Annotations:
    return Annotations("x", ("a", "b", "c"), records, failures, {}, ())


def order(plan: Plan) -> list[str]:
    return [record.key for shard in plan.shards for record in shard.records]


def only_shard(*records: Record, settings: BaseModel = SETTINGS) -> ShardPlan:
    (shard,) = make_plan(annotations(*records), settings).shards
    return shard


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
    assert len({shard.digest for shard in plan.shards}) == len(plan.shards)


@given(st.permutations([*range(12), 3, 3, 7]), st.permutations(["missing", "ambiguous", "conflict"]))
def test_the_order_of_the_annotation_file_leaves_no_trace(numbers: list[int], reasons: list[str]) -> None:
    def planned(numbers: list[int], reasons: list[str]) -> Plan:
        # Lines with the same key differ in label and file: even which of them is kept must not depend on their order.
        seen: Counter[int] = Counter()
        records = []
        for number in sorted(range(len(numbers)), key=lambda place: (numbers[place], place)):
            seen[numbers[number]] += 1
            records.append((number, record(numbers[number], label=(numbers[number] + seen[numbers[number]]) % 3)))
        failures = tuple(replace(MISSING, key=f"x_{reason}", reason=reason) for reason in reasons)
        given_ = annotations(*(made for _, made in sorted(records, key=lambda pair: pair[0])), failures=failures)
        return make_plan(given_, SETTINGS, samples_per_shard=5)

    expected, found = planned([*range(12), 3, 3, 7], ["missing", "ambiguous", "conflict"]), planned(numbers, reasons)
    assert (found.shards, found.num_records, found.digest) == (expected.shards, expected.num_records, expected.digest)
    assert Counter(found.failures) == Counter(expected.failures)


def test_the_seed_changes_the_order_and_nothing_else() -> None:
    given_ = annotations(*map(record, range(30)))
    plans = [make_plan(given_, SETTINGS, seed=seed) for seed in range(3)]
    assert len({tuple(order(plan)) for plan in plans}) == 3
    assert len({frozenset(order(plan)) for plan in plans}) == 1
    assert order(plans[0]) != [record.key for record in given_.records]
    assert len({plan.digest for plan in plans}) == 3


def test_the_order_is_that_of_all_builds_before() -> None:
    # Another order would be another data set for the same command.
    plan = make_plan(annotations(*map(record, range(6))), SETTINGS)
    assert order(plan) == ["x_4", "x_5", "x_3", "x_2", "x_0", "x_1"]


def test_a_shard_s_digest_sees_all_that_changes_its_content() -> None:
    one = record(1, start_s=3, end_s=13)
    digests = [
        only_shard(one).digest,
        only_shard(one, settings=Settings(short_side=320)).digest,
        only_shard(replace(one, split="val")).digest,
        only_shard(replace(one, key="y_1")).digest,
        only_shard(replace(one, source_id="2")).digest,
        only_shard(replace(one, label=2)).digest,
        only_shard(replace(one, start_s=4)).digest,
        only_shard(replace(one, end_s=None)).digest,
        only_shard(replace(one, replaced=True)).digest,
        only_shard(replace(one, file=replace(one.file, source_name="b/1.mp4"))).digest,
        only_shard(replace(one, file=replace(one.file, size_bytes=7))).digest,
        only_shard(one, record(2)).digest,
        make_plan(replace(annotations(one), classes=("a", "B", "c")), SETTINGS).shards[0].digest,
        make_plan(replace(annotations(one), media="image"), SETTINGS).shards[0].digest,
    ]
    assert len(set(digests)) == len(digests)
    # Its number, which is in its name, and the order of its records.
    two = make_plan(annotations(record(4), one), SETTINGS, samples_per_shard=1).shards
    assert [shard.records for shard in two] == [(record(4),), (one,)]
    assert two[1].digest != digests[0]
    mixed = [make_plan(annotations(*map(record, range(9))), SETTINGS, seed=seed).shards[0] for seed in (0, 1)]
    assert set(mixed[0].records) == set(mixed[1].records)
    assert mixed[0].digest != mixed[1].digest


def test_a_shard_s_digest_sees_no_machine_and_nothing_of_other_shards() -> None:
    one = record(1)
    digest = only_shard(one).digest
    assert only_shard(replace(one, file=replace(one.file, folder="/other", offset=512))).digest == digest
    plan = make_plan(annotations(one, record(2, "val"), failures=(MISSING,)), SETTINGS, samples_per_shard=7, seed=0)
    assert plan.shards[0].digest == digest
    # A class that no record of the shard has may be renamed, or come at the end of the list.
    assert make_plan(replace(annotations(one), classes=("A", "b", "C", "d")), SETTINGS).shards[0].digest == digest


def test_the_plan_s_digest_sees_shards_failures_and_classes() -> None:
    given_ = annotations(*map(record, range(9)), failures=(MISSING,))
    base = make_plan(given_, SETTINGS)
    others = [
        make_plan(given_, SETTINGS, samples_per_shard=4),
        make_plan(given_, Settings(short_side=320)),
        make_plan(replace(given_, classes=("a", "b", "c", "d")), SETTINGS),
        make_plan(replace(given_, records=given_.records[1:]), SETTINGS),
        make_plan(replace(given_, failures=()), SETTINGS),
        *(
            make_plan(replace(given_, failures=(replace(MISSING, **{name: "other"}),)), SETTINGS)
            for name in ("key", "split", "source_id", "source_name", "stage", "reason", "detail")
        ),
    ]
    assert len({plan.digest for plan in [base, *others]}) == 1 + len(others)
    moved = tuple(replace(line, file=replace(line.file, folder="/elsewhere")) for line in given_.records)
    assert make_plan(replace(given_, records=moved), SETTINGS).digest == base.digest
    assert make_plan(given_, SETTINGS, samples_per_shard=9).digest == base.digest, "the same single shard"


def test_names_that_are_no_unicode_can_be_planned() -> None:
    strange = "\udcff\n\0.mp4"
    one = record(1, file=VideoFile("/none", strange, 1))
    plan = make_plan(annotations(one, failures=(replace(MISSING, source_name=strange),)), SETTINGS)
    assert order(plan) == ["x_1"]


def test_a_shard_s_plan_travels_alone_and_small() -> None:
    plan = make_plan(annotations(*map(record, range(4000))), SETTINGS)
    shard = plan.shards[3]
    assert len(shard.records) == 400
    sent = pickle.dumps(shard)
    assert pickle.loads(sent) == shard
    assert len(sent) < 100 * len(shard.records)


def test_a_key_that_comes_again_in_its_split_is_a_failure() -> None:
    plan = make_plan(annotations(record(1), record(1), record(1, label=0), record(1, "val")), SETTINGS)
    assert [(record.split, record.key) for shard in plan.shards for record in shard.records] == [
        ("train", "x_1"),
        ("val", "x_1"),
    ]
    assert [(failure.stage, failure.reason) for failure in plan.failures] == [("match", "duplicate")] * 2
    assert [failure.detail for failure in plan.failures] == ["another line has the same key and another label"] * 2
    assert plan.num_records == {"train": 3, "val": 1}
    (failure,) = make_plan(annotations(record(1), record(1)), SETTINGS).failures
    assert failure == Failure("x_1", "train", "1", "1.mp4", "match", "duplicate", "another line has the same key")


def test_keys_whose_ranks_are_equal_are_no_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessing.plan._rank", lambda seed, key: int(key[-1]) % 2)
    records = [record(n) for n in (3, 1, 5, 2, 3, 4)]
    plan = make_plan(annotations(*records), SETTINGS)
    assert order(plan) == ["x_2", "x_4", "x_1", "x_3", "x_5"]
    assert [failure.key for failure in plan.failures] == ["x_3"]


def test_nothing_to_encode_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"x: no record has a video file \(missing 1\)"):
        make_plan(annotations(failures=(MISSING,)), SETTINGS)
    with pytest.raises(UserError, match=r"x: no record has an image file \(no records at all\)"):
        make_plan(replace(annotations(), media="image"), SETTINGS)
    with pytest.raises(UserError, match="samples_per_shard is 0"):
        make_plan(annotations(record(1)), SETTINGS, samples_per_shard=0)
