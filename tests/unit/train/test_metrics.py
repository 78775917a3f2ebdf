import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vast.errors import UserError
from vast.train.metrics import (
    NO_RANK,
    TOP,
    Predictions,
    Score,
    class_results,
    class_support,
    confused_pairs,
    score,
    true_class_rank,
)


def predictions(label_N, probs_NK, unreadable=(), sample_N=None):
    label_N = np.array(label_N, dtype=np.int64)
    sample_N = np.arange(len(label_N)) if sample_N is None else np.array(sample_N)
    return Predictions.of(sample_N, label_N, np.asarray(probs_NK, dtype=np.float32), list(unreadable))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 9))
def test_ranks_and_best_classes_are_those_of_a_stable_sort(seed, num_samples, num_classes):
    rng = np.random.default_rng(seed)
    probs_NK = rng.integers(0, 4, (num_samples, num_classes)).astype(np.float32)  # many ties
    label_N = rng.integers(0, num_classes, num_samples)
    order_NK = np.argsort(-probs_NK, axis=1, kind="stable")
    expected = [int(np.flatnonzero(order == label)[0]) for order, label in zip(order_NK, label_N, strict=True)]
    assert true_class_rank(probs_NK, label_N).tolist() == expected
    found = predictions(label_N, probs_NK)
    assert found.rank_N.tolist() == expected
    for n, order in enumerate(order_NK):
        kept = order[:TOP].tolist()
        assert found.top_NJ[n].tolist() == kept + [-1] * (TOP - len(kept))
        assert found.prob_NJ[n, : len(kept)].tolist() == probs_NK[n, kept].tolist()


def test_every_record_is_accounted_for_and_unreadable_ones_count_as_wrong():
    # 6 records: 5 samples, one of them unreadable; 3 of 4 readable ones are right
    label_of_sample = np.array([0, 0, 1, 1, 2], dtype=np.int32)
    found = predictions([0, 0, 1, 2], np.eye(3)[[0, 1, 1, 2]], [(3, "torn")], sample_N=[0, 1, 2, 4])
    result = score(found, label_of_sample, num_classes=3, records=6)
    assert (result.records, result.samples, result.unreadable) == (6, 5, 1)
    assert result.top1 == pytest.approx(60.0)  # 3 of 5
    assert result.mean_class == pytest.approx(100 * (1 / 2 + 1 / 2 + 1) / 3)
    assert result.confusion_KK.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert result.denominator() == "5 of 6 rows (1 not in the shards, left out); 1 unreadable counted wrong"


def test_the_denominator_in_words():
    figures = {"top1": 0.0, "top5": 0.0, "mean_class": 0.0, "confusion_KK": np.zeros((1, 1), dtype=np.int64)}
    result = Score(records=19906, samples=19787, unreadable=25, **figures)
    assert (
        result.denominator() == "19 787 of 19 906 rows (119 not in the shards, left out); 25 unreadable counted wrong"
    )
    whole = Score(records=50000, samples=50000, unreadable=0, nonfinite=3, **figures)
    assert whole.denominator() == (
        "50 000 of 50 000 rows; 0 unreadable counted wrong; 3 without a finite score counted wrong"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_count_as_wrong(bad):
    probs_NK = np.eye(3)[[0, 0]]
    probs_NK[1] = bad
    found = predictions([0, 0], probs_NK)
    assert found.rank_N.tolist() == [0, NO_RANK]
    assert found.top_NJ[1].tolist() == [-1] * TOP
    result = score(found, np.zeros(2, dtype=np.int32), num_classes=3, records=2)
    assert (result.top1, result.top5, result.mean_class, result.nonfinite) == (50.0, 50.0, 50.0, 1)
    assert result.confusion_KK.sum() == 1


def test_a_split_without_labels_is_refused():
    found = predictions([-1, 0], np.eye(2))
    with pytest.raises(UserError, match="1 of 2 samples have no label"):
        score(found, np.array([-1, 0], dtype=np.int32), num_classes=2, records=2)


def test_score_survives_json():
    result = score(predictions([1], [[0.2, 0.8]]), np.array([1], dtype=np.int32), num_classes=2, records=3)
    plain = result.to_json()
    assert Score.from_json(plain).to_json() == plain
    del plain["nonfinite"]  # which older files do not have
    assert Score.from_json(plain).to_json() == result.to_json()


def test_nothing_readable_is_zero_not_a_crash():
    found = Predictions.joined([predictions([], np.zeros((0, 0)), [(0, "torn")])])
    result = score(found, np.array([1], dtype=np.int32), num_classes=2, records=1)
    assert (result.top1, result.top5, result.mean_class, result.samples) == (0.0, 0.0, 0.0, 1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 7))
def test_tables_of_classes_add_up_to_the_figures(seed, num_samples, num_classes):
    rng = np.random.default_rng(seed)
    label_of_sample = rng.integers(0, num_classes, num_samples).astype(np.int32)
    readable = rng.random(num_samples) < 0.8
    sample_N = np.flatnonzero(readable)
    unreadable = [(int(sample), "torn") for sample in np.flatnonzero(~readable)]
    probs_NK = rng.random((len(sample_N), num_classes))
    found = predictions(label_of_sample[sample_N], probs_NK, unreadable, sample_N)
    result = score(found, label_of_sample, num_classes, num_samples)
    support_K = class_support(found, label_of_sample, num_classes)
    names = [f"class {k}" for k in range(num_classes)]
    table = class_results(found, result, support_K, names)
    assert [one.samples for one in table] == np.bincount(label_of_sample, minlength=num_classes).tolist()
    assert sum(one.top1 * one.samples for one in table) == pytest.approx(result.top1 * num_samples)
    assert sum(one.top5 * one.samples for one in table) == pytest.approx(result.top5 * num_samples)
    assert sum(one.predicted for one in table) == len(sample_N)
    pairs = confused_pairs(result.confusion_KK)
    assert sum(count for _, _, count in pairs) == len(sample_N) - int(np.diag(result.confusion_KK).sum())
    assert [count for _, _, count in pairs] == sorted((count for _, _, count in pairs), reverse=True)
    for one in table:
        of_class = {predicted: count for true, predicted, count in pairs if true == one.label}
        assert one.taken_for_count == max(of_class.values(), default=0)
        assert not one.taken_for or of_class[names.index(one.taken_for)] == one.taken_for_count
