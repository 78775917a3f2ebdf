"""Augmentation of clips on the model's device: drawn clip by clip, planned in the reader, carried out in batches.

A clip's parameters come from the generator of its sample alone, and its result from the clip and its parameters alone,
bit for bit: neither depends on the other clips of the batch. Nothing here waits for the device.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vast.data import clip_ops
from vast.data.clip_ops import KERNELS, ClipOp
from vast.data.config import AugmentConfig
from vast.data.erasing import Erasure, draw_erasures, erase
from vast.data.randaugment import draw_color_jitter, draw_randaugment


class AugmentParams(NamedTuple):
    """What happens to one clip; by default nothing."""

    ops: tuple[ClipOp, ...] = ()
    """Operations on its uint8 values, in order."""
    erasures: tuple[Erasure, ...] = ()
    """Boxes to fill after normalising, in order."""


class Round(NamedTuple):
    """One operation on some clips of a batch, each with arguments of its own."""

    kind: str
    """A key of KERNELS."""
    num_clips: int
    num_args: int
    """Arguments of each clip."""


@dataclass(frozen=True)
class AugmentBatch:
    """What happens to the clips of a batch."""

    rounds: tuple[Round, ...]
    """Operations, in order."""
    numbers: Tensor
    """float32, one row, so that one transfer takes them all: of each round its clips' places, then their arguments."""
    erasures: tuple[tuple[int, Erasure], ...]
    """Boxes to fill after normalising: the clip's place, and the box."""

    def to(self, device: torch.device) -> "AugmentBatch":
        """Return this batch with its numbers on a device, on their way there without waiting."""
        numbers = self.numbers
        if device.type == "cuda" and numbers.device.type == "cpu":
            numbers = numbers.pin_memory()
        return replace(self, numbers=numbers.to(device, non_blocking=True))


def draw_augment(config: AugmentConfig, size: int, rng: np.random.Generator) -> AugmentParams:
    """Draw what happens to one clip: colour jitter, RandAugment, greying, erasing, in this order.

    Args:
        config: What to draw from.
        size: Side of the clip, pixels.
        rng: Where all randomness comes from.
    """
    ops = draw_color_jitter(config, rng) + draw_randaugment(config, size, rng)
    if config.grayscale_prob and rng.random() < config.grayscale_prob:
        ops.append(clip_ops.color(0.0))
    return AugmentParams(tuple(ops), draw_erasures(config, size, rng))


def collate_augment(params: Sequence[AugmentParams]) -> AugmentBatch:
    """Plan the augmentation of a batch.

    Args:
        params: Of each clip, in the order of the batch.
    """
    rounds, numbers = [], []
    for kind, ops in _rounds([clip.ops for clip in params]):
        args = np.array([op.args for op in ops.values()], dtype=np.float32)
        rounds.append(Round(kind, *args.shape))
        numbers += [np.array(list(ops), dtype=np.float32), args.reshape(-1)]
    row = np.concatenate(numbers) if numbers else np.empty(0, dtype=np.float32)
    erasures = tuple((place, erasure) for place, clip in enumerate(params) for erasure in clip.erasures)
    return AugmentBatch(tuple(rounds), torch.from_numpy(row), erasures)


def _rounds(ops_of_clips: Sequence[tuple[ClipOp, ...]]) -> Iterator[tuple[str, dict[int, ClipOp]]]:
    """Yield the kind that most clips wait for, with their places and operations, until none waits.

    Each clip's own order holds, and a batch needs about as many rounds as there are kinds rather than operations.
    """
    waiting = {place: deque(ops) for place, ops in enumerate(ops_of_clips) if ops}
    while waiting:
        kind = Counter(queue[0].kind for queue in waiting.values()).most_common(1)[0][0]
        yield kind, {place: queue.popleft() for place, queue in waiting.items() if queue[0].kind == kind}
        waiting = {place: queue for place, queue in waiting.items() if queue}


def apply_augment(
    clip_BCTHW: Tensor, augment: AugmentBatch | None, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Augment and normalise a batch.

    Args:
        clip_BCTHW: uint8; left as it is.
        augment: The plan of collate_augment; None only normalises.
        mean: One value a channel, of values in 0..1.
        std: One value a channel, of values in 0..1.

    Returns:
        float32 clips of the same shape on the same device.
    """
    if augment is None:
        return normalise(clip_BCTHW, mean, std)
    normal_BCTHW = normalise(_carry_out(clip_BCTHW, augment.to(clip_BCTHW.device)), mean, std)
    for place, erasure in augment.erasures:
        erase(normal_BCTHW[place], erasure)
    return normal_BCTHW


def _carry_out(clip_BCTHW: Tensor, augment: AugmentBatch) -> Tensor:
    if augment.rounds:
        clip_BCTHW = clip_BCTHW.clone(memory_format=torch.contiguous_format)  # most work on whole channels of frames
    start = 0
    for kind, num_clips, num_args in augment.rounds:
        middle, end = start + num_clips, start + num_clips * (1 + num_args)
        place_N = augment.numbers[start:middle].long()
        args_NK = augment.numbers[middle:end].view(num_clips, num_args)
        if clip_BCTHW.is_cuda:
            clip_BCTHW.index_copy_(0, place_N, KERNELS[kind](clip_BCTHW.index_select(0, place_N), args_NK))
        else:  # clip by clip, in memory that is already there: half the time
            for place in range(num_clips):
                clip_1CTHW = clip_BCTHW.narrow(0, int(place_N[place]), 1)
                clip_1CTHW.copy_(KERNELS[kind](clip_1CTHW, args_NK[place : place + 1]))
        start = end
    return clip_BCTHW


def normalise(clip: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 values into float32 ones, `(value / 255 - mean) / std` for each channel, on the clip's device.

    Args:
        clip: (..., C, T, H, W), uint8.
        mean: One value a channel, of values in 0..1.
        std: One value a channel, of values in 0..1.

    Returns:
        A float32 tensor of the same shape and layout.
    """
    pixels = clip.movedim(-4, -1)
    if pixels.is_contiguous():
        # Rows of W * C values at a time: by runs of three, which is what broadcasting over pixels does, a CPU takes
        # three times as long.
        scale, offset = (part.repeat(pixels.shape[-2]) for part in _scale_and_offset(mean, std, clip.device))
        normal = pixels.flatten(-2).to(torch.float32).mul_(scale).sub_(offset)
        return normal.view(pixels.shape).movedim(-1, -4)
    scale, offset = (part.view(-1, 1, 1, 1) for part in _scale_and_offset(mean, std, clip.device))
    return clip.to(torch.float32).mul_(scale).sub_(offset)


def _scale_and_offset(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """`value * scale - offset` is `(value / 255 - mean) / std`, one of each a channel."""
    scale = torch.tensor(std, dtype=torch.float32).mul_(255).reciprocal_()
    offset = torch.tensor(mean, dtype=torch.float32).div_(torch.tensor(std, dtype=torch.float32))
    return scale.to(device, non_blocking=True), offset.to(device, non_blocking=True)
