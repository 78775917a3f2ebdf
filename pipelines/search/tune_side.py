"""What Ray Tune asks a campaign: who goes on, and whether everything ends."""

from collections.abc import Callable
from typing import Any

from ray.tune import Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler


class AsTheDriverSays(FIFOScheduler):  # type: ignore[misc]
    """Asks a function after each evaluation, with the trial's id; see rules.py for why these are not Ray Tune's own."""

    def __init__(self, goes_on: Callable[[str], bool]) -> None:
        super().__init__()
        self.goes_on = goes_on

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Continue or stop."""
        return str(TrialScheduler.CONTINUE if self.goes_on(result["trial"]) else TrialScheduler.STOP)

    def __reduce__(self) -> Any:
        return FIFOScheduler, ()  # Ray Tune saves its state, which nobody reads: the record is what counts


class StopEverything(Stopper):  # type: ignore[misc]
    """Ends all trials where they are as soon as a function says so."""

    def __init__(self, now: Callable[[], bool]) -> None:
        self.now = now

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """One trial: never."""
        return False

    def stop_all(self) -> bool:
        """All of them."""
        return self.now()

    def __reduce__(self) -> Any:
        return StopEverything, (bool,)  # as above
