"""The order of data as a pure function of the seed: nothing here knows about processes, files or the past.

The idea of slicing one global order, so that the content of a step does not depend on the number of processes, is
MosaicML Streaming's "elastic determinism".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vast.errors import UserError

# One key a purpose: streams that share a seed must not share numbers.
_ORDER_STREAM = 1
_SAMPLE_STREAM = 2
_PAIR_STREAM = 3


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, num_samples: int, chunk_samples: int = 1) -> NDArray[np.int64]:
    """Return the permutation of the samples in an epoch, read-only; so many neighbours stay together.

    It sorts raw Philox words rather than calling `Generator.permutation`: numpy promises that the words stay the same
    in later versions, and nothing of the kind for the methods of a Generator. Costs about 0.1 s for a million samples;
    the last two epochs are remembered.
    """
    num_chunks = -(-num_samples // chunk_samples)
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(_ORDER_STREAM, epoch))).random_raw(num_chunks)
    permutation = np.argsort(words, kind="stable").astype(np.int64, copy=False)
    if chunk_samples > 1:
        permutation = (permutation[:, None] * chunk_samples + np.arange(chunk_samples)).ravel()
        permutation = permutation[permutation < num_samples]  # the last chunk may be shorter
    permutation.flags.writeable = False
    return permutation


def sample_rng(seed: int, epoch: int, sample: int, copy: int = 0) -> np.random.Generator:
    """Return the generator of everything random about one clip: a copy of one sample in one epoch."""
    sequence = np.random.SeedSequence(seed, spawn_key=(_SAMPLE_STREAM, epoch, sample, copy))
    return np.random.Generator(np.random.Philox(sequence))


def pair_rng(seed: int, step: int, pair: int) -> np.random.Generator:
    """Return the generator of everything random about clips `2 * pair` and `2 * pair + 1` of a step's global batch."""
    sequence = np.random.SeedSequence(seed, spawn_key=(_PAIR_STREAM, step, pair))
    return np.random.Generator(np.random.Philox(sequence))


def steps_per_epoch(num_samples: int, global_batch: int, repeats: int = 1) -> int:
    """Return the number of whole global batches in an epoch; what is left over is not trained on in that epoch.

    Args:
        num_samples: Samples of the split.
        global_batch: Clips of one step.
        repeats: Clips of each sample in a step, so that a step has `global_batch / repeats` samples.

    Raises:
        UserError: The samples do not fill one global batch, or it is no multiple of `2 * repeats`.
    """
    if global_batch < 1:
        raise UserError(f"global_batch: got {global_batch}, must be at least 1")
    if repeats > 1 and global_batch % (2 * repeats):
        raise UserError(
            f"global_batch: got {global_batch}; with data.repeats={repeats} it must be a multiple of {2 * repeats}"
        )
    most = num_samples * repeats
    if global_batch > most:
        raise UserError(
            f"global_batch: got {global_batch}, but the split has only {num_samples} samples; "
            f"choose a global batch of at most {most}"
        )
    return most // global_batch


@dataclass(frozen=True)
class Step:
    """The content of one optimizer step."""

    step: int
    """Number of the step, counted from 0 over all epochs."""
    epoch: int
    samples: NDArray[np.int64]
    """Sample of each clip of the global batch, in order."""


def step_content(
    seed: int, step: int, global_batch: int, num_samples: int, *, repeats: int = 1, chunk_samples: int = 1
) -> Step:
    """Return what global step `step` trains on.

    With k repeats, each block of 2k clips holds k copies of two samples in turns, a b a b: neighbours are never
    copies of one sample, which matters to whoever mixes them, and a block is never split between ranks.

    Raises:
        UserError: See steps_per_epoch.
    """
    epoch, position = divmod(step, steps_per_epoch(num_samples, global_batch, repeats))
    num_different = global_batch // repeats
    samples = order(seed, epoch, num_samples, chunk_samples)[position * num_different : (position + 1) * num_different]
    if repeats > 1:
        samples = np.repeat(samples.reshape(-1, 1, 2), repeats, axis=1).reshape(-1)
    return Step(step, epoch, samples)


def split_global_batch(global_batch: int, num_ranks: int, max_micro_batch: int, together: int = 1) -> tuple[int, int]:
    """Return `(micro_batch, accumulation)` with `global_batch = micro_batch * num_ranks * accumulation`.

    The micro batch is the largest one that divides a rank's share, does not exceed `max_micro_batch`, and is a multiple
    of `together`, the number of neighbours that must not be parted (2 where clips are mixed in pairs).

    Raises:
        UserError: The ranks cannot share the global batch equally, or not without parting neighbours.
    """
    for name, value in (("global_batch", global_batch), ("num_ranks", num_ranks), ("max_micro_batch", max_micro_batch)):
        if value < 1:
            raise UserError(f"{name}: got {value}, must be at least 1")
    share, rest = divmod(global_batch, num_ranks)
    if rest:
        below, above = share * num_ranks, (share + 1) * num_ranks
        near = f"{below} or {above}" if below else str(above)
        raise UserError(
            f"global_batch: {global_batch} clips cannot be shared equally by {num_ranks} ranks; "
            f"use a global batch of {near}, or a number of ranks that divides {global_batch}"
        )
    sizes = range(min(share, max_micro_batch), 0, -1)
    micro_batch = next((size for size in sizes if share % size == 0 and size % together == 0), None)
    if micro_batch is None:
        raise UserError(
            f"global_batch: {global_batch} clips on {num_ranks} ranks are {share} each, which cannot be cut into "
            f"micro-batches of at most {max_micro_batch} (max_micro_batch) that keep groups of {together} together; "
            f"use a global batch that is a multiple of {together} x {num_ranks}, "
            f"and micro-batches of at least {together}"
        )
    return micro_batch, share // micro_batch


def micro_batches(
    samples: NDArray[np.int64], rank: int, num_ranks: int, micro_batch: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the micro-batches of a rank's slice of a global batch.

    Raises:
        ValueError: The global batch is not a multiple of `num_ranks * micro_batch`; see split_global_batch.
    """
    if len(samples) % (num_ranks * micro_batch):
        raise ValueError(
            f"{len(samples)} samples are no multiple of {num_ranks} ranks x micro-batches of {micro_batch}"
        )
    share = len(samples) // num_ranks
    for start in range(rank * share, (rank + 1) * share, micro_batch):
        yield samples[start : start + micro_batch]


def rank_range(num_samples: int, rank: int, num_ranks: int) -> range:
    """Return the samples that a rank evaluates: disjoint over ranks, complete, sizes differ by one at most.

    Neighbours in the index lie next to each other in the shards, so a range reads fewer shards than every n-th sample.
    """
    return range(num_samples * rank // num_ranks, num_samples * (rank + 1) // num_ranks)
