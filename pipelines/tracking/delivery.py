"""From the spool to the server, so that whoever reads a run finds every point once, whatever died in between.

A point is known by its name and step; the first one wins. So a step that a resumed run does again is not logged again,
though it took another time. What the server has is asked for once a name, and again after a request that failed: it may
have been applied, and its answer lost. A request that is applied even later than that finds the very same points there,
which MLflow's database (the primary key of `metrics`) and so the server leave alone.
"""

import json
import shutil
import time
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipelines.tracking.runs import RunRef, reason
from pipelines.tracking.spool import Point, Spool, Waiting, read_segment, spools

BATCH = 500  # the server's limit is 1000
RETRY_S = 5.0  # a server that hangs costs the sender ten seconds a try
OTHERS_S = 5.0  # that another sender is given
ELSEWHERE = "another process on this machine is sending it"


class Steps:
    """Steps of one figure that the server has, from `since` on."""

    def __init__(self, since: int, steps: Sequence[int]) -> None:
        self.since, self.sorted = since, array("q", sorted({step for step in steps if step >= since}))

    def add(self, step: int) -> bool:
        """Note one; False when it was there."""
        place = bisect_left(self.sorted, step)
        if place < len(self.sorted) and self.sorted[place] == step:
            return False
        self.sorted.insert(place, step)
        return True


class Delivery:
    """Sends what waits for a run; only while it holds the spool's lock."""

    def __init__(self, spool: Spool) -> None:
        self.spool, self.run = spool, spool.run
        self.trouble = ""
        """Why something still waits."""
        self._known: dict[str, Steps] = {}
        self._lock: IO[str] | None = None
        self._client: Any = None

    def send(self) -> bool:
        """Send all that waits, oldest first, figures before the rest; False, and `trouble`, when something is left."""
        try:
            self._lock = self._lock or self.spool.lock()
            if self._lock is None:
                self.trouble = ELSEWHERE
                return False
            while segments := self.spool.segments():
                for segment in segments:
                    points = read_segment(segment)[0]
                    for start in range(0, len(points), BATCH):
                        self._send_points(points[start : start + BATCH])
                    self.spool.forget(segment)
            for path in self.spool.deferred():
                self._send_deferred(path)
        except Exception as error:  # whatever the server, the network, the database or the disk says, work goes on
            self.trouble = reason(error)
            return False
        self.trouble = ""
        return True

    def close(self) -> None:
        """Let others send."""
        if self._lock is not None:
            if not self.trouble:
                self.spool.tidy()
            self._lock.close()
            self._lock = None
            self._known.clear()

    def client(self) -> Any:
        """MLflow's client, made when it is first asked for."""
        if self._client is None:
            from mlflow import MlflowClient  # seconds to import

            self._client = MlflowClient(self.run.tracking_uri)
        return self._client

    def _send_points(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        first: dict[str, int] = {}
        for name, _, _, step in points:
            first[name] = min(step, first.get(name, step))
        for name, step in first.items():
            if name not in self._known or step < self._known[name].since:
                there = self.client().get_metric_history(self.run.run_id, name)
                self._known[name] = Steps(step, [point.step for point in there])
        fresh = [Metric(name, value, at_ms, step) for name, value, at_ms, step in points if self._known[name].add(step)]
        if not fresh:
            return
        try:
            self.client().log_batch(self.run.run_id, metrics=fresh)
        except BaseException:  # it may have been applied all the same
            for name in first:
                del self._known[name]
            raise

    def _send_deferred(self, path: Path) -> None:
        from mlflow.entities import RunTag

        client, run_id = self.client(), self.run.run_id
        if path.is_dir():
            for file in sorted(one for one in path.rglob("*") if one.is_file()):
                parent = file.parent.relative_to(path).as_posix()
                client.log_artifact(run_id, str(file), None if parent == "." else parent)
                file.unlink()
            shutil.rmtree(path)
            return
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name.endswith("-tags.json"):
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in content.items()])
        elif path.name.endswith("-model.json"):
            client.finalize_logged_model(content["model_id"], "READY")
        else:
            client.set_terminated(run_id, content["status"], content["at_ms"])
        path.unlink()


@dataclass(frozen=True)
class Flushed:
    """What came of sending what waited for a run."""

    run: RunRef
    before: Waiting
    left: Waiting
    trouble: str
    """Why something is left, where something is."""


def flush(run: RunRef) -> Flushed:
    """Send what waits on this machine for a run, or see that another process does."""
    spool = Spool(run)
    before = spool.waiting()
    if not spool.folder.exists():
        return Flushed(run, before, before, "")
    delivery = Delivery(spool)
    deadline = time.monotonic() + OTHERS_S  # the sender of a rank that was killed is soon done
    while not delivery.send() and delivery.trouble == ELSEWHERE and spool.waiting() and time.monotonic() < deadline:
        time.sleep(0.1)
    delivery.close()
    return Flushed(run, before, spool.waiting(), delivery.trouble or "a process of the run is still adding to it")


def waiting_runs() -> list[tuple[RunRef, Waiting]]:
    """Runs that something waits for on this machine, or of which something could not be read."""
    found = [(spool.run, spool.waiting()) for spool in spools()]
    return [(run, waiting) for run, waiting in found if waiting or waiting.damaged]
