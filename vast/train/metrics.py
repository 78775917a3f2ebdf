"""From predictions to figures: top-k, mean-class accuracy, the confusion matrix, with every record accounted for."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """Scores of the samples of one split, in the order of the sample index.

    `probs_NK` holds mean softmax over the views, `label_N` the class ids, `sample_N` the place in the sample index. A
    sample that could not be decoded has no row; it is named in `unreadable` with the decoder's message.
    """

    sample_N: NDArray[np.int64]
    label_N: NDArray[np.int64]
    probs_NK: NDArray[np.float32]
    unreadable: list[tuple[int, str]]


@dataclass(frozen=True)
class Score:
    """Figures of one evaluation; all accuracies in percent.

    Unreadable samples are in the denominator and count as wrong: an evaluation never replaces or forgets one.
    """

    records: int
    samples: int
    unreadable: int
    top1: float
    top5: float
    mean_class: float
    confusion_KK: NDArray[np.int64]
    """Rows are true classes, columns predicted ones; unreadable samples are in no cell."""

    def figures(self) -> dict[str, float]:
        """The scalars, by the names under which they are logged."""
        return {
            "eval/top1": self.top1,
            "eval/top5": self.top5,
            "eval/mean_class": self.mean_class,
            "eval/samples": float(self.samples),
            "eval/unreadable": float(self.unreadable),
        }

    def denominator(self) -> str:
        """What the percentages are of, in words."""
        missing = self.records - self.samples
        return (
            f"{self.samples - self.unreadable} of {self.records} records scored; "
            f"{missing} not in the shards (left out), {self.unreadable} unreadable (counted wrong)"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {
            "records": self.records,
            "samples": self.samples,
            "unreadable": self.unreadable,
            "top1": self.top1,
            "top5": self.top5,
            "mean_class": self.mean_class,
            "confusion": self.confusion_KK.tolist(),
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Score":
        """The inverse of `to_json`."""
        rest = {key: value for key, value in plain.items() if key != "confusion"}
        return cls(**rest, confusion_KK=np.array(plain["confusion"], dtype=np.int64))


def score(predictions: Predictions, label_of_sample_M: NDArray[np.int32], num_classes: int, records: int) -> Score:
    """Score predictions of a split.

    Args:
        predictions: scores, and the samples that could not be read.
        label_of_sample_M: class id of every sample of the split's index.
        num_classes: length of the class list.
        records: annotation lines that the split was made from.
    """
    rank_N = true_class_rank(predictions.probs_NK, predictions.label_N)
    samples = len(predictions.label_N) + len(predictions.unreadable)
    confusion_KK = np.zeros((num_classes, num_classes), dtype=np.int64)
    if len(rank_N):
        np.add.at(confusion_KK, (predictions.label_N, predictions.probs_NK.argmax(axis=1)), 1)
    lost = [label_of_sample_M[index] for index, _ in predictions.unreadable]
    support_K = confusion_KK.sum(axis=1) + np.bincount(np.array(lost, dtype=np.int64), minlength=num_classes)
    present_K = support_K > 0
    recall_K = np.diag(confusion_KK)[present_K] / support_K[present_K]
    return Score(
        records=records,
        samples=samples,
        unreadable=len(predictions.unreadable),
        top1=100.0 * float((rank_N < 1).sum()) / max(1, samples),
        top5=100.0 * float((rank_N < 5).sum()) / max(1, samples),
        mean_class=100.0 * float(recall_K.mean()) if present_K.any() else 0.0,
        confusion_KK=confusion_KK,
    )


def true_class_rank(probs_NK: NDArray[np.float32], label_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes stand before the true one; ties are broken by class id, as argmax does."""
    if len(label_N) == 0:
        return np.zeros(0, dtype=np.int64)
    true_N1 = np.take_along_axis(probs_NK, label_N[:, None], axis=1)
    earlier_NK = np.arange(probs_NK.shape[1])[None, :] < label_N[:, None]
    before_NK = (probs_NK > true_N1) | ((probs_NK == true_N1) & earlier_NK)
    rank_N: NDArray[np.int64] = before_NK.sum(axis=1).astype(np.int64)
    return rank_N
