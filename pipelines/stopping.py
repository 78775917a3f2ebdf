"""How the driver is asked to end a run in order, by Ctrl-C or SIGTERM.

All ranks finish the step, save, and end; a second signal ends at once. Exit codes are the shell's: 130 after Ctrl-C
(SIGINT), 143 after SIGTERM. What a rank does when it is told to go is in preemption.py.
"""

import signal
import threading
import time
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; what was done so far is kept."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is only noted in `signum`; a second one raises Interrupted."""

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            self._before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            raise Interrupted(signum)
        self.signum = signum

    def sleep(self, seconds: float) -> None:
        """Sleep, unless asked to stop.

        Raises:
            Interrupted: a signal came, before or meanwhile.
        """
        deadline = time.monotonic() + seconds
        while not self.signum and time.monotonic() < deadline:
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
        if self.signum:
            raise Interrupted(self.signum)
