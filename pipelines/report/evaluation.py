"""An evaluation's folder, and what is told of scores anywhere: by class, and what is confused with what."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.evaluation.report import CONFUSIONS, EVALUATION, PER_CLASS, PREDICTIONS
from pipelines.report.charts.bars import bars
from pipelines.report.charts.lines import Line, line_chart
from pipelines.report.charts.matrix import MOST_CLASSES, confusion_chart
from pipelines.report.page import Html, facts, figure, folded, joined, key_figures, note, paragraph, section, table
from pipelines.report.words import count, percent, setting, span
from vast.errors import ObjectMissing
from vast.storage import open_store
from vast.train.metrics import confused_pairs

_MOST_PAIRS, _EXTREMES, _MOST_UNREADABLE = 15, 10, 20


@dataclass(frozen=True)
class ClassScores:
    """How every class of an evaluation fared."""

    names: list[str]
    """In label order."""
    samples_K: NDArray[np.int64]
    """Of each class, unreadable ones included."""
    confusion_KK: NDArray[np.int64]
    """Rows are true classes, columns predicted ones."""

    def percent_right(self) -> NDArray[np.float64]:
        """Percent; 0 for a class without samples."""
        return 100.0 * np.diag(self.confusion_KK) / np.maximum(self.samples_K, 1)


@dataclass(frozen=True)
class EvaluationFacts:
    """What an evaluation left."""

    url: str
    content: dict[str, Any]
    """evaluation.json."""
    classes: ClassScores
    unreadable: list[tuple[str, str]]
    """Key and reason of the samples that could not be read, the first few."""
    predictions: bool
    """Whether predictions.parquet is still there."""


def read_evaluation(url: str) -> EvaluationFacts:
    """Read an evaluation's folder.

    Raises:
        ObjectMissing: There is no finished evaluation.
    """
    store = open_store(url)
    content = json.loads(store.get_bytes(EVALUATION))
    lines = list(csv.DictReader(io.StringIO(store.get_bytes(PER_CLASS).decode())))
    lines.sort(key=lambda line: int(line["label"]))
    names = [line["name"] for line in lines]
    samples_K = np.array([int(line["samples"]) for line in lines], dtype=np.int64)
    right_K = np.array([round(float(line["top1"]) * int(line["samples"]) / 100) for line in lines], dtype=np.int64)
    confusion_KK = np.diag(right_K)
    label_of = {name: label for label, name in enumerate(names)}
    for pair in csv.DictReader(io.StringIO(store.get_bytes(CONFUSIONS).decode())):
        confusion_KK[label_of[pair["true"]], label_of[pair["predicted"]]] = int(pair["count"])
    unreadable: list[tuple[str, str]] = []
    try:
        with TemporaryDirectory(prefix="vast-report-") as scratch:
            path = Path(scratch) / PREDICTIONS
            store.get_file(PREDICTIONS, path)
            for row in pq.read_table(path, columns=["key", "error"]).to_pylist():
                if row["error"] is not None:
                    unreadable.append((row["key"], row["error"]))
        there = True
    except ObjectMissing:
        there = False
    return EvaluationFacts(url, content, ClassScores(names, samples_K, confusion_KK), unreadable, there)


def evaluation_sections(found: EvaluationFacts) -> list[Html]:
    """The story of an evaluation."""
    content, identity = found.content, found.content["identity"]
    result = section(
        "Result",
        key_figures(
            [
                ("top-1", percent(content["top1"])),
                ("top-5", percent(content["top5"])),
                ("mean class", percent(content["mean_class"])),
            ]
        ),
        paragraph("Measured on ", content["denominator"], "."),
        *unreadable_table(found),
    )
    leaks = content.get("leaks", {})
    checks = [f"Allowed leak: {leak}." for leak in leaks.get("leaks", [])]
    checks += [f"Not checked for videos that were trained on: {gap}." for gap in leaks.get("unchecked", [])]
    how = section(
        "How it was measured",
        facts(
            [
                ("Model", content["model"]["url"]),
                ("Step", count(content["model"]["step"])),
                ("Data set", f"{content['dataset']['name']}, {content['dataset']['url']}"),
                ("Data set digest", identity["dataset"]),
                ("Split", identity["split"]),
                ("Protocol", f"{content['protocol']['name']}: {content['protocol']['in_words']}"),
                ("Computed on", f"{content['on']}, in {span(content['seconds'])}"),
                ("Software", ", ".join(f"{name} {version}" for name, version in content["software"].items())),
                ("MLflow run", f"{content['tracking']['run_id']} in {content['tracking']['tracking_uri']}"),
                ("Predictions", f"{found.url}/{PREDICTIONS}" if found.predictions else "not kept in this folder"),
            ]
        ),
        *(note(text) for text in checks),
        folded(
            "Everything that the figures depend on",
            table("Identity", ["what", "value"], [(k, setting(v)) for k, v in identity.items()]),
        ),
    )
    return [result, how, class_section(found.classes)]


def unreadable_table(found: EvaluationFacts) -> list[Html]:
    """The samples that could not be read, if any."""
    if not found.unreadable:
        return []
    shown = found.unreadable[:_MOST_UNREADABLE]
    title = f"Unreadable samples, {len(shown)} of {len(found.unreadable)}"
    return [table(title, ["sample", "reason"], shown)]


def class_section(scores: ClassScores, of: str = "unreadable ones counted wrong") -> Html:
    """Which classes are recognised, and which are taken for which; `of` says of what samples the percentages are."""
    pairs = confused_pairs(scores.confusion_KK)
    rows = [
        (count(n), f"{100 * n / max(1, int(scores.samples_K[true])):.0f}", scores.names[true], scores.names[predicted])
        for true, predicted, n in pairs[:_MOST_PAIRS]
    ]
    content: list[Html] = [_by_class(scores, of)]
    if len(scores.names) <= MOST_CLASSES:
        drawing = confusion_chart(scores.confusion_KK, scores.names, "Confusion matrix")
        words = "Rows are true classes, columns what the model says; percent of the true class. Empty cells are zero."
        content.append(figure(drawing, words))
    if rows:
        title = f"Most confused, {len(rows)} of {len(pairs)} kinds of mistake"
        content.append(table(title, ["#samples", "#% of class", "class", "taken for"], rows))
    else:
        content.append(paragraph("No sample was taken for another class."))
    return section("Classes", *content, _all_classes(scores))


def _by_class(scores: ClassScores, of: str) -> Html:
    """All classes as bars, or the extremes of many and the curve of all."""
    present = [k for k in np.argsort(-scores.percent_right(), kind="stable").tolist() if scores.samples_K[k]]
    percents = {scores.names[k]: float(scores.percent_right()[k]) for k in present}
    absent = len(scores.names) - len(present)
    without = f" {absent} classes have no samples." if absent else ""
    if len(present) <= MOST_CLASSES:
        return figure(bars(percents, "Top-1 of every class"), f"Top-1 of every class, {of}.{without}")
    names = list(percents)
    curve = Line("top-1", [(place + 1, percents[name]) for place, name in enumerate(names)])
    ends = {name: percents[name] for name in (*names[:_EXTREMES], *names[-_EXTREMES:])}
    return joined(
        [
            figure(
                line_chart([curve], x="classes, best first", y="top-1, %", bounds=(0, 100)),
                f"Top-1 of {len(present)} classes, {of}.{without}",
            ),
            figure(bars(ends, "Top-1 of the best and worst classes"), f"The {_EXTREMES} best and {_EXTREMES} worst."),
        ]
    )


def _all_classes(scores: ClassScores) -> Html:
    rows: Sequence[tuple[str, str, str]] = [
        (name, count(scores.samples_K[k]), f"{scores.percent_right()[k]:.1f}") for k, name in enumerate(scores.names)
    ]
    return folded(f"All {len(rows)} classes", table("Classes in label order", ["class", "#samples", "#top-1 %"], rows))
