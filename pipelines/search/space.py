"""The space that a search draws from: distributions over dotted paths, some of which hold only under a condition.

What is drawn for trial n is a function of the seed, n and, for TPE, of what other trials came to; so a search needs to
remember nothing but its trials.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

Point = dict[str, Any]
"""Dotted path -> value; paths whose condition does not hold are absent."""

KINDS = {
    "choice": "[a, b, ...]",
    "uniform": "[low, high]",
    "loguniform": "[low, high]",
    "quniform": "[low, high, step]",
    "qloguniform": "[low, high, step]",
    "randint": "[low, high]",
}
_MOST_POINTS = 100_000  # of a grid; more is a mistake


class Distribution(BaseModel):
    """How one setting is drawn: one of `KINDS`, and under which condition."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["choice", "uniform", "loguniform", "quniform", "qloguniform", "randint"]
    values: tuple[Any, ...]
    when: dict[str, tuple[Any, ...]] = {}
    """Dotted path -> values; the setting is drawn only where each of these has one of them."""

    @model_validator(mode="after")
    def _values_fit(self) -> "Distribution":
        wanted = KINDS[self.kind]
        if self.kind == "choice":
            if not self.values:
                raise ValueError("choice needs at least one value")
            return self
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)
        if not numbers or len(self.values) != wanted.count(",") + 1 or not self.values[0] < self.values[1]:
            raise ValueError(f"{self.kind} needs {wanted} as numbers (1.0e-4, not 1e-4), found {list(self.values)}")
        if "log" in self.kind and self.values[0] <= 0:
            raise ValueError(f"{self.kind} needs a low end above 0, found {self.values[0]}")
        if self.kind.startswith("q") and self.values[2] <= 0:
            raise ValueError(f"{self.kind} needs a step above 0, found {self.values[2]}")
        if self.kind == "randint" and not all(isinstance(value, int) for value in self.values):
            raise ValueError(f"randint needs whole numbers, found {list(self.values)}")
        return self

    @property
    def points(self) -> list[Any] | None:
        """All values it can have, in order; None of a continuous range."""
        if self.kind == "choice":
            return list(self.values)
        if self.kind == "randint":
            return list(range(self.values[0], self.values[1] + 1))
        if self.kind in ("quniform", "qloguniform"):
            low, high, step = self.values
            return [self._on_grid(low + i * step) for i in range(math.floor((high - low) / step + 1e-9) + 1)]
        return None

    @property
    def ends(self) -> list[Any]:
        """Values that show whether all of them are valid: each choice, or both ends of a range."""
        return list(self.values) if self.kind == "choice" else list(self.values[:2])

    def draw(self, generator: np.random.Generator) -> Any:
        """One value."""
        if self.kind == "choice":
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values[:2]
        if self.kind == "randint":
            return int(generator.integers(low, high + 1))
        if "log" in self.kind:
            value = math.exp(generator.uniform(math.log(low), math.log(high)))
        else:
            value = float(generator.uniform(low, high))
        return self.nearest(value)

    def nearest(self, value: float) -> Any:
        """The value of a range that is nearest to a number."""
        low, high = self.values[:2]
        value = min(max(value, low), high)
        if self.kind == "randint":
            return round(value)
        return self._on_grid(value) if self.kind.startswith("q") else float(value)

    def _on_grid(self, value: float) -> Any:
        low, high, step = self.values
        last = math.floor((high - low) / step + 1e-9)
        value = low + min(round((value - low) / step), last) * step
        if all(isinstance(number, int) for number in self.values):
            return round(value)
        return float(f"{value:.12g}")  # 0.1 + 0.2 is to read 0.3

    def perturbed(self, value: Any, generator: np.random.Generator, factors: tuple[float, float]) -> Any:
        """A neighbouring value: a choice beside it, or a number times one of two factors."""
        side = int(generator.integers(2))
        if self.kind != "choice":
            moved = self.nearest(value * factors[side])
            return moved if moved != value else self.draw(generator)  # a factor may not reach the next whole number
        place = self.values.index(value) if value in self.values else 0
        return self.values[min(max(place + (-1, 1)[side], 0), len(self.values) - 1)]


Space = dict[str, Distribution]


def parse_distribution(path: str, plain: Mapping[str, Any]) -> Distribution:
    """`{loguniform: [1.0e-4, 1.0e-2], when: {optim.name: adamw}}` of a recipe.

    Raises:
        ValueError: what is wrong with it, with its path.
    """
    kinds = [key for key in plain if key != "when"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise ValueError(f"{path}: expected one of {', '.join(KINDS)}, found {sorted(plain)}")
    when = plain.get("when", {})
    if not isinstance(when, Mapping):
        raise ValueError(f"{path}: `when` needs a mapping of dotted paths to values, found {when!r}")
    values = plain[kinds[0]]
    if not isinstance(values, list | tuple):
        raise ValueError(f"{path}: {kinds[0]} needs {KINDS[kinds[0]]}, found {values!r}")
    conditions = {key: tuple(value) if isinstance(value, list) else (value,) for key, value in when.items()}
    try:
        return Distribution(kind=kinds[0], values=tuple(values), when=conditions)
    except ValueError as error:
        message = str(error.errors()[0]["msg"]) if hasattr(error, "errors") else str(error)
        raise ValueError(f"{path}: {message.removeprefix('Value error, ')}") from error


def applies(distribution: Distribution, point: Point, base: Mapping[str, Any]) -> bool:
    """Whether its condition holds; `base` has the settings that are not drawn."""
    return all({**base, **point}.get(path) in allowed for path, allowed in distribution.when.items())


def active(space: Space, point: Mapping[str, Any], base: Mapping[str, Any]) -> Point:
    """The values of `point` whose condition holds."""
    kept: Point = {}
    for path, distribution in space.items():  # a condition speaks of paths before it
        if applies(distribution, kept, base) and path in point:
            kept[path] = point[path]
    return kept


def base_point(space: Space, base: Mapping[str, Any]) -> Point:
    """The recipe's own settings of what is searched."""
    return active(space, {path: base[path] for path in space}, base)


def random_point(space: Space, base: Mapping[str, Any], seed: Sequence[int]) -> Point:
    """A point of independent draws; a condition that fails leaves the other draws as they are."""
    drawn = {path: each.draw(np.random.default_rng([*seed, i])) for i, (path, each) in enumerate(space.items())}
    return active(space, drawn, base)


def grid(space: Space, base: Mapping[str, Any]) -> list[Point]:
    """Every combination, each once; the last path varies fastest.

    Raises:
        ValueError: a range without steps, or too many combinations.
    """
    axes: list[list[Any]] = []
    for path, distribution in space.items():
        points = distribution.points
        if points is None:
            raise ValueError(
                f"{path}: {distribution.kind} has no steps for a grid: use choice, randint, quniform or qloguniform"
            )
        axes.append(points)
    if (number := math.prod(map(len, axes))) > _MOST_POINTS:
        raise ValueError(f"a grid of {number} points; at most {_MOST_POINTS} are possible")
    combinations: Iterable[tuple[Any, ...]] = itertools.product(*axes)
    points = [active(space, dict(zip(space, values, strict=True)), base) for values in combinations]
    return [point for i, point in enumerate(points) if point not in points[:i]] if _conditional(space) else points


def _conditional(space: Space) -> bool:
    return any(distribution.when for distribution in space.values())
