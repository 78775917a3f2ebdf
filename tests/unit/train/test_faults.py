import pytest
import torch

from vast.data.reader import TrainBatch
from vast.errors import UserError
from vast.train.faults import Faults, samples_at_fault


def key_of(sample):
    return f"video{sample}"


def test_steps_in_a_row_end_the_run_and_the_error_names_their_samples():
    faults = Faults()
    faults.not_finite(4, [7, 8], 2, key_of)
    faults.not_finite(5, [9], 2, key_of)
    with pytest.raises(UserError) as caught:
        faults.not_finite(6, list(range(30, 50)), 2, key_of)
    text = str(caught.value)
    assert "optim.max_nonfinite: loss or gradient was not finite in 3 steps in a row, and 2 are allowed" in text
    assert "step 4: video7, video8\n" in text
    assert "step 6: video30, video31" in text
    assert "and 12 more" in text


def test_a_finite_step_ends_the_row_but_not_the_count():
    faults = Faults()
    for step in range(0, 20, 2):
        faults.not_finite(step, [step], 1, key_of)
        faults.finite()
    assert (faults.nonfinite, faults.row) == (10, {})


def test_none_allowed_means_the_first_one_ends_the_run():
    with pytest.raises(UserError, match="in 1 steps in a row, and 0 are allowed"):
        Faults().not_finite(0, [1], 0, key_of)


def test_too_large_a_share_of_skipped_samples_ends_the_run():
    faults = Faults()
    faults.skip(2, 0.02, 100)
    faults.skip(0, 0.0, 100)  # a later step without a skipped one says nothing new
    with pytest.raises(UserError, match=r"data\.max_skipped: 3 samples .* more than 2\.00% of 100"):
        faults.skip(1, 0.02, 100)


def test_counts_survive_being_saved():
    faults, again = Faults(), Faults()
    faults.not_finite(3, [1, 2], 5, key_of)
    faults.skip(1, 1.0, 10)
    again.restore(faults.to_plain())
    assert again == faults


def micro_batch(samples, first):
    none = torch.zeros(0)
    position_B = torch.arange(first, first + len(samples))
    return TrainBatch(0, 0, torch.tensor(samples), none, none, position_B, torch.ones(len(samples)))


@pytest.mark.parametrize(
    ("losses", "at_fault"),
    [
        ([[1.0, float("nan")], [2.0, 3.0]], [41]),
        ([[float("inf"), 1.0], [2.0, float("nan")]], [40, 43]),
        ([[1.0, 1.0], [2.0, 3.0]], [40, 41, 42, 43]),  # only the backward pass overflowed: it could be any
    ],
)
def test_the_samples_at_fault_are_those_whose_own_loss_is_not_finite(losses, at_fault):
    batches = [micro_batch([40, 41], 0), micro_batch([42, 43], 2)]
    found = samples_at_fault(batches, [torch.tensor(loss) for loss in losses], global_batch=4, num_ranks=1)
    assert found == at_fault
