"""Which trials go on: pure functions of the evaluations so far.

They keep nothing that the campaign's record does not hold, so a driver that is killed decides after its restart what it
would have decided; Ray Tune's own schedulers forget with the process. Values here are such that more is better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pipelines.search.space import Point, Space, active


class StoppingRule(Protocol):
    """Takes evaluations in the order of time and says whether the trial ends with this one."""

    def stops(self, trial: str, epoch: int, value: float) -> bool:
        """Whether to stop `trial`, which came to `value` after `epoch` epochs."""


class NeverStop:
    """Every trial runs to the end."""

    def stops(self, trial: str, epoch: int, value: float) -> bool:
        """No."""
        return False


@dataclass
class Asha:
    """Asynchronous successive halving (Li et al., arXiv 1810.05934), one bracket, in the form that stops trials.

    After `grace`, `grace * factor`, `grace * factor**2`, ... epochs a trial goes on if it is among the best 1/factor of
    those that have come as far, itself included; the best one does. Ray Tune's ASHA asks that once, at the rung, so
    whoever came first runs on whatever follows; here a trial is also stopped at a later evaluation, when better ones
    have come to the rung behind it. Of equals the one with the lower number is the better: first accuracies are often
    all the same, and Ray Tune's, which lets equals pass, then stops nothing. So what is known of a rung does not depend
    on the order of its coming, which a driver that was killed cannot tell to the millisecond, and the best one at a
    rung goes on in any order.
    """

    max_epochs: int
    grace: int
    factor: int
    rungs: dict[int, dict[str, float]] = field(default_factory=dict)
    """Epoch of the rung -> trial -> value."""

    def __post_init__(self) -> None:
        epoch = self.grace
        while epoch < self.max_epochs:  # at the end there is nothing left to save
            self.rungs[epoch] = {}
            epoch *= self.factor

    def stops(self, trial: str, epoch: int, value: float) -> bool:
        """Whether to stop `trial`; an evaluation counts for the highest rung that it has reached."""
        reached = [rung for rung in self.rungs if rung <= epoch]
        if not reached or epoch >= self.max_epochs:
            return False
        came = self.rungs[max(reached)]
        came.setdefault(trial, _or_worst(value))
        order = sorted(came, key=lambda other: (-came[other], other))
        return math.isnan(value) or order.index(trial) >= max(1, len(came) // self.factor)


@dataclass
class MedianStopping:
    """Stop a trial whose best value is below the median of the others' running means (Golovin et al., Vizier 2017)."""

    grace: int
    least_others: int = 3
    """With fewer trials as far as this one nothing is stopped."""
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    """Trial -> epoch -> value."""

    def stops(self, trial: str, epoch: int, value: float) -> bool:
        """Whether to stop `trial`."""
        own = self.values.setdefault(trial, {})
        own[epoch] = value
        if epoch < self.grace:
            return False
        means = []
        for other, reached in self.values.items():
            so_far = [v for at, v in reached.items() if at <= epoch and not math.isnan(v)]
            if other != trial and max(reached) >= epoch and so_far:
                means.append(float(np.mean(so_far)))
        best = max((v for v in own.values() if not math.isnan(v)), default=-math.inf)
        return len(means) >= self.least_others and best < float(np.median(means))


@dataclass(frozen=True)
class Takeover:
    """What population-based training has a trial do at a boundary: go on from another's state."""

    source: str
    changes: Point
    """The settings from then on."""


@dataclass(frozen=True)
class PopulationRule:
    """Population-based training (Jaderberg et al., arXiv 1711.09846), in step: all trials meet at each boundary."""

    space: Space
    base: Mapping[str, Any]
    """The settings that are not searched, for conditions."""
    seed: int
    quantile: float
    """So large a part of the population takes over from as large a part at the other end."""
    resample_probability: float
    """Of drawing a setting anew; else it is moved to a neighbouring value."""
    factors: tuple[float, float]
    """What a number is multiplied with to be moved."""

    def takeovers(self, epoch: int, values: Mapping[str, float], settings: Mapping[str, Point]) -> dict[str, Takeover]:
        """Who goes on from whose state, by trial.

        Args:
            epoch: of the boundary.
            values: what each trial came to at that epoch.
            settings: what each trial was trained with up to then.
        """
        order = sorted(values, key=lambda trial: (-_or_worst(values[trial]), trial))
        many = math.ceil(self.quantile * len(order)) if len(order) > 1 else 0
        many = min(many, len(order) // 2)
        found = {}
        for trial in sorted(order[len(order) - many :]) if many else []:
            if not any(_or_worst(values[trial]) < values[top] for top in order[:many]):
                continue  # nothing to gain
            generator = np.random.default_rng([self.seed, epoch, int(trial)])
            source = order[int(generator.integers(many))]
            found[trial] = Takeover(source, self._explored(settings[source], generator))
        return found

    def _explored(self, point: Point, generator: np.random.Generator) -> Point:
        moved: Point = {}
        for path, distribution in self.space.items():
            anew, drawn = generator.random() < self.resample_probability, distribution.draw(generator)
            old = point.get(path)
            moved[path] = drawn if anew or old is None else distribution.perturbed(old, generator, self.factors)
        return active(self.space, moved, self.base)


def _or_worst(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def replay(rule: StoppingRule, evaluations: Sequence[tuple[float, str, int, float]]) -> set[str]:
    """Give a rule (time, trial, epoch, value) in the order of time; returns the trials that it stops.

    Only the answer to a trial's last evaluation counts: one that was evaluated again had been let go on, by a driver
    that may have heard of the evaluations in another order.
    """
    stops = {trial: rule.stops(trial, epoch, value) for _, trial, epoch, value in sorted(evaluations)}
    return {trial for trial, stopped in stops.items() if stopped}
