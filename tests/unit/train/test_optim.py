from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vast.models.variants import create_model
from vast.train.config import OptimConfig
from vast.train.optim import build_optimizer, learning_rate, set_learning_rate


@given(
    epochs=st.integers(1, 50),
    steps_per_epoch=st.integers(1, 40),
    warmup=st.floats(0, 60),
    floor=st.floats(0, 1),
)
def test_learning_rate_rises_then_falls_between_floor_and_peak(epochs, steps_per_epoch, warmup, floor):
    config = OptimConfig(lr=0.5, epochs=epochs, warmup_epochs=warmup, min_lr_ratio=floor)
    total = epochs * steps_per_epoch
    rates = [learning_rate(step, config, steps_per_epoch) for step in range(total)]
    peak = rates.index(max(rates))
    assert all(0 <= rate <= 0.5 + 1e-12 for rate in rates)
    assert all(a <= b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[peak:]))
    if total > 2 and round(warmup * steps_per_epoch) < total - 1:
        assert rates[-1] == pytest.approx(0.5 * floor, abs=1e-9)
        assert max(rates) == pytest.approx(0.5)


@pytest.fixture
def model():
    return create_model("vast_micro", 5, position_encoding=True, layer_scale=1e-2)


def test_vectors_and_position_encodings_are_not_decayed(model):
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.3))
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay_of) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        plain = parameter.ndim == 1 or ".position." in name
        assert decay_of[id(parameter)] == (0.0 if plain else 0.3), name


def test_layer_decay_is_a_power_of_the_blocks_that_follow(model):
    """vast_micro has 1 + 3 + 1 blocks, so the exponents can be told by hand."""
    depths = model.config.size.depths
    total = sum(depths)
    optimizer = build_optimizer(model, OptimConfig(layer_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: rate_of[id(p)] for name, p in model.named_parameters()}
    for name, rate in rates.items():
        words = name.split(".")
        if words[0] != "stages":
            wanted = 0.1  # last norm and classifier
        else:
            block = int(words[3]) if words[2] == "blocks" else 0  # an embedding belongs to its stage's first block
            wanted = 0.1 * 0.5 ** (total - sum(depths[: int(words[1])]) - block)
        assert rate == pytest.approx(wanted), name
    assert rates["head.weight"] == 0.1
    assert rates[f"stages.{len(depths) - 1}.blocks.{depths[-1] - 1}.mlp.fc1.weight"] == pytest.approx(0.05)
    assert rates["stages.0.embed.proj.weight"] == pytest.approx(0.1 * 0.5**total)


def test_without_layer_decay_there_are_two_groups_and_one_rate(model):
    groups = build_optimizer(model, OptimConfig()).param_groups
    assert [(group["lr_scale"], group["weight_decay"]) for group in groups] == [(1.0, 0.05), (1.0, 0.0)]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_learning_rate_set_is_the_one_used(name, model):
    optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=0))
    set_learning_rate(optimizer, 0.0)
    before = model.head.weight.detach().clone()
    model(torch.ones(1, 3, 2, 32, 32)).square().sum().backward()
    optimizer.step()
    assert torch.equal(before, model.head.weight)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("skipped_first", [True, False])
def test_a_step_flagged_on_the_device_changes_nothing(name, skipped_first, model):
    """The other steps are those of torch's plain optimizer, also after a flagged first one."""
    optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=0.1))
    set_learning_rate(optimizer, 0.01)
    weight = model.head.weight
    plain_weight = torch.nn.Parameter(weight.detach().clone())
    plain = (
        torch.optim.AdamW([plain_weight], lr=0.01, weight_decay=0.1, betas=(0.9, 0.999))
        if name == "adamw"
        else torch.optim.SGD([plain_weight], lr=0.01, weight_decay=0.1, momentum=0.9, nesterov=True)
    )
    for step in range(4):
        flagged = step == (0 if skipped_first else 2)
        grad = torch.randn_like(weight)
        weight.grad = torch.full_like(weight, float("nan")) if flagged else grad.clone()
        optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(float(flagged))
        before = weight.detach().clone()
        optimizer.step()
        if flagged:
            assert torch.equal(weight, before)
        else:
            plain_weight.grad = grad
            plain.step()
            torch.testing.assert_close(weight, plain_weight, rtol=1e-6, atol=1e-7)
