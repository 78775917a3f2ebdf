import dataclasses
import io
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vast.data.config import DataConfig
from vast.data.dataset import ShardDataset
from vast.data.loader import EvalLoader, TrainLoader
from vast.data.order import step_content
from vast.data.reader import EvalBatch, TrainBatch
from vast.errors import StoreError, UserError
from vast.sample_index import write_index

GLOBAL_BATCH = 8
NUM_STEPS = 5  # an epoch has 2
Content = dict[int, tuple[list[int], Tensor, Tensor]]


@pytest.fixture
def train_set(data_url: str) -> ShardDataset:
    return ShardDataset(data_url, "train")


@pytest.fixture
def eval_set(data_url: str) -> ShardDataset:
    return ShardDataset(data_url, "val")


def joined(steps: Iterable[tuple[int, list[TrainBatch]]]) -> Content:
    """Collect sample numbers, clips and labels of each step."""
    content: Content = {}
    for step, batches in steps:
        assert {batch.step for batch in batches} == {step}
        samples = torch.cat([batch.sample_B for batch in batches]).tolist()
        clip_BCTHW = torch.cat([batch.clip_BCTHW for batch in batches])
        content[step] = (samples, clip_BCTHW, torch.cat([batch.label_B for batch in batches]))
    return content


def over_ranks(dataset: ShardDataset, config: DataConfig, num_ranks: int, max_micro_batch: int) -> Content:
    """Put the slices of all ranks together."""
    parts = [
        joined(
            TrainLoader(
                dataset,
                config,
                seed=3,
                global_batch=GLOBAL_BATCH,
                max_micro_batch=max_micro_batch,
                rank=rank,
                num_ranks=num_ranks,
                stop_step=NUM_STEPS,
            )
        )
        for rank in range(num_ranks)
    ]
    return {
        step: (
            [sample for part in parts for sample in part[step][0]],
            torch.cat([part[step][1] for part in parts]),
            torch.cat([part[step][2] for part in parts]),
        )
        for step in parts[0]
    }


def assert_equal(found: Content, expected: Content) -> None:
    assert found.keys() == expected.keys()
    for step, (samples, clip_BCTHW, label_B) in expected.items():
        assert found[step][0] == samples
        assert torch.equal(found[step][1], clip_BCTHW)
        assert torch.equal(found[step][2], label_B)


def damage(url: str, split: str, sample: int, folder: Path) -> str:
    """Copy the data set and change one byte of a sample."""
    shutil.copytree(url, folder)
    row = ShardDataset(url, split).index.row(sample)
    with open(folder / row.shard, "r+b") as file:
        file.seek(row.offset + row.size_bytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return str(folder)


def test_a_step_has_the_samples_of_its_order(train_set: ShardDataset, config: DataConfig) -> None:
    loader = TrainLoader(train_set, config, seed=3, global_batch=GLOBAL_BATCH, max_micro_batch=4, stop_step=NUM_STEPS)
    assert (loader.micro_batch, loader.accumulation, loader.steps_per_epoch, len(loader)) == (4, 2, 2, NUM_STEPS)
    steps = list(loader)
    assert [step for step, _ in steps] == list(range(NUM_STEPS))
    for step, batches in steps:
        content = step_content(3, step, GLOBAL_BATCH, len(train_set))
        assert torch.cat([batch.sample_B for batch in batches]).tolist() == content.samples.tolist()
        for batch in batches:
            assert batch.epoch == content.epoch
            assert batch.clip_BCTHW.shape == (4, 3, 8, 64, 64)
            assert batch.clip_BCTHW.dtype == torch.uint8
            assert batch.label_B.dtype == torch.int64


@pytest.mark.parametrize(("sampling", "train_crop"), [("dense", "resized"), ("uniform", "jittered")])
def test_ranks_and_micro_batches_do_not_change_a_step(
    train_set: ShardDataset, config: DataConfig, sampling: str, train_crop: str
) -> None:
    config = config.model_copy(update={"sampling": sampling, "train_crop": train_crop})
    expected = over_ranks(train_set, config, num_ranks=1, max_micro_batch=8)
    assert_equal(over_ranks(train_set, config, num_ranks=2, max_micro_batch=2), expected)
    assert_equal(over_ranks(train_set, config, num_ranks=4, max_micro_batch=2), expected)


def test_resuming_at_a_step_is_the_same_as_never_having_stopped(train_set: ShardDataset, config: DataConfig) -> None:
    expected = over_ranks(train_set, config, num_ranks=1, max_micro_batch=8)
    for start in (1, 3):
        loader = TrainLoader(
            train_set, config, seed=3, global_batch=GLOBAL_BATCH, start_step=start, stop_step=NUM_STEPS
        )
        assert_equal(joined(loader), {step: expected[step] for step in range(start, NUM_STEPS)})


def test_an_epoch_augments_a_sample_anew(train_set: ShardDataset, config: DataConfig) -> None:
    content = joined(TrainLoader(train_set, config, seed=3, global_batch=23, stop_step=2))
    (first, first_clips, _), (second, second_clips, _) = content[0], content[1]
    different = [not torch.equal(first_clips[i], second_clips[second.index(sample)]) for i, sample in enumerate(first)]
    assert all(different)


def test_iterating_leaves_the_global_generators_alone(train_set: ShardDataset, config: DataConfig) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(TrainLoader(train_set, config, seed=3, global_batch=8, stop_step=1))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_a_mirrored_clip_has_its_mirrored_label(train_set: ShardDataset, config: DataConfig) -> None:
    def run(flip: str) -> Content:
        changed = config.model_copy(update={"flip": flip})
        return joined(TrainLoader(train_set, changed, seed=3, global_batch=23, stop_step=3))

    plain, aware, none = run("plain"), run("label_aware"), run("none")
    twin = {0: 0, 1: 2, 2: 1, 3: 3}
    mirrored, swapped = 0, 0
    for step, (samples, clips, labels) in none.items():
        assert labels.tolist() == train_set.index.column("label")[samples].tolist()
        for i, label in enumerate(labels.tolist()):
            flipped = torch.equal(plain[step][1][i], clips[i].flip(-1))
            assert flipped or torch.equal(plain[step][1][i], clips[i])
            assert torch.equal(aware[step][1][i], plain[step][1][i])
            assert plain[step][2][i] == label
            assert aware[step][2][i] == (twin[label] if flipped else label)
            mirrored += flipped
            swapped += int(aware[step][2][i]) != label
    assert 15 < mirrored < 54
    assert swapped > 5


@pytest.mark.parametrize("num_readers", [1, 3])
def test_readers_change_nothing(
    train_set: ShardDataset, eval_set: ShardDataset, config: DataConfig, num_readers: int
) -> None:
    read = config.model_copy(update={"num_readers": num_readers})

    def train(config: DataConfig) -> Content:
        return joined(TrainLoader(train_set, config, seed=3, global_batch=8, max_micro_batch=4, stop_step=NUM_STEPS))

    assert_equal(train(read), train(config))
    pairs = zip(
        EvalLoader(eval_set, read, "2x3", batch_size=2), EvalLoader(eval_set, config, "2x3", batch_size=2), strict=True
    )
    for found, expected in pairs:
        assert torch.equal(found.sample_B, expected.sample_B)
        assert torch.equal(found.clip_BVCTHW, expected.clip_BVCTHW)


def test_a_damaged_sample_is_skipped_and_keeps_its_places(data_url: str, config: DataConfig, tmp_path: Path) -> None:
    dataset = ShardDataset(damage(data_url, "train", 11, tmp_path / "copy"), "train")
    whole = ShardDataset(data_url, "train")
    loaders = [TrainLoader(each, config, seed=3, global_batch=23, stop_step=1) for each in (dataset, whole)]
    ((_, (found,)),), ((_, (expected,)),) = loaders
    place = expected.sample_B.tolist().index(11)
    assert torch.equal(found.sample_B, expected.sample_B)
    assert torch.equal(found.position_B, expected.position_B)
    assert found.weight_B.tolist() == [float(i != place) for i in range(23)]
    assert expected.weight_B.tolist() == [1.0] * 23
    assert not found.clip_BCTHW[place].any()
    others = [i for i in range(23) if i != place]
    assert torch.equal(found.clip_BCTHW[others], expected.clip_BCTHW[others])
    ((sample, reason),) = found.skipped
    assert sample == 11
    assert re.search(r"train_011 in train-000001\.tar, bytes \d+\.\.\d+: sha256", reason)
    assert expected.skipped == []


def test_a_clip_with_fewer_frames_than_its_index_says_is_skipped(
    data_url: str, config: DataConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(data_url, folder)
    index = ShardDataset(data_url, "train").index
    rows = index.rows(range(len(index)))
    rows[4] = dataclasses.replace(rows[4], num_frames=4000)
    write_index(str(folder), "train", rows)
    ((_, (batch,)),) = TrainLoader(ShardDataset(str(folder), "train"), config, seed=3, global_batch=23, stop_step=1)
    ((sample, reason),) = batch.skipped
    assert sample == 4
    assert re.search(r"train_004 in train-000000\.tar.*the video has frames 0\.\.", reason)


def test_a_missing_shard_ends_training_at_once(data_url: str, config: DataConfig, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(data_url, folder)
    (folder / "train-000001.tar").unlink()
    for num_readers in (0, 1):
        changed = config.model_copy(update={"num_readers": num_readers, "store_patience_s": 3600})
        with pytest.raises(StoreError, match=r"train_0\d\d in train-000001\.tar"):
            list(TrainLoader(ShardDataset(str(folder), "train"), changed, seed=3, global_batch=23, stop_step=1))


@pytest.mark.parametrize("repeats", [2, 4])
def test_repeats_draw_other_clips_of_each_sample(train_set: ShardDataset, config: DataConfig, repeats: int) -> None:
    config = config.model_copy(update={"repeats": repeats, "num_readers": 0})
    loader = TrainLoader(train_set, config, seed=3, global_batch=16, stop_step=3)
    assert loader.steps_per_epoch == 23 * repeats // 16
    once = joined(
        TrainLoader(train_set, config.model_copy(update={"repeats": 1}), seed=3, global_batch=23, stop_step=1)
    )
    copy_0 = dict(zip(once[0][0], once[0][1], strict=True))
    for step, (batch,) in loader:
        samples = batch.sample_B.tolist()
        assert sorted(samples) == sorted(step_content(3, step, 16, 23, repeats=repeats).samples.tolist())
        assert set(Counter(samples).values()) == {repeats}
        for sample in set(samples):
            clips = [batch.clip_BCTHW[i] for i in range(16) if samples[i] == sample]
            assert all(not torch.equal(a, b) for i, a in enumerate(clips) for b in clips[:i])
            if batch.epoch == 0:
                assert torch.equal(clips[0], copy_0[sample])


def test_repeats_do_not_depend_on_ranks_readers_and_micro_batches(train_set: ShardDataset, config: DataConfig) -> None:
    config = config.model_copy(update={"repeats": 2})
    expected = over_ranks(train_set, config, num_ranks=1, max_micro_batch=8)
    assert_equal(over_ranks(train_set, config, num_ranks=2, max_micro_batch=4), expected)
    read = config.model_copy(update={"num_readers": 3})
    assert_equal(over_ranks(train_set, read, num_ranks=1, max_micro_batch=4), expected)


def test_a_batch_stays_as_it_is_however_many_are_kept(train_set: ShardDataset, config: DataConfig) -> None:
    config = config.model_copy(update={"num_readers": 2})
    kept, prints = [], []
    for _, batches in TrainLoader(train_set, config, seed=3, global_batch=4, stop_step=12):
        kept += batches
        prints += [batch.clip_BCTHW.clone() for batch in batches]
    assert all(torch.equal(batch.clip_BCTHW, clips) for batch, clips in zip(kept, prints, strict=True))


def test_training_refuses_what_it_cannot_use(
    train_set: ShardDataset, data_url: str, config: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="global_batch: got 24, but the split has only 23"):
        TrainLoader(train_set, config, seed=0, global_batch=24, stop_step=1)
    with pytest.raises(UserError, match="8 clips cannot be shared equally by 3 ranks"):
        TrainLoader(train_set, config, seed=0, global_batch=8, num_ranks=3, stop_step=1)
    folder = tmp_path / "copy"
    shutil.copytree(data_url, folder)
    rows = train_set.index.rows(range(len(train_set)))
    rows[2] = dataclasses.replace(rows[2], label=-1)
    write_index(str(folder), "train", rows)
    with pytest.raises(UserError, match=r"data\.train_split: 1 of 23 samples"):
        TrainLoader(ShardDataset(str(folder), "train"), config, seed=0, global_batch=8, stop_step=1)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5, 9])
def test_evaluation_sees_each_sample_exactly_once(eval_set: ShardDataset, config: DataConfig, num_ranks: int) -> None:
    seen: list[int] = []
    for rank in range(num_ranks):
        loader = EvalLoader(eval_set, config, "1x1", batch_size=2, rank=rank, num_ranks=num_ranks)
        batches = list(loader)
        assert len(batches) == len(loader)
        for batch in batches:
            assert batch.failed == []
            assert batch.clip_BVCTHW.shape == (len(batch.sample_B), 1, 3, 8, 64, 64)
            assert batch.label_B.tolist() == eval_set.index.column("label")[batch.sample_B.numpy()].tolist()
            seen += batch.sample_B.tolist()
    assert seen == list(range(7))


def test_views_are_temporal_by_temporal_with_crops_in_order(eval_set: ShardDataset, config: DataConfig) -> None:
    def clips(protocol: str) -> Tensor:
        return torch.cat([b.clip_BVCTHW for b in EvalLoader(eval_set, config, protocol, batch_size=4)])

    all_BVCTHW, temporal_BVCTHW, one_BVCTHW = clips("2x3"), clips("2x1"), clips("1x1")
    assert all_BVCTHW.shape == (7, 6, 3, 8, 64, 64)
    # The middle one of three crops is the centre crop.
    assert torch.equal(all_BVCTHW[:, [1, 4]], temporal_BVCTHW)
    long_video = 0
    views = [all_BVCTHW[long_video, v] for v in range(6)] + [one_BVCTHW[long_video, 0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])
    for temporal in (0, 1):
        # The left crop shows what is left of the right crop: no column is equal, but some content is shared.
        assert not torch.equal(all_BVCTHW[long_video, 3 * temporal], all_BVCTHW[long_video, 3 * temporal + 2])


def test_a_damaged_sample_is_reported_by_evaluation_and_not_replaced(
    data_url: str, config: DataConfig, tmp_path: Path
) -> None:
    dataset = ShardDataset(damage(data_url, "val", 2, tmp_path / "copy"), "val")
    batches: list[EvalBatch] = list(EvalLoader(dataset, config, "1x1", batch_size=1))
    assert [batch.sample_B.tolist() for batch in batches] == [[0], [1], [], [3], [4], [5], [6]]
    assert batches[2].clip_BVCTHW.shape == (0, 1, 3, 8, 64, 64)
    ((sample, message),) = batches[2].failed
    assert sample == 2
    assert "val_002 in val-000000.tar" in message


def test_evaluation_refuses_a_malformed_protocol(eval_set: ShardDataset, config: DataConfig) -> None:
    with pytest.raises(UserError, match="protocol: got '4by3'"):
        EvalLoader(eval_set, config, "4by3", batch_size=1)
