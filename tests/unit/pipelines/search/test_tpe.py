import math

import numpy as np

from pipelines.search.record import EvalReport, TrialRecord
from pipelines.search.space import parse_distribution, random_point
from pipelines.search.tpe import tpe_point

SPACE = {
    "optim.name": parse_distribution("optim.name", {"choice": ["adamw", "sgd"]}),
    "optim.lr": parse_distribution("optim.lr", {"loguniform": [1e-5, 1e-1]}),
    "optim.momentum": parse_distribution("optim.momentum", {"uniform": [0.1, 0.9], "when": {"optim.name": "sgd"}}),
    "x.layers": parse_distribution("x.layers", {"randint": [1, 4]}),
}
BASE = {"optim.name": "adamw", "optim.lr": 1e-3, "optim.momentum": 0.9, "x.layers": 9}


def worth(point):
    return 10 - abs(math.log10(point["optim.lr"]) + 3) - (point["optim.name"] == "sgd")


def trial(number, point, state="finished"):
    report = EvalReport(1, 10, {"eval/top1": worth(point)}, 0.0)
    return TrialRecord(f"{number:04d}", point, [report] if state != "waiting" else [], state=state)


def ask(others, seed=0):
    return tpe_point(SPACE, BASE, others, metric="eval/top1", maximise=True, random_trials=4, seed=seed)


def test_draws_are_functions_of_what_is_known_and_obey_conditions():
    others = [trial(n, random_point(SPACE, BASE, [0, n])) for n in range(8)]
    for seed in range(10):
        point = ask(others, seed)
        assert point == ask(others, seed)
        assert ("optim.momentum" in point) == (point["optim.name"] == "sgd")
        assert 1e-5 <= point["optim.lr"] <= 1e-1
        assert point["x.layers"] in range(1, 5)


def test_draws_come_near_what_was_good():
    others = [trial(n, random_point(SPACE, BASE, [1, n])) for n in range(30)]
    learned = [worth(ask(others, seed)) for seed in range(20)]
    blind = [worth(random_point(SPACE, BASE, [2, n])) for n in range(200)]
    assert np.mean(learned) > np.mean(blind) + 0.5


def test_settings_outside_the_space_and_trials_without_a_figure_do_no_harm():
    base = trial(0, {"optim.name": "adamw", "optim.lr": 1e-3, "x.layers": 9})
    others = [base, trial(1, random_point(SPACE, BASE, [0, 1]), "waiting"), TrialRecord("0002", {}, state="failed")]
    assert set(ask(others)) >= {"optim.name", "optim.lr", "x.layers"}
