"""What a prediction looks like: the frames that the model was given and the classes it held likely, or a timeline.

Dimensions: C channels · T frames · H rows · W columns · K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from pipelines.plots.style import new_figure, save, thin
from pipelines.predict.predictor import Guess
from pipelines.predict.windows import Window

_BLUE, _GREY = "#2171b5", "#525252"
_MOST_FRAMES = 8
_MOST_CURVES = 6
_COLOURS = ("#2171b5", "#cb181d", "#238b45", "#6a51a3", "#d94801", "#737373")


def strips_and_bars(path: Path, answers: Sequence[tuple[str, Tensor, list[Guess]]], title: str) -> None:
    """Write, for each video, frames of its first view above the likeliest classes as a PNG.

    Args:
        path: of the picture.
        answers: name, clip_CTHW of the first view (uint8), and the classes, best first.
        title: of the whole.
    """
    figure = new_figure(11, 0.5 + 3.1 * len(answers))
    figure.suptitle(_plain(title), fontsize=11)
    parts = figure.subfigures(len(answers), 1, squeeze=False)[:, 0]
    for part, (name, clip_CTHW, guesses) in zip(parts, answers, strict=True):
        grid = part.add_gridspec(2, 1, height_ratios=[1.2, 1])
        strip = part.add_subplot(grid[0])
        T = clip_CTHW.shape[1]
        shown = np.unique(np.linspace(0, T - 1, min(T, _MOST_FRAMES)).round().astype(int))
        strip.imshow(np.concatenate([clip_CTHW[:, t].permute(1, 2, 0).numpy() for t in shown], axis=1))
        strip.set_axis_off()
        strip.set_title(_plain(name), fontsize=9, loc="left")
        _bars(part.add_subplot(grid[1]), guesses)
    save(figure, path)


def _bars(axes: Axes, guesses: Sequence[Guess]) -> None:
    places = range(len(guesses))
    values = [100 * guess.probability for guess in guesses]
    axes.barh(places, values, color=_BLUE, height=0.7)
    axes.set_yticks(places, [_plain(guess.name) for guess in guesses], fontsize=8)
    axes.invert_yaxis()
    for place, value in zip(places, values, strict=True):
        axes.text(value + 1, place, f"{value:.1f} %", va="center", fontsize=8, color=_GREY)
    axes.set_xlim(0, 112)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    thin(axes)
    axes.spines["bottom"].set_visible(False)


def timeline(path: Path, found: Sequence[Window], classes: Sequence[str], title: str) -> None:
    """Write the probabilities of the classes that lead anywhere over the time of a video as a PNG.

    A window counts for its whole length; the band below the curves names the leading class of each stretch.
    """
    figure = new_figure(12, 5)
    upper, band = figure.subplots(2, 1, height_ratios=[5, 1], sharex=True)
    leaders = [int(np.argmax(window.probs_K)) if window.probs_K is not None else -1 for window in found]
    # the classes that lead most often, then by number
    ranked = sorted(set(leaders) - {-1}, key=lambda k: (-leaders.count(k), k))[:_MOST_CURVES]
    colour_of = dict(zip(ranked, _COLOURS, strict=False))
    middles = [(window.start_s + window.end_s) / 2 for window in found]
    for k in ranked:
        values = [100 * float(window.probs_K[k]) if window.probs_K is not None else np.nan for window in found]
        upper.plot(
            middles, values, color=colour_of[k], marker="o", markersize=3, linewidth=1.5, label=_plain(classes[k])
        )
    upper.set_ylim(0, 103)
    upper.set_ylabel("probability, %")
    upper.set_title(_plain(title), fontsize=11)
    if ranked:
        upper.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for number, (window, k) in enumerate(zip(found, leaders, strict=True)):
        end_s = min(window.end_s, found[number + 1].start_s) if number + 1 < len(found) else window.end_s
        colour = colour_of.get(k, "#bdbdbd") if k >= 0 else "white"
        band.barh(0, end_s - window.start_s, left=window.start_s, color=colour, edgecolor="white", linewidth=0.5)
    band.set_yticks([])
    band.set_ylabel("leads", rotation=0, ha="right", va="center")
    band.set_xlabel("time, s")
    band.set_xlim(found[0].start_s, found[-1].end_s)
    for axes in (upper, band):
        thin(axes)
    save(figure, path)


def _plain(text: str) -> str:
    """A name on one line, of bounded length, whose dollars start no formula."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return (text if len(text) <= 70 else f"…{text[-69:]}").replace("$", r"\$")
