"""A confusion matrix."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.report.page import Html, joined, tag

MOST_CLASSES = 40
"""Of more, names and cells would be too small to read."""
_CELL, _NAMES, _ABOVE = 26, 210, 130


def confusion_chart(confusion_KK: NDArray[np.int64], classes: Sequence[str], label: str) -> Html:
    """Rows are true classes, columns predicted ones, each row in percent of its class; a cell's tooltip has the count.

    Args:
        confusion_KK: Counts, of at most `MOST_CLASSES` classes.
        classes: Their names.
        label: What it shows, for those who cannot see it.
    """
    K = len(classes)
    percent_KK = 100.0 * confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    side = K * _CELL
    parts = []
    for k, name in enumerate(classes):
        at = k * _CELL + _CELL / 2
        shown = name if len(name) <= 30 else name[:29] + "…"
        parts.append(tag("text", tag("title", name), shown, x=_NAMES - 8, y=_ABOVE + at + 4, text_anchor="end"))
        left, top = _NAMES + at + 4, _ABOVE - 8
        short = name if len(name) <= 20 else name[:19] + "…"
        turn = f"rotate(-50 {left:.1f} {top:.1f})"
        parts.append(tag("text", tag("title", name), short, x=left, y=top, transform=turn))
        line = _ABOVE + k * _CELL
        parts.append(tag("line", class_="ruled", x1=_NAMES, x2=_NAMES + side, y1=line, y2=line))
    for row, column in np.argwhere(confusion_KK > 0):
        percent = float(percent_KK[row, column])
        left, top = _NAMES + int(column) * _CELL, _ABOVE + int(row) * _CELL
        told = tag(
            "title", f"{classes[row]} taken for {classes[column]}: {confusion_KK[row, column]} ({percent:.1f} %)"
        )
        opacity = round(0.08 + 0.92 * percent / 100, 3)
        parts.append(
            tag("rect", told, class_="cell", x=left, y=top, width=_CELL, height=_CELL, fill_opacity=opacity)
        )  # fmt: skip
        if percent >= 1:
            parts.append(
                tag("text", f"{percent:.0f}", class_="strong" if percent < 55 else "inverse",
                    x=left + _CELL / 2, y=top + _CELL / 2 + 4, text_anchor="middle", style="font-size:10px")
            )  # fmt: skip
    width, height = _NAMES + side + 70, _ABOVE + side + 4
    view = f"0 0 {width} {height}"
    style = f"max-width:{width}px"
    return tag("svg", tag("title", label), joined(parts), viewBox=view, role="img", aria_label=label, style=style)
