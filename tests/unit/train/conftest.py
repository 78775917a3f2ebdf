from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vast.train.config import TrainConfig
from vast.train.metrics import Score


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_config(ssv2_shards: str) -> Callable[..., TrainConfig]:
    """A config that trains in a second: 3 steps an epoch, 32x32 crops, drop path on so that randomness matters."""

    def make(**changes: object) -> TrainConfig:
        tree: dict[str, object] = {
            "name": "tiny",
            "model": {"name": "vast_micro", "drop_path": 0.2},
            "data": {
                "url": ssv2_shards,
                "num_frames": 4,
                "sampling": "uniform",
                "crop_size": 32,
                "eval_short_side": 32,
                "num_readers": 0,
            },
            "optim": {"epochs": 2, "global_batch": 8, "max_micro_batch": 8},
            "log_every_steps": 1,
        }
        return TrainConfig.model_validate({**tree, **changes})

    return make


class Recorder:
    """Tracker and observer that remember everything and keep checkpoints in a folder.

    `stop_in_step` asks the run to end while it takes that step; `late` leaves the writing to `write_all`.
    """

    def __init__(
        self, folder: Path, stop_after_epoch: int | None = None, stop_in_step: int | None = None, late: bool = False
    ) -> None:
        self.folder, self.stop_after_epoch = folder, stop_after_epoch
        self.stop_in_step, self.late = stop_in_step, late
        self.asked = 0
        self.writes: dict[int, Callable[[Path], None]] = {}
        self.figures: dict[int, dict[str, float]] = {}
        self.messages: list[str] = []
        self.notes: list[str] = []
        self.saved_steps: list[int] = []
        self.steps: list[int] = []

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.figures.setdefault(step, {}).update(figures)

    def started(self, message: str, step: int, total_steps: int) -> None:
        self.messages.append(message)

    def stepped(self, step: int, total_steps: int, figures: dict[str, float]) -> None:
        self.steps.append(step)

    def saved(self, step: int, figures: dict[str, float], write: Callable[[Path], None]) -> None:
        self.saved_steps.append(step)
        self.writes[step] = write
        if not self.late:
            write(self.folder / f"step-{step}")

    def write_all(self) -> None:
        for step, write in self.writes.items():
            write(self.folder / f"step-{step}")

    def evaluated(self, epoch: int, step: int, result: Score) -> bool:
        return epoch == self.stop_after_epoch

    def noted(self, text: str) -> None:
        self.notes.append(text)

    def wants_stop(self) -> bool:
        self.asked += 1
        return self.asked == self.stop_in_step


@pytest.fixture
def recorder(tmp_path: Path) -> Callable[..., Recorder]:
    def make(name: str = "run", **options: Any) -> Recorder:
        folder = tmp_path / name
        folder.mkdir()
        return Recorder(folder, **options)

    return make
