"""Batches for training and evaluation: the order decides, readers decode, this module hands over.

Reader processes come from a fork server. A plain fork would copy the locks of a training process's threads (CUDA,
gRPC, OpenMP) in an unknown state. Spawned ones each import torch again (about two seconds), and with torch 2.13
some abort when they exit ("terminate called without an active exception", no data needed). The server is a clean
process that has the imports done, so later readers start in a fraction of a second and evaluation can afford new ones.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from vast.data.augment import flip_table
from vast.data.config import DataConfig
from vast.data.dataset import ShardDataset
from vast.data.order import micro_batches, rank_range, split_global_batch, step_content, steps_per_epoch
from vast.data.reader import EvalBatch, EvalReader, Request, TrainBatch, TrainReader
from vast.data.sampling import views
from vast.dataset_format import SampleRow
from vast.errors import DecodeError, UserError

# A dead reader is looked for this often while waiting.
_POLL_S = 1.0
_REQUESTS_AHEAD = 2

Batch = TypeVar("Batch", TrainBatch, EvalBatch)


class TrainLoader:
    """Iterates `(step, micro_batches)` over the steps `start_step <= step < stop_step`, across epochs.

    A step's global batch is `order(seed, epoch)[s * G : (s + 1) * G]`; this loader yields the slice of one rank in
    `accumulation` micro-batches of `micro_batch` clips each. Neither the number of ranks nor that of readers changes
    a sample or its augmentation, and to resume is to begin at another step.

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
        UserError: The global batch does not fit the ranks or the split, samples have no label, or label_aware flipping
            does not fit the classes. While iterating: the store refuses.
        DecodeError: While iterating: a clip cannot be decoded, or a reader died or hung.
        StoreError: While iterating: a sample cannot be read.
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
        self.steps_per_epoch = steps_per_epoch(len(dataset), global_batch)
        self.micro_batch, self.accumulation = split_global_batch(
            global_batch, num_ranks, global_batch if max_micro_batch is None else max_micro_batch
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
        reader = TrainReader(self._dataset.source, self._config, self._seed, self._flip)
        answers: Iterator[TrainBatch] = _answers(reader, self._requests(), self._config)
        for step in self._steps:
            yield step, [next(answers) for _ in range(self.accumulation)]

    def _requests(self) -> Iterator[Request]:
        for step in self._steps:
            content = step_content(self._seed, step, self._global_batch, len(self._dataset))
            for samples in micro_batches(content.samples, self._rank, self._num_ranks, self.micro_batch):
                yield Request(f"step {step}", _with_rows(self._dataset, samples.tolist()), step, content.epoch)


class EvalLoader:
    """Iterates EvalBatch over the samples of one rank; over all ranks each sample comes exactly once, without padding.

    Ranks may have different numbers of batches, so no collective belongs inside the loop. A sample that cannot be read
    or decoded is in `failed` of its batch; nothing takes its place.

    Args:
        dataset: The evaluated split.
        config: How clips are drawn.
        protocol: Temporal clips x spatial crops, such as 4x3.
        batch_size: Videos of a batch; it holds `batch_size * V` clips.
        rank: Number of this rank.
        num_ranks: Number of ranks.

    Raises:
        UserError: The protocol is malformed. While iterating: the store refuses.
        DecodeError: While iterating: a reader died or hung.
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
    ) -> None:
        self.views = views(protocol)
        self._dataset = dataset
        self._config = config
        self._batch_size = batch_size
        self._samples = rank_range(len(dataset), rank, num_ranks)

    def __len__(self) -> int:
        return -(-len(self._samples) // self._batch_size)

    def __iter__(self) -> Iterator[EvalBatch]:
        reader = EvalReader(self._dataset.source, self._config, self.views)
        answers: Iterator[EvalBatch] = _answers(reader, self._requests(), self._config)
        return answers

    def _requests(self) -> Iterator[Request]:
        for start in range(0, len(self._samples), self._batch_size):
            samples = self._samples[start : start + self._batch_size]
            yield Request(f"samples {samples[0]}..{samples[-1]}", _with_rows(self._dataset, samples))


def _with_rows(dataset: ShardDataset, samples: Sequence[int]) -> list[tuple[int, SampleRow]]:
    """Look a batch's samples up at once: parts of the index that are not in memory yet come together."""
    return list(zip(samples, dataset.index.rows(samples), strict=True))


class _Noted:
    """Passes requests on and remembers those without an answer, to name them when a reader is lost."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = requests
        self.unanswered: deque[Request] = deque()

    def __iter__(self) -> Iterator[Request]:
        for request in self._requests:
            self.unanswered.append(request)
            yield request


def _answers(reader: TrainReader | EvalReader, requests: Iterable[Request], config: DataConfig) -> Iterator[Batch]:
    """Yield the answer to each request, in order, and raise those that are errors."""
    noted = _Noted(requests)
    loader = DataLoader(
        cast(Any, reader),
        batch_size=None,
        sampler=noted,
        num_workers=config.num_readers,
        collate_fn=_as_it_is,
        # A private generator: otherwise each iteration would draw from the global one, and a resumed run differ.
        generator=torch.Generator(),
        **(_process_options(config) if config.num_readers else {}),
    )
    waiting = iter(loader)
    while True:
        try:
            answer = _next_answer(waiting, noted, config)
        except StopIteration:
            return
        noted.unanswered.popleft()
        if isinstance(answer, Exception):
            raise answer
        yield answer


def _process_options(config: DataConfig) -> dict[str, Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vast.data.reader"])
    return {
        "multiprocessing_context": context,
        # The server keeps the environment of its own start; credentials may have come later.
        "worker_init_fn": partial(_take_environment, dict(os.environ)),
        "prefetch_factor": _REQUESTS_AHEAD,
        "timeout": min(_POLL_S, config.reader_timeout_s),
    }


def _take_environment(environment: dict[str, str], reader_id: int) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _as_it_is(answer: Any) -> Any:
    return answer


def _next_answer(waiting: Iterator[Any], noted: _Noted, config: DataConfig) -> Any:
    """Wait for one answer, in short turns, until the deadline; torch looks for dead readers at the end of each turn."""
    waited_s = 0.0
    while True:
        try:
            return next(waiting)
        except RuntimeError as error:
            timed_out = "timed out after" in str(error)
            if not timed_out and "exited unexpectedly" not in str(error):
                raise
            waited_s += min(_POLL_S, config.reader_timeout_s)
            if timed_out and waited_s < config.reader_timeout_s:
                continue
            raise DecodeError(_lost_reader(noted, timed_out, waited_s, error)) from error


def _lost_reader(noted: _Noted, timed_out: bool, waited_s: float, error: Exception) -> str:
    suspects = list(noted.unanswered)
    if timed_out:
        # Answers come in order, so the oldest request is the one that hangs.
        suspects = suspects[:1]
    keys = ", ".join(f"{row.key} ({row.shard})" for request in suspects for _, row in request.samples)
    fate = f"gave no batch for {waited_s:.0f} s (data.reader_timeout_s)" if timed_out else f"was lost ({error})"
    awaited = noted.unanswered[0].what if noted.unanswered else "nothing"
    return f"a reader {fate} while {awaited} was awaited; it was decoding one of: {keys}"
