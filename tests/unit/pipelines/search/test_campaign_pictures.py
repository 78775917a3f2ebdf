"""What is drawn of a campaign: axes, the best so far, importance, and the pictures themselves."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from pipelines.search.axes import Axis, setting_axes
from pipelines.search.importance import FEWEST_TRIALS, importance
from pipelines.search.pictures import BEST_SO_FAR, IMPORTANCE, PARALLEL_COORDINATES, campaign_pictures
from pipelines.search.progress import moments
from pipelines.search.record import EvalReport, Exploit, TrialRecord
from tests.unit.pipelines.search.campaigns import SPACE, campaign, trials


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.booleans())
def test_every_value_and_tick_lies_on_its_axis(values, log):
    axis = Axis.of_numbers("x", values, log=log)
    assert all(-1e-6 <= axis.place(value) <= 1 + 1e-6 for value in values)
    places = [place for place, _ in axis.ticks()]
    assert len(places) >= 2
    assert all(-1e-6 <= place <= 1 + 1e-6 for place in places)
    assert places == sorted(places)


def test_axes_follow_the_space():
    lr, decay, erase, mixer = setting_axes(campaign(trials(6)), trials(6))
    assert (lr.name, lr.log, lr.low, lr.high) == ("optim.lr", True, 1e-4, 1e-2)
    assert lr.place(1e-3) == pytest.approx(0.5)
    assert [label for _, label in lr.ticks()] == ["0.0001", "0.001", "0.01"]
    assert not decay.log
    assert erase.choices == ("0.0", "0.25")
    assert mixer.ticks() == [(0.25, "affine_shift"), (0.75, "attention")]


@pytest.mark.parametrize(
    ("plain", "drawn", "low", "high"),
    [
        ({"qloguniform": [1, 64, 1]}, [2, 8], 1, 64),
        ({"randint": [2, 5], "when": {"a": 1}}, [3], 2, 5),
        ({"uniform": [0.0, 1.0]}, [1.25], 0, 1.25),  # moved there by population-based training
        ({"uniform": [0.0, 1.0]}, [], 0, 1),
    ],
)
def test_any_distribution_has_an_axis(plain, drawn, low, high):
    axis = Axis.of_setting("x", plain, drawn)
    assert (axis.low, axis.high) == (low, high)


def test_the_best_so_far_never_gets_worse_and_counts_all_steps():
    found = moments(campaign(trials(10)))
    assert len(found) == sum(len(trial.reports) for trial in trials(10))
    assert [moment.best for moment in found] == list(np.maximum.accumulate([moment.value for moment in found]))
    assert [moment.hours for moment in found] == sorted(moment.hours for moment in found)
    assert found[-1].steps == sum(trial.steps_trained for trial in trials(10))
    assert moments(campaign(trials(10), mode="min"))[-1].best == min(moment.value for moment in found)


def test_steps_taken_over_from_another_trial_are_not_counted_twice():
    source = TrialRecord("0000", {}, [EvalReport(1, 10, {"eval/top1": 1.0}, 1.0)])
    exploit = Exploit("0000", 1, 10, {}, 2.5, "x")
    reports = [EvalReport(1, 10, {"eval/top1": 0.5}, 2.0), EvalReport(2, 20, {"eval/top1": 2.0}, 3.0)]
    taker = TrialRecord("0001", {}, reports, [exploit])
    assert [moment.steps for moment in moments(campaign([source, taker]))] == [10, 20, 30]


def test_importance_finds_the_setting_that_decides_though_half_the_trials_were_stopped_early():
    record = campaign(trials(40))
    found = importance(record)
    assert next(iter(found.shares)) == "optim.lr"
    assert found.shares["optim.lr"] > 0.8
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.epoch == 2
    assert found.explained > 0.5
    assert "after epoch 2" in found.caveat()
    assert importance(record) == found


def test_importance_says_when_there_is_none():
    assert str(FEWEST_TRIALS) in importance(campaign(trials(FEWEST_TRIALS - 1))).missing
    same = [
        replace(trial, reports=[replace(report, figures={"eval/top1": 5.0}) for report in trial.reports])
        for trial in trials(12)
    ]
    assert "do not differ" in importance(campaign(same)).missing


def test_chance_is_called_chance():
    rng = np.random.default_rng(0)
    noise = [
        replace(
            trial, reports=[replace(report, figures={"eval/top1": float(rng.normal())}) for report in trial.reports]
        )
        for trial in trials(16)
    ]
    assert "chance" in importance(campaign(noise)).caveat()


def test_an_absent_conditional_setting_is_no_obstacle(tmp_path):
    some = [
        replace(trial, drawn={path: value for path, value in trial.drawn.items() if number % 3 or path != "optim.lr"})
        for number, trial in enumerate(trials(12))
    ]
    assert set(importance(campaign(some)).shares) == set(SPACE)
    campaign_pictures(campaign(some), tmp_path)


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_three_pictures_are_always_written(tmp_path, count, recwarn):
    record = campaign(trials(count), space={**SPACE, "data.$\\frac{$ 攀岩": {"choice": ["$", "a\nb", True]}})
    campaign_pictures(record, tmp_path)
    assert not recwarn.list
    assert {path.name for path in tmp_path.iterdir()} == {PARALLEL_COORDINATES, IMPORTANCE, BEST_SO_FAR}
    for path in tmp_path.iterdir():
        assert imread(path)[..., :3].std() > 0.01  # something is on it


def test_the_best_trial_stands_out(tmp_path):
    campaign_pictures(campaign(trials(20)), tmp_path)
    for name in (PARALLEL_COORDINATES, BEST_SO_FAR):
        red, _, blue = np.moveaxis(imread(tmp_path / name)[..., :3], -1, 0)
        assert (red - blue > 0.7).sum() > 500
