"""What an evaluation leaves for people and programs: tables, a picture, and one JSON file that says what was measured.

evaluation.json       written last: its presence means that the rest is complete
predictions.parquet   one row a sample, see pipelines.evaluation.parts
per_class.csv         one line a class
confusions.csv        one line for each pair of classes that was confused, the most frequent first
confusion_matrix.png, most_confused.png, per_class_accuracy.png
worst_mistakes.png    clips that the model is surest of, and wrong; none where nothing was mistaken
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines import plots
from pipelines.terminal import Terminal
from vast.train.metrics import ClassResult, Predictions, Score, class_results, class_support, confused_pairs, score

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.parquet"
PER_CLASS = "per_class.csv"
CONFUSIONS = "confusions.csv"
PICTURE = "confusion_matrix.png"

_SHOWN = 5


@dataclass(frozen=True)
class Confusion:
    """Samples of one class that the model takes for another."""

    true: str
    predicted: str
    count: int
    share: float
    """Percent of the true class's samples."""


@dataclass(frozen=True)
class Report:
    """The figures of an evaluation in every resolution."""

    score: Score
    classes: list[ClassResult]
    """In label order."""
    confusions: list[Confusion]
    """The most frequent first."""

    @classmethod
    def of(
        cls, predictions: Predictions, label_of_sample_M: NDArray[np.int32], names: Sequence[str], records: int
    ) -> "Report":
        """Work out the figures; see `vast.train.metrics.score`."""
        result = score(predictions, label_of_sample_M, len(names), records)
        support_K = class_support(predictions, label_of_sample_M, len(names))
        confusions = [
            Confusion(names[true], names[predicted], count, 100.0 * count / int(support_K[true]))
            for true, predicted, count in confused_pairs(result.confusion_KK)
        ]
        return cls(result, class_results(predictions, result, support_K, names), confusions)

    def write(self, folder: Path, title: str) -> None:
        """Write the tables and the pictures of them into a folder."""
        _write_csv(folder / PER_CLASS, [field.name for field in fields(ClassResult)], self.classes)
        _write_csv(folder / CONFUSIONS, [field.name for field in fields(Confusion)], self.confusions)
        names = [one.name for one in self.classes]
        plots.confusion_matrix(folder / PICTURE, self.score.confusion_KK, names, title)
        plots.most_confused(folder / "most_confused.png", self.score.confusion_KK, names, title)
        top1_K, samples_K = [one.top1 for one in self.classes], [one.samples for one in self.classes]
        plots.per_class_accuracy(folder / "per_class_accuracy.png", top1_K, samples_K, names, title)

    def show(self, terminal: Terminal) -> None:
        """Print what a person looks at first."""
        result = self.score
        terminal.say(f"top-1 {result.top1:.2f} %  top-5 {result.top5:.2f} %  mean class {result.mean_class:.2f} %")
        terminal.say(result.denominator())
        ranked = sorted((one for one in self.classes if one.samples), key=lambda one: (one.top1, -one.samples))
        worst, best = ranked[:_SHOWN], ranked[_SHOWN:][-_SHOWN:]
        columns = ["top-1 %", "top-5 %", "samples", "class → what it is most often taken for"]
        terminal.table("Worst classes", columns, [_class_row(one) for one in worst])
        if best:
            terminal.table("Best classes", columns, [_class_row(one) for one in reversed(best)])
        if self.confusions:
            pairs = self.confusions[:_SHOWN]
            rows = [[str(one.count), f"{one.share:.0f}", f"{one.true} → {one.predicted}"] for one in pairs]
            terminal.table("Most confused", ["samples", "% of class", "class → what it is taken for"], rows)


def _class_row(one: ClassResult) -> list[str]:
    taken_for = f" → {one.taken_for} ({one.taken_for_count})" if one.taken_for else ""
    return [f"{one.top1:.1f}", f"{one.top5:.1f}", str(one.samples), one.name + taken_for]


def _write_csv(path: Path, columns: list[str], lines: Sequence[ClassResult] | Sequence[Confusion]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for line in lines:
            plain = {
                name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(line).items()
            }
            writer.writerow(plain)
