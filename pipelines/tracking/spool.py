"""Figures that the tracking server did not take wait on this machine's disk, one JSON line each, until it does.

A process that dies leaves them there; whoever next logs to the same run from this machine sends them first. A point may
come twice, when a process is killed between sending and forgetting: readers of a run take the last value of a step.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

Point = tuple[str, float, int, int]
"""Name, value, time in milliseconds, step."""


def spool_folder() -> Path:
    """VAST_SPOOL, or a folder of this user's among the temporary files."""
    return Path(os.environ.get("VAST_SPOOL") or Path(tempfile.gettempdir()) / f"vast-spool-{os.getuid()}")


class Spool:
    """The points of one run that wait on this machine."""

    def __init__(self, run_id: str) -> None:
        self.path = spool_folder() / f"{run_id}.jsonl"

    def add(self, points: Sequence[Point]) -> None:
        """Append points; they survive this process."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(point) + "\n" for point in points)

    def points(self) -> list[Point]:
        """All that wait; a last line that a kill has cut off is left out."""
        found: list[Point] = []
        with contextlib.suppress(FileNotFoundError), self.path.open(encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    name, value, when, step = json.loads(line)
                    found.append((name, value, when, step))
        return found

    def clear(self) -> None:
        """Forget them: they are delivered."""
        self.path.unlink(missing_ok=True)
