"""Whose process is whose: what was started here is known by its id, its creation time and a mark in its environment.

An id alone is not enough, since the system gives it to another process later. Children are found by the mark, which
every process inherits: Ray's raylet, workers and agents leave the process that started them.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

MARK = "VAST_LOCAL_CLUSTER"
_SAME_S = 2.0  # psutil reckons creation times from the boot time, which an adjusted clock moves a little


@dataclass(frozen=True)
class Started:
    """A process as it was when it had just been started."""

    pid: int
    created: float
    """Seconds since the epoch."""

    def alive(self) -> bool:
        """Whether it still runs; another process under its old id does not count."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < _SAME_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def marked(mark: str) -> list[psutil.Process]:
    """Every process of this user that was started with `mark`, or by one that was; never this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            value = process.environ().get(MARK, "")
            if value == mark or value.startswith(f"{mark}:"):
                found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def stop(find: Callable[[], Iterable[psutil.Process]], patience_s: float) -> int:
    """End what `find` finds: asked first, killed after `patience_s`, until nothing is found; returns how many."""
    ended: set[int] = set()
    deadline = time.monotonic() + patience_s
    asked: set[int] = set()
    while processes := [one for one in find() if _runs(one)]:
        late = time.monotonic() > deadline
        if late and time.monotonic() > deadline + 30.0:
            raise RuntimeError(f"these processes cannot be ended: {sorted(one.pid for one in processes)}")
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil itself refuses an id that was given away
                if late:
                    process.kill()
                elif process.pid not in asked:
                    process.terminate()
                asked.add(process.pid)
        ended |= {process.pid for process in processes}
        psutil.wait_procs(processes, timeout=0.5)
    return len(ended)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
