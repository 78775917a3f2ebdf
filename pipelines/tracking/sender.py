"""Figures go to MLflow from a background thread that never delays a step; what it did not take waits on disk."""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from pipelines.tracking.runs import RunRef
from pipelines.tracking.spool import Point, Spool

QUEUE_SIZE = 10_000
SPOOL_RETRY_S = 5.0  # a server that hangs costs the sender ten seconds a try


class MlflowTracker:
    """Tracker that hands figures to a thread; what cannot be delivered waits in the run's spool on this machine."""

    def __init__(self, run: RunRef, flush_every_s: float = 1.0) -> None:
        self.run, self.flush_every_s = run, flush_every_s
        self.queue: queue.Queue[Point | None] = queue.Queue(QUEUE_SIZE)
        self.spool = Spool(run.run_id)
        self.dropped = 0
        self.sending = True  # until what an earlier process left behind is sent
        self.thread = threading.Thread(target=self._send, name="mlflow-sender", daemon=True)
        self.thread.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Queue figures; non-finite ones are also flagged, since MLflow stores infinity as a huge number."""
        now_ms = int(time.time() * 1000)
        for name, value in figures.items():
            points = [(name, float(value), now_ms, step)]
            if not math.isfinite(value):
                points.append((f"{name}_nonfinite", 1.0, now_ms, step))
            for point in points:
                try:
                    self.queue.put_nowait(point)
                except queue.Full:
                    self.dropped += 1

    def flush(self, timeout_s: float = 10.0) -> None:
        """Wait until what was logged so far is sent, at most this long."""
        deadline = time.monotonic() + timeout_s
        while (self.queue.qsize() or self.sending) and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self, timeout_s: float = 30.0) -> list[Point]:
        """Send what is left; returns the points that the server did not take and that wait in the spool."""
        with contextlib.suppress(queue.Full):
            self.queue.put(None, timeout=timeout_s)
        self.thread.join(timeout_s)
        return self.spool.points()

    def _send(self) -> None:
        from mlflow import MlflowClient  # seconds to import: here, not in the training thread

        client = MlflowClient(self.run.tracking_uri)
        waiting = self.spool.points()
        spooled = len(waiting)  # so many of the first are on disk already
        next_try_s = 0.0
        closing = False
        while not closing:
            deadline = time.monotonic() + self.flush_every_s
            while not closing and (left := deadline - time.monotonic()) > 0:
                try:
                    point = self.queue.get(timeout=left)
                except queue.Empty:
                    break
                self.sending = True
                closing = point is None
                if point is not None:
                    waiting.append(point)
            if closing or time.monotonic() >= next_try_s:
                undelivered = _deliver(client, self.run, waiting)
                spooled = max(0, spooled - (len(waiting) - len(undelivered)))
                waiting = undelivered
                next_try_s = time.monotonic() + SPOOL_RETRY_S if waiting else 0.0
            self.spool.add(waiting[spooled:])
            spooled = len(waiting)
            if not waiting:
                self.spool.clear()
            self.sending = bool(waiting)


def _deliver(client: Any, run: RunRef, points: list[Point]) -> list[Point]:
    """Send points; returns those that the server did not take."""
    from mlflow.entities import Metric

    while points:
        batch = [Metric(name, value, when, step) for name, value, when, step in points[:500]]
        try:
            client.log_batch(run.run_id, metrics=batch)
        except Exception:  # whatever the server, the network or the database says, training goes on
            return points
        points = points[500:]
    return points


def send_spool(run: RunRef) -> int:
    """Send what waits on this machine for a run; returns how many points still do."""
    from mlflow import MlflowClient

    spool = Spool(run.run_id)
    if not (waiting := spool.points()):
        return 0
    left = _deliver(MlflowClient(run.tracking_uri), run, waiting)
    if not left:
        spool.clear()
    return len(left)


def log_figures(run: RunRef, figures: Mapping[str, float], step: int = 0) -> None:
    """Record final figures from the driver, through the same sender."""
    tracker = MlflowTracker(run, flush_every_s=0.05)
    tracker.log(step, figures)
    tracker.close()
