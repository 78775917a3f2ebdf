"""From predictions to figures: top-k, mean-class accuracy, the confusion matrix, with every record accounted for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vast.errors import UserError

# Classes that are kept of each sample, best first.
TOP = 5
# Rank of the true class where there is no score: it is in no top-k.
NO_RANK = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Predictions:
    """What a model says of the samples of one split, in the order of the sample index.

    Only the best classes and the place of the true one are kept, so the size does not grow with the number of classes.
    A sample that could not be decoded has no row; it is named in `unreadable` with the decoder's message.

    N samples, J = TOP classes kept.
    """

    sample_N: NDArray[np.int64]
    """Place in the sample index."""
    label_N: NDArray[np.int64]
    """Class ids."""
    rank_N: NDArray[np.int64]
    """How many classes stand before the true one; NO_RANK where the model's scores are not finite."""
    top_NJ: NDArray[np.int64]
    """The best classes, best first; -1 where the scores are not finite or the model has fewer classes."""
    prob_NJ: NDArray[np.float32]
    """Their probabilities; 0 where there is no class."""
    unreadable: list[tuple[int, str]]

    @classmethod
    def of(
        cls,
        sample_N: NDArray[np.int64],
        label_N: NDArray[np.int64],
        probs_NK: NDArray[np.float32],
        unreadable: list[tuple[int, str]],
    ) -> Self:
        """Rank the classes of each sample; equal probabilities are ordered by class id, as argmax does."""
        N, K = probs_NK.shape
        # Not a number compares as neither larger nor smaller, which would make every class the best one.
        finite_N: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(probs_NK), axis=1)
        best_NJ = np.argsort(-probs_NK, axis=1, kind="stable")[:, :TOP]
        top_NJ, prob_NJ = np.full((N, TOP), -1, dtype=np.int64), np.zeros((N, TOP), dtype=np.float32)
        top_NJ[:, : min(TOP, K)] = np.where(finite_N[:, None], best_NJ, -1)
        prob_NJ[:, : min(TOP, K)] = np.where(finite_N[:, None], np.take_along_axis(probs_NK, best_NJ, axis=1), 0)
        rank_N = np.where(finite_N, true_class_rank(probs_NK, label_N), NO_RANK)
        return cls(sample_N, label_N, rank_N, top_NJ, prob_NJ, unreadable)

    @classmethod
    def joined(cls, parts: "Sequence[Predictions]") -> Self:
        """Put parts of a split together, in the order of the sample index."""
        sample_N = np.concatenate([np.zeros(0, dtype=np.int64), *(part.sample_N for part in parts)])
        order_N = np.argsort(sample_N, kind="stable")
        return cls(
            sample_N[order_N],
            np.concatenate([np.zeros(0, dtype=np.int64), *(part.label_N for part in parts)])[order_N],
            np.concatenate([np.zeros(0, dtype=np.int64), *(part.rank_N for part in parts)])[order_N],
            np.concatenate([np.zeros((0, TOP), dtype=np.int64), *(part.top_NJ for part in parts)])[order_N],
            np.concatenate([np.zeros((0, TOP), dtype=np.float32), *(part.prob_NJ for part in parts)])[order_N],
            sorted(failure for part in parts for failure in part.unreadable),
        )


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
    """Mean over the classes that occur of their top-1 accuracy."""
    confusion_KK: NDArray[np.int64]
    """Rows are true classes, columns predicted ones; samples without a finite score are in no cell."""
    nonfinite: int = 0
    """Samples of which the model's scores are not finite; they count as wrong."""

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
        parts = [f"{_spaced(self.samples)} of {_spaced(self.records)} rows"]
        if missing:
            parts[0] += f" ({_spaced(missing)} not in the shards, left out)"
        parts.append(f"{_spaced(self.unreadable)} unreadable counted wrong")
        if self.nonfinite:
            parts.append(f"{_spaced(self.nonfinite)} without a finite score counted wrong")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        plain = {name: value for name, value in self.__dict__.items() if name != "confusion_KK"}
        return {**plain, "confusion": self.confusion_KK.tolist()}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        rest = {key: value for key, value in plain.items() if key != "confusion"}
        return cls(**rest, confusion_KK=np.array(plain["confusion"], dtype=np.int64))


def score(predictions: Predictions, label_of_sample_M: NDArray[np.int32], num_classes: int, records: int) -> Score:
    """Score predictions of a split.

    Args:
        predictions: What the model says, and the samples that could not be read.
        label_of_sample_M: Class id of every sample of the split's index.
        num_classes: Length of the class list.
        records: Annotation lines that the split was made from.

    Raises:
        UserError: The split has samples without a label.
    """
    check_labelled(label_of_sample_M)
    samples = len(predictions.label_N) + len(predictions.unreadable)
    scored_N: NDArray[np.bool_] = predictions.rank_N != NO_RANK
    confusion_KK = np.zeros((num_classes, num_classes), dtype=np.int64)
    if scored_N.any():
        np.add.at(confusion_KK, (predictions.label_N[scored_N], predictions.top_NJ[scored_N, 0]), 1)
    support_K = class_support(predictions, label_of_sample_M, num_classes)
    present_K = support_K > 0
    recall_K = np.diag(confusion_KK)[present_K] / support_K[present_K]
    return Score(
        records=records,
        samples=samples,
        unreadable=len(predictions.unreadable),
        top1=100.0 * float((predictions.rank_N < 1).sum()) / max(1, samples),
        top5=100.0 * float((predictions.rank_N < TOP).sum()) / max(1, samples),
        mean_class=100.0 * float(recall_K.mean()) if present_K.any() else 0.0,
        confusion_KK=confusion_KK,
        nonfinite=int((~scored_N).sum()),
    )


def check_labelled(label_of_sample_M: NDArray[np.int32]) -> None:
    """Raise UserError when samples of a split have no label."""
    if unlabelled := int((label_of_sample_M < 0).sum()):
        raise UserError(
            f"the evaluated split: {unlabelled} of {len(label_of_sample_M)} samples have no label, so nothing can be "
            "scored; name a labelled split"
        )


def class_support(
    predictions: Predictions, label_of_sample_M: NDArray[np.int32], num_classes: int
) -> NDArray[np.int64]:
    """Return how many samples of each class were asked for, unreadable ones included."""
    lost = np.array([label_of_sample_M[sample] for sample, _ in predictions.unreadable], dtype=np.int64)
    support_K: NDArray[np.int64] = np.bincount(np.concatenate([predictions.label_N, lost]), minlength=num_classes)
    return support_K


@dataclass(frozen=True)
class ClassResult:
    """How one class fared; samples of it that could not be read or scored are among `samples`."""

    label: int
    name: str
    samples: int
    top1: float
    """Percent; 0 for a class without samples."""
    top5: float
    predicted: int
    """Samples, of any class, that the model takes for this one."""
    taken_for: str
    """The class that most of its wrong samples are taken for; empty when there are none."""
    taken_for_count: int


def class_results(
    predictions: Predictions, result: Score, support_K: NDArray[np.int64], classes: Sequence[str]
) -> list[ClassResult]:
    """Return one line for each class, in label order."""
    in_top_K = np.bincount(predictions.label_N[predictions.rank_N < TOP], minlength=len(classes))
    wrong_KK = result.confusion_KK * ~np.eye(len(classes), dtype=bool)
    found = []
    for label, name in enumerate(classes):
        samples, other = int(support_K[label]), int(wrong_KK[label].argmax())
        count = int(wrong_KK[label, other])
        found.append(
            ClassResult(
                label=label,
                name=name,
                samples=samples,
                top1=100.0 * int(result.confusion_KK[label, label]) / max(1, samples),
                top5=100.0 * int(in_top_K[label]) / max(1, samples),
                predicted=int(result.confusion_KK[:, label].sum()),
                taken_for=classes[other] if count else "",
                taken_for_count=count,
            )
        )
    return found


def confused_pairs(confusion_KK: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, samples) of every confusion that occurs, the most frequent first."""
    wrong_KK = confusion_KK * ~np.eye(len(confusion_KK), dtype=bool)
    true_P, predicted_P = np.nonzero(wrong_KK)
    count_P = wrong_KK[true_P, predicted_P]
    order_P = np.lexsort((predicted_P, true_P, -count_P))
    return [(int(true_P[p]), int(predicted_P[p]), int(count_P[p])) for p in order_P]


def true_class_rank(probs_NK: NDArray[np.float32], label_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes stand before the true one; ties are broken by class id, as argmax does."""
    if len(label_N) == 0:
        return np.zeros(0, dtype=np.int64)
    true_N1 = np.take_along_axis(probs_NK, label_N[:, None], axis=1)
    earlier_NK = np.arange(probs_NK.shape[1])[None, :] < label_N[:, None]
    before_NK = (probs_NK > true_N1) | ((probs_NK == true_N1) & earlier_NK)
    rank_N: NDArray[np.int64] = before_NK.sum(axis=1).astype(np.int64)
    return rank_N


def _spaced(count: int) -> str:
    """Return a count with its thousands apart, as 19 787."""
    return f"{count:,}".replace(",", " ")
