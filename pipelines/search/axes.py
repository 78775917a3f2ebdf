"""Settings and values as places on axes from 0 to 1, for every picture of a campaign."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from matplotlib.ticker import LogLocator, MaxNLocator

from pipelines.search.record import CampaignRecord, TrialRecord


@dataclass(frozen=True)
class Axis:
    """Where values lie between the ends of one setting's range."""

    name: str
    """Dotted path of a setting, or the name of a figure."""
    low: float
    high: float
    log: bool = False
    choices: tuple[str, ...] = ()
    """Of a setting that is chosen from a list: its values, evenly spaced; empty for numbers."""
    whole: bool = False
    """Whether there is nothing between two whole numbers."""

    @classmethod
    def of_setting(cls, path: str, plain: dict[str, Any], drawn: Sequence[Any]) -> Self:
        """The axis of a setting, from what the search space says of it and the values that trials had."""
        if "choice" in plain or not all(_is_number(value) for value in drawn):
            values = list(plain.get("choice", [])) + list(drawn)
            if values and all(_is_number(value) for value in values):
                values.sort()
            return cls(path, 0.0, 1.0, choices=tuple(dict.fromkeys(map(str, values))))
        ends: Sequence[float] = next((value for key, value in plain.items() if key != "when"), [])
        bounds = [float(value) for value in (*ends[:2], *drawn)]  # a perturbed setting may leave its first range
        return cls.of_numbers(path, bounds, log=any("log" in key for key in plain))

    @classmethod
    def of_numbers(cls, name: str, values: Sequence[float], *, log: bool = False) -> Self:
        """The axis over some numbers."""
        known = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        if low == high:
            margin = abs(low) * 0.1 or 1.0
            low, high = low - margin, high + margin
        return cls(name, low, high, log and low > 0, whole=all(float(value).is_integer() for value in known))

    def place(self, value: Any) -> float:
        """Between 0, the low end, and 1."""
        if self.choices:
            return (self.choices.index(str(value)) + 0.5) / len(self.choices)
        low, high, at = self.low, self.high, float(value)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return (at - low) / (high - low)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Places with their labels, about `count` of them."""
        if self.choices:
            return [(self.place(choice), choice) for choice in self.choices]
        inside = self._inside(self._round_values(count))
        if len(inside) < 2:
            inside = [self.low, self.high]
        return [(self.place(value), f"{value:.4g}") for value in inside]

    def _round_values(self, count: int) -> list[float]:
        if not self.log:
            steps = [1, 2, 5, 10] if self.whole else [1, 2, 2.5, 5, 10]
            return list(MaxNLocator(nbins=count, steps=steps, integer=self.whole).tick_values(self.low, self.high))
        for digits in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
            values = list(LogLocator(subs=digits, numticks=40).tick_values(self.low, self.high))
            if len(self._inside(values)) >= 3:
                break
        return values

    def _inside(self, values: Sequence[float]) -> list[float]:
        possible = [float(value) for value in values if value > 0 or not self.log]
        return [value for value in possible if -1e-9 <= self.place(value) <= 1 + 1e-9]


def setting_axes(record: CampaignRecord, trials: Sequence[TrialRecord]) -> list[Axis]:
    """One axis for each setting that is searched, in the order of the space."""
    space: dict[str, dict[str, Any]] = record.search["space"]
    return [
        Axis.of_setting(path, plain, [trial.changes[path] for trial in trials if path in trial.changes])
        for path, plain in space.items()
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
