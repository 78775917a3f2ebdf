"""Ranks that score parts of an evaluation: one in this process, or some on Ray, where a lost one costs only its part.

No rank waits for another and nothing is exchanged between them, so there is no process group: each takes a few parts,
hands every one back as soon as it is scored, and takes more.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from pipelines.evaluation.parts import EvalJob, score_parts
from vast.errors import StoreError, UserError

# So often may a rank be lost over the same part before the evaluation gives up.
MAX_LOSSES = 3

OnSamples = Callable[[int], None]


def score_here(
    job: EvalJob, model: nn.Module, numbers: list[int], on_samples: OnSamples
) -> Iterator[tuple[int, bytes]]:
    """Score parts in this process, on its GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    yield from score_parts(job, model.to(device).eval(), device, numbers, on_samples)


def score_on_ray(
    job: EvalJob,
    model: nn.Module,
    numbers: list[int],
    on_samples: OnSamples,
    on_note: Callable[[str], None],
    scaling: dict[str, Any],
) -> Iterator[tuple[int, bytes]]:
    """Score parts on ranks of the connected Ray cluster and yield each as it comes, in any order.

    Args:
        job: What is scored; its data set must be reachable from every node.
        model: Goes to the ranks through Ray, so only this process needs to read it from its store.
        numbers: Parts to score.
        on_samples: Told after each part how many samples it had.
        on_note: Told of each rank that was lost.
        scaling: How many ranks, and what each needs; see `pipelines.training.ranks.scaling_for`.

    Raises:
        UserError: A rank found a mistake.
        StoreError: A rank's store failed for longer than it waits.
        RuntimeError: Ranks were lost `MAX_LOSSES` times over the same part.
    """
    pool = _Pool(job, model, numbers, on_note, scaling)
    try:
        for number, table in pool.results():
            on_samples(len(job.parts[number]))
            yield number, table
    finally:
        pool.close()


class _Rank:
    """The actor: a model on a device."""

    def __init__(self, job: EvalJob, model: nn.Module) -> None:
        self._job = job
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._model = model.to(self._device).eval()

    def ready(self) -> None:
        """Answer when the model is in place."""

    def score(self, numbers: list[int]) -> Iterator[tuple[int, bytes] | tuple[str, str]]:
        """Yield parts; an error that a person can do something about is a value, as Ray would wrap it in another."""
        try:
            yield from score_parts(self._job, self._model, self._device, numbers, lambda count: None)
        except (UserError, StoreError) as error:
            yield type(error).__name__, str(error)


class _Pool:
    """The ranks, what each is doing, and what is left to do."""

    def __init__(
        self,
        job: EvalJob,
        model: nn.Module,
        numbers: list[int],
        on_note: Callable[[str], None],
        scaling: dict[str, Any],
    ) -> None:
        import ray

        self._on_note = on_note
        wanted = scaling["resources_per_worker"]
        self._actor = ray.remote(num_cpus=wanted["CPU"], num_gpus=wanted.get("GPU", 0))(_Rank)
        self._job, self._model = job, ray.put(model.cpu())
        self._left = sorted(numbers)
        self._losses: Counter[int] = Counter()
        self._num_ranks = min(scaling["num_workers"], len(self._left))
        self._ranks: list[Any] = []
        # What each rank was asked for, the question's reference first: its readiness, or parts and those still due.
        self._asked: dict[Any, tuple[Any, list[int]]] = {}
        self._idle: list[Any] = []
        for _ in range(self._num_ranks):
            self._start()

    def results(self) -> Iterator[tuple[int, bytes]]:
        """Yield every part once."""
        import ray

        due = len(self._left)
        while due:
            (reference,), _ = ray.wait(list(self._asked), num_returns=1)
            rank, numbers = self._asked.pop(reference)
            try:
                answer = self._answer(reference, numbers)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                self._lost(rank, numbers, error)
                continue
            if answer is None:
                self._ask(rank)
                continue
            number, table = answer
            if isinstance(number, str):
                raise (UserError if number == UserError.__name__ else StoreError)(table)
            numbers.remove(number)
            self._asked[reference] = rank, numbers
            due -= 1
            yield number, table

    def close(self) -> None:
        """End the ranks."""
        import ray

        for rank in self._ranks:
            ray.kill(rank)

    def _answer(self, reference: Any, numbers: list[int]) -> Any:
        """Return a part, or None when the rank has nothing more to say and may be asked again."""
        import ray

        if isinstance(reference, ray.ObjectRef):
            return ray.get(reference)  # ready
        try:
            return ray.get(next(reference))
        except StopIteration:
            if numbers:
                raise RuntimeError(f"a rank ended without a word and without parts {numbers}") from None
            return None

    def _start(self) -> None:
        rank = self._actor.remote(self._job, self._model)
        self._ranks.append(rank)
        self._asked[rank.ready.remote()] = rank, []

    def _ask(self, rank: Any) -> None:
        """Give a rank its share of half of what is left: few questions, and the last ones are small."""
        count = -(-len(self._left) // (2 * self._num_ranks))
        numbers, self._left = self._left[:count], self._left[count:]
        if numbers:
            self._asked[rank.score.options(num_returns="streaming").remote(numbers)] = rank, numbers
        else:
            self._idle.append(rank)

    def _lost(self, rank: Any, numbers: list[int], error: Exception) -> None:
        """Put the parts of a rank that died back and start another one; parts that it handed over stay."""
        import ray

        first = min(numbers, default=-1)  # parts come in order, so it was at this one
        what = "starting"
        if numbers:
            part = self._job.parts[first]
            what = f"samples {part[0]}..{part[-1]} of {self._job.split}"
        self._losses[first] += 1
        if self._losses[first] >= MAX_LOSSES:
            raise RuntimeError(f"ranks were lost {MAX_LOSSES} times over {what}; the last one: {error}") from error
        self._on_note(f"a rank was lost over {what} and is replaced: {error}")
        ray.kill(rank)
        self._ranks.remove(rank)
        self._left = sorted([*numbers, *self._left])
        self._start()
        # The new one may wait for a machine that never comes back.
        idle, self._idle = self._idle, []
        for other in idle:
            self._ask(other)
