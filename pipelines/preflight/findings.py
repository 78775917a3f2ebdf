"""What a check finds, for people and for programs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Area = Literal["recipe", "store", "data", "tracking", "nodes", "links", "readers"]
AREAS: dict[Area, str] = {
    "recipe": "Recipe",
    "store": "Stores",
    "data": "Data",
    "tracking": "Tracking",
    "nodes": "Nodes",
    "links": "Links",
    "readers": "Readers",
}


@dataclass(frozen=True)
class Problem:
    """Something that would hurt the run."""

    area: Area
    subject: str
    """The field, URL, node or server that it is about."""
    found: str
    advice: str
    """What to do."""
    expected: str = ""
    """Empty where what was found says it."""
    warning: bool = False
    """Whether the run would go all the same."""

    def __str__(self) -> str:
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{self.subject}: {self.found}{expected}. {self.advice}"


@dataclass
class Findings:
    """Problems, and what was measured on the way."""

    problems: list[Problem] = field(default_factory=list)
    facts: list[tuple[Area, str]] = field(default_factory=list)
    """Lines about what is in order."""
    measured: dict[str, Any] = field(default_factory=dict)
    """The figures, for programs."""

    def add(self, problems: Iterable[Problem]) -> None:
        """More problems."""
        self.problems += problems

    def say(self, area: Area, text: str) -> None:
        """A line about what is in order."""
        self.facts.append((area, text))

    @property
    def errors(self) -> list[Problem]:
        """Problems that are more than warnings."""
        return [problem for problem in self.problems if not problem.warning]

    @property
    def exit_code(self) -> int:
        """0 nothing but warnings, 2 a mistake in the recipe, else 1."""
        if any(problem.area == "recipe" for problem in self.errors):
            return 2
        return 1 if self.errors else 0

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "problems": [asdict(problem) for problem in self.problems],
            "facts": [{"area": area, "text": text} for area, text in self.facts],
            "measured": self.measured,
            "exit_code": self.exit_code,
        }
