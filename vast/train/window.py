"""The figures of the steps between two logs: means, not samples."""

import math
import time
from collections.abc import Mapping

from vast.train.stall import PARTS
from vast.train.step import READER_PARTS


class Window:
    """Sums up steps until they are logged. Its clock stands still while the loop evaluates and saves."""

    def __init__(self, global_batch: int, num_ranks: int) -> None:
        self._global_batch, self._num_ranks = global_batch, num_ranks
        self._running_s = 0.0
        self._since_s = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._steps = self._finite = 0
        self._loss = self._norm = 0.0
        self._reader_s = dict.fromkeys(READER_PARTS, 0.0)

    def add(self, figures: Mapping[str, float]) -> None:
        """Take the figures of one step, as `Taken.figures` has them."""
        self._steps += 1
        for part in READER_PARTS:
            self._reader_s[part] += figures[part] / self._num_ranks
        if math.isfinite(figures["grad_norm"]):  # one that is not would drown the others
            self._finite += 1
            self._loss += figures["loss"]
            self._norm += figures["grad_norm"]

    def pause(self) -> None:
        """Stop the clock."""
        self._running_s += time.perf_counter() - self._since_s

    def resume(self) -> None:
        """Let the clock run on."""
        self._since_s = time.perf_counter()

    def pace(self) -> dict[str, float]:
        """Seconds of a step and clips of all ranks in a second, so far; the clock must be running."""
        step_s = (self._running_s + time.perf_counter() - self._since_s) / max(1, self._steps)
        return {"time/step_s": step_s, "time/clips_per_s": self._global_batch / max(step_s, 1e-9)}

    def take(self, part_s: Mapping[str, float]) -> dict[str, float]:
        """Means over the steps since the last call, given the seconds that this rank spent on each part of them."""
        steps, finite = max(1, self._steps), self._finite or math.nan
        whole_s = max(sum(part_s.values()), 1e-9)
        figures = {"train/loss": self._loss / finite, "train/grad_norm": self._norm / finite, **self.pace()}
        figures |= {f"stall/{part}": part_s[part] / steps for part in PARTS}
        figures |= {f"stall/{part}_share": part_s[part] / whole_s for part in PARTS}
        figures |= {f"stall/{part}": seconds / steps for part, seconds in self._reader_s.items()}
        self._clear()
        self._running_s, self._since_s = 0.0, time.perf_counter()
        return figures
