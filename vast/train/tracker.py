"""Where the loop's figures go: the protocol that keeps the loop from knowing any tracking product."""

from collections.abc import Mapping
from typing import Protocol


class Tracker(Protocol):
    """Takes figures without ever delaying or failing a step."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Record `figures` as they stand after `step` updates."""
