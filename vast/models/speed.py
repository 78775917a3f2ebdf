"""How many clips a second a model takes on this machine, forward alone and in training. Wall clock, random clips.

Dimensions: B clips · C channels · T frames · H rows · W columns · K classes.
"""

from __future__ import annotations

import contextlib
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

_FEWEST_ROUNDS = 3
_SECONDS = 1.0
"""Rounds go on for at least so long: one round of a small model is too short for the clock and the scheduler."""


@dataclass(frozen=True)
class Speed:
    """Clips a second, of medians over rounds after a warm-up."""

    forward: float
    """Evaluation: no gradient."""
    training: float
    """A whole step: forward, loss, backward and AdamW's update; clips already on the device."""
    batch: int
    """Clips of one pass."""


def measure_speed(
    model: nn.Module, clip_shape: tuple[int, ...], num_classes: int, device: torch.device, autocast: torch.dtype | None
) -> Speed:
    """Time passes of clips of shape [B, C, T, H, W]; the model's weights change.

    Args:
        model: on any device with real weights; it is moved to `device`.
        clip_shape: batch, channels, frames, rows, columns.
        num_classes: width of its classifier.
        device: where to run.
        autocast: type of forward and backward pass, none for that of the weights.
    """
    model.to(device)
    clip_BCTHW = torch.randn(clip_shape, device=device)
    label_B = torch.randint(num_classes, clip_shape[:1], device=device)
    optimizer = torch.optim.AdamW(model.parameters())

    def logits_of() -> torch.Tensor:
        precision = torch.autocast(device.type, dtype=autocast) if autocast else contextlib.nullcontext()
        with precision:
            logits_BK: torch.Tensor = model(clip_BCTHW)
        return logits_BK.float()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(logits_of(), label_B).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        optimizer.step()

    model.eval()
    with torch.no_grad():
        forward_s = _seconds(logits_of, device)
    model.train()
    training_s = _seconds(step, device)
    return Speed(clip_shape[0] / forward_s, clip_shape[0] / training_s, clip_shape[0])


def describe_hardware(device: torch.device) -> str:
    """The processor that `device` is, and how many threads work where that matters."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of a call; the first, which fills caches, is not counted."""
    times: list[float] = []
    while len(times) <= _FEWEST_ROUNDS or sum(times) < _SECONDS:
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])
