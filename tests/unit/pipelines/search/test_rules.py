import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.search.rules import Asha, MedianStopping, NeverStop, PopulationRule, replay
from pipelines.search.space import parse_distribution


def run_in_turns(rule, curves):
    """Give a rule the curves of trials, an epoch of each in turn; the epochs that each got."""
    trained, going = dict.fromkeys(curves, 0), list(curves)
    for epoch in range(1, 1 + max(map(len, curves.values()))):
        for trial in list(going):
            trained[trial] = epoch
            if rule.stops(trial, epoch, curves[trial][epoch - 1]):
                going.remove(trial)
    return trained


@given(st.integers(0, 1000), st.integers(2, 4), st.integers(2, 30))
def test_asha_keeps_the_best_and_never_more_than_its_share_in_the_end(seed, factor, many):
    curves = {f"{n:04d}": list(np.cumsum(np.random.default_rng([seed, n]).random(9))) for n in range(many)}
    rule = Asha(max_epochs=9, grace=1, factor=factor)
    trained = run_in_turns(rule, curves)
    for rung, recorded in rule.rungs.items():
        if recorded:
            best = max(recorded, key=lambda trial: (recorded[trial], -int(trial)))
            assert trained[best] > rung  # who is best so far goes on
    assert 9 in trained.values()


def test_asha_spends_little_even_when_all_are_equal():
    curves = {f"{n:04d}": [11.25] * 9 for n in range(12)}
    trained = run_in_turns(Asha(9, 1, 3), curves)
    assert trained["0000"] == 9
    assert sum(trained.values()) <= 0.45 * 12 * 9


def test_asha_stops_who_came_first_once_better_ones_have_come():
    rule = Asha(9, 1, 3)
    assert not rule.stops("0000", 1, 20.0)  # the first one
    assert not rule.stops("0001", 1, 30.0)
    assert rule.stops("0000", 2, 40.0)  # what it came to at the rung counts
    assert not rule.stops("0001", 2, 25.0)


def test_asha_stops_what_is_not_a_number():
    rule = Asha(9, 1, 3)
    assert not rule.stops("0000", 1, 0.1)
    assert rule.stops("0001", 1, math.nan)
    assert not rule.stops("0002", 1, 0.2)


def test_asha_takes_an_evaluation_for_the_highest_rung_it_reached():
    rule = Asha(9, 1, 3)
    assert not rule.stops("0000", 4, 0.5)
    assert rule.rungs[3] == {"0000": 0.5}
    assert rule.rungs[1] == {}


@given(st.integers(0, 1000), st.integers(1, 60))
def test_rules_decide_the_same_after_a_replay(seed, cut):
    """What a driver that was killed after any evaluation decides is what it would have decided."""
    generator = np.random.default_rng(seed)
    curves = {f"{n:04d}": list(generator.random(9)) for n in range(8)}
    for make in (lambda: Asha(9, 1, 2), lambda: MedianStopping(2), NeverStop):
        whole, story, stopped = make(), [], set()
        for epoch in range(1, 10):
            for trial, values in curves.items():
                if trial not in stopped:
                    story.append((float(len(story)), trial, epoch, values[epoch - 1]))
                    if whole.stops(trial, epoch, values[epoch - 1]):
                        stopped.add(trial)
        again = make()
        before = replay(again, story[:cut])
        after = {trial for _, trial, epoch, value in story[cut:] if again.stops(trial, epoch, value)}
        assert before | after == stopped


@given(st.lists(st.sampled_from([12.5, 20.0, 30.0]), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_whoever_leads_a_rung_goes_on_in_whatever_order_evaluations_are_heard_of(values, shuffler):
    """A driver hears of evaluations in another order than they were made in, and after a restart in a third one."""
    story = [(float(n), f"{n:04d}", epoch, value) for n, value in enumerate(values) for epoch in (1, 2)]
    shuffler.shuffle(story)
    heard = [(float(n), trial, epoch, value) for n, (_, trial, epoch, value) in enumerate(story)]
    leader = max(range(len(values)), key=lambda n: (values[n], -n))
    assert f"{leader:04d}" not in replay(Asha(9, 1, 3), heard)


def test_a_trial_that_was_let_go_on_is_not_stopped_for_what_it_did_before():
    """The driver had heard of 0000 at its rung first, though 0001 was evaluated before it; then it was killed."""
    heard = [(1.0, "0001", 1, 90.0), (2.0, "0000", 1, 10.0), (3.0, "0000", 2, 80.0), (4.0, "0000", 3, 95.0)]
    assert replay(Asha(3, 1, 2), heard[:2]) == {"0000"}
    assert replay(Asha(3, 1, 2), heard) == set()


def test_median_stopping_stops_who_never_came_near():
    rule = MedianStopping(grace=2, least_others=3)
    for trial in ("0000", "0001", "0002"):
        assert not any(rule.stops(trial, epoch, 10.0 * epoch) for epoch in (1, 2, 3))
    assert not rule.stops("0003", 1, 1.0)  # grace
    assert rule.stops("0003", 2, 2.0)
    assert not rule.stops("0004", 2, 30.0)


POPULATION = PopulationRule(
    {"optim.lr": parse_distribution("optim.lr", {"loguniform": [1e-4, 1e-1]})}, {}, 0, 0.25, 0.25, (0.8, 1.25)
)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=20), st.integers(1, 9))
def test_in_a_population_the_worst_take_over_from_the_best(values, epoch):
    scores = {f"{n:04d}": value for n, value in enumerate(values)}
    settings = {trial: {"optim.lr": 1e-3} for trial in scores}
    found = POPULATION.takeovers(epoch, scores, settings)
    assert found == POPULATION.takeovers(epoch, scores, settings)
    assert len(found) <= math.ceil(0.25 * len(scores))
    for trial, takeover in found.items():
        assert scores[trial] <= scores[takeover.source]
        assert takeover.source not in found
        assert 1e-4 <= takeover.changes["optim.lr"] <= 1e-1
    if len(set(values)) == len(values):
        assert min(scores, key=lambda trial: scores[trial]) in found


def test_in_a_population_of_equals_nobody_takes_over():
    scores = {f"{n:04d}": 11.25 for n in range(8)}
    assert POPULATION.takeovers(2, scores, {trial: {"optim.lr": 1e-3} for trial in scores}) == {}


def test_who_came_to_nothing_takes_over():
    scores = {"0000": 50.0, "0001": math.nan, "0002": 40.0, "0003": 30.0}
    assert set(POPULATION.takeovers(2, scores, {trial: {"optim.lr": 1e-3} for trial in scores})) == {"0001"}
