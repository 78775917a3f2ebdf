"""Where the seconds of a step go, without making the device wait for the answer.

Each mark charges the time since the mark before to a part of the step, so the parts add up to the whole. On a CPU the
marks are clock readings. On a GPU they are events in its stream: the parts are seconds of the GPU, and are read only
where the loop waits for the GPU anyway.

wait        nothing to do: the loader had no batch (on a GPU: from its last work to the first of the next step)
to_device   the copy of clips and labels
compute     augmentation, forward and backward pass, optimizer, averages
all_reduce  what a step waits for gradients of other ranks after its own last gradient is there, slower ranks included.
            What is hidden behind the backward pass, or behind the next step as its figures are, is not in it.
"""

import time
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import nn

_Mark: TypeAlias = Any
"""A clock reading, or an event in the GPU's stream."""
PARTS = ("wait", "to_device", "compute", "all_reduce")


class Stopwatch:
    """Charges the time between marks to the parts of a step."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, _Mark]] = []
        self.restart()

    def mark(self, part: str) -> None:
        """Charge the time since the last mark to `part`."""
        self._marks.append((part, self._now()))

    def restart(self) -> None:
        """Charge the time since the last mark to nothing: an evaluation, a checkpoint."""
        self.mark("")

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last call. Waits for the device."""
        marks, self._marks = self._marks, self._marks[-1:]
        seconds = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, now) in pairwise(marks):
            if part:
                seconds[part] += _seconds_between(before, now)
        return seconds

    def mark_last_gradient(self, first_layer: nn.Module) -> None:
        """From now on, mark `compute` when a backward pass reaches `first_layer`, which is its last gradient."""
        for parameter in first_layer.parameters():
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]  # torch leaves it so
                lambda _: self.mark("compute")
            )

    def _now(self) -> _Mark:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it so
        event.record()
        return event


def _seconds_between(before: _Mark, now: _Mark) -> float:
    if isinstance(before, float) or isinstance(now, float):
        return float(now) - float(before)  # never of two kinds
    now.synchronize()
    return float(before.elapsed_time(now)) / 1e3
