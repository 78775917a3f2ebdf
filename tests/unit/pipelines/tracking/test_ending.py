import pytest
from mlflow import MlflowClient

from pipelines import tracking
from pipelines.tracking import RunRef
from pipelines.tracking.spool import Spool


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")]
)
def test_a_run_ends_as_its_work_did(uri, spool, error, status):
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
    assert list(spool.iterdir()) == []
    assert tracking.reopen(run)
    assert MlflowClient(uri).get_run(run.run_id).info.status == "RUNNING"


def test_an_unknown_run_cannot_be_reopened(uri):
    assert not tracking.reopen(RunRef(uri, "0" * 32))


def test_a_known_run_goes_on_without_its_server(dead_server):
    assert tracking.reopen(RunRef(dead_server, "0" * 32))


def test_what_a_run_ends_with_waits_for_the_server_and_ends_the_run_when_it_is_back(uri, dead_server, spool, tmp_path):
    run = tracking.create_run(uri, "waits", params={}, tags={})
    away, told = RunRef(dead_server, run.run_id), []
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "recipe.yaml").write_text("name: x")
    (tmp_path / "out" / "model" / "model.json").write_text("{}")
    with tracking.ending(away, told.append):
        tracking.set_tags(away, {"mlflow.note.content": "what came out"})
        assert "2 files did not reach MLflow" in tracking.log_files(away, tmp_path / "out")
    assert told[0].startswith(f"1 tag, 2 files, that it is FINISHED did not reach {dead_server} (")
    assert "`vast track flush` sends it" in told[0]
    client = MlflowClient(uri)
    assert client.get_run(run.run_id).info.status == "RUNNING"

    (spool / run.run_id / "run.json").write_text(f'{{"tracking_uri": "{uri}", "run_id": "{run.run_id}"}}')  # it is back
    ((waiting, what),) = tracking.waiting_runs()
    assert waiting == run
    assert str(what) == "1 tag, 2 files, that it is FINISHED"
    done = tracking.flush(run)
    assert not done.left
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["mlflow.note.content"] == "what came out"
    assert [one.path for one in client.list_artifacts(run.run_id)] == ["model", "recipe.yaml"]
    assert [one.path for one in client.list_artifacts(run.run_id, "model")] == ["model/model.json"]
    assert list(spool.iterdir()) == []


def test_an_end_that_waits_is_forgotten_when_the_run_goes_on(uri):
    run = tracking.create_run(uri, "goes on", params={}, tags={})
    Spool(run).add_end("FAILED", 1)
    assert tracking.reopen(run)
    assert not Spool(run).waiting()
