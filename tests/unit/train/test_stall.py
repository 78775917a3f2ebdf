import pytest
import torch
from torch import nn

from vast.train import stall
from vast.train.stall import PARTS, Stopwatch
from vast.train.window import Window


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stall, "time", clock)
    monkeypatch.setattr("vast.train.window.time", clock)
    return clock


def test_each_second_is_charged_to_the_part_whose_mark_ends_it(clock):
    watch = Stopwatch(torch.device("cpu"))
    for part, seconds in [("wait", 3.0), ("to_device", 0.5), ("compute", 2.0), ("to_device", 0.5), ("all_reduce", 1.0)]:
        clock.now += seconds
        watch.mark(part)
    clock.now += 100.0
    watch.restart()  # an evaluation
    clock.now += 4.0
    watch.mark("compute")
    assert watch.take() == {"wait": 3.0, "to_device": 1.0, "compute": 6.0, "all_reduce": 1.0}
    clock.now += 2.0
    watch.mark("wait")
    assert watch.take() == {"wait": 2.0, "to_device": 0.0, "compute": 0.0, "all_reduce": 0.0}


def test_the_last_gradient_ends_compute_so_that_the_rest_is_the_wait_for_others(clock):
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    watch = Stopwatch(torch.device("cpu"))
    watch.mark_last_gradient(layers[0])
    clock.now += 1.0
    layers(torch.ones(1, 2)).sum().backward()
    clock.now += 5.0
    watch.mark("all_reduce")
    assert watch.take() == {"wait": 0.0, "to_device": 0.0, "compute": 1.0, "all_reduce": 5.0}


def test_figures_are_means_and_steps_without_a_gradient_spoil_none(clock):
    window = Window(global_batch=8, num_ranks=2)
    reader = {"store": 0.2, "decode": 1.0, "crop": 0.4}
    for loss, norm in ((1.0, 3.0), (float("nan"), float("nan")), (2.0, 5.0)):
        clock.now += 2.0
        window.add({"loss": loss, "grad_norm": norm, **reader})
    window.pause()
    clock.now += 50.0
    window.resume()
    clock.now += 3.0
    window.add({"loss": 6.0, "grad_norm": 1.0, **reader})
    figures = window.take({"wait": 4.0, "to_device": 1.0, "compute": 2.0, "all_reduce": 1.0})
    assert figures["train/loss"] == 3.0
    assert figures["train/grad_norm"] == 3.0
    assert figures["time/step_s"] == 9.0 / 4
    assert figures["time/clips_per_s"] == pytest.approx(8 * 4 / 9.0)
    assert [figures[f"stall/{part}"] for part in PARTS] == [1.0, 0.25, 0.5, 0.25]
    assert [figures[f"stall/{part}_share"] for part in PARTS] == [0.5, 0.125, 0.25, 0.125]
    assert figures["stall/decode"] == 0.5  # of one rank's readers, for one step
    clock.now += 1.0
    window.add({"loss": 5.0, "grad_norm": 2.0, **reader})
    assert window.take(dict.fromkeys(PARTS, 0.0))["train/loss"] == 5.0
