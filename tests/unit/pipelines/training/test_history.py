import math

import numpy as np
import pytest

from pipelines.training.history import HistoryKeeper, read_history
from vast.errors import StoreError
from vast.storage import open_store


class Heard:
    def __init__(self):
        self.calls = []

    def log(self, step, figures):
        self.calls.append((step, dict(figures)))


def test_what_is_logged_up_to_a_save_is_read_back_and_passed_on(tmp_path):
    heard = Heard()
    keeper = HistoryKeeper(str(tmp_path), heard)
    keeper.started(0, ranks=4)
    keeper.log(10, {"train/loss": 2.0, "train/grad_norm": math.inf})
    keeper.log(20, {"train/loss": 1.0})
    keeper.log(20, {"eval/top1": 25.0})
    keeper.log(30, {"train/loss": 0.5})
    keeper.write(20)
    assert heard.calls[0] == (10, {"train/loss": 2.0, "train/grad_norm": math.inf})
    assert len(heard.calls) == 4
    history = read_history(str(tmp_path))
    assert history.step_S.tolist() == [10, 20]
    assert [step for step, _ in history.starts] == [0]
    assert history.ranks == 4
    assert history.names == ["eval/top1", "train/grad_norm", "train/loss"]
    np.testing.assert_array_equal(history.value_S_of["eval/top1"], [math.nan, 25.0])
    assert [values.tolist() for values in history.series("eval/top1")] == [[20], [25.0]]
    assert [values.tolist() for values in history.series("train/grad_norm")] == [[], []]
    assert [values.tolist() for values in history.series("never logged")] == [[], []]
    keeper.write(30)
    assert read_history(str(tmp_path)).series("train/loss")[1].tolist() == [2.0, 1.0, 0.5]


def test_steps_that_are_done_again_count_once_and_the_last_wins(tmp_path, monkeypatch):
    clock = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr("pipelines.training.history.time.time", lambda: next(clock))
    first = HistoryKeeper(str(tmp_path), Heard())
    first.log(10, {"time/step_s": 1.0})
    first.log(20, {"time/step_s": 2.0})
    first.write(20)
    again = HistoryKeeper(str(tmp_path), Heard())  # from a checkpoint of step 10, and saved elsewhere
    again.log(20, {"time/step_s": 3.0})
    again.log(30, {"time/step_s": 4.0})
    again.write(15)  # nothing to write yet
    again.write(30)
    history = read_history(str(tmp_path))
    assert history.step_S.tolist() == [10, 20, 30]
    assert history.at_ms_S.tolist() == [1000, 3000, 4000]
    assert history.series("time/step_s")[1].tolist() == [1.0, 3.0, 4.0]


def test_a_run_without_a_save_has_an_empty_history(tmp_path):
    history = read_history(str(tmp_path))
    assert (len(history.step_S), history.names) == (0, [])


def test_what_the_store_did_not_take_is_written_with_the_next_save(tmp_path, monkeypatch):
    keeper = HistoryKeeper(str(tmp_path), Heard())
    keeper.log(10, {"a": 1.0})

    def refuse(name, data):
        raise StoreError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(keeper.store, "put_bytes", refuse)
        with pytest.raises(StoreError):
            keeper.write(10)
    keeper.log(20, {"a": 2.0})
    keeper.write(20)
    assert read_history(str(tmp_path)).series("a")[1].tolist() == [1.0, 2.0]
    assert list(open_store(str(tmp_path)).list()) == ["history/00000020.jsonl"]
