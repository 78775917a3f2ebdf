import pytest
from mlflow import MlflowClient

from pipelines import tracking
from vast.errors import UserError


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


def test_a_run_that_a_killed_process_could_not_note_is_found_again(uri):
    make = {"params": {}, "once_by": "run.url"}
    first = tracking.create_run(uri, "a", tags={"run.url": "s3://b/a", "run.kind": "search"}, **make)
    assert tracking.create_run(uri, "a", tags={"run.url": "s3://b/a"}, **make).run_id == first.run_id
    assert tracking.create_run(uri, "b", tags={"run.url": "s3://b/b"}, **make).run_id != first.run_id


def test_a_dead_server_is_a_clear_mistake_at_the_start(dead_server):
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI: the tracking server at http://127\.0\.0\.1"):
        tracking.create_run(dead_server, "x", params={}, tags={})


def test_the_environment_decides_where_to_track(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking.tracking_uri() == "http://127.0.0.1:1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
