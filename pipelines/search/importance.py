"""Which settings of a campaign mattered: permutation importance in a random forest fitted to its trials.

The forest predicts a trial's value from its settings. Trials that were stopped early are no match for those that ran
to the end, so all are compared after the last epoch that every one of them reached. A setting's importance is how much
worse the forest predicts when the setting's values are shuffled among the trials, as a share of what all settings
together come to. How well it predicts trials that a tree has not seen (out of bag) says whether that means anything.
"""

from dataclasses import dataclass, field

import numpy as np

from pipelines.search.axes import setting_axes
from pipelines.search.record import CampaignRecord, TrialRecord

FEWEST_TRIALS = 8
"""With fewer a forest has nothing to go by."""
_ABSENT = -1.0  # where a setting that depends on another did not apply


@dataclass(frozen=True)
class Importance:
    """Shares of the settings, or why there are none."""

    trials: int
    """Trials with a value, those that failed not counted."""
    epoch: int = 0
    """The epoch after which they are compared; 0 where they are not."""
    shares: dict[str, float] = field(default_factory=dict)
    """Dotted path -> 0 to 1, the largest first; together 1."""
    explained: float = 0.0
    """Share of the values' variance that the forest predicts in trials it has not seen; at 0 or below, nothing."""
    missing: str = ""
    """Why there are no shares; empty where there are."""

    def caveat(self) -> str:
        """What a reader must know, in words."""
        if self.missing:
            return self.missing
        percent = 100 * max(0.0, self.explained)
        text = (
            f"Permutation importance in a random forest over {self.trials} trials, compared after epoch {self.epoch}, "
            f"the last that all of them reached. The forest explains {percent:.0f} % of the variance of trials it has "
            "not seen"
        )
        return text + (", so the shares may be nothing but chance." if self.explained <= 0.1 else ".")


def importance(record: CampaignRecord) -> Importance:
    """Weigh the settings of a campaign; the same record always gives the same shares."""
    trials = [trial for trial in record.ranked() if trial.state != "failed"]
    if len(trials) < FEWEST_TRIALS:
        return Importance(
            len(trials), missing=f"{len(trials)} trials have a value; importance needs {FEWEST_TRIALS} or more."
        )
    epoch = min(_reports(trial, record.metric)[-1][0] for trial in trials)
    value_N = np.array([_value_after(trial, record.metric, epoch) for trial in trials])
    if not np.isfinite(value_N).all() or np.ptp(value_N) == 0:
        return Importance(len(trials), epoch, missing="The trials' values do not differ, or are not all finite.")
    from sklearn.ensemble import RandomForestRegressor  # a second to import
    from sklearn.inspection import permutation_importance

    axes = setting_axes(record, trials)
    place_NS = np.array(
        [[axis.place(trial.changes[axis.name]) if axis.name in trial.changes else _ABSENT for axis in axes]
         for trial in trials]
    )  # fmt: skip
    forest = RandomForestRegressor(n_estimators=200, min_samples_leaf=2, oob_score=True, random_state=0)
    forest.fit(place_NS, value_N)
    found = permutation_importance(forest, place_NS, value_N, n_repeats=20, random_state=0)
    weight_S = np.maximum(found.importances_mean, 0.0)
    if weight_S.sum() == 0:
        return Importance(len(trials), epoch, missing="No setting moves what the forest predicts.")
    shares = dict(zip((axis.name for axis in axes), (weight_S / weight_S.sum()).tolist(), strict=True))
    ranked = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return Importance(len(trials), epoch, ranked, float(forest.oob_score_))


def _reports(trial: TrialRecord, metric: str) -> list[tuple[int, float]]:
    return [(report.epoch, report.figures[metric]) for report in trial.reports if metric in report.figures]


def _value_after(trial: TrialRecord, metric: str, epoch: int) -> float:
    """The last value by that epoch; the first one of a trial that is evaluated more rarely than that."""
    values = _reports(trial, metric)
    return next((value for at, value in reversed(values) if at <= epoch), values[0][1])
