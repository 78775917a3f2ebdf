"""Figures on their way to MLflow: queue, disk, server, in threads of their own, so that none delays training."""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Mapping

from pipelines.tracking.delivery import Delivery
from pipelines.tracking.runs import RunRef
from pipelines.tracking.spool import Point, Spool

RETRY_S = 5.0  # a server that hangs costs the sender ten seconds a try


class MlflowTracker:
    """Tracker whose figures are on disk within `flush_every_s`, and on the server as soon as it takes them."""

    def __init__(self, run: RunRef, flush_every_s: float = 0.5) -> None:
        self.run, self.flush_every_s = run, flush_every_s
        self.queue: queue.SimpleQueue[Point] = queue.SimpleQueue()  # the disk empties it, so it stays short
        self.spool = Spool(run)
        self.logged = self.stored = 0
        self.delivered = -1  # what an earlier process left behind is not yet sent
        self.closing = threading.Event()
        self.last_round = threading.Event()
        self.writer = threading.Thread(target=self._write, name="figures-to-disk", daemon=True)
        self.sender = threading.Thread(target=self._send, name="figures-to-mlflow", daemon=True)
        self.writer.start()
        self.sender.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Queue figures; non-finite ones are also flagged, since MLflow stores infinity as a huge number."""
        now_ms = int(time.time() * 1000)
        for name, value in figures.items():
            self.queue.put((name, float(value), now_ms, step))
            self.logged += 1
            if not math.isfinite(value):
                self.queue.put((f"{name}_nonfinite", 1.0, now_ms, step))
                self.logged += 1

    def flush(self, timeout_s: float = 10.0) -> None:
        """Wait until what was logged so far is sent, at most this long."""
        target, deadline = self.logged, time.monotonic() + timeout_s
        while self.delivered < target and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self, timeout_s: float = 30.0) -> int:
        """Send what is left; returns how many figures the server did not take and wait on disk."""
        self.closing.set()
        self.writer.join(timeout_s)
        self.last_round.set()
        self.sender.join(timeout_s)
        self.spool.close()
        return 0 if self.delivered >= self.logged else self.spool.waiting().points + self.queue.qsize()

    def _write(self) -> None:
        """Bring the queue to disk; what a full disk does not take stays in memory until it does."""
        batch: list[Point] = []
        while True:
            closing = self.closing.wait(self.flush_every_s)
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(self.queue.get_nowait())
            if batch:
                with contextlib.suppress(OSError):
                    self.spool.add(batch)
                    self.stored += len(batch)
                    batch = []
            if closing:
                for point in batch:
                    self.queue.put(point)  # for `close` to count
                return

    def _send(self) -> None:
        delivery = Delivery(self.spool)
        while True:
            last = self.last_round.is_set()
            stored = self.stored
            sent = delivery.send() if stored > self.delivered or delivery.trouble else True
            if sent:
                self.delivered = stored
            if last:
                break
            self.last_round.wait(self.flush_every_s if sent else RETRY_S)
        delivery.close()


def log_figures(run: RunRef, figures: Mapping[str, float], step: int = 0) -> None:
    """Record final figures from the driver, through the same sender; those of a step that has them already are kept."""
    tracker = MlflowTracker(run, flush_every_s=0.05)
    tracker.log(step, figures)
    tracker.close()
