"""What the loop knows of the job around it: its place, whom it tells, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from vast.train.checkpoint import ModelCard
from vast.train.metrics import Score


@dataclass(frozen=True)
class Place:
    """Where this process stands in the job; never part of the config."""

    rank: int = 0
    num_ranks: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Observer(Protocol):
    """What the surrounding job does at the loop's moments. Every rank calls each equally often, except `noted`."""

    def started(self, message: str, step: int, total_steps: int) -> None:
        """The run starts at `step`; `message` says from what."""

    def stepped(self, step: int, total_steps: int, figures: dict[str, float]) -> None:
        """`step` updates are done, and their figures known: one step late, so that the device never waits."""

    def saved(self, step: int, figures: dict[str, float], write: Callable[[Path], None]) -> None:
        """A save point: `write(folder)` writes the checkpoint; figures are those of the last evaluation.

        Rank 0 alone may write. `write` holds a copy of the state in this process's memory, so it stays right while
        training goes on, in another thread too; the memory is free again when `write` is let go.
        """

    def evaluated(self, epoch: int, step: int, result: Score) -> bool:
        """`epoch` epochs are done and scored; True ends the run here."""

    def noted(self, text: str) -> None:
        """Something that a person should know; on the rank that saw it."""

    def wants_stop(self) -> bool:
        """Whether this rank asks the run to save and end; asked in each step, and one rank's word is enough.

        All ranks learn of it together, with the figures of that step; the run saves, and ends, one step later.
        """


@dataclass(frozen=True)
class Outcome:
    """What a run returns."""

    step: int
    score: Score | None
    """The last evaluation; None only where the run was interrupted before its first one."""
    card: ModelCard
    interrupted: bool = False
    """Whether it ended early because of `Observer.wants_stop`; its state is saved."""
