"""Parallel coordinates: a line a trial, an upright axis a setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report.page import Html, joined, tag
from pipelines.search.axes import Axis

_WIDTH, _HEIGHT, _TOP, _SIDE = 960, 330, 34, 78


@dataclass(frozen=True)
class Thread:
    """One trial's line."""

    label: str
    values: dict[str, Any]
    """Axis name -> value; an axis that is not there is passed by."""
    kind: str
    strength: float = 1.0
    """From 0, pale, to 1."""


def parallel_chart(axes: Sequence[Axis], threads: Sequence[Thread], label: str) -> Html:
    """Draw threads through axes, the last ones on top."""
    step = (_WIDTH - 2 * _SIDE) / max(1, len(axes) - 1)
    parts = []
    for thread in threads:
        corners = [
            f"{_SIDE + number * step:.1f} {_y(axis.place(thread.values[axis.name])):.1f}"
            for number, axis in enumerate(axes)
            if axis.name in thread.values
        ]
        told = tag("title", thread.label)
        pale = f"opacity:{0.3 + 0.7 * thread.strength:.2f}" if thread.strength < 1 else None
        parts.append(tag("path", told, class_=f"line {thread.kind}", style=pale, d="M" + "L".join(corners)))
    for number, axis in enumerate(axes):
        left = _SIDE + number * step
        parts.append(tag("line", class_="axis", x1=left, x2=left, y1=_y(0), y2=_y(1)))
        parts.append(tag("text", axis.name, class_="strong", x=left, y=_TOP - 14, text_anchor="middle"))
        for place, text in axis.ticks():
            shown = text if len(text) <= 14 else text[:13] + "…"
            parts.append(tag("text", shown, class_="halo", x=left - 6, y=_y(place) + 4, text_anchor="end"))
    view = f"0 0 {_WIDTH} {_HEIGHT}"
    return tag("svg", tag("title", label), joined(parts), viewBox=view, role="img", aria_label=label)


def _y(place: float) -> float:
    return _HEIGHT - 10 - place * (_HEIGHT - 10 - _TOP)
