"""How a rank learns that its place is about to go: SIGTERM to its process, or a node that Ray is about to drain.

All ranks then save and end, and the supervisor starts them again where there is room. A notice to the driver ends the
run instead; see stopping.py.
"""

import os
import signal
import threading
from types import FrameType

from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context

_TOLD = threading.Event()


class SigtermIsANotice(WorkerCallback):  # type: ignore[misc]
    """Ray Train's hook in the main thread of each rank's process, where Python allows signal handlers.

    The handler runs when that thread next executes Python: at the controller's next poll.
    """

    def after_init_train_context(self) -> None:
        """Replace Ray's handler, which would end the process in mid-step."""
        signal.signal(signal.SIGTERM, _be_told)


def _be_told(signum: int, frame: FrameType | None) -> None:
    if _TOLD.is_set():
        os._exit(128 + signum)
    _TOLD.set()


def rank_is_told_to_go() -> bool:
    """Whether this rank's process got SIGTERM, or Ray is about to drain a node of the run.

    Ray Train's `get_preemption_info` says the latter too, but as a barrier over all ranks (milliseconds a step); the
    loop brings the ranks' answers together by itself, so the local answer is enough.
    """
    return _TOLD.is_set() or get_train_context().preemption_context.preemption_info is not None
