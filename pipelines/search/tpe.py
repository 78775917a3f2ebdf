"""Draws by Optuna's tree-structured Parzen estimator, from what the other trials came to."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from pipelines.search.record import TrialRecord
from pipelines.search.space import Distribution, Point, Space, applies

_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def tpe_point(
    space: Space,
    base: Mapping[str, Any],
    others: Sequence[TrialRecord],
    *,
    metric: str,
    maximise: bool,
    random_trials: int,
    seed: int,
) -> Point:
    """A point near those that came to much and away from those that did not.

    Args:
        space: what is drawn, and how.
        base: the settings that are not drawn, for conditions.
        others: all other trials; those under way count as bad where they are, so that several at a time spread out.
        metric: what counts.
        maximise: whether more of it is better.
        random_trials: with fewer trials than this behind it, the draw is random.
        seed: of this draw.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=random_trials, constant_liar=True)
    study = optuna.create_study(direction="maximize" if maximise else "minimize", sampler=sampler)
    known = (_of_optuna(trial, space, metric) for trial in others)
    study.add_trials(trial for trial in known if trial is not None)
    asked = study.ask()
    point: Point = {}
    for path, distribution in space.items():
        if applies(distribution, point, base):
            point[path] = _suggested(asked, path, distribution)
    return point


def _suggested(asked: optuna.Trial, path: str, distribution: Distribution) -> Any:
    known = _distribution(distribution)
    if isinstance(known, CategoricalDistribution):
        return distribution.values[asked.suggest_categorical(path, list(known.choices))]  # type: ignore[index]
    if isinstance(known, IntDistribution):
        return asked.suggest_int(path, known.low, known.high, step=known.step)
    return distribution.nearest(asked.suggest_float(path, *distribution.values[:2], log="log" in distribution.kind))


def _distribution(distribution: Distribution) -> BaseDistribution:
    if distribution.kind == "choice":  # places: a choice may be a list, which Optuna does not take
        return CategoricalDistribution(list(range(len(distribution.values))))
    low, high, *_ = distribution.values
    if distribution.kind == "randint":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log="log" in distribution.kind)  # steps are taken by `Distribution.nearest`


def _of_optuna(trial: TrialRecord, space: Space, metric: str) -> optuna.trial.FrozenTrial | None:
    params = dict(trial.drawn)
    for path in params:
        if space[path].kind == "choice":
            if params[path] not in space[path].values:
                return None  # the recipe's own setting may be none of the choices
            params[path] = space[path].values.index(params[path])
    state, value = _STATES.get(trial.state, TrialState.RUNNING), trial.value(metric)
    if value is None and state != TrialState.RUNNING:
        state = TrialState.FAIL
    try:
        return optuna.trial.create_trial(
            state=state,
            value=value if state == TrialState.COMPLETE else None,
            params=params,
            distributions={path: _distribution(space[path]) for path in params},
            intermediate_values={r.epoch: r.figures[metric] for r in trial.reports if metric in r.figures},
        )
    except ValueError:
        return None  # the recipe's own setting may lie outside the range
