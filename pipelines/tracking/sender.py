"""Figures on their way to MLflow: a queue, the disk, and a process of its own that sends, so that none delays training.

Not a thread: importing MLflow takes seconds of pure Python, in which a thread keeps the interpreter from the steps.
"""

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict

from pipelines.tracking.delivery import RETRY_S, flush
from pipelines.tracking.runs import RunRef
from pipelines.tracking.spool import Point, Spool


class MlflowTracker:
    """Tracker whose figures are on disk within `flush_every_s`, and on the server as soon as it takes them."""

    def __init__(self, run: RunRef, flush_every_s: float = 0.5) -> None:
        self.run, self.flush_every_s = run, flush_every_s
        self.queue: queue.SimpleQueue[Point] = queue.SimpleQueue()  # the disk empties it, so it stays short
        self.spool = Spool(run)
        self.logged = self.stored = 0
        self.closing = threading.Event()
        self.sender: subprocess.Popen[bytes] | None = None
        self.started_s = -math.inf  # when the sender last was
        self.writer = threading.Thread(target=self._write, name="figures-to-disk", daemon=True)
        self.writer.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Queue figures; non-finite ones are also flagged, since MLflow stores infinity as a huge number."""
        for point in _points(step, figures):
            self.queue.put(point)
            self.logged += 1

    def flush(self, timeout_s: float = 10.0) -> None:
        """Wait until what was logged so far is sent, at most this long."""
        target, deadline = self.logged, time.monotonic() + timeout_s
        while self.stored < target and time.monotonic() < deadline:
            time.sleep(0.02)
        self.spool.close()  # to be sent even where the sender is behind
        left = self.spool.segments()
        while any(path.exists() for path in left) and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self, timeout_s: float = 30.0) -> int:
        """Send what is left; returns how many figures the server did not take and wait on disk."""
        deadline = time.monotonic() + timeout_s
        self.closing.set()
        self.writer.join(timeout_s)
        self.spool.close()
        if not self._is_sending() and self.spool.segments():
            self._start_sender()
        if self.sender is not None:
            try:
                self.sender.communicate(timeout=max(0.0, deadline - time.monotonic()))  # its last round, then its end
            except subprocess.TimeoutExpired:
                # It would end by itself, but hold the lock until then, so that nobody could send the run's end. What
                # it is sending stays on disk, and whoever sends that asks the server what it has of it.
                self.sender.kill()
                self.sender.communicate()
        return self.spool.waiting().points + self.queue.qsize()

    def _write(self) -> None:
        """Bring the queue to disk; what a full disk does not take stays in memory until it does."""
        batch: list[Point] = []
        while True:
            if not self._is_sending() and time.monotonic() - self.started_s >= RETRY_S:
                self._start_sender()
            closing = self.closing.wait(self.flush_every_s)
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(self.queue.get_nowait())
            with contextlib.suppress(OSError):
                if batch:
                    self.spool.add(batch)
                    self.stored += len(batch)
                    batch = []
                self.spool.offer()
            if closing:
                for point in batch:
                    self.queue.put(point)  # for `close` to count
                return

    def _is_sending(self) -> bool:
        return self.sender is not None and self.sender.poll() is None

    def _start_sender(self) -> None:
        """Start the process that sends, or another in place of one that was killed."""
        self.started_s = time.monotonic()
        if self.sender is not None:
            self.sender.communicate()  # it is dead; this closes our end of its pipe
        arguments = [json.dumps(asdict(self.run)), str(self.flush_every_s), str(os.getpid())]
        with contextlib.suppress(OSError):  # no memory, no process: the next try is the writer's
            self.sender = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipelines.tracking.send", *arguments],
                stdin=subprocess.PIPE,  # its end is what tells it to end, however this process does
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # it finds what this process finds
                start_new_session=True,  # Ctrl-C and other signals to the whole group would cost the last round
            )


def log_figures(run: RunRef, figures: Mapping[str, float], step: int = 0) -> None:
    """Record final figures from the driver; those of a step that has them already are kept."""
    spool = Spool(run)
    with contextlib.suppress(OSError):  # the work is done; its bookkeeping must not undo it
        spool.add(_points(step, figures))
    spool.close()
    flush(run)


def _points(step: int, figures: Mapping[str, float]) -> list[Point]:
    now_ms = int(time.time() * 1000)
    flags = {f"{name}_nonfinite": 1.0 for name, value in figures.items() if not math.isfinite(value)}
    return [(name, float(value), now_ms, step) for name, value in {**figures, **flags}.items()]
