"""Pictures of what a model confuses: the matrix, the accuracy of each class, the pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from pipelines.plots.style import BLUE, EXTREME_CLASSES, GREY, MOST_NAMED_CLASSES, PALE, new_figure, save, short, thin
from vast.train.metrics import confused_pairs

MOST_CONFUSED_CLASSES = 30  # of more classes than can be named, so many are in a confusion matrix
MOST_PAIRS = 25

_Numbers: TypeAlias = Sequence[float] | NDArray[Any]


def confusion_matrix(path: Path, confusion_KK: NDArray[np.int64], classes: list[str], title: str) -> None:
    """Write a confusion matrix (rows true, columns predicted, each row in percent of its class) as a PNG.

    Of more than `MOST_NAMED_CLASSES` classes, cells and names of all would be too small to read: then it has those that
    are confused most, a column for all others, and a curve of every class's accuracy.
    """
    K = len(classes)
    percent_KK = 100.0 * confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    names = [short(name) for name in classes]
    if K <= MOST_NAMED_CLASSES:
        side = 4.0 + 0.45 * K
        figure = new_figure(side + 2, side)
        axes = figure.add_subplot()
        image = _matrix(axes, percent_KK, names, names)
    else:
        shown = _most_confused(confusion_KK, percent_KK)
        inside_RC = percent_KK[np.ix_(shown, shown)]
        elsewhere_R = percent_KK[shown].sum(axis=1) - inside_RC.sum(axis=1)
        figure = new_figure(22, 15)
        grid = figure.add_gridspec(1, 2, width_ratios=[3, 1])
        axes = figure.add_subplot(grid[0, 0])
        some = [names[k] for k in shown]
        image = _matrix(axes, np.column_stack([inside_RC, elsewhere_R]), some, [*some, f"{K - len(shown)} others"])
        axes.axvline(len(shown) - 0.5, color=GREY, linewidth=1)
        _accuracies(figure.add_subplot(grid[0, 1]), np.diag(percent_KK)[confusion_KK.sum(axis=1) > 0])
        title = f"{title}; the {len(shown)} classes that are confused most, of {K}"
    axes.set_title(title, fontsize=11)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    save(figure, path)


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
    axes.stairs(np.sort(percent_K)[::-1], edges, fill=True, color=PALE)
    axes.stairs(np.sort(percent_K)[::-1], edges, color=BLUE, linewidth=1.2)
    if len(percent_K):
        mean = float(percent_K.mean())
        axes.axhline(mean, color=GREY, linewidth=1, linestyle="--", label=f"mean {mean:.1f} %")
        axes.legend(fontsize=9, frameon=False)
    axes.set_title("accuracy of every class, of its scored samples", fontsize=11)
    axes.set_xlim(0, max(1, len(percent_K)))
    axes.set_ylim(0, 100)
    axes.set_xlabel("classes, best first")
    axes.set_ylabel("top-1, %")
    thin(axes)


def per_class_accuracy(path: Path, top1_K: _Numbers, samples_K: _Numbers, classes: Sequence[str], title: str) -> None:
    """Write the top-1 of every class that has samples as a PNG, the best first.

    Up to `MOST_NAMED_CLASSES` are bars with their names; more are one curve beside the best and the worst of them.
    """
    kept = [k for k in range(len(classes)) if samples_K[k]]
    order = sorted(kept, key=lambda k: (-top1_K[k], -samples_K[k]))
    percents = np.array([top1_K[k] for k in order], dtype=np.float64)
    names = [f"{short(classes[k])}  ({samples_K[k]:,})" for k in order]
    without = len(classes) - len(kept)
    heading = f"{title}; top-1 of each class (of how many samples)" + (f"; {without} without samples" * bool(without))
    if len(order) <= MOST_NAMED_CLASSES:
        figure = new_figure(11, 1.6 + 0.26 * max(1, len(order)))
        _percent_bars(figure.add_subplot(), names, percents)
    else:
        figure = new_figure(17, 8)
        grid = figure.add_gridspec(2, 2, width_ratios=[1.2, 1])
        _accuracies(figure.add_subplot(grid[:, 0]), percents)
        ends = {"best": slice(EXTREME_CLASSES), "worst": slice(-EXTREME_CLASSES, None)}
        for row, (what, part) in enumerate(ends.items()):
            axes = figure.add_subplot(grid[row, 1])
            _percent_bars(axes, names[part], percents[part])
            axes.set_title(f"the {EXTREME_CLASSES} {what}", fontsize=9, loc="left", color=GREY)
    figure.suptitle(heading, fontsize=11)
    save(figure, path)


def most_confused(path: Path, confusion_KK: NDArray[np.int64], classes: Sequence[str], title: str) -> None:
    """Write the most frequent confusions as a PNG: how much of a class is taken for which other one."""
    pairs = confused_pairs(confusion_KK)[:MOST_PAIRS]
    support_K = confusion_KK.sum(axis=1)
    names = [f"{short(classes[true])} → {short(classes[taken])}  ({count:,})" for true, taken, count in pairs]
    percents = np.array([100 * count / support_K[true] for true, _, count in pairs], dtype=np.float64)
    figure = new_figure(13, 1.8 + 0.28 * max(1, len(pairs)))
    axes = figure.add_subplot()
    if pairs:
        _percent_bars(axes, names, percents)
        axes.set_xlabel("% of the samples of the true class", fontsize=9)
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing was confused", ha="center", va="center", color=GREY)
    figure.suptitle(f"{title}; true class → what it is taken for (samples), the most frequent first", fontsize=11)
    save(figure, path)


def _percent_bars(axes: Axes, names: Sequence[str], percents: NDArray[np.float64]) -> None:
    """Draw bars from 0 to 100 from top to bottom, each with its number."""
    positions = range(len(names))
    axes.barh(positions, [100] * len(names), color="#f0f3f7", height=0.72)
    axes.barh(positions, percents, color=BLUE, height=0.72)
    axes.set_yticks(positions, names, fontsize=8)
    for position, percent in zip(positions, percents, strict=True):
        axes.text(101, position, f"{percent:.0f}", va="center", fontsize=8, color=GREY)
    axes.set_xlim(0, 106)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    thin(axes)
