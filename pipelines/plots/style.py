"""What all pictures share: canvas, colours, bars with numbers, labels of bounded length."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

MOST_NAMED_CLASSES = 40  # beyond this, class names on the axes would be unreadable
EXTREME_CLASSES = 10  # of more classes than that, so many of either end are named

BLUE, PALE, GREY = "#2171b5", "#c6dbef", "#525252"  # of the confusion matrix's colour map
COLOURS = ("#2171b5", "#e6550d", "#31a354", "#756bb1")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    with warnings.catch_warnings():
        # A class name in a script that the font lacks shows as boxes; that is no one's mistake.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path)


def bars(axes: Axes, names: Sequence[str], values: NDArray[np.integer[Any]], largest: float = 0.0) -> None:
    """Draw horizontal bars from top to bottom, each with its number; `largest` is the least end of the scale."""
    positions = range(len(names))
    axes.barh(positions, values, color=BLUE, height=0.72)
    axes.set_yticks(positions, names, fontsize=8)
    axes.invert_yaxis()
    end = max(largest, float(values.max(initial=0)), 1.0)
    for position, value in zip(positions, values, strict=True):
        axes.text(value + 0.008 * end, position, f"{value:,}", va="center", fontsize=8, color=GREY)
    axes.set_xlim(0, 1.09 * end)  # room for the longest bar's number
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    thin(axes)
    axes.spines["bottom"].set_visible(False)


def thin(axes: Axes) -> None:
    """Leave out the frame above and at the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def short(name: str, most: int = 56) -> str:
    """A name as a label: on one line, of at most so many characters, and with dollars that start no formula."""
    name = "".join(character if character.isprintable() else " " for character in name)
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")
