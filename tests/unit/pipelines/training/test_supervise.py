import pytest
import ray.exceptions
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError

from pipelines.training.supervise import MAX_FUTILE, RanksMoved, RunFailed, SessionLost, supervise
from vast.errors import StoreError, UserError

DEATH = ray.exceptions.ActorDiedError()
PEER = RuntimeError("[enforce fail at /gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242")


def lost_rank() -> Exception:
    return WorkerGroupError("", {0: PEER, 1: DEATH})


class Story:
    """A run whose attempts end as told: an exception, or a step that is stored before the next exception."""

    def __init__(self, *events: object) -> None:
        self.events = list(events)
        self.stored = 0
        self.attempts = 0
        self.warnings: list[str] = []
        self.waits: list[float] = []

    def attempt(self) -> str:
        self.attempts += 1
        while self.events:
            event = self.events.pop(0)
            if isinstance(event, BaseException):
                raise event
            self.stored = int(str(event))
        return "done"

    def run(self) -> str:
        return supervise(self.attempt, progress=lambda: self.stored, warn=self.warnings.append, sleep=self.waits.append)


@pytest.mark.parametrize(
    "error",
    [
        lost_rank(),
        WorkerGroupError("", {0: PEER, 1: PEER}),
        ControllerError(OSError("connection refused")),
        DEATH,
        ray.exceptions.ActorUnavailableError("raylet", None),
        SessionLost(),
        StoreError("s3://bucket: 503 SlowDown"),
        WorkerGroupError("", {0: StoreError("s3://bucket: 503 SlowDown")}),
    ],
)
def test_what_the_world_does_is_tried_again(error: Exception) -> None:
    story = Story(error, error)
    assert story.run() == "done"
    assert story.attempts == 3
    assert len(story.warnings) == 2


def test_any_number_of_failures_is_survived_when_checkpoints_come_between() -> None:
    events: list[object] = []
    for step in range(1, 50):
        events += [step, lost_rank()]
    assert Story(*events).run() == "done"


def test_failures_without_a_new_checkpoint_are_counted_and_waited_for_longer_and_longer() -> None:
    story = Story(7, *[lost_rank() for _ in range(99)])
    with pytest.raises(RunFailed, match=r"rank 1 was lost.*6 failures in a row.*after step 7"):
        story.run()
    assert story.attempts == MAX_FUTILE
    assert story.waits == sorted(story.waits)
    assert len(set(story.waits)) == len(story.waits)


def bug(step: int) -> Exception:
    error = ValueError("shapes do not match")
    error.add_note(f"at step {step}")
    return WorkerGroupError("", {0: error, 1: PEER})


def test_the_same_error_of_the_training_code_at_the_same_step_ends_the_run_at_once() -> None:
    story = Story(10, bug(12), bug(12), bug(12))
    with pytest.raises(RunFailed, match=r"rank 0 failed \(at step 12\): ValueError: shapes do not match.*came twice"):
        story.run()
    assert story.attempts == 2


def test_the_same_error_at_another_step_may_be_an_accident() -> None:
    assert Story(bug(12), bug(13), bug(12)).run() == "done"


def test_a_mistake_is_never_tried_again() -> None:
    story = Story(WorkerGroupError("", {0: UserError("data.url: no such data set"), 1: PEER}))
    with pytest.raises(UserError, match="no such data set"):
        story.run()
    assert story.attempts == 1


def test_an_error_of_the_driver_itself_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        Story(ZeroDivisionError()).run()


def test_a_record_that_ray_cannot_read_is_explained() -> None:
    cause = CheckpointManagerInitializationError("saved with Ray version 9")
    told = ray.exceptions.RayTaskError("__init__", f"CheckpointManagerInitializationError: {cause}", cause)
    with pytest.raises(UserError, match=r"another version of Ray.*resume_from"):
        Story(ray.exceptions.ActorDiedError(told)).run()


def test_ranks_that_move_are_no_failures() -> None:
    story = Story(*[RanksMoved() for _ in range(20)])
    assert story.run() == "done"
