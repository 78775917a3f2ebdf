"""Pictures for people, drawn with matplotlib's file backend."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from vast.train.metrics import confused_pairs

MOST_NAMED_CLASSES = 40  # beyond this, class names on the axes would be unreadable
MOST_CONFUSED_CLASSES = 30  # of more classes than that, so many are in a confusion matrix
EXTREME_CLASSES = 10  # of more classes than that, so many of the largest and of the smallest are named

_BLUE, _PALE, _GREY = "#2171b5", "#c6dbef", "#525252"  # of the confusion matrix's colour map
_OVERLONG = 4  # durations this many times the 99th percentile would squeeze all others into one bar


def confusion_matrix(path: Path, confusion_KK: NDArray[np.int64], classes: list[str], title: str) -> None:
    """Write a confusion matrix (rows true, columns predicted, each row in percent of its class) as a PNG.

    Of more than `MOST_NAMED_CLASSES` classes, cells and names of all would be too small to read: then it has those that
    are confused most, a column for all others, and a curve of every class's accuracy.
    """
    K = len(classes)
    percent_KK = 100.0 * confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    names = [_short(name) for name in classes]
    if K <= MOST_NAMED_CLASSES:
        side = 4.0 + 0.45 * K
        figure = _figure(side + 2, side)
        axes = figure.add_subplot()
        image = _matrix(axes, percent_KK, names, names)
    else:
        shown = _most_confused(confusion_KK, percent_KK)
        inside_RC = percent_KK[np.ix_(shown, shown)]
        elsewhere_R = percent_KK[shown].sum(axis=1) - inside_RC.sum(axis=1)
        figure = _figure(22, 15)
        grid = figure.add_gridspec(1, 2, width_ratios=[3, 1])
        axes = figure.add_subplot(grid[0, 0])
        some = [names[k] for k in shown]
        image = _matrix(axes, np.column_stack([inside_RC, elsewhere_R]), some, [*some, f"{K - len(shown)} others"])
        axes.axvline(len(shown) - 0.5, color=_GREY, linewidth=1)
        _accuracies(figure.add_subplot(grid[0, 1]), np.diag(percent_KK)[confusion_KK.sum(axis=1) > 0])
        title = f"{title}; the {len(shown)} classes that are confused most, of {K}"
    axes.set_title(title, fontsize=11)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    _save(figure, path)


def _most_confused(confusion_KK: NDArray[np.int64], percent_KK: NDArray[np.float64]) -> list[int]:
    """Return the classes of the most frequent confusions, partners side by side; then those with the least accuracy."""
    of_pairs = [label for true, predicted, _ in confused_pairs(confusion_KK) for label in (true, predicted)]
    by_accuracy = np.argsort(np.diag(percent_KK), kind="stable").tolist()
    return list(dict.fromkeys([*of_pairs, *by_accuracy]))[:MOST_CONFUSED_CLASSES]


def _matrix(axes: Axes, percent_RC: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]) -> AxesImage:
    """Draw a matrix of percentages with its names; zeros stay empty."""
    image = axes.imshow(percent_RC, cmap="Blues", vmin=0, vmax=100)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    for row, column in np.argwhere(percent_RC >= 0.5):
        percent = percent_RC[row, column]
        color = "white" if percent > 55 else "black"
        axes.text(column, row, f"{percent:.0f}", ha="center", va="center", fontsize=7, color=color)
    return image


def _accuracies(axes: Axes, percent_K: NDArray[np.float64]) -> None:
    """Draw the accuracies of all classes as one falling curve."""
    edges = np.arange(len(percent_K) + 1)
    axes.stairs(np.sort(percent_K)[::-1], edges, fill=True, color=_PALE)
    axes.stairs(np.sort(percent_K)[::-1], edges, color=_BLUE, linewidth=1.2)
    if len(percent_K):
        mean = float(percent_K.mean())
        axes.axhline(mean, color=_GREY, linewidth=1, linestyle="--", label=f"mean {mean:.1f} %")
        axes.legend(fontsize=9, frameon=False)
    axes.set_title("accuracy of every class, of its scored samples", fontsize=11)
    axes.set_xlim(0, max(1, len(percent_K)))
    axes.set_ylim(0, 100)
    axes.set_xlabel("classes, best first")
    axes.set_ylabel("top-1, %")
    _thin(axes)


def class_histogram(path: Path, names: Sequence[str], counts: NDArray[np.integer[Any]], title: str) -> None:
    """Write how many samples each class has as a PNG, the most frequent first.

    Up to `MOST_NAMED_CLASSES` are bars with their names; more are one curve beside the largest and smallest classes.
    """
    order = np.argsort(-counts, kind="stable")
    sorted_K, sorted_names = counts[order], [_short(names[i]) for i in order]
    without = f", {(counts == 0).sum()} of them without any" if (counts == 0).any() else ""
    heading = f"{title}: {counts.sum():,} samples in {len(names)} classes{without}"
    if len(names) <= MOST_NAMED_CLASSES:
        figure = _figure(10, 1.4 + 0.26 * max(1, len(names)))
        _bars(figure.add_subplot(), sorted_names, sorted_K)
    else:
        figure = _figure(15, 7)
        grid = figure.add_gridspec(2, 2, width_ratios=[1.5, 1])
        _curve(figure.add_subplot(grid[:, 0]), sorted_K)
        ends = {"largest": slice(EXTREME_CLASSES), "smallest": slice(-EXTREME_CLASSES, None)}
        for row, (what, part) in enumerate(ends.items()):
            axes = figure.add_subplot(grid[row, 1])
            _bars(axes, sorted_names[part], sorted_K[part], largest=float(sorted_K[0]))
            axes.set_title(f"the {EXTREME_CLASSES} {what}", fontsize=9, loc="left", color=_GREY)
    figure.suptitle(heading, fontsize=11)
    _save(figure, path)


def duration_histogram(path: Path, durations: NDArray[np.floating[Any]], title: str) -> None:
    """Write how long the clips are, in seconds, as a PNG; a few far longer than all others are counted, not drawn."""
    figure = _figure(10, 4.5)
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
        axes.stairs(bins, edges, fill=True, color=_BLUE)
        if len(drawn) > bins.max() > len(drawn) / 2:
            # Kinetics: nearly all are of one length, and the others are what one looks for.
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.7)
        axes.axvline(median, color=_GREY, linewidth=1, linestyle="--", label=f"median {median:.2f} s")
        if len(drawn) < len(durations):
            axes.plot([], [], " ", label=f"{len(durations) - len(drawn)} longer than {limit:.0f} s, not drawn")
        axes.legend(fontsize=9, frameon=False)
    axes.set_title(heading, fontsize=11)
    axes.set_xlabel("duration, s")
    axes.set_ylabel("clips" if axes.get_yscale() == "linear" else "clips, log scale")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    _thin(axes)
    _save(figure, path)


def failures_by_reason(path: Path, counts: Mapping[str, int], title: str) -> None:
    """Write how many records failed for which reason as a PNG, the most frequent reason first."""
    reasons = sorted(counts, key=lambda reason: (-counts[reason], reason))
    figure = _figure(10, 1.4 + 0.3 * max(1, len(reasons)))
    axes = figure.add_subplot()
    if not reasons:
        axes.set_axis_off()
    _bars(axes, [_short(reason) for reason in reasons], np.array([counts[reason] for reason in reasons], dtype=int))
    axes.set_title(f"{title}: {sum(counts.values()):,} records failed", fontsize=11)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        # A class name in a script that the font lacks shows as boxes; that is no one's mistake.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path)


def _bars(axes: Axes, names: Sequence[str], values: NDArray[np.integer[Any]], largest: float = 0.0) -> None:
    """Draw horizontal bars from top to bottom, each with its number; `largest` is the least end of the scale."""
    positions = range(len(names))
    axes.barh(positions, values, color=_BLUE, height=0.72)
    axes.set_yticks(positions, names, fontsize=8)
    axes.invert_yaxis()
    end = max(largest, float(values.max(initial=0)), 1.0)
    for position, value in zip(positions, values, strict=True):
        axes.text(value + 0.008 * end, position, f"{value:,}", va="center", fontsize=8, color=_GREY)
    axes.set_xlim(0, 1.09 * end)  # room for the longest bar's number
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    _thin(axes)
    axes.spines["bottom"].set_visible(False)


def _curve(axes: Axes, sorted_K: NDArray[np.integer[Any]]) -> None:
    """Draw falling counts as one filled curve."""
    edges = np.arange(len(sorted_K) + 1)
    axes.stairs(sorted_K, edges, fill=True, color=_PALE)
    axes.stairs(sorted_K, edges, color=_BLUE, linewidth=1.2)
    median = float(np.median(sorted_K))
    axes.axhline(median, color=_GREY, linewidth=1, linestyle="--", label=f"median {median:,.0f}")
    axes.legend(fontsize=9, frameon=False)
    axes.set_xlim(0, len(sorted_K))
    axes.set_ylim(0, 1.05 * max(1.0, float(sorted_K[0])))
    axes.set_xlabel("classes, most frequent first")
    axes.set_ylabel("samples")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    _thin(axes)


def _thin(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _short(name: str) -> str:
    """Return a name as a label: on one line, of bounded length, and with dollars that start no formula."""
    name = "".join(character if character.isprintable() else " " for character in name)
    return (name if len(name) <= 56 else name[:55] + "…").replace("$", r"\$")
