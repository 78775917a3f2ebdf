"""One training rank inside Ray Train: the only file that talks to Ray Train from the training side.

Ray Train touches the loop in four places, marked [1] to [4].
"""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode

from pipelines.system_metrics import SystemMetrics
from pipelines.tracking import MlflowTracker, RunRef
from pipelines.training.history import HistoryKeeper
from pipelines.training.live_figures import LiveFigures
from pipelines.training.preemption import rank_is_told_to_go
from pipelines.training.uploads import TornCheckpointError, Uploads, get_checkpoint
from vast.errors import UserError
from vast.storage import join_url, open_store
from vast.train.checkpoint import save_model
from vast.train.config import TrainConfig
from vast.train.job import Outcome, Place
from vast.train.loop import Run
from vast.train.metrics import Score

POST_EVERY_S = 0.25
SCORE = "eval/top1"  # by which checkpoint.keep_best keeps the best


@dataclass(frozen=True)
class Job:
    """What the driver tells every rank; picklable and small."""

    config: dict[str, Any]
    run_url: str
    tracking: RunRef
    board: Any
    """Handle of the ProgressBoard actor."""


class ProgressBoard:
    """Ray actor through which rank 0 tells the driver where it stands, and the driver that it shall stop."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.stopping = False

    def post(self, entry: dict[str, Any]) -> bool:
        """Add one entry; returns whether the run shall stop."""
        self.entries.append(entry)
        return self.stopping

    def stop(self) -> None:
        """Have the ranks save and end."""
        self.stopping = True

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

    def __init__(
        self, rank: int, job: Job, config: TrainConfig, history: HistoryKeeper | None, live: LiveFigures | None
    ) -> None:
        self.rank, self.board, self.run_url = rank, job.board, job.run_url
        self.history, self.live = history, live  # rank 0's
        self.num_ranks = ray.train.get_context().get_world_size()
        self.uploads = Uploads(config.data.store_patience_s, self.noted)
        self.names: set[str] = set()
        self.started_at = self.evaluated_at = -1
        self.last_post_s = 0.0
        self.told_to_stop = False
        self.answer: Any = None  # the driver's, to what was posted last

    @contextlib.contextmanager
    def last_checkpoint(self) -> Iterator[Path | None]:
        """The newest committed checkpoint of this run that is whole, in a local folder; the same one on every rank.

        Raises:
            UserError: there are checkpoints, and none is whole.
        """
        with tempfile.TemporaryDirectory(prefix="vast-resume-") as scratch:
            folder = Path(scratch) / "checkpoint"
            chosen = self._choose(folder) if self.rank == 0 else None
            chosen = ray.train.collective.broadcast_from_rank_zero(chosen)
            if chosen and self.rank != 0:
                folder.mkdir()
                get_checkpoint(join_url(self.run_url, chosen), folder)
            yield folder if chosen else None

    def _choose(self, folder: Path) -> str:
        """Fetch the newest whole checkpoint into `folder` and return its name; empty when the run has none yet."""
        # nothing is under way yet, so the controller answers at once
        reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        found = {Path(entry.checkpoint.path).name: int(entry.metrics["step"]) for entry in reported}
        self.names = set(found)
        for name in sorted(found, key=lambda name: found[name], reverse=True):
            folder.mkdir()
            try:
                get_checkpoint(join_url(self.run_url, name), folder)
                return name
            except TornCheckpointError as error:
                self.noted(f"{name} is not used: {error}")
                shutil.rmtree(folder)
        if found:
            raise UserError(
                f"{self.run_url}: none of the checkpoints {', '.join(sorted(found))} is whole; put their files back, "
                "or start a new run under another `name`"
            )
        return ""

    def started(self, message: str, step: int, total_steps: int) -> None:
        """Tell the driver from what the run starts."""
        self.started_at = step
        if self.history:
            self.history.started(step, self.num_ranks)
        if self.live:
            self.live.started(step, total_steps, self.num_ranks)
        self._post(kind="started", message=message, step=step, total=total_steps, ranks=self.num_ranks)

    def stepped(self, step: int, total_steps: int, figures: dict[str, float]) -> None:
        """Tell the driver now and then, and let it answer whether to stop."""
        now = time.monotonic()
        if now - self.last_post_s >= POST_EVERY_S or step == total_steps:
            self.last_post_s = now
            self._post(kind="stepped", step=step, total=total_steps, figures=figures)

    def saved(self, step: int, figures: dict[str, float], write: Callable[[Path], None]) -> None:
        """Report a checkpoint, which goes to the store in the background; training goes on."""
        if step == self.started_at:
            return  # it is what the run started from
        metrics: dict[str, float] = {"step": step}
        if self.evaluated_at == step:  # figures of an earlier step would rank this one by another's score
            metrics |= figures
        checkpoint = upload = None
        if self.rank == 0:
            self.uploads.admit(step)
            folder = tempfile.mkdtemp(prefix="vast-checkpoint-")  # Ray Train removes it after the upload
            checkpoint, upload = ray.train.Checkpoint.from_directory(folder), partial(self._upload, step, write)
        # [3] on every rank, like a barrier; rank 0's name holds for all
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_dir_name=self._name(step),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )

    def _name(self, step: int) -> str:
        """A folder's name: by its step, so that a retry overwrites what was never committed.

        Ray Train removes old checkpoints by name, so one that was committed, found torn and is now made again gets
        another name.
        """
        name, number = f"step-{step:08d}", 1
        while name in self.names:
            number += 1
            name = f"step-{step:08d}-{number}"
        self.names.add(name)
        return name

    def _upload(self, step: int, write: Callable[[Path], None], checkpoint: Any, name: str) -> Any:
        """Write and store one checkpoint, in Ray Train's upload thread."""
        write(Path(checkpoint.path))
        history_too = partial(self.history.write, step) if self.history else None
        began_s = time.monotonic()
        self.uploads.store(join_url(self.run_url, name), Path(checkpoint.path), before=history_too)
        if self.live:
            self.live.checkpoint_stored(time.monotonic() - began_s)
        self._post(kind="stored", step=step)
        storage = ray.train.get_context().get_storage()
        path = storage.build_checkpoint_path_from_name(name)
        return ray.train.Checkpoint(path=path, filesystem=storage.storage_filesystem)

    def evaluated(self, epoch: int, step: int, result: Score) -> bool:
        """Tell the driver; never ends the run."""
        self.evaluated_at = step
        self._post(kind="evaluated", epoch=epoch, step=step, top1=result.top1)
        return False

    def noted(self, text: str) -> None:
        """Tell the driver, whichever rank this is."""
        self.board.post.remote({"kind": "noted", "text": text})

    def wants_stop(self) -> bool:
        """Whether the driver was asked to stop, or this rank or its node was told to go."""
        if not self.told_to_stop and self.answer is not None and ray.wait([self.answer], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):  # if the driver is lost, this process soon is too
                self.told_to_stop = ray.get(self.answer)
            self.answer = None
        return self.told_to_stop or rank_is_told_to_go()

    def _post(self, **entry: Any) -> None:
        if self.rank == 0:
            self.answer = self.board.post.remote(entry)


def train_rank(arguments: dict[str, Job]) -> dict[str, Any]:
    """Run one rank; rank 0 publishes the model and returns the outcome as plain data.

    A run that was asked to stop returns {"interrupted": step}, once everything is saved.
    """
    job = arguments["job"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    place = Place(rank, context.get_world_size(), ray.train.torch.get_device())  # [1] who and where am I
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    logging.getLogger("vast").setLevel(
        logging.WARNING
    )  # Ray was told to log errors only; a silent store is to be heard
    config = TrainConfig.model_validate(job.config)
    tracker = MlflowTracker(job.tracking) if rank == 0 else None
    load = SystemMetrics(job.tracking, tracker) if tracker else None
    live = LiveFigures(config.run_name(), tracker) if tracker else None
    history = HistoryKeeper(job.run_url, live) if live else None
    observer = RayObserver(rank, job, config, history, live)
    run: Run | None = None
    try:
        run = Run(config, place, history or NoTracker(), observer)
        with observer.last_checkpoint() as folder:  # [2] this run's last committed checkpoint
            outcome = run.fit(folder)
        observer.uploads.end()  # Ray Train waits for them once this function has returned
        if outcome.interrupted or outcome.score is None:
            return {"interrupted": outcome.step}
        if rank != 0:
            return {}
        publish(job.run_url, run, outcome)
    except Exception as error:
        error.add_note(f"at step {run.state.step}" if run else "before the first step")
        raise
    finally:
        if load:
            load.close()
        if live:
            live.close()
        undelivered = tracker.close() if tracker else 0
    return {  # [4] rank 0's return value reaches the driver as Result.return_value
        "step": outcome.step,
        "score": outcome.score.to_json(),
        "card": asdict(outcome.card),
        "undelivered": undelivered,
    }


def publish(run_url: str, run: Run, outcome: Outcome) -> None:
    """Put the finished model into the run's folder, under `model/`; the card goes last: its presence means complete."""
    store = open_store(join_url(run_url, "model"))
    with tempfile.TemporaryDirectory(prefix="vast-model-") as scratch:
        save_model(Path(scratch), run.state.published, outcome.card)
        for path in sorted(Path(scratch).iterdir(), key=lambda path: path.name == "model.json"):
            store.put_file(path.name, path)
