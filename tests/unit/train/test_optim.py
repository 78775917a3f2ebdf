from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

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


def test_no_decay_for_vectors_and_named_parameters():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    model.register_parameter("table", nn.Parameter(torch.ones(2, 2)))
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.3), no_decay={"table"})
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay_of[id(p)] for name, p in model.named_parameters()}
    assert found == {"0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "table": 0.0}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_learning_rate_set_is_the_one_used(name):
    model = nn.Linear(3, 3, bias=False)
    optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=0), set())
    set_learning_rate(optimizer, 0.0)
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(before, model.weight)
