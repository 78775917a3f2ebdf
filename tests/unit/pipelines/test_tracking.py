import math
import socket
import time

import pytest
from mlflow import MlflowClient

from pipelines import tracking
from pipelines.tracking import MlflowTracker, RunRef
from pipelines.tracking.spool import Spool
from vast.errors import UserError


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch):
    monkeypatch.setenv("VAST_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


@pytest.fixture(scope="module")
def dead_server():
    with socket.socket() as probe:  # a port that nothing listens on
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_run_holds_what_it_was_given(uri, monkeypatch):
    params = {f"section.key{i}": i for i in range(150)}  # more than one batch
    run = tracking.create_run(uri, "name", params=params, tags={"dataset.digest": "sha256:1"})
    found = MlflowClient(uri).get_run(run.run_id)
    assert found.data.params == {key: str(value) for key, value in params.items()}
    assert found.data.tags["dataset.digest"] == "sha256:1"
    assert found.data.tags["mlflow.source.git.commit"]
    tracking.log_dataset(run, "ssv2", "s3://bucket/ssv2", f"sha256:{'a' * 64}", "training")
    (given,) = MlflowClient(uri).get_run(run.run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("ssv2", "a" * 36)
    child = tracking.create_run(uri, "child", params={}, tags={}, parent=run.run_id)
    found_child = MlflowClient(uri).get_run(child.run_id)
    assert found_child.data.tags[tracking.PARENT_TAG] == run.run_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    elsewhere = tracking.create_run(
        uri, "child of a process with another environment", params={}, tags={}, parent=run.run_id
    )
    assert MlflowClient(uri).get_run(elsewhere.run_id).info.experiment_id == found.info.experiment_id


def test_figures_arrive_by_step_and_non_finite_ones_are_flagged(uri):
    run = tracking.create_run(uri, "figures", params={}, tags={})
    tracker = MlflowTracker(run, flush_every_s=0.05)
    for step in range(1, 21):
        tracker.log(step, {"train/loss": 1.0 / step})
    tracker.log(21, {"train/loss": math.inf})
    assert tracker.close() == []
    history = MlflowClient(uri).get_metric_history(run.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history)[:20] == [(s, 1.0 / s) for s in range(1, 21)]
    assert MlflowClient(uri).get_run(run.run_id).data.metrics["train/loss_nonfinite"] == 1.0


def test_flush_returns_once_the_points_are_there(uri):
    run = tracking.create_run(uri, "flush", params={}, tags={})
    tracker = MlflowTracker(run, flush_every_s=0.05)
    tracker.log(1, {"a": 1.0})
    tracker.flush()
    assert MlflowClient(uri).get_run(run.run_id).data.metrics == {"a": 1.0}
    tracker.close()


def test_a_dead_server_neither_delays_logging_nor_swallows_points(dead_server):
    tracker = MlflowTracker(RunRef(dead_server, "0" * 32), flush_every_s=0.05)
    begun = time.monotonic()
    for step in range(500):
        tracker.log(step, {"train/loss": 1.0})
    assert time.monotonic() - begun < 1.0
    lost = tracker.close()
    assert [point[3] for point in lost] == list(range(500))


def test_a_dead_server_is_a_clear_mistake_at_the_start(dead_server):
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI: the tracking server at http://127\.0\.0\.1"):
        tracking.create_run(dead_server, "x", params={}, tags={})


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")]
)
def test_a_run_ends_as_its_work_did(uri, error, status):
    run = tracking.create_run(uri, "ending", params={}, tags={})

    def work():
        with tracking.ending(run):
            if error:
                raise error

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    assert MlflowClient(uri).get_run(run.run_id).info.status == status
    assert tracking.reopen(run)
    assert MlflowClient(uri).get_run(run.run_id).info.status == "RUNNING"


def test_an_unknown_run_cannot_be_reopened(uri):
    assert not tracking.reopen(RunRef(uri, "0" * 32))


def test_the_environment_decides_where_to_track(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking.tracking_uri() == "http://127.0.0.1:1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_what_a_dead_server_did_not_take_is_sent_when_it_is_back(uri, dead_server, spool):
    run = tracking.create_run(uri, "outage", params={}, tags={})
    during = MlflowTracker(RunRef(dead_server, run.run_id), flush_every_s=0.05)
    for step in range(700):  # more than one batch
        during.log(step, {"train/loss": float(step)})
    assert len(during.close()) == 700
    assert [path.stem for path in spool.iterdir()] == [run.run_id]
    # another process of the same run, with the server back
    after = MlflowTracker(run, flush_every_s=0.05)
    after.log(700, {"train/loss": 700.0})
    assert after.close() == []
    history = MlflowClient(uri).get_metric_history(run.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == [(s, float(s)) for s in range(701)]
    assert list(spool.iterdir()) == []


def test_a_finished_run_can_send_what_still_waits(uri, spool):
    run = tracking.create_run(uri, "late", params={}, tags={})
    Spool(run.run_id).add([("a", 1.0, 1, 1), ("a", 2.0, 2, 2)])
    with (spool / f"{run.run_id}.jsonl").open("a") as file:
        file.write('["a", 3.0, 3')  # cut off by a kill
    assert tracking.send_spool(RunRef("http://127.0.0.1:9", run.run_id)) == 2
    assert tracking.send_spool(run) == 0
    assert MlflowClient(uri).get_run(run.run_id).data.metrics == {"a": 2.0}
    assert tracking.send_spool(run) == 0


def test_a_known_run_goes_on_without_its_server(dead_server):
    assert tracking.reopen(RunRef(dead_server, "0" * 32))
