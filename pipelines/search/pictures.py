"""A campaign in three pictures, as PNGs for MLflow: which settings were good, which mattered, how the best one grew."""

import math
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patheffects import withStroke

from pipelines.plots.style import new_figure, save, short, thin
from pipelines.search.axes import Axis, setting_axes
from pipelines.search.importance import Importance, importance
from pipelines.search.progress import moments
from pipelines.search.record import CampaignRecord, TrialRecord

PARALLEL_COORDINATES, IMPORTANCE, BEST_SO_FAR = "parallel_coordinates.png", "importance.png", "best_so_far.png"

_LONGEST_LABEL = 40
_BLUE, _PALE, _GREY, _BEST = "#2171b5", "#9ecae1", "#525252", "#d94801"


def campaign_pictures(record: CampaignRecord, folder: Path) -> None:
    """Write parallel_coordinates.png, importance.png and best_so_far.png into a folder that exists.

    All three are always written; where there is nothing to draw yet, a picture says so.
    """
    _parallel_coordinates(record, folder / PARALLEL_COORDINATES)
    _importance(importance(record), record, folder / IMPORTANCE)
    _best_so_far(record, folder / BEST_SO_FAR)


def _parallel_coordinates(record: CampaignRecord, path: Path) -> None:
    trials = [trial for trial in record.ranked() if math.isfinite(trial.value(record.metric) or 0.0)]
    if not trials:
        _say(path, f"no trial has a value of {record.metric} yet")
        return
    values = [trial.value(record.metric) or 0.0 for trial in trials]
    axes = [*setting_axes(record, trials), Axis.of_numbers(record.metric, values)]
    figure = new_figure(max(7.0, 2.4 * len(axes)), 5.6)
    plot = figure.add_subplot()
    shade = colormaps["Blues"]
    order = {trial.id: place for place, trial in enumerate(reversed(trials))}  # 0: the worst
    for trial in reversed(trials):
        best = trial is trials[0]
        goodness = order[trial.id] / max(1, len(trials) - 1)
        corners = _corners(trial, axes, record.metric)
        plot.plot(
            [x for x, _ in corners],
            [y for _, y in corners],
            color=_BEST if best else shade(0.25 + 0.65 * goodness),
            linewidth=2.6 if best else 1.2,
            linestyle="--" if trial.state == "stopped" else "-",
            label=f"best: trial {trial.id}, {trial.value(record.metric):.4g}" if best else None,
            solid_joinstyle="round",
        )
    _scales(plot, axes)
    stopped = any(trial.state == "stopped" for trial in trials)
    if stopped:
        plot.plot([], [], "--", color=_BLUE, linewidth=1.2, label="stopped early")
    plot.plot([], [], color=shade(0.9), linewidth=1.2, label="the darker, the better")
    plot.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), ncols=3, fontsize=9, frameon=False)
    without = len(record.trials) - len(trials)
    more = f", {without} without a value not drawn" if without else ""
    plot.set_title(f"{_plain(record.name)}: {len(trials)} trials{more}", fontsize=11, pad=26)
    save(figure, path)


def _corners(trial: TrialRecord, axes: list[Axis], metric: str) -> list[tuple[int, float]]:
    """Where the trial's line meets the axes; a setting that does not apply to it is passed by."""
    at = {**trial.changes, metric: trial.value(metric)}
    return [(x, axis.place(at[axis.name])) for x, axis in enumerate(axes) if axis.name in at]


def _scales(plot: Axes, axes: list[Axis]) -> None:
    """Draw upright scales, each with its own numbers."""
    plot.add_collection(LineCollection([[(x, 0), (x, 1)] for x in range(len(axes))], colors=_GREY, linewidths=1))
    for x, axis in enumerate(axes):
        for y, label in axis.ticks():
            plot.plot([x - 0.012, x], [y, y], color=_GREY, linewidth=1)
            text = plot.text(x - 0.025, y, _plain(label), ha="right", va="center", fontsize=8, color=_GREY, zorder=5)
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])  # readable across the lines
        plot.text(x, 1.04, _plain(axis.name), ha="center", va="bottom", fontsize=9, color="black")
    plot.set_xlim(-0.35, len(axes) - 0.9)
    plot.set_ylim(-0.03, 1.03)
    plot.set_axis_off()


def _importance(found: Importance, record: CampaignRecord, path: Path) -> None:
    if found.missing:
        _say(path, found.missing)
        return
    figure = new_figure(9, 1.7 + 0.4 * len(found.shares))
    plot = figure.add_subplot()
    places, percents = range(len(found.shares)), [100 * share for share in found.shares.values()]
    plot.barh(places, percents, color=_BLUE, height=0.66)
    plot.set_yticks(places, [_plain(name) for name in found.shares], fontsize=9)
    for place, percent in zip(places, percents, strict=True):
        plot.text(percent + 1, place, f"{percent:.0f} %", va="center", fontsize=9, color=_GREY)
    plot.invert_yaxis()
    plot.set_xlim(0, 108)
    plot.set_xticks([])
    plot.tick_params(axis="y", length=0)
    for side in ("top", "right", "bottom"):
        plot.spines[side].set_visible(False)
    plot.set_title(f"{_plain(record.name)}: what {record.metric} depended on", fontsize=11, loc="left")
    figure.supxlabel(found.caveat(), fontsize=8, color=_GREY, x=0.02, ha="left", wrap=True)
    save(figure, path)


def _best_so_far(record: CampaignRecord, path: Path) -> None:
    found = moments(record)
    if not found:
        _say(path, f"no trial has a value of {record.metric} yet")
        return
    figure = new_figure(11, 4.6)
    panels = figure.subplots(1, 2, sharey=True)
    last_minutes = found[-1].hours * 60
    unit, scale = ("hours", 1.0) if last_minutes > 180 else ("minutes", 60.0)
    over = (
        ([scale * moment.hours for moment in found], f"{unit} since the first evaluation"),
        ([moment.steps for moment in found], "steps of all trials"),
    )
    for plot, (places, label) in zip(panels, over, strict=True):
        plot.scatter(places, [moment.value for moment in found], s=14, color=_PALE, label="one evaluation")
        plot.step(places, [moment.best for moment in found], where="post", color=_BEST, label="best so far")
        plot.set_xlabel(label)
        plot.xaxis.set_major_formatter("{x:,g}")
        thin(plot)
    panels[0].set_ylabel(record.metric)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"{_plain(record.name)}: {found[-1].best:.4g} after {found[-1].steps:,} steps", fontsize=11)
    save(figure, path)


def _say(path: Path, text: str) -> None:
    figure = new_figure(8, 1.6)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=11, color=_GREY)
    save(figure, path)


def _plain(name: str) -> str:
    return short(name, _LONGEST_LABEL)
