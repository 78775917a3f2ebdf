import shutil

import numpy as np
import pytest
from mlflow import MlflowClient

from pipelines.tracking import PARENT_TAG, RunRef
from pipelines.training import training_run
from pipelines.training.history import History
from pipelines.training.training_run import NOTE, finished_note, open_run, read_run
from vast.dataset_format import read_manifest
from vast.train.config import TrainConfig
from vast.train.metrics import Predictions, score


@pytest.fixture
def uri(tmp_path, empty_mlflow, monkeypatch):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    monkeypatch.setenv("VAST_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def config_for(url, **more):
    data = {"url": url, "num_frames": 4, "crop_size": 32, "eval_short_side": 32}
    return TrainConfig.model_validate({"name": "tiny", "model": {"name": "vast_micro"}, "data": data, **more})


def test_pretraining_and_fine_tuning_lead_to_each_other(uri, ssv2_shards, tmp_path):
    first_url, second_url = str(tmp_path / "runs" / "first"), str(tmp_path / "runs" / "second")
    first = open_run(config_for(ssv2_shards), first_url, "pretrain", num_nodes=2)
    start = f"{first_url}/step-00000004"
    second = open_run(config_for(ssv2_shards, init_from=start), second_url, "finetune", num_nodes=2)

    client = MlflowClient(uri)
    there, here = client.get_run(first.run_id), client.get_run(second.run_id)
    assert here.data.tags[PARENT_TAG] == first.run_id
    assert here.data.tags["init_from.run_id"] == first.run_id
    assert here.data.tags["init_from.url"] == start
    assert here.data.tags["lineage"] == f"pretrain {first.run_id} > init_from"
    assert there.data.tags[f"used_by.{second.run_id}"].startswith("tiny-")
    assert PARENT_TAG not in there.data.tags
    assert f"(run {first.run_id})" in here.data.tags[NOTE]
    # the model of the one is an input of the other
    assert [one.model_id for one in there.outputs.model_outputs] == [first.model_id]
    assert [one.model_id for one in here.inputs.model_inputs] == [first.model_id]
    manifest = read_manifest(ssv2_shards)
    given = {one.tags[0].value: one.dataset for one in here.inputs.dataset_inputs}
    assert given["training"].name == f"{manifest.name}/train"
    assert given["evaluation"].name == f"{manifest.name}/val"
    assert {one.digest for one in given.values()} == {manifest.digest.removeprefix("sha256:")[:36]}
    names = {one.path for one in client.list_artifacts(second.run_id, "environment")}
    assert {"environment/environment.json", "environment/packages.txt"} <= names

    client.set_terminated(second.run_id, "FAILED")
    again = open_run(config_for(ssv2_shards, init_from=start), second_url, "finetune", num_nodes=1)
    assert again == second
    assert (again.model_id, again.created_ms) == (second.model_id, second.created_ms)
    assert client.get_run(second.run_id).info.status == "RUNNING"


def test_weights_of_a_run_that_another_server_knows_are_named_and_not_linked(uri, ssv2_shards, tmp_path):
    source = tmp_path / "elsewhere"
    (source / "model").mkdir(parents=True)
    (source / "run.json").write_text('{"tracking_uri": "http://127.0.0.1:9", "run_id": "1234"}')
    config = config_for(ssv2_shards, init_from=str(source / "model"))
    run = open_run(config, str(tmp_path / "run"), "finetune", num_nodes=1)
    tags = MlflowClient(uri).get_run(run.run_id).data.tags
    assert (tags["init_from.run_id"], tags["init_from.tracking_uri"]) == ("1234", "http://127.0.0.1:9")
    assert PARENT_TAG not in tags
    assert read_run(str(source)) == RunRef("http://127.0.0.1:9", "1234")
    assert read_run(str(tmp_path)) is None


def test_the_note_says_in_one_paragraph_what_came_of_a_run(ssv2_shards):
    step_S = np.array([10, 20, 30])
    values = {"stall/wait": np.array([1.0, 1.0, 2.0]), "stall/compute": np.array([3.0, 3.0, 6.0])}
    values |= {"data/skipped": np.array([0.0, 0.0, 3.0]), "train/nonfinite": np.array([0.0, 1.0, 1.0])}
    history = History(step_S, step_S * 60_000, [(0, 0), (20, 1_200_001)], values)
    probs_NK = np.eye(2, dtype=np.float32)
    result = score(Predictions.of(np.arange(2), np.array([0, 0]), probs_NK, []), np.array([0, 0]), 2, 3)
    note = finished_note(config_for(ssv2_shards), "pretrain", "s3://bucket/runs/tiny/model", result, history)
    assert "\n" not in note
    assert note.startswith("**pretrain tiny-")
    assert read_manifest(ssv2_shards).digest[:19] in note
    assert "30 steps took 30 min with 1 restart on the way." in note
    assert "top-1 50.0 %" in note
    assert "2 of 3 rows" in note
    assert "Samples skipped: 3; steps without a finite gradient: 1." in note
    assert "25 % waiting for data" in note
    assert "75 % computing" in note
    assert "`s3://bucket/runs/tiny/model`" in note


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (600, "10 min"), (36_000, "10 h 0 min")])
def test_durations_are_told_in_the_unit_that_fits(seconds, text):
    assert training_run._duration(seconds) == text
