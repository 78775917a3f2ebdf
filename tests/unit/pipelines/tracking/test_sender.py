import math
import time

from mlflow import MlflowClient

from pipelines import tracking
from pipelines.tracking import MlflowTracker, RunRef
from pipelines.tracking.spool import Spool


def history(run, name):
    return sorted((one.step, one.value) for one in MlflowClient(run.tracking_uri).get_metric_history(run.run_id, name))


def test_figures_arrive_by_step_and_non_finite_ones_are_flagged(uri, spool):
    run = tracking.create_run(uri, "figures", params={}, tags={})
    tracker = MlflowTracker(run, flush_every_s=0.05)
    for step in range(1, 21):
        tracker.log(step, {"train/loss": 1.0 / step})
    tracker.log(21, {"train/loss": math.inf})
    assert tracker.close() == 0
    assert history(run, "train/loss")[:20] == [(s, 1.0 / s) for s in range(1, 21)]
    assert MlflowClient(uri).get_run(run.run_id).data.metrics["train/loss_nonfinite"] == 1.0
    assert list(spool.iterdir()) == []


def test_flush_returns_once_the_points_are_there(uri):
    run = tracking.create_run(uri, "flush", params={}, tags={})
    tracker = MlflowTracker(run, flush_every_s=0.05)
    tracker.log(1, {"a": 1.0})
    tracker.flush()
    assert MlflowClient(uri).get_run(run.run_id).data.metrics == {"a": 1.0}
    tracker.close()


def test_a_dead_server_neither_delays_logging_nor_loses_points(dead_server):
    run = RunRef(dead_server, "0" * 32)
    tracker = MlflowTracker(run, flush_every_s=0.05)
    begun = time.monotonic()
    for step in range(30_000):
        tracker.log(step, {"train/loss": 1.0})
    assert time.monotonic() - begun < 3.0
    assert tracker.close() == 30_000
    assert Spool(run).waiting().points == 30_000


def test_what_a_dead_server_did_not_take_is_sent_when_it_is_back(uri, dead_server, spool):
    run = tracking.create_run(uri, "outage", params={}, tags={})
    during = MlflowTracker(RunRef(dead_server, run.run_id), flush_every_s=0.05)
    for step in range(700):  # more than one batch
        during.log(step, {"train/loss": float(step)})
    assert during.close() == 700
    assert [path.name for path in spool.iterdir()] == [run.run_id]
    # another process of the same run, with the server back
    after = MlflowTracker(run, flush_every_s=0.05)
    after.log(700, {"train/loss": 700.0})
    assert after.close() == 0
    assert history(run, "train/loss") == [(s, float(s)) for s in range(701)]
    assert list(spool.iterdir()) == []


def test_points_are_on_disk_within_a_second_though_the_server_hangs(dead_server, monkeypatch):
    run = RunRef(dead_server, "1" * 32)
    monkeypatch.setattr("pipelines.tracking.delivery.Delivery.send", lambda self: time.sleep(3) or False)
    tracker = MlflowTracker(run)
    tracker.log(1, {"train/loss": 1.0})
    time.sleep(1.0)
    assert Spool(run).waiting().points == 1
    tracker.close(timeout_s=0.1)


def test_a_full_disk_costs_memory_and_no_points(uri, monkeypatch):
    run = tracking.create_run(uri, "full", params={}, tags={})
    with monkeypatch.context() as patch:

        def full(self, points):
            raise OSError(28, "No space left on device")

        patch.setattr(Spool, "add", full)
        tracker = MlflowTracker(run, flush_every_s=0.05)
        tracker.log(1, {"a": 1.0})
        time.sleep(0.3)
        assert tracker.delivered < tracker.logged
    tracker.log(2, {"a": 2.0})
    assert tracker.close() == 0
    assert history(run, "a") == [(1, 1.0), (2, 2.0)]


def test_final_figures_that_are_there_already_stay_as_they_are(uri):
    run = tracking.create_run(uri, "final", params={}, tags={})
    tracking.log_figures(run, {"eval/top1": 50.0}, 10)
    tracking.log_figures(run, {"eval/top1": 50.0}, 10)
    assert history(run, "eval/top1") == [(10, 50.0)]
