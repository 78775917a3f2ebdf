"""What a training run logged, kept beside its checkpoints, so that its curves need no tracking server.

`history/<step of the save>.jsonl` in the run's folder holds what was logged since the save before, one JSON object a
line: `step`, `at_ms` (Unix time) and the figures by name; a figure that is not finite is null. A line with `started`
says that the run started or resumed at its step, on `ranks` ranks. Rank 0 writes it before the checkpoint of that step,
so whatever checkpoint a run resumes from, the history up to it is there. Steps that are done again are logged again:
the last line of a step counts.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vast.storage import join_url, open_store
from vast.train.tracker import Tracker

FOLDER = "history"
STEP_PARTS = {
    "compute": "computing",
    "all_reduce": "waiting for other ranks",
    "to_device": "copying to the device",
    "wait": "waiting for data",
}
"""Parts of a step, of which `stall/<part>` has the seconds (vast.train.stall), in words."""


@dataclass(frozen=True)
class History:
    """Figures of a run by step; rows are in the order of steps, and each step is there once."""

    step_S: NDArray[np.int64]
    at_ms_S: NDArray[np.int64]
    """When each row was logged, in milliseconds of Unix time."""
    starts: list[tuple[int, int]]
    """Step from which the run started or resumed, and when; of starts that got as far as a save."""
    value_S_of: dict[str, NDArray[np.float64]]
    """Values by the figure's name; NaN where a row has none."""
    ranks: int = 0
    """Of the last start; 0 where it was not kept."""

    @property
    def names(self) -> list[str]:
        """The figures there are."""
        return sorted(self.value_S_of)

    def series(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and values of one figure where it has a finite one; both empty when it was never logged."""
        value_S = self.value_S_of.get(name, np.full(len(self.step_S), math.nan))
        there_S = np.isfinite(value_S)
        return self.step_S[there_S], value_S[there_S]


def read_history(run_url: str) -> History:
    """Everything that the run in a folder has logged up to its last save; empty when there is nothing yet."""
    store = open_store(join_url(run_url, FOLDER))
    rows: list[dict[str, Any]] = []
    for key in store.list():
        rows += [json.loads(line) for line in store.get_bytes(key).decode().splitlines()]
    return _table(rows)


def _table(rows: list[dict[str, Any]]) -> History:
    started = sorted((row for row in rows if "started" in row), key=lambda row: (row["at_ms"], row["step"]))
    merged: dict[int, dict[str, Any]] = {}
    for row in sorted((row for row in rows if "started" not in row), key=lambda row: row["at_ms"]):
        merged.setdefault(row["step"], {}).update(row)  # an evaluation's row joins that of its step's training
    ordered = [merged[step] for step in sorted(merged)]
    names = {name for row in ordered for name in row} - {"step", "at_ms"}
    return History(
        np.array([row["step"] for row in ordered], dtype=np.int64),
        np.array([row["at_ms"] for row in ordered], dtype=np.int64),
        [(row["step"], row["at_ms"]) for row in started],
        {name: np.array([_number(row.get(name)) for row in ordered], dtype=np.float64) for name in sorted(names)},
        started[-1].get("ranks", 0) if started else 0,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


class HistoryKeeper:
    """Tracker that passes everything on, and keeps it until it is written."""

    def __init__(self, run_url: str, tracker: Tracker) -> None:
        self.store, self.tracker = open_store(join_url(run_url, FOLDER)), tracker
        self.rows: list[dict[str, Any]] = []
        self.mutex = Lock()  # the loop logs while an upload thread writes

    def started(self, step: int, ranks: int) -> None:
        """Record that the run starts, or goes on, at a step, on so many ranks."""
        with self.mutex:
            self.rows.append({"step": step, "at_ms": int(time.time() * 1000), "started": True, "ranks": ranks})

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Record figures; nothing is written here."""
        plain = {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}
        with self.mutex:
            self.rows.append({"step": step, "at_ms": int(time.time() * 1000), **plain})
        self.tracker.log(step, figures)

    def write(self, step: int) -> None:
        """Write what was logged up to a save's step; in the thread that uploads the checkpoint.

        Raises:
            StoreError: the store does not take it; it is kept for the next call.
        """
        with self.mutex:
            rows = [row for row in self.rows if row["step"] <= step]
        if not rows:
            return
        self.store.put_bytes(f"{step:08d}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        with self.mutex:
            self.rows = [row for row in self.rows if row["step"] > step]
