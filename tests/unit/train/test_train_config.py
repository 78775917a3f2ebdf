import pytest
from pydantic import ValidationError

from vast.train.config import TrainConfig


def config(data=None, **optim):
    data = {"url": "somewhere", **(data or {})}
    return TrainConfig.model_validate({"name": "x", "model": {"name": "vast_micro"}, "data": data, "optim": optim})


@pytest.mark.parametrize(
    ("data", "together"),
    [({"augment": {"mixup_alpha": 0.8}}, 2), ({"augment": {"cutmix_alpha": 1.0}}, 2), ({"repeats": 3}, 6), ({}, 1)],
)
def test_batches_keep_together_what_is_mixed_or_repeated(data, together):
    assert config(data, global_batch=4 * together, max_micro_batch=together).data.clips_together == together
    if together > 1:
        with pytest.raises(ValidationError) as caught:
            config(data, global_batch=4 * together + 1, max_micro_batch=together - 1)
        assert f"optim.global_batch: {4 * together + 1}, must be a multiple of {together}" in str(caught.value)
        assert f"optim.max_micro_batch: {together - 1}, must be at least {together}" in str(caught.value)


@pytest.mark.parametrize(
    "optim",
    [{"precision": "fp8"}, {"layer_decay": 0.0}, {"layer_decay": 1.1}, {"ema_decay": 1.0}, {"max_nonfinite": -1}],
)
def test_impossible_settings_are_refused(optim):
    with pytest.raises(ValidationError):
        config(**optim)
