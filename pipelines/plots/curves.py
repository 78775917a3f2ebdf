"""Pictures of how a training run went: curves over steps, and where the time of a step went."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipelines.plots.style import BLUE, COLOURS, GREY, PALE, new_figure, save, thin
from pipelines.training.history import STEP_PARTS, History

_SMOOTHED_OVER = 40  # of so many parts of a curve, each is averaged
_MOST_BARS = 400


def learning_curves(path: Path, history: History, title: str) -> None:
    """Write loss, gradient norm, learning rate and evaluation top-1 over steps as a PNG.

    Raw values are pale, with their moving average over them. Dotted lines show where the run was resumed.
    """
    panels = (
        ("loss", "train/loss", True),
        ("gradient norm", "train/grad_norm", True),
        ("learning rate", "optim/lr", False),
        ("top-1 of the evaluation split, %", "eval/top1", False),
    )
    figure = new_figure(12, 11)
    rows = figure.subplots(len(panels), 1, sharex=True, gridspec_kw={"height_ratios": [3, 2, 1.3, 2]})
    for axes, (label, name, is_noisy) in zip(rows, panels, strict=True):
        step_S, value_S = history.series(name)
        if not len(step_S):
            axes.text(0.5, 0.5, "never logged", transform=axes.transAxes, ha="center", va="center", color=GREY)
        elif is_noisy:
            _raw_and_smooth(axes, step_S, value_S)
        else:
            axes.plot(step_S, value_S, color=BLUE, linewidth=1.5, marker="o" if len(step_S) <= 60 else "", markersize=4)
        _mark_resumes(axes, history)
        axes.set_ylabel(label, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="#eeeeee")
        thin(axes)
    rows[-1].set_ylim(top=min(rows[-1].get_ylim()[1], 101.0))  # no percentages beyond 100, but room for its marker
    _note_best(rows[-1], history)
    _count_steps(rows[-1])
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def _raw_and_smooth(axes: Axes, step_S: NDArray[np.int64], value_S: NDArray[np.float64]) -> None:
    few = len(step_S) < _SMOOTHED_OVER
    axes.plot(
        step_S, value_S, color=BLUE if few else PALE, linewidth=1.5 if few else 0.8, marker="o" * few, markersize=3
    )
    if not few:
        axes.plot(step_S, smoothed(value_S), color=BLUE, linewidth=1.6, label="moving average")
        axes.legend(fontsize=8, frameon=False)
    if value_S.min() > 0 and value_S.max() > 30 * float(np.median(value_S)):
        axes.set_yscale("log")  # one outlier would flatten all that there is to see


def smoothed(value_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each value and its neighbours; fewer of them towards both ends, so that the curve does not bend there."""
    half = max(1, len(value_S) // (2 * _SMOOTHED_OVER))
    sums = np.concatenate([[0.0], np.cumsum(value_S)])
    at = np.arange(len(value_S))
    reach = np.minimum(half, np.minimum(at, len(value_S) - 1 - at))
    means: NDArray[np.float64] = (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)
    return means


def _mark_resumes(axes: Axes, history: History) -> None:
    for step in {step for step, _ in history.starts[1:]}:
        axes.axvline(step, color=GREY, linewidth=0.8, linestyle=":")


def _count_steps(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _note_best(axes: Axes, history: History) -> None:
    step_S, value_S = history.series("eval/top1")
    if len(value_S):
        best = int(np.argmax(value_S))
        text = f"best {value_S[best]:.1f} % at step {step_S[best]:,}; last {value_S[-1]:.1f} %"
        axes.set_title(text, fontsize=8, loc="left", color=GREY)


def where_time_goes(path: Path, history: History, title: str) -> None:
    """Write the seconds of a step on rank 0 by part, stacked over steps, as a PNG; long runs as means of stretches."""
    step_S = history.series("stall/compute")[0]
    figure = new_figure(12, 5)
    axes = figure.add_subplot()
    if len(step_S):
        seconds = {part: history.series(f"stall/{part}")[1] for part in STEP_PARTS}
        stretches = np.array_split(np.arange(len(step_S)), min(_MOST_BARS, len(step_S)))
        means = [[float(seconds[part][one].mean()) * 1e3 for one in stretches] for part in STEP_PARTS]
        whole = sum(float(value_S.sum()) for value_S in seconds.values())
        labels = [
            f"{STEP_PARTS[part]}  {100 * float(seconds[part].sum()) / max(whole, 1e-12):.0f} %" for part in STEP_PARTS
        ]
        ends = np.array([step_S[one[-1]] for one in stretches], dtype=np.float64)
        edges = np.concatenate([[0.0], ends])
        bottom = np.zeros(len(stretches))
        for mean_ms, label, colour in zip(means, labels, (PALE, COLOURS[3], COLOURS[2], COLOURS[1]), strict=True):
            axes.bar(edges[:-1], mean_ms, np.diff(edges), bottom, align="edge", color=colour, label=label)
            bottom += mean_ms
        axes.set_xlim(0, edges[-1])
        usual = float(np.percentile(bottom, 98)) if len(bottom) > 20 else float(bottom.max())
        axes.set_ylim(0, 1.4 * max(usual, 1e-6))  # room for the legend
        handles, texts = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], texts[::-1], fontsize=9, frameon=False, loc="upper right", ncols=2)
    else:
        axes.text(0.5, 0.5, "never logged", transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_yticks([])
    _count_steps(axes)
    axes.set_ylabel("ms of a step, rank 0")
    axes.set_title(title, fontsize=11)
    thin(axes)
    save(figure, path)
