"""Speeds are of real passes; how large they are is not a matter for tests."""

import torch

from vast.models import create_model
from vast.models import speed as module
from vast.models.speed import describe_hardware, measure_speed


def test_both_passes_run_the_model_and_training_updates_it(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    model = create_model("vast_micro", 5)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    speed = measure_speed(model, (2, 3, 2, 32, 32), 5, torch.device("cpu"), None)
    assert modes == [(False, False)] * 4 + [(True, True)] * 4  # a warm-up and three rounds
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert speed.batch == 2
    assert 0 < speed.training < 1e6
    assert 0 < speed.forward < 1e6


def test_a_rate_is_clips_over_the_median_round(monkeypatch):
    ticks = iter([0, 9, 10, 12, 20, 24, 30, 33] * 2)  # rounds of 9 (warm-up), 2, 4 and 3 seconds
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    speed = measure_speed(create_model("vast_micro", 5), (6, 3, 1, 16, 16), 5, torch.device("cpu"), None)
    assert (speed.forward, speed.training) == (2.0, 2.0)


def test_the_hardware_has_a_name_and_threads():
    assert describe_hardware(torch.device("cpu")).endswith(f", {torch.get_num_threads()} threads")
    assert not describe_hardware(torch.device("cpu")).startswith(",")
