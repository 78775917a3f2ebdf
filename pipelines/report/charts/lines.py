"""Curves over steps or time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.report.page import Html, joined, tag
from pipelines.search.axes import Axis

WIDTH, HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 38
MOST_POINTS = 400
"""Of a curve with more, means of equally many neighbours are drawn."""
MOST_LONE_POINTS = 2000
"""Of more points that are no curve, every second, third, ... is drawn: they have no neighbours."""
_MOST_DOTS = 80


@dataclass(frozen=True)
class Line:
    """One curve."""

    label: str
    points: Sequence[tuple[float, float]]
    """In the order of x; those with values that are not finite are left out."""
    kind: str = "main"
    """How it looks: a class of the style sheet."""
    dots: bool = False
    """Whether each point is marked, with its numbers as a tooltip."""
    joined: bool = True
    """Whether the points are connected."""
    step: bool = False
    """Whether the value stays until the next point."""
    strength: float = 1.0
    """From 0, pale, to 1."""


def line_chart(
    lines: Sequence[Line], *, x: str, y: str, log_y: bool = False, bounds: tuple[float, float] | None = None
) -> Html:
    """Draw curves on common axes.

    Args:
        lines: What to draw, the first at the back.
        x: What the horizontal axis is.
        y: What the vertical axis is.
        log_y: Logarithmic values.
        bounds: Values that the vertical axis includes in any case.
    """
    drawn = [(line, thinned(line)) for line in lines]
    values = [value for _, points in drawn for _, value in points]
    x_axis = Axis.of_numbers(x, [at for _, points in drawn for at, _ in points])
    y_axis = Axis.of_numbers(y, [*values, *(bounds or ())], log=log_y and bool(values) and min(values) > 0)
    parts = [_frame(x_axis, y_axis)]
    for line, points in drawn:
        places = [(_x(x_axis.place(at)), _y(y_axis.place(value))) for at, value in points]
        pale = f"opacity:{0.3 + 0.7 * line.strength:.2f}" if line.strength < 1 else None
        if line.joined and len(places) > 1:
            parts.append(tag("path", class_=f"line {line.kind}", style=pale, d=_path(places, line.step)))
        if line.dots or len(places) == 1 or not line.joined:
            shown = points if len(points) <= _MOST_DOTS or not line.joined else []
            for (at, value), (left, top) in zip(shown, places, strict=False):
                told = tag("title", f"{line.label}: {value:.4g} at {x} {at:,.6g}")
                parts.append(tag("circle", told, class_=f"dot {line.kind}", style=pale, cx=left, cy=top, r=2.6))
    names = ", ".join(dict.fromkeys(line.label for line in lines))
    label = f"{y} over {x}: {names}" if names != y else f"{y} over {x}"
    return tag(
        "svg",
        tag("title", label),
        *parts,
        class_="lines",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
    )


def legend(lines: Sequence[Line]) -> Html:
    """Which curve is which, once for each look."""
    shown = {line.kind: line for line in lines}
    parts = []
    for line in shown.values():
        stroke = tag("path", class_=f"line {line.kind}", d="M0 5H22") if line.joined else _dot(line.kind)
        swatch = tag("svg", stroke, class_="swatch", viewBox="0 0 22 10", aria_hidden="true")
        parts.append(tag("span", swatch, line.label, class_="look"))
    return joined(parts)


def _dot(kind: str) -> Html:
    return tag("circle", class_=f"dot {kind}", cx=11, cy=5, r=3)


def thinned(line: Line) -> list[tuple[float, float]]:
    """The line's finite points, no more than can be told apart."""
    finite = [(at, value) for at, value in line.points if math.isfinite(value) and math.isfinite(at)]
    if not line.joined or line.step:  # a mean of these would be a value that never was
        stride = math.ceil(len(finite) / MOST_LONE_POINTS) or 1
        return finite[:-1][::stride] + finite[-1:]
    together = math.ceil(len(finite) / MOST_POINTS)
    if together <= 1:
        return finite
    groups = [finite[start : start + together] for start in range(0, len(finite), together)]
    return [tuple(sum(numbers) / len(group) for numbers in zip(*group, strict=True)) for group in groups]


def _frame(x_axis: Axis, y_axis: Axis) -> Html:
    parts = []
    for place, text in y_axis.ticks(5):
        parts.append(tag("line", class_="ruled", x1=_LEFT, x2=WIDTH - _RIGHT, y1=_y(place), y2=_y(place)))
        parts.append(tag("text", text, x=_LEFT - 6, y=_y(place) + 4, text_anchor="end"))
    for place, text in x_axis.ticks(6):
        number = f"{float(text):,.6g}"
        parts.append(tag("text", number, x=_x(place), y=HEIGHT - _BOTTOM + 16, text_anchor="middle"))
    bottom = HEIGHT - _BOTTOM
    parts.append(tag("line", class_="axis", x1=_LEFT, x2=WIDTH - _RIGHT, y1=bottom, y2=bottom))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(tag("text", x_axis.name, x=middle, y=HEIGHT - 5, text_anchor="middle"))
    return joined(parts)


def _path(places: Sequence[tuple[float, float]], step: bool) -> str:
    (left, top), *rest = places
    words = [f"M{left:.1f} {top:.1f}"]
    for left, top in rest:
        words.append(f"H{left:.1f}V{top:.1f}" if step else f"L{left:.1f} {top:.1f}")
    return "".join(words)


def _x(place: float) -> float:
    return round(_LEFT + place * (WIDTH - _LEFT - _RIGHT), 1)


def _y(place: float) -> float:
    return round(HEIGHT - _BOTTOM - place * (HEIGHT - _TOP - _BOTTOM), 1)
