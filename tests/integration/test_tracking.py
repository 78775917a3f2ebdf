"""Figures on their way to a real MLflow server through a proxy that loses answers, resets, hangs or is away."""

import time

import pytest
from mlflow import MlflowClient

from pipelines import cli, tracking
from pipelines.tracking import MlflowTracker, RunRef
from tests.integration.faulty_proxy import LOST_RESPONSE, RESET_BEFORE, FaultyProxy, Request


@pytest.fixture
def proxy(mlflow_server, tmp_path, monkeypatch):
    monkeypatch.setenv("VAST_SPOOL", str(tmp_path / "spool"))
    with FaultyProxy(mlflow_server) as between:
        yield between


def points(server: str, run: RunRef, name: str) -> list[tuple[int, float]]:
    found = MlflowClient(server).get_metric_history(run.run_id, name)
    return sorted((point.step, point.value) for point in found)


def log_steps(tracker: MlflowTracker, steps: range) -> float:
    """Log two figures a step; returns the longest that one call took."""
    longest_s = 0.0
    for step in steps:
        begun = time.perf_counter()
        tracker.log(step, {"train/loss": step / 8, "time/step_s": 0.5})
        longest_s = max(longest_s, time.perf_counter() - begun)
        time.sleep(0.01)
    return longest_s


def assert_once(server: str, run: RunRef, count: int) -> None:
    assert points(server, run, "train/loss") == [(step, step / 8) for step in range(count)]
    assert points(server, run, "time/step_s") == [(step, 0.5) for step in range(count)]


@pytest.mark.slow
def test_answers_that_are_lost_and_requests_that_never_arrive_neither_double_nor_lose_a_point(mlflow_server, proxy):
    run = tracking.create_run(proxy.endpoint, "lossy", params={}, tags={})
    seen = {"sent": 0}

    def lossy(request: Request, number: int) -> str | None:
        if "log-batch" not in request.target:
            return None
        seen["sent"] += 1
        return (LOST_RESPONSE, LOST_RESPONSE, RESET_BEFORE, None)[seen["sent"] % 4]

    proxy.schedule = lossy
    tracker = MlflowTracker(run, flush_every_s=0.05)
    log_steps(tracker, range(600))
    tracker.flush(60)
    proxy.schedule = lambda request, number: None
    assert tracker.close(60) == 0
    assert proxy.injected[LOST_RESPONSE] >= 1
    assert proxy.injected[RESET_BEFORE] + proxy.injected[LOST_RESPONSE] >= 3
    assert_once(mlflow_server, run, 600)


@pytest.mark.slow
def test_a_server_that_hangs_delays_no_step_and_what_it_then_applies_late_is_there_once(mlflow_server, proxy):
    run = tracking.create_run(proxy.endpoint, "hangs", params={}, tags={})
    hangs_until = time.monotonic() + 14

    def hang(request: Request, number: int) -> str | None:
        if "log-batch" in request.target and time.monotonic() < hangs_until:
            time.sleep(7)  # the client gives up after 5; the server gets the request all the same
        return None

    proxy.schedule = hang
    tracker = MlflowTracker(run, flush_every_s=0.05)
    longest_s = log_steps(tracker, range(400))
    assert longest_s < 0.5
    time.sleep(max(0.0, hangs_until + 7 - time.monotonic()))
    assert tracker.close(60) == 0
    assert_once(mlflow_server, run, 400)


@pytest.mark.slow
def test_a_run_that_ended_while_the_server_was_away_is_whole_after_vast_track_flush(
    mlflow_server, proxy, tmp_path, capfd
):
    run = tracking.create_run(proxy.endpoint, "away", params={}, tags={})
    proxy.schedule = lambda request, number: RESET_BEFORE
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text("name: away")
    with tracking.ending(run):
        tracker = MlflowTracker(run, flush_every_s=0.05)
        log_steps(tracker, range(100))
        assert tracker.close() == 200
        tracking.set_tags(run, {"mlflow.note.content": "it ended"})
        tracking.log_files(run, tmp_path / "out")

    assert cli.main(["track", "status"]) == 0
    what = "200 figures, 1 tag, 1 file, that it is FINISHED"
    assert f"run {run.run_id}: {what} still to be sent to {proxy.endpoint}" in capfd.readouterr().out
    assert cli.main(["track", "flush"]) == 1
    assert f"run {run.run_id}: {what} still to be sent" in capfd.readouterr().out
    assert cli.main(["track", "flush", "--run", "f" * 32]) == 2
    assert "nothing waits for run" in capfd.readouterr().err

    proxy.schedule = lambda request, number: None
    assert cli.main(["track", "flush", "--run", run.run_id]) == 0
    assert f"sent {what} to {proxy.endpoint}" in capfd.readouterr().out
    assert cli.main(["track", "status"]) == 0
    assert "nothing waits on this machine" in capfd.readouterr().out
    assert_once(mlflow_server, run, 100)
    client = MlflowClient(mlflow_server)
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert client.get_run(run.run_id).data.tags["mlflow.note.content"] == "it ended"
    assert [one.path for one in client.list_artifacts(run.run_id)] == ["recipe.yaml"]
