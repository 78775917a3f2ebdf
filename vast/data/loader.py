"""Batches for training and evaluation: the order decides, readers decode, this module hands over."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from vast.data.augment import AugmentParams, collate_augment
from vast.data.cache import DiskCache
from vast.data.config import DataConfig
from vast.data.dataset import ShardDataset
from vast.data.fetch import SampleSource
from vast.data.flip import flip_table
from vast.data.order import micro_batches, rank_range, split_global_batch, step_content, steps_per_epoch
from vast.data.protocols import resolve_protocol
from vast.data.reader import EvalBatch, EvalReader, Job, Request, TrainBatch, TrainReader
from vast.data.readers import Answer, answers
from vast.errors import UserError

_GIGABYTE = 1e9


class TrainLoader:
    """Iterates `(step, micro_batches)` over the steps `start_step <= step < stop_step`, across epochs.

    A step's global batch is `order(seed, epoch)[s * G : (s + 1) * G]`; this loader yields the slice of one rank in
    `accumulation` micro-batches of `micro_batch` clips each. Neither the number of ranks nor that of readers changes
    a sample or its augmentation, and to resume is to begin at another step.

    A sample that is damaged, or that readers crash or hang over, keeps its places with weight 0, so that all ranks keep
    their shapes and steps; it is named in `skipped`.

    Args:
        dataset: The training split.
        config: How clips are drawn.
        seed: Seed of the order and of all augmentation.
        global_batch: Clips of one optimizer step over all ranks.
        max_micro_batch: Most clips of one forward pass; None: a rank's whole share.
        rank: Number of this rank.
        num_ranks: Number of ranks.
        start_step: First step, counted from the start of the run.
        stop_step: The step before which to stop, counted from the start of the run.

    Raises:
        UserError: The global batch does not fit the ranks, the repeats or the split, samples have no label, or
            label_aware flipping does not fit the classes. While iterating: the store refuses.
        StoreError: While iterating: a shard is not there, or the store has not answered for `data.store_patience_s`.
        ReaderError: While iterating: readers die for no reason that a sample gives.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        config: DataConfig,
        *,
        seed: int,
        global_batch: int,
        max_micro_batch: int | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        start_step: int = 0,
        stop_step: int,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(dataset), global_batch, config.repeats)
        self.micro_batch, self.accumulation = split_global_batch(
            global_batch,
            num_ranks,
            global_batch if max_micro_batch is None else max_micro_batch,
            config.clips_together,
        )
        self._dataset = dataset
        self._config = config
        self._seed = seed
        self._global_batch = global_batch
        self._rank = rank
        self._num_ranks = num_ranks
        self._steps = range(start_step, stop_step)
        unlabelled = int(np.count_nonzero(dataset.index.column("label") < 0))
        if unlabelled:
            raise UserError(
                f"data.train_split: {unlabelled} of {len(dataset)} samples in {dataset.split!r} of {dataset.url} have "
                "no label; train on a labelled split"
            )
        self._flip = None
        if config.flip == "label_aware":
            self._flip = flip_table(dataset.classes)
        elif config.flip == "plain":
            self._flip = np.arange(len(dataset.classes))

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[tuple[int, list[TrainBatch]]]:
        reader = TrainReader(_source(self._dataset, self._config), self._config, self._seed, self._flip)
        coming = answers(
            reader,
            self._requests(),
            num_readers=self._config.num_readers,
            max_places=self.micro_batch,
            # A caller may still have the last step's batches when it asks for the next ones.
            held=2 * self.accumulation,
            timeout_s=self._config.reader_timeout_s,
        )
        with contextlib.closing(coming):
            for step in self._steps:
                yield step, [_train_batch(next(coming)) for _ in range(self.accumulation)]

    def _requests(self) -> Iterator[Request]:
        config = self._config
        for step in self._steps:
            content = step_content(
                self._seed,
                step,
                self._global_batch,
                len(self._dataset),
                repeats=config.repeats,
                chunk_samples=config.chunk_samples,
            )
            first = self._rank * self._global_batch // self._num_ranks
            parts = micro_batches(content.samples, self._rank, self._num_ranks, self.micro_batch)
            for number, samples in enumerate(parts):
                jobs = _jobs(self._dataset, samples.tolist(), content.epoch)
                yield Request(jobs, len(samples), step, content.epoch, first + number * self.micro_batch)


class EvalLoader:
    """Iterates EvalBatch over the samples of one rank; over all ranks each sample comes exactly once, without padding.

    Ranks may have different numbers of batches, so no collective belongs inside the loop. A sample that cannot be read
    or decoded is in `failed` of its batch; nothing takes its place.

    Args:
        dataset: The evaluated split.
        config: How clips are drawn.
        protocol: Temporal clips x spatial crops, such as 4x3, or a named one of vast.data.protocols.
        batch_size: Videos of a batch; it holds `batch_size * V` clips.
        rank: Number of this rank.
        num_ranks: Number of ranks.
        samples: Numbers of the samples to read instead of a rank's share of the split.

    Raises:
        UserError: The protocol is malformed or not for this model. While iterating: the store refuses.
        StoreError: While iterating: the store has not answered for `data.store_patience_s`.
        ReaderError: While iterating: readers die for no reason that a sample gives.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        config: DataConfig,
        protocol: str,
        *,
        batch_size: int,
        rank: int = 0,
        num_ranks: int = 1,
        samples: Sequence[int] | None = None,
    ) -> None:
        resolved = resolve_protocol(protocol, config)
        self.views = resolved.views
        self._dataset = dataset
        self._config = resolved.applied_to(config)
        self._batch_size = batch_size
        self._samples = rank_range(len(dataset), rank, num_ranks) if samples is None else samples

    def __len__(self) -> int:
        return -(-len(self._samples) // self._batch_size)

    def __iter__(self) -> Iterator[EvalBatch]:
        reader = EvalReader(_source(self._dataset, self._config), self._config, self.views)
        coming = answers(
            reader,
            self._requests(),
            num_readers=self._config.num_readers,
            max_places=self._batch_size,
            held=2,
            timeout_s=self._config.reader_timeout_s,
        )
        with contextlib.closing(coming):
            for answer in coming:
                yield _eval_batch(answer)

    def _requests(self) -> Iterator[Request]:
        for start in range(0, len(self._samples), self._batch_size):
            samples = self._samples[start : start + self._batch_size]
            yield Request(_jobs(self._dataset, samples), len(samples))


def _source(dataset: ShardDataset, config: DataConfig) -> SampleSource:
    cache = DiskCache(config.cache_dir, int(config.cache_gb * _GIGABYTE)) if config.cache_dir else None
    return SampleSource(dataset.url, config.store_patience_s, cache)


def _jobs(dataset: ShardDataset, samples: Sequence[int], epoch: int = 0) -> list[Job]:
    """Return a job for each different sample, with the places where it stands."""
    places: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(sample, []).append(place)
    # Looked up at once: parts of the index that are not in memory yet come together.
    rows = dataset.index.rows(list(places))
    return [Job(sample, row, tuple(places[sample]), epoch) for sample, row in zip(places, rows, strict=True)]


def _train_batch(answer: Answer) -> TrainBatch:
    request = answer.request
    B = request.num_places
    sample_B, label_B = torch.empty(B, dtype=torch.int64), torch.empty(B, dtype=torch.int64)
    weight_B = torch.ones(B)
    augment_B = [AugmentParams()] * B
    skipped: list[tuple[int, str]] = []
    times: dict[str, float] = {}
    for job, filled in zip(request.jobs, answer.filled, strict=True):
        places = torch.tensor(job.places)
        sample_B[places] = job.sample
        if filled.damage:
            skipped.append((job.sample, filled.damage))
            weight_B[places] = 0
            label_B[places] = job.row.label
            answer.pixels[places] = 0
        else:
            label_B[places] = torch.tensor(filled.labels)
            for place, params in zip(job.places, filled.augment, strict=True):
                augment_B[place] = params
        for name, seconds in filled.times.items():
            times[name] = times.get(name, 0.0) + seconds
    return TrainBatch(
        step=request.step,
        epoch=request.epoch,
        sample_B=sample_B,
        clip_BCTHW=answer.pixels.permute(0, 4, 1, 2, 3),
        label_B=label_B,
        position_B=torch.arange(request.position, request.position + B),
        weight_B=weight_B,
        augment=collate_augment(augment_B),
        skipped=skipped,
        times=times,
    )


def _eval_batch(answer: Answer) -> EvalBatch:
    jobs, filled = answer.request.jobs, answer.filled
    clip_BVCTHW = answer.pixels.permute(0, 1, 5, 2, 3, 4)
    good = [number for number, result in enumerate(filled) if not result.damage]
    return EvalBatch(
        sample_B=torch.tensor([jobs[number].sample for number in good], dtype=torch.int64),
        clip_BVCTHW=clip_BVCTHW if len(good) == len(jobs) else clip_BVCTHW[good],
        label_B=torch.tensor([jobs[number].row.label for number in good], dtype=torch.int64),
        failed=[(job.sample, result.damage) for job, result in zip(jobs, filled, strict=True) if result.damage],
    )
