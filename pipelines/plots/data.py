"""Pictures of a data set: samples by class, durations, failures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pipelines.plots.style import (
    BLUE,
    EXTREME_CLASSES,
    GREY,
    MOST_NAMED_CLASSES,
    PALE,
    bars,
    new_figure,
    save,
    short,
    thin,
)

_OVERLONG = 4  # durations this many times the 99th percentile would squeeze all others into one bar


def class_histogram(path: Path, names: Sequence[str], counts: NDArray[np.integer[Any]], title: str) -> None:
    """Write how many samples each class has as a PNG, the most frequent first.

    Up to `MOST_NAMED_CLASSES` are bars with their names; more are one curve beside the largest and smallest classes.
    """
    order = np.argsort(-counts, kind="stable")
    sorted_K, sorted_names = counts[order], [short(names[i]) for i in order]
    without = f", {(counts == 0).sum()} of them without any" if (counts == 0).any() else ""
    heading = f"{title}: {counts.sum():,} samples in {len(names)} classes{without}"
    if len(names) <= MOST_NAMED_CLASSES:
        figure = new_figure(10, 1.4 + 0.26 * max(1, len(names)))
        bars(figure.add_subplot(), sorted_names, sorted_K)
    else:
        figure = new_figure(15, 7)
        grid = figure.add_gridspec(2, 2, width_ratios=[1.5, 1])
        _curve(figure.add_subplot(grid[:, 0]), sorted_K)
        ends = {"largest": slice(EXTREME_CLASSES), "smallest": slice(-EXTREME_CLASSES, None)}
        for row, (what, part) in enumerate(ends.items()):
            axes = figure.add_subplot(grid[row, 1])
            bars(axes, sorted_names[part], sorted_K[part], largest=float(sorted_K[0]))
            axes.set_title(f"the {EXTREME_CLASSES} {what}", fontsize=9, loc="left", color=GREY)
    figure.suptitle(heading, fontsize=11)
    save(figure, path)


def duration_histogram(path: Path, durations: NDArray[np.floating[Any]], title: str) -> None:
    """Write how long the clips are, in seconds, as a PNG; a few far longer than all others are counted, not drawn."""
    figure = new_figure(10, 4.5)
    axes = figure.add_subplot()
    heading = f"{title}: no clips"
    if len(durations):
        low, median, high = (float(value) for value in np.percentile(durations, [0, 50, 100]))
        heading = f"{title}: {len(durations):,} clips, {durations.sum() / 3600:,.2f} h, {low:.2f} to {high:.2f} s"
        limit = _OVERLONG * float(np.percentile(durations, 99))
        drawn = durations[durations <= limit] if high > limit else durations
        edge = float(drawn.max())
        # Equal durations have no range of their own to divide.
        bounds = (low, edge) if edge - low > 0.1 else (low - 0.5, edge + 0.5)
        bins, edges = np.histogram(drawn, bins=60, range=bounds)
        axes.stairs(bins, edges, fill=True, color=BLUE)
        if len(drawn) > bins.max() > len(drawn) / 2:
            # Kinetics: nearly all are of one length, and the others are what one looks for.
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.7)
        axes.axvline(median, color=GREY, linewidth=1, linestyle="--", label=f"median {median:.2f} s")
        if len(drawn) < len(durations):
            axes.plot([], [], " ", label=f"{len(durations) - len(drawn)} longer than {limit:.0f} s, not drawn")
        axes.legend(fontsize=9, frameon=False)
    axes.set_title(heading, fontsize=11)
    axes.set_xlabel("duration, s")
    axes.set_ylabel("clips" if axes.get_yscale() == "linear" else "clips, log scale")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    thin(axes)
    save(figure, path)


def failures_by_reason(path: Path, counts: Mapping[str, int], title: str) -> None:
    """Write how many records failed for which reason as a PNG, the most frequent reason first."""
    reasons = sorted(counts, key=lambda reason: (-counts[reason], reason))
    figure = new_figure(10, 1.4 + 0.3 * max(1, len(reasons)))
    axes = figure.add_subplot()
    if not reasons:
        axes.set_axis_off()
    bars(axes, [short(reason) for reason in reasons], np.array([counts[reason] for reason in reasons], dtype=int))
    axes.set_title(f"{title}: {sum(counts.values()):,} records failed", fontsize=11)
    save(figure, path)


def _curve(axes: Axes, sorted_K: NDArray[np.integer[Any]]) -> None:
    """Draw falling counts as one filled curve."""
    edges = np.arange(len(sorted_K) + 1)
    axes.stairs(sorted_K, edges, fill=True, color=PALE)
    axes.stairs(sorted_K, edges, color=BLUE, linewidth=1.2)
    median = float(np.median(sorted_K))
    axes.axhline(median, color=GREY, linewidth=1, linestyle="--", label=f"median {median:,.0f}")
    axes.legend(fontsize=9, frameon=False)
    axes.set_xlim(0, len(sorted_K))
    axes.set_ylim(0, 1.05 * max(1.0, float(sorted_K[0])))
    axes.set_xlabel("classes, most frequent first")
    axes.set_ylabel("samples")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    thin(axes)
