"""What a run logged, as a report draws it, whatever it was read from."""

from dataclasses import dataclass, field

from pipelines.training.history import read_history


@dataclass(frozen=True)
class Figures:
    """Everything that was logged of a run."""

    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Name -> (step, value) in the order of steps, the last value of each step."""
    restarts: int | None = None
    """Times that the run was started again and came as far as a save; None where the source does not tell."""

    def last(self, name: str) -> float | None:
        """The value at the last step, or None."""
        points = self.series.get(name)
        return points[-1][1] if points else None

    def mean(self, name: str) -> float | None:
        """The mean over all steps, or None."""
        points = self.series.get(name)
        return sum(value for _, value in points) / len(points) if points else None


def kept_figures(run_url: str) -> Figures | None:
    """What a run keeps beside its checkpoints, up to its last save; None where it keeps nothing.

    Raises:
        StoreError: the store does not answer.
    """
    history = read_history(run_url)
    if not len(history.step_S):
        return None
    series = {name: history.series(name) for name in history.names}
    points = {name: list(zip(*(part.tolist() for part in pair), strict=True)) for name, pair in series.items()}
    return Figures(points, restarts=max(0, len(history.starts) - 1))
