import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from mlflow import MlflowClient

from pipelines import tracking
from pipelines.tracking import MlflowTracker, RunRef
from pipelines.tracking.spool import Spool

pytestmark = pytest.mark.slow  # every sender imports MLflow


def history(run, name):
    return sorted((one.step, one.value) for one in MlflowClient(run.tracking_uri).get_metric_history(run.run_id, name))


def test_figures_arrive_by_step_and_non_finite_ones_are_flagged(uri, spool):
    run = tracking.create_run(uri, "figures", params={}, tags={})
    tracker = MlflowTracker(run, flush_every_s=0.05)
    for step in range(1, 21):
        tracker.log(step, {"train/loss": 1.0 / step})
    tracker.log(21, {"train/loss": math.inf})
    assert tracker.close(60) == 0
    assert history(run, "train/loss")[:20] == [(s, 1.0 / s) for s in range(1, 21)]
    assert MlflowClient(uri).get_run(run.run_id).data.metrics["train/loss_nonfinite"] == 1.0
    assert list(spool.iterdir()) == []


def test_flush_returns_once_the_points_are_there(uri):
    run = tracking.create_run(uri, "flush", params={}, tags={})
    tracker = MlflowTracker(run, flush_every_s=0.05)
    tracker.log(1, {"a": 1.0})
    tracker.flush(60)  # a busy machine takes more than the usual ten seconds to import MLflow
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


def test_points_are_on_disk_within_a_second_though_the_server_hangs_and_closing_waits_no_longer_than_told():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        run = RunRef(f"http://127.0.0.1:{silent.getsockname()[1]}", "1" * 32)
        tracker = MlflowTracker(run)
        tracker.log(1, {"train/loss": 1.0})
        time.sleep(1.0)
        assert Spool(run).waiting().points == 1
        silent.settimeout(30)
        with silent.accept()[0]:
            begun = time.monotonic()
            assert tracker.close(timeout_s=0.5) == 1
            assert time.monotonic() - begun < 2.0
        assert tracker.sender.poll() is not None
        lock = Spool(run).lock()  # free, for whoever sends the rest
        assert lock is not None
        lock.close()


LOGS = """
import json, signal, sys, time
from pipelines.tracking import MlflowTracker, RunRef
from pipelines.tracking.spool import Spool

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, as these tests may be, ignore it
run = RunRef(**json.loads(sys.argv[1]))
tracker = MlflowTracker(run, flush_every_s=0.05)
for step in range(1, 101):
    tracker.log(step, {"a": float(step)})
while tracker.stored < 100:
    time.sleep(0.01)
print("stored", flush=True)
sys.stdin.read()
tracker.flush(60)
assert not Spool(run).waiting()
tracker.log(101, {"a": 101.0})
assert tracker.close(60) == 0
assert "mlflow" not in sys.modules
"""


def logging_process(run):
    """A process that has a hundred points on disk; it goes on when its input ends."""
    words, pipe = [sys.executable, "-c", LOGS, json.dumps(asdict(run))], subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, process_group=0)
    assert process.stdout.readline() == "stored\n"
    return process


def test_the_process_that_logs_never_imports_mlflow(uri, spool):
    run = tracking.create_run(uri, "light", params={}, tags={})
    with logging_process(run) as process:
        process.communicate(timeout=90)
    assert process.returncode == 0
    assert history(run, "a") == [(step, float(step)) for step in range(1, 102)]
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_what_a_killed_process_had_on_disk_is_sent_without_anybody_elses_help(uri, spool, signum):
    run = tracking.create_run(uri, "killed", params={}, tags={})
    with logging_process(run) as process:
        os.killpg(process.pid, signum)  # as a terminal does with Ctrl-C: to every process of the group
        process.wait(30)
        assert process.returncode == -signum
        deadline = time.monotonic() + 60
        while list(spool.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert history(run, "a") == [(step, float(step)) for step in range(1, 101)]
    assert list(spool.iterdir()) == []


def test_a_sender_that_is_killed_is_replaced_and_every_point_arrives_once(uri, monkeypatch):
    monkeypatch.setattr("pipelines.tracking.sender.RETRY_S", 1.0)
    run = tracking.create_run(uri, "replaced", params={}, tags={})
    tracker, killed = MlflowTracker(run, flush_every_s=0.05), set()

    def kill_sender():
        tracker.sender.kill()
        killed.add(tracker.sender.pid)

    for step in range(1, 2001):
        tracker.log(step, {"a": float(step)})
        if step == 700:
            kill_sender()  # while it imports
        if step == 1400:
            tracker.flush(60)
            kill_sender()  # while it waits
        if step % 100 == 0:
            time.sleep(0.05)
    deadline = time.monotonic() + 60
    while len(history(run, "a")) < 1900 and time.monotonic() < deadline:
        time.sleep(0.002)
    kill_sender()  # while it sends, or has just done so
    assert tracker.close(60) == 0
    assert len(killed) == 3
    assert history(run, "a") == [(step, float(step)) for step in range(1, 2001)]


def test_a_full_disk_costs_memory_and_no_points(uri, monkeypatch):
    run = tracking.create_run(uri, "full", params={}, tags={})
    with monkeypatch.context() as patch:

        def full(self, points):
            raise OSError(28, "No space left on device")

        patch.setattr(Spool, "add", full)
        tracker = MlflowTracker(run, flush_every_s=0.05)
        tracker.log(1, {"a": 1.0})
        time.sleep(0.3)
        assert tracker.stored < tracker.logged
    tracker.log(2, {"a": 2.0})
    assert tracker.close(60) == 0
    assert history(run, "a") == [(1, 1.0), (2, 2.0)]


def test_final_figures_that_are_there_already_stay_as_they_are(uri):
    run = tracking.create_run(uri, "final", params={}, tags={})
    tracking.log_figures(run, {"eval/top1": 50.0}, 10)
    tracking.log_figures(run, {"eval/top1": 50.0}, 10)
    assert history(run, "eval/top1") == [(10, 50.0)]
