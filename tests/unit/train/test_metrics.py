import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vast.train.metrics import Predictions, Score, score, true_class_rank


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 9))
def test_rank_equals_the_place_in_a_stable_sort(seed, num_samples, num_classes):
    rng = np.random.default_rng(seed)
    probs_NK = rng.integers(0, 4, (num_samples, num_classes)).astype(np.float32)  # many ties
    label_N = rng.integers(0, num_classes, num_samples)
    order_NK = np.argsort(-probs_NK, axis=1, kind="stable")
    expected = [int(np.flatnonzero(order == label)[0]) for order, label in zip(order_NK, label_N, strict=True)]
    assert true_class_rank(probs_NK, label_N).tolist() == expected


def test_every_record_is_accounted_for_and_unreadable_ones_count_as_wrong():
    # 6 records: 5 samples, one of them unreadable; 3 of 4 readable ones are right
    label_of_sample = np.array([0, 0, 1, 1, 2], dtype=np.int32)
    probs_NK = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    predictions = Predictions(np.array([0, 1, 2, 4]), np.array([0, 0, 1, 2]), probs_NK, [(3, "torn")])
    result = score(predictions, label_of_sample, num_classes=3, records=6)
    assert (result.records, result.samples, result.unreadable) == (6, 5, 1)
    assert result.top1 == pytest.approx(60.0)  # 3 of 5
    assert result.mean_class == pytest.approx(100 * (1 / 2 + 1 / 2 + 1) / 3)
    assert result.confusion_KK.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert "4 of 6 records scored; 1 not in the shards (left out), 1 unreadable (counted wrong)" in result.denominator()


def test_score_survives_json():
    predictions = Predictions(np.array([0]), np.array([1]), np.array([[0.2, 0.8]], dtype=np.float32), [])
    result = score(predictions, np.array([1], dtype=np.int32), num_classes=2, records=3)
    again = Score.from_json(result.to_json())
    assert again.to_json() == result.to_json()


def test_nothing_readable_is_zero_not_a_crash():
    predictions = Predictions(
        np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.float32), [(0, "torn")]
    )
    result = score(predictions, np.array([1], dtype=np.int32), num_classes=2, records=1)
    assert (result.top1, result.top5, result.mean_class, result.samples) == (0.0, 0.0, 0.0, 1)
