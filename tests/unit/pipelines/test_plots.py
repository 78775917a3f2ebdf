import subprocess
import sys
from pathlib import Path

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.image import imread

from pipelines.plots import (
    class_histogram,
    confusion_matrix,
    duration_histogram,
    failures_by_reason,
    learning_curves,
    mistakes,
    most_confused,
    per_class_accuracy,
    where_time_goes,
    worst_mistakes,
)
from pipelines.plots.curves import smoothed
from pipelines.plots.style import EXTREME_CLASSES, MOST_NAMED_CLASSES
from pipelines.training.history import STEP_PARTS, History
from preprocessing.sheet import draw_sheet
from vast.dataset_format import read_manifest
from vast.sample_index import read_index
from vast.train.metrics import Predictions
from vast.train.stall import PARTS

BLUE_RGB = np.array([0x21, 0x71, 0xB5]) / 255


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


def history(num_logs, starts=((0, 0),)):
    step_S = np.arange(1, num_logs + 1) * 10
    rng = np.random.default_rng(0)
    values = {"train/loss": 1 + rng.random(num_logs), "train/grad_norm": 1 + rng.random(num_logs)}
    values |= {"optim/lr": np.linspace(1e-3, 0, num_logs), "eval/top1": np.full(num_logs, np.nan)}
    values["eval/top1"][-1:] = 50.0
    values |= {f"stall/{part}": 0.1 + rng.random(num_logs) for part in STEP_PARTS}
    return History(step_S, step_S * 1000, list(starts), values)


@pytest.mark.parametrize("num_logs", [0, 1, 6, 300, 20_000])
def test_curves_of_runs_of_any_length_have_a_fixed_size(tmp_path, num_logs):
    for draw, size in ((learning_curves, (1210, 1320)), (where_time_goes, (550, 1320))):
        draw(tmp_path / "a.png", history(num_logs, ((0, 0), (20, 1))), "title")
        picture = imread(tmp_path / "a.png")[..., :3]
        assert picture.shape[:2] == size
        assert (picture.min(axis=-1) < 0.9).mean() > 0.001


@pytest.mark.parametrize("top1", [99.6, 100.0])
def test_no_axis_of_accuracies_goes_beyond_100(tmp_path, monkeypatch, top1):
    found = history(6)
    found.value_S_of["eval/top1"][-1] = top1
    figures = []
    monkeypatch.setattr("pipelines.plots.curves.save", lambda figure, path: figures.append(figure))
    learning_curves(tmp_path / "a.png", found, "title")
    low, high = figures[0].axes[-1].get_ylim()
    assert low < top1 < high < 102


def test_the_parts_of_a_step_are_those_that_training_measures():
    assert set(STEP_PARTS) == set(PARTS)


def test_smoothing_keeps_a_line_a_line_and_both_ends():
    line = np.arange(500, dtype=np.float64)
    np.testing.assert_allclose(smoothed(line), line)
    noisy = np.where(np.arange(500) % 2, 1.0, -1.0)
    assert np.abs(smoothed(noisy)[20:-20]).max() < 0.2


@pytest.mark.parametrize(("num_classes", "names"), [(8, 8), (174, 2 * EXTREME_CLASSES)])
def test_accuracy_of_each_class_is_named_as_far_as_there_is_room(tmp_path, monkeypatch, num_classes, names):
    drawn = []
    whole = matplotlib.axes.Axes.set_yticks

    def spy(axes, ticks, labels=None, **options):
        drawn.extend(labels or [])
        return whole(axes, ticks, labels, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "set_yticks", spy)
    top1_K = np.linspace(0, 100, num_classes)
    samples_K = np.arange(num_classes) + 1
    samples_K[0] = 0
    classes = [f"class {k}" for k in range(num_classes)]
    per_class_accuracy(tmp_path / "a.png", top1_K, samples_K, classes, "title")
    assert len(drawn) == (names - 1 if names == num_classes else names)
    assert drawn[0] == f"class {num_classes - 1}  ({num_classes})"
    assert not any(name.startswith("class 0 ") for name in drawn)


def test_confused_pairs_are_drawn_by_share_and_a_perfect_model_has_none(tmp_path):
    confusion_KK = np.array([[5, 5, 0], [0, 9, 1], [0, 0, 1]])
    most_confused(tmp_path / "some.png", confusion_KK, ["a", "b", "c"], "title")
    most_confused(tmp_path / "none.png", np.eye(3, dtype=np.int64), ["a", "b", "c"], "title")
    away = [np.abs(imread(tmp_path / f"{name}.png")[..., :3] - BLUE_RGB).max(axis=-1) for name in ("some", "none")]
    assert (away[0] < 0.02).sum() > 1000
    assert (away[1] < 0.02).sum() == 0


def test_the_worst_mistakes_are_those_the_model_is_surest_of(ssv2_shards, tmp_path, monkeypatch):
    classes = read_manifest(ssv2_shards).classes
    N, K = 8, len(classes)
    label_N = read_index(ssv2_shards, "val").column("label").astype(np.int64)
    probs_NK = np.full((N, K), 0.1 / (K - 1), dtype=np.float32)
    for n in range(N):
        probs_NK[n, label_N[n] if n < 2 else (label_N[n] + 1) % K] = 0.5 + 0.05 * n
    told = []
    monkeypatch.setattr(mistakes, "draw_sheet", lambda *words: told.append(words) or draw_sheet(*words))
    predictions = Predictions.of(np.arange(N), label_N, probs_NK, [])
    assert worst_mistakes(tmp_path / "a.png", ssv2_shards, "val", predictions, classes, "title")
    ((_, subtitle, groups, _),) = told
    assert "6 wrong ones" in subtitle
    rows = read_index(ssv2_shards, "val").rows(range(7, 1, -1))
    assert [group.strips[0].caption[-1] for group in groups] == [row.key for row in rows]
    assert groups[0].title == f"{classes[label_N[7]]} → {classes[(label_N[7] + 1) % K]}"
    assert "85 %" in groups[0].subtitle
    assert all(picture.image is not None for picture in groups[0].strips[0].pictures)
    assert imread(tmp_path / "a.png").shape[1] == 1800

    right = Predictions.of(np.arange(N), label_N, np.eye(K, dtype=np.float32)[label_N], [])
    assert not worst_mistakes(tmp_path / "b.png", ssv2_shards, "val", right, classes, "title")
    assert not (tmp_path / "b.png").exists()
