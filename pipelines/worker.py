"""One training rank inside Ray Train: the only file that talks to Ray Train from the training side.

Ray Train touches the loop in four places, marked [1] to [4].
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from pipelines.tracking import MlflowTracker, RunRef
from vast.errors import UserError
from vast.storage import join_url, open_store
from vast.train.checkpoint import save_model
from vast.train.config import TrainConfig
from vast.train.loop import Outcome, Place, Run
from vast.train.metrics import Score

POST_EVERY_S = 0.25


@dataclass(frozen=True)
class Job:
    """What the driver tells every rank; picklable and small."""

    config: dict[str, Any]
    run_url: str
    tracking: RunRef
    board: Any
    """Handle of the ProgressBoard actor."""


class ProgressBoard:
    """Ray actor through which rank 0 tells the driver where it stands."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def post(self, entry: dict[str, Any]) -> None:
        """Add one entry."""
        self.entries.append(entry)

    def take(self) -> list[dict[str, Any]]:
        """Everything posted since the last call."""
        taken, self.entries = self.entries, []
        return taken


class NoTracker:
    """For every rank but 0."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Nothing."""


class RayObserver:
    """Turns the loop's moments into Ray Train reports and progress entries."""

    def __init__(self, rank: int, board: Any) -> None:
        self.rank, self.board = rank, board
        self.last_post_s = 0.0

    def started(self, message: str, step: int, total_steps: int) -> None:
        """Tell the driver from what the run starts."""
        self._post(kind="started", message=message, step=step, total=total_steps)

    def stepped(self, step: int, total_steps: int, figures: dict[str, float]) -> None:
        """Tell the driver now and then."""
        now = time.monotonic()
        if now - self.last_post_s >= POST_EVERY_S or step == total_steps:
            self.last_post_s = now
            self._post(kind="stepped", step=step, total=total_steps, figures=figures)

    def saved(self, step: int, figures: dict[str, float], write: Callable[[Path], None]) -> None:
        """Report a checkpoint: rank 0 writes it, every rank calls report, which is a barrier."""
        checkpoint = None
        with contextlib.ExitStack() as stack:
            if self.rank == 0:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vast-checkpoint-")))
                write(folder)
                checkpoint = ray.train.Checkpoint.from_directory(str(folder))
            # [3] the folder is named by its step, so that a retry overwrites an uncommitted one
            ray.train.report({**figures, "step": step}, checkpoint=checkpoint, checkpoint_dir_name=f"step-{step:08d}")
        self._post(kind="saved", step=step)

    def evaluated(self, epoch: int, step: int, result: Score) -> bool:
        """Tell the driver; never ends the run."""
        self._post(kind="evaluated", epoch=epoch, step=step, top1=result.top1)
        return False

    def _post(self, **entry: Any) -> None:
        if self.rank == 0:
            self.board.post.remote(entry)


def train_rank(arguments: dict[str, Job]) -> dict[str, Any]:
    """Run one rank; rank 0 publishes the model and returns the outcome as plain data.

    A user's mistake comes back as {"mistake": text} and not as an exception, because Ray Train would retry that.
    """
    job = arguments["job"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    place = Place(rank, context.get_world_size(), ray.train.torch.get_device())  # [1] who and where am I
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    config = TrainConfig.model_validate(job.config)
    tracker = MlflowTracker(job.tracking) if rank == 0 else None
    try:
        run = Run(config, place, tracker or NoTracker(), RayObserver(rank, job.board))
        own = ray.train.get_checkpoint()  # [2] this run's last committed checkpoint, by its name
        with own.as_directory() if own else contextlib.nullcontext() as folder:
            outcome = run.fit(Path(folder) if folder else None)
        if rank != 0:
            return {}
        publish(job.run_url, run, outcome)
    except UserError as error:
        return {"mistake": str(error)}
    finally:
        lost = tracker.close() if tracker else []
    return {  # [4] rank 0's return value reaches the driver as Result.return_value
        "step": outcome.step,
        "score": outcome.score.to_json(),
        "card": asdict(outcome.card),
        "undelivered": len(lost) + (tracker.dropped if tracker else 0),
    }


def publish(run_url: str, run: Run, outcome: Outcome) -> None:
    """Put the finished model into the run's folder, under `model/`; the card goes last: its presence means complete."""
    store = open_store(join_url(run_url, "model"))
    with tempfile.TemporaryDirectory(prefix="vast-model-") as scratch:
        save_model(Path(scratch), run.model, outcome.card)
        for path in sorted(Path(scratch).iterdir(), key=lambda path: path.name == "model.json"):
            store.put_file(path.name, path)
