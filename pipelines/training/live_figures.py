"""A run's figures as Ray metrics, for as long as it trains: Prometheus scrapes them from the nodes' Ray agents.

MLflow has every point for ever; this is what an operator looks at beside the load of the nodes, and what alerts are
made of. `infra/grafana/training.json` draws it. Every metric has the tag `run`, and Ray puts `ray_` before its name.

Values change where the loop logs, so they cost a step nothing. Ray (2.60) shows a value for twenty seconds after it was
set, which is less than many runs take from one log to the next; so a thread sets the last ones again and again.
"""

import threading
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from vast.train.stall import PARTS
from vast.train.step import READER_PARTS
from vast.train.tracker import Tracker

AGAIN_S = 5.0
GAUGES = {
    "train/loss": ("vast_loss", "training loss, mean over the steps since the log before"),
    "train/grad_norm": ("vast_grad_norm", "norm of the gradient, mean over the steps since the log before"),
    "train/nonfinite": ("vast_nonfinite_steps", "steps so far whose gradient was not finite"),
    "optim/lr": ("vast_learning_rate", "learning rate of the last step"),
    "time/step_s": ("vast_step_seconds", "seconds of a step, mean since the log before"),
    "time/clips_per_s": ("vast_clips_per_second", "clips of all ranks in a second, mean since the log before"),
    "data/skipped": ("vast_skipped_samples", "damaged samples skipped so far"),
    "eval/top1": ("vast_eval_top1_percent", "top-1 of the last evaluation"),
}
"""Metric and description by the figure's name in MLflow."""
LAST_STEP, TOTAL_STEPS, RANKS = "vast_last_step", "vast_steps_planned", "vast_ranks"
STEP_PART, READER_PART = "vast_step_part_seconds", "vast_reader_part_seconds"
CHECKPOINTS, CHECKPOINT_SECONDS = "vast_checkpoints_stored", "vast_checkpoint_upload_seconds"
RESTARTS = "vast_restarts"


class LiveFigures:
    """Tracker that shows what it is given as metrics of this process until it is closed, and passes it on."""

    def __init__(self, run: str, tracker: Tracker) -> None:
        self.run, self.tracker = run, tracker
        self.gauges = {figure: _gauge(name, words, run) for figure, (name, words) in GAUGES.items()}
        self.last_step = _gauge(LAST_STEP, "last step that was logged", run)
        self.planned = _gauge(TOTAL_STEPS, "steps of the whole run", run)
        self.ranks = _gauge(RANKS, "training processes", run)
        self.step_part = _gauge(STEP_PART, "seconds of a step that go to a part of it, on rank 0", run, "part")
        self.reader_part = _gauge(READER_PART, "seconds of readers for a step, mean over ranks", run, "part")
        self.upload = _gauge(CHECKPOINT_SECONDS, "seconds that the last checkpoint took to the store", run)
        self.stored = Counter(CHECKPOINTS, "checkpoints in the store, of this process", ("run",))
        self.shown: dict[tuple[Gauge, str], float] = {}
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._show_again, name="live-figures", daemon=True)
        self.thread.start()

    def started(self, step: int, total_steps: int, ranks: int) -> None:
        """Show where the run starts, and how far it shall go."""
        self._show(self.last_step, step)
        self._show(self.planned, total_steps)
        self._show(self.ranks, ranks)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the figures that have a metric."""
        self._show(self.last_step, step)
        for figure, gauge in self.gauges.items():
            if figure in figures:
                self._show(gauge, figures[figure])
        for parts, gauge in ((PARTS, self.step_part), (READER_PARTS, self.reader_part)):
            for part in parts:
                if f"stall/{part}" in figures:
                    self._show(gauge, figures[f"stall/{part}"], part)
        self.tracker.log(step, figures)

    def checkpoint_stored(self, seconds: float) -> None:
        """Count a checkpoint that is in the store."""
        self.stored.inc(tags={"run": self.run})
        self._show(self.upload, seconds)

    def close(self) -> None:
        """Show nothing any more."""
        self.closing.set()
        self.thread.join(AGAIN_S)

    def _show(self, gauge: Gauge, value: float, part: str = "") -> None:
        self.shown[gauge, part] = float(value)
        gauge.set(float(value), {"part": part} if part else None)

    def _show_again(self) -> None:
        while not self.closing.wait(AGAIN_S):
            for gauge, part in list(self.shown):
                gauge.set(self.shown[gauge, part], {"part": part} if part else None)


def restarts_gauge(run: str) -> Gauge:
    """How often the ranks of a run were started again; for the driver, which outlives them, to set again and again."""
    return _gauge(RESTARTS, "times that the ranks were started again, since the command was", run)


def _gauge(name: str, words: str, run: str, *more_tags: str) -> Gauge:
    return Gauge(name, words, ("run", *more_tags)).set_default_tags({"run": run})
