import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.search.space import active, base_point, grid, parse_distribution, random_point

SPACE = {
    "optim.name": parse_distribution("optim.name", {"choice": ["adamw", "sgd"]}),
    "optim.lr": parse_distribution("optim.lr", {"loguniform": [1e-4, 1e-1]}),
    "optim.momentum": parse_distribution("optim.momentum", {"uniform": [0.5, 0.9], "when": {"optim.name": "sgd"}}),
    "optim.warmup_epochs": parse_distribution("optim.warmup_epochs", {"quniform": [0, 5, 0.5]}),
    "data.augment.rand_num_layers": parse_distribution("data.augment.rand_num_layers", {"randint": [0, 3]}),
}
BASE = {
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "optim.momentum": 0.9,
    "optim.warmup_epochs": 1.0,
    "data.augment.rand_num_layers": 0,
}


@given(st.integers(0, 2**31), st.integers(0, 10_000))
def test_a_point_is_a_function_of_its_seed_and_lies_in_the_space(seed, number):
    point = random_point(SPACE, BASE, [seed, number])
    assert point == random_point(SPACE, BASE, [seed, number])
    assert 1e-4 <= point["optim.lr"] <= 1e-1
    assert point["optim.warmup_epochs"] in np.arange(0, 5.5, 0.5)
    assert point["data.augment.rand_num_layers"] in range(4)
    assert ("optim.momentum" in point) == (point["optim.name"] == "sgd")


def test_draws_cover_the_space_as_they_should():
    points = [random_point(SPACE, BASE, [0, n]) for n in range(2000)]
    rates = np.log10([point["optim.lr"] for point in points])
    assert abs(rates.mean() + 2.5) < 0.1  # log-uniform: the middle of 1e-4 and 1e-1
    counts = np.bincount([point["data.augment.rand_num_layers"] for point in points], minlength=4)
    assert counts.min() > 400  # both ends are included


def test_a_grid_has_every_combination_once_and_conditions_make_none_twice():
    space = {
        "optim.name": SPACE["optim.name"],
        "optim.momentum": parse_distribution("optim.momentum", {"choice": [0.5, 0.9], "when": {"optim.name": "sgd"}}),
        "data.augment.rand_num_layers": SPACE["data.augment.rand_num_layers"],
    }
    points = grid(space, BASE)
    assert len(points) == 4 * (1 + 2)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)


def test_a_grid_over_a_range_without_steps_is_refused():
    with pytest.raises(ValueError, match=r"optim\.lr: loguniform has no steps"):
        grid(SPACE, BASE)


def test_the_recipes_own_point():
    assert base_point(SPACE, BASE) == {path: BASE[path] for path in SPACE if path != "optim.momentum"}


def test_a_condition_may_speak_of_a_setting_that_is_not_searched():
    space = {"optim.lr": parse_distribution("optim.lr", {"uniform": [0, 1], "when": {"model.name": ["a", "b"]}})}
    assert active(space, {"optim.lr": 0.5}, {"model.name": "b"}) == {"optim.lr": 0.5}
    assert active(space, {"optim.lr": 0.5}, {"model.name": "c"}) == {}


@given(st.floats(0.1, 10), st.floats(0.01, 3), st.floats(-5, 20))
def test_steps_are_kept(low, step, value):
    distribution = parse_distribution("x", {"quniform": [low, low + 7.5 * step, step]})
    number = (distribution.nearest(value) - low) / step
    assert math.isclose(number, round(number), abs_tol=1e-6)
    assert -1e-9 <= number <= 7 + 1e-6
    assert distribution.nearest(value) in distribution.points


def test_whole_steps_stay_whole_numbers():
    distribution = parse_distribution("x", {"quniform": [16, 64, 16]})
    assert distribution.points == [16, 32, 48, 64]
    assert all(isinstance(value, int) for value in distribution.points)


def test_a_perturbed_value_lies_in_the_space_and_moves():
    generator = np.random.default_rng(0)
    for path, values in {"optim.lr": [1e-4, 1e-2, 1e-1], "data.augment.rand_num_layers": [0, 1, 3]}.items():
        for value in values:
            moved = {SPACE[path].perturbed(value, generator, (0.8, 1.25)) for _ in range(50)}
            assert any(each != value for each in moved)
            assert all(SPACE[path].values[0] <= each <= SPACE[path].values[1] for each in moved)
    choice = parse_distribution("x", {"choice": ["a", "b", "c"]})
    assert {choice.perturbed("b", generator, (0.8, 1.25)) for _ in range(50)} == {"a", "c"}
