"""What the network is given: loader, augmentation and mixing together."""

import pytest
import torch
from torch import Tensor

from vast.data.augment import apply_augment, normalise
from vast.data.config import AugmentConfig, DataConfig
from vast.data.dataset import ShardDataset
from vast.data.loader import TrainLoader
from vast.data.mix import mix

SEED, GLOBAL_BATCH, NUM_STEPS, NUM_CLASSES = 3, 8, 3, 4
EVERYTHING = AugmentConfig(
    rand_num_layers=4, brightness=0.4, hue=0.1, erase_prob=0.5, mixup_alpha=0.8, cutmix_alpha=1.0
)
MIXUP = AugmentConfig(mixup_alpha=0.8)


@pytest.fixture
def train_set(data_url: str) -> ShardDataset:
    return ShardDataset(data_url, "train")


def network_input(
    train_set: ShardDataset, config: DataConfig, num_ranks: int = 1, max_micro_batch: int = GLOBAL_BATCH
) -> dict[int, tuple[Tensor, Tensor]]:
    """Clips and targets of each step, by place in the global batch."""
    clips: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for rank in range(num_ranks):
        loader = TrainLoader(
            train_set,
            config,
            seed=SEED,
            global_batch=GLOBAL_BATCH,
            max_micro_batch=max_micro_batch,
            rank=rank,
            num_ranks=num_ranks,
            stop_step=NUM_STEPS,
        )
        for step, batches in loader:
            for batch in batches:
                clip_BCTHW, target_BK = mix(
                    apply_augment(batch.clip_BCTHW, batch.augment, config.mean, config.std),
                    batch.label_B,
                    batch.weight_B,
                    batch.position_B,
                    num_classes=NUM_CLASSES,
                    config=config.augment,
                    seed=SEED,
                    step=step,
                    label_smoothing=0.0,
                )
                for place, clip, target in zip(batch.position_B.tolist(), clip_BCTHW, target_BK, strict=True):
                    clips[step, place] = clip, target
    return {
        step: (
            torch.stack([clips[step, place][0] for place in range(GLOBAL_BATCH)]),
            torch.stack([clips[step, place][1] for place in range(GLOBAL_BATCH)]),
        )
        for step in range(NUM_STEPS)
    }


@pytest.mark.parametrize(
    ("num_ranks", "max_micro_batch", "num_readers", "repeats"), [(2, 2, 0, 1), (4, 8, 0, 1), (1, 4, 2, 1), (2, 4, 0, 2)]
)
def test_it_does_not_depend_on_ranks_micro_batches_and_readers(
    train_set: ShardDataset, config: DataConfig, num_ranks: int, max_micro_batch: int, num_readers: int, repeats: int
) -> None:
    config = config.model_copy(update={"augment": EVERYTHING, "repeats": repeats})
    expected = network_input(train_set, config)
    config = config.model_copy(update={"num_readers": num_readers})
    found = network_input(train_set, config, num_ranks, max_micro_batch)
    for step, (clip_BCTHW, target_BK) in expected.items():
        assert torch.equal(found[step][0], clip_BCTHW)
        assert torch.equal(found[step][1], target_BK)


def test_mixing_takes_the_mirrored_label_of_a_mirrored_clip(train_set: ShardDataset, config: DataConfig) -> None:
    """Flip first, then mix: a pair's target holds the labels of what is seen."""
    config = config.model_copy(update={"augment": MIXUP, "flip": "label_aware"})
    found = network_input(train_set, config)
    loader = TrainLoader(train_set, config, seed=SEED, global_batch=GLOBAL_BATCH, stop_step=NUM_STEPS)
    swapped = 0
    for step, (batch,) in loader:
        seen_BCTHW = normalise(batch.clip_BCTHW, config.mean, config.std)
        swapped += int((batch.label_B.numpy() != train_set.index.column("label")[batch.sample_B]).sum())
        one_hot_BK = torch.nn.functional.one_hot(batch.label_B, NUM_CLASSES).float()
        # Both members of a pair together hold both labels and both clips, whatever the share.
        for one in range(0, GLOBAL_BATCH, 2):
            pair = slice(one, one + 2)
            torch.testing.assert_close(found[step][1][pair].sum(0), one_hot_BK[pair].sum(0))
            torch.testing.assert_close(found[step][0][pair].sum(0), seen_BCTHW[pair].sum(0))
    assert swapped > 0


def test_switching_augmentation_on_leaves_crops_and_flips_alone(train_set: ShardDataset, config: DataConfig) -> None:
    def crops(augment: AugmentConfig) -> list[Tensor]:
        changed = config.model_copy(update={"augment": augment})
        loader = TrainLoader(train_set, changed, seed=SEED, global_batch=GLOBAL_BATCH, stop_step=1)
        return [batch.clip_BCTHW for _, batches in loader for batch in batches]

    assert torch.equal(crops(EVERYTHING)[0], crops(AugmentConfig())[0])
