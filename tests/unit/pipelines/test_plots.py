import subprocess
import sys
from pathlib import Path

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.image import imread

from pipelines.plots import (
    EXTREME_CLASSES,
    MOST_NAMED_CLASSES,
    class_histogram,
    confusion_matrix,
    duration_histogram,
    failures_by_reason,
)


@pytest.mark.parametrize("num_classes", [2, 8, 174])
def test_the_diagonal_of_a_perfect_model_is_dark(tmp_path, num_classes):
    path = tmp_path / "confusion.png"
    classes = [f"Moving something number {i} from left to right slowly" for i in range(num_classes)]
    confusion_matrix(path, 5 * np.eye(num_classes, dtype=np.int64), classes, "title")
    perfect = imread(path)[..., :3]
    confusion_matrix(path, np.zeros((num_classes, num_classes), dtype=np.int64), classes, "title")
    empty = imread(path)[..., :3]
    assert min(perfect.shape[:2]) > 300
    assert perfect.mean() < empty.mean()


# Nothing of these may be taken for a formula, break a line or raise a warning.
ODD_NAMES = ["cost $5 or $6", "$\\frac{$", "攀岩\n运动", "", "long " * 40, "\x00\u202e"]


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """What stands at the bars of a test's plots, from top to bottom, and their numbers."""
    texts: list[str] = []
    ticks, text = matplotlib.axes.Axes.set_yticks, matplotlib.axes.Axes.text
    monkeypatch.setattr(
        matplotlib.axes.Axes,
        "set_yticks",
        lambda self, at, names=None, **o: (texts.extend(names or ()), ticks(self, at, names, **o)),
    )
    monkeypatch.setattr(
        matplotlib.axes.Axes,
        "text",
        lambda self, x, y, words, **options: (texts.append(words), text(self, x, y, words, **options)),
    )
    return texts


def blue(path: Path) -> np.ndarray:
    """Where bars are."""
    red, green, below = np.moveaxis(imread(path)[..., :3], -1, 0)
    return (below - red > 0.3) & (below > green)


def test_few_classes_are_sorted_bars_with_their_numbers(tmp_path, written):
    path = tmp_path / "classes.png"
    class_histogram(path, ["a", "b", "c"], np.array([5, 0, 2000]), "x train")
    assert written == ["c", "a", "b", "2,000", "5", "0"]
    lengths = blue(path).sum(axis=1)
    assert lengths.max() > 300
    assert (lengths > 100).sum() < len(lengths) / 3  # only the first of three bars is long


def test_of_many_classes_the_extremes_are_named(tmp_path, written):
    counts = np.random.default_rng(0).permutation(400) + 1
    class_histogram(tmp_path / "classes.png", [f"class of {count}" for count in counts], counts, "x train")
    largest = [f"class of {count}" for count in range(400, 400 - EXTREME_CLASSES, -1)]
    smallest = [f"class of {count}" for count in range(EXTREME_CLASSES, 0, -1)]
    assert [text for text in written if text.startswith("class")] == largest + smallest
    assert min(imread(tmp_path / "classes.png").shape[:2]) > 500


@pytest.mark.parametrize("num_classes", [0, 1, len(ODD_NAMES), MOST_NAMED_CLASSES, MOST_NAMED_CLASSES + 1, 1000])
def test_any_number_of_classes_without_a_sample_is_drawn(tmp_path, num_classes, recwarn):
    names = (ODD_NAMES * 200)[:num_classes]
    class_histogram(tmp_path / "classes.png", names, np.zeros(num_classes, np.int64), "x test")
    assert not recwarn.list
    assert max(imread(tmp_path / "classes.png").shape) < 2000


@pytest.mark.parametrize(
    "durations",
    [[], [10.0], [2.0] * 9, [0.0], [1.0, 9.0, 5.0], [*[10.0] * 500, 1.0, 3.0, 900.0], [0.001, 4e6]],
)
def test_any_durations_are_drawn(tmp_path, durations, recwarn):
    duration_histogram(tmp_path / "durations.png", np.array(durations), "x train")
    assert not recwarn.list
    assert blue(tmp_path / "durations.png").any() == bool(durations)


def test_a_few_among_many_equal_durations_can_be_seen(tmp_path):
    duration_histogram(tmp_path / "few.png", np.array([*[10.0] * 5000, 2.0]), "x")
    columns = np.flatnonzero(blue(tmp_path / "few.png").any(axis=0))
    assert np.ptp(columns) > 500  # from the bar of one clip to the bar of all others


def test_one_overlong_clip_leaves_room_for_the_others(tmp_path):
    durations = np.random.default_rng(0).uniform(5, 10, 500)
    for name, more in (("with", [4000.0]), ("without", [])):
        duration_histogram(tmp_path / f"{name}.png", np.array([*durations, *more]), "x")
    widths = [blue(tmp_path / f"{name}.png").any(axis=0).sum() for name in ("with", "without")]
    assert widths[0] > 0.9 * widths[1] > 500


def test_failures_are_bars_by_reason(tmp_path, written, recwarn):
    failures_by_reason(tmp_path / "failures.png", {"empty": 2, "missing": 70, "cut short": 2}, "x")
    assert written == ["missing", "cut short", "empty", "70", "2", "2"]
    failures_by_reason(tmp_path / "none.png", {}, "x")
    assert not blue(tmp_path / "none.png").any()
    assert not recwarn.list


def test_plots_leave_no_global_state():
    code = "import sys, pipelines.plots; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
