"""What a run does about failures: try again from the last checkpoint, wait a little longer each time, or give up.

Ray Train's own `max_failures` is left at 0, so that there is one rule and one place that tells a person about it. A
lost controller, a lost Ray session and a store that refuses escape it anyway (measured on Ray 2.60).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import ray.exceptions
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    CheckpointManagerInitializationError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from vast.errors import StoreError, UserError

T = TypeVar("T")

MAX_FUTILE = 6  # failures in a row without a new checkpoint
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
# What the other ranks raise when one of them is gone.
PEER_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket timeout", re.IGNORECASE)
_DEATHS = (ray.exceptions.RayError, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)


class RunFailed(RuntimeError):  # noqa: N818 - says what is so
    """The run was given up; the message says why and what to do. Its checkpoints are kept."""


class RanksMoved(Exception):  # noqa: N818 - no error: the ranks ended in order because they were told to
    """A rank or its node was told to go; everything is saved."""


class SessionLost(Exception):  # noqa: N818 - says what is so
    """The Ray node that this process is connected to is gone."""


@dataclass(frozen=True)
class Trouble:
    """One failure in a person's words."""

    words: str
    own_error: str = ""
    """Kind, text and step of an error that the training code itself raised; a second one alike is no accident."""


def diagnose(error: Exception) -> Trouble:
    """Tell what happened to a fit.

    Raises:
        UserError: it was a mistake that trying again cannot mend.
        Exception: `error` itself, when it is nobody's failure but the driver's own.
    """
    if isinstance(error, RanksMoved):
        return Trouble("the ranks were told to go and have saved")
    if isinstance(error, SessionLost):
        return Trouble("this machine's Ray node was lost")
    if isinstance(error, WorkerGroupError):
        return _diagnose_ranks(error.worker_failures)
    if isinstance(error, ControllerError):
        return Trouble(f"Ray Train's controller failed: {_first_line(error.controller_failure)}")
    if isinstance(error, ray.exceptions.ActorDiedError) and CheckpointManagerInitializationError.__name__ in str(error):
        raise UserError(
            "Ray Train's record of this run (checkpoint_manager_snapshot.json) cannot be read, perhaps because another "
            "version of Ray wrote it. Use that version, or start a new run under another `name` with "
            f"resume_from=<run>/step-<number>: {_last_line(error)}"
        ) from error
    if isinstance(error, ray.exceptions.RayError):
        return Trouble(f"Ray Train's controller or the Ray session was lost ({type(error).__name__})")
    if isinstance(error, (TrainingFailedError, StoreError, ConnectionError)):
        return Trouble(f"{type(error).__name__}: {_first_line(error)}")
    raise error


def _diagnose_ranks(failures: dict[int, Exception]) -> Trouble:
    for error in failures.values():
        if isinstance(error, UserError):
            raise error
    dead = sorted(rank for rank, error in failures.items() if isinstance(error, _DEATHS))
    own = {
        rank: error
        for rank, error in failures.items()
        if not isinstance(error, _DEATHS) and not PEER_LOST.search(str(error))
    }
    if dead or not own:
        ranks = ", ".join(map(str, dead or sorted(failures)))
        return Trouble(f"rank {ranks} was lost")
    rank, error = min(own.items())
    where = ", ".join(getattr(error, "__notes__", []))
    words = f"rank {rank} failed{f' ({where})' if where else ''}: {type(error).__name__}: {_first_line(error)}"
    if isinstance(error, OSError):  # a StoreError too: the outside world, which may mend itself
        return Trouble(words)
    return Trouble(words, own_error=f"{type(error).__name__}: {_first_line(error)} {where}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:500]


def supervise(
    attempt: Callable[[], T],
    *,
    progress: Callable[[], int],
    warn: Callable[[str], None],
    sleep: Callable[[float], None],
) -> T:
    """Call `attempt` until it returns.

    Args:
        attempt: continues the run from its last checkpoint.
        progress: the step of the newest checkpoint stored.
        warn: tells a person.
        sleep: waits for so many seconds.

    Raises:
        UserError: as `diagnose`.
        RunFailed: MAX_FUTILE failures in a row brought no new checkpoint, or the training code raised the same error
            at the same step twice.
    """
    futile, reached, last_error = 0, progress(), ""
    while True:
        try:
            return attempt()
        except Exception as error:
            trouble = diagnose(error)
            stored = progress()
            if stored > reached or isinstance(error, RanksMoved):
                futile, reached, last_error = 0, stored, ""
            futile += 1
            if trouble.own_error and trouble.own_error == last_error:
                raise RunFailed(
                    f"{trouble.words}. The same error came twice at the same place, so trying again is no use"
                ) from error
            if futile >= MAX_FUTILE:
                raise RunFailed(
                    f"{trouble.words}. {futile} failures in a row without a new checkpoint after step {stored}; mend "
                    "the cause, then the same command continues from there"
                ) from error
            last_error = trouble.own_error
            wait_s = min(_FIRST_WAIT_S * 2 ** (futile - 1), _LONGEST_WAIT_S)
            warn(f"{trouble.words}; continuing from the last checkpoint in {wait_s:.0f} s")
        sleep(wait_s)
