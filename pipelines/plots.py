"""Pictures for people, drawn with matplotlib's file backend."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

MOST_NAMED_CLASSES = 40  # beyond this, class names on the axes would be unreadable


def confusion_matrix(path: Path, confusion_KK: NDArray[np.int64], classes: list[str], title: str) -> None:
    """Write a confusion matrix (rows true, columns predicted, each row in percent of its class) as a PNG."""
    K = len(classes)
    support_K1 = np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    percent_KK = 100.0 * confusion_KK / support_K1
    named = K <= MOST_NAMED_CLASSES
    side = 4.0 + (0.45 * K if named else 8.0)
    figure = Figure(figsize=(side + 2, side), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(percent_KK, cmap="Blues", vmin=0, vmax=100)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if named:
        short = [name if len(name) <= 56 else name[:55] + "…" for name in classes]
        axes.set_xticks(range(K), short, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(K), short, fontsize=8)
        for row in range(K):
            for column in range(K):
                if confusion_KK[row, column]:
                    axes.text(
                        column,
                        row,
                        f"{percent_KK[row, column]:.0f}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if percent_KK[row, column] > 55 else "black",
                    )
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    figure.savefig(path)
