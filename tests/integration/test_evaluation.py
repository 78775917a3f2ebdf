"""Evaluation on real ranks: the same figures on any number of them, and when one is killed; then from the shell."""

import io
import json
import os
import shutil
import signal

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from pipelines import cli
from pipelines.evaluation.parts import EvalJob
from pipelines.evaluation.ranks import score_here, score_on_ray
from preprocessing.synth import SSV2_SCENES
from vast.data.config import DataConfig
from vast.models.variants import ModelConfig, create_model
from vast.sample_index import read_index
from vast.storage import open_store


@pytest.fixture
def damaged(ssv2_shards, tmp_path):
    """The training split of the small data set, in which two clips are zeros."""
    folder = tmp_path / "damaged"
    shutil.copytree(ssv2_shards, folder)
    index = read_index(str(folder), "train")
    for row in index.rows([0, 17]):
        shard = folder / row.shard
        shard.chmod(0o644)
        content = bytearray(shard.read_bytes())
        content[row.offset : row.offset + row.size_bytes] = bytes(row.size_bytes)
        shard.write_bytes(content)
    return str(folder)


@pytest.fixture
def job(damaged):
    config = DataConfig(url=damaged, num_frames=4, sampling="uniform", crop_size=32, eval_short_side=40, num_readers=0)
    return EvalJob(damaged, "train", 24, config, "1x3", 2, None, save_probabilities=True)


def micro():
    torch.manual_seed(0)
    return create_model(ModelConfig(name="vast_micro"), num_classes=len(SSV2_SCENES)).eval()


def a_rank():
    """The process of one of the ranks."""
    mine = psutil.Process().children(recursive=True)
    return next(process.pid for process in mine if process.name().startswith("ray::_Rank"))


def test_ranks_change_nothing_and_a_killed_one_costs_only_its_part(ray_local, job):
    """Exactness on three real ranks, of which one is killed; a damaged clip is unreadable on all of them."""
    numbers = list(range(12))
    assert len(job.parts) == len(numbers)
    expected = dict(score_here(job, micro(), numbers, lambda count: None))
    seen, notes, found = [], [], []
    scaling = {"num_workers": 3, "resources_per_worker": {"CPU": 0.5}}
    for number, part in score_on_ray(job, micro(), numbers, seen.append, notes.append, scaling):
        if not found:
            os.kill(a_rank(), signal.SIGKILL)
        found.append((number, part))
    assert sorted(number for number, _ in found) == numbers
    for number, part in found:
        assert same(part, expected[number])
    assert sum(seen) == 24
    assert len(notes) <= 1  # none where the rank had nothing more to do
    assert all(note.startswith("a rank was lost over ") for note in notes)
    rows = [row for number in numbers for row in table(expected[number]).to_pylist()]
    assert [row["sample"] for row in rows] == list(range(24))
    assert [row["sample"] for row in rows if row["error"]] == [0, 17]


def table(part):
    return pq.read_table(io.BytesIO(part))


def same(part, other):
    """Whether two parts say the same; ranks that have fewer threads may add up in another order."""
    one, two = table(part), table(other)
    floats = ["top_probs", "probs"]
    for name in floats:
        for a, b in zip(one.column(name).to_pylist(), two.column(name).to_pylist(), strict=True):
            np.testing.assert_allclose(a or [], b or [], atol=1e-6)
    return one.drop_columns(floats).equals(two.drop_columns(floats))


class Lethal(torch.nn.Module):
    """Kills its process with the first clip it sees."""

    def forward(self, clip_BCTHW):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_part_that_kills_every_rank_ends_the_evaluation_with_its_name(ray_local, job, monkeypatch):
    import ray.cloudpickle

    monkeypatch.setattr("pipelines.evaluation.ranks.MAX_LOSSES", 1)
    ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["Lethal"]))
    scaling = {"num_workers": 1, "resources_per_worker": {"CPU": 1}}
    with pytest.raises(RuntimeError, match=r"ranks were lost 1 times over samples 0\.\.1 of train"):
        list(score_on_ray(job, Lethal(), list(range(12)), print, print, scaling))


@pytest.mark.campaign
def test_the_command_scores_a_trained_model_as_its_training_did(
    ray_local, s3_server, tmp_path, ssv2_shards, monkeypatch, capfd
):
    """Train, evaluate by run id on two ranks with results on S3, and again from the model's folder in one process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    small = ["data.num_frames=4", "data.crop_size=32", "data.eval_short_side=32", "data.num_readers=0"]
    small += ["optim.global_batch=8", "optim.epochs=1", "eval.protocol=1x1", "eval.batch_videos=2"]
    assert cli.main(["finetune", "demo_finetune_ssv2", f"data.url={ssv2_shards}", *small, "--ranks", "1"]) == 0
    (result,) = tmp_path.glob("runs/*/result.json")
    trained = json.loads(result.read_text())
    run_id = trained["tracking"]["run_id"]
    capfd.readouterr()

    with s3_server.in_environment():
        out = f"s3://{s3_server.make_bucket()}/results"
        words = ["evaluate", run_id, "--data", ssv2_shards, "--out", out, "--ranks", "2", "--json"]
        assert cli.main(words) == 0, capfd.readouterr().err
        found = json.loads(capfd.readouterr().out)
        assert set(open_store(out).list()) >= {"evaluation.json", "predictions.parquet", "per_class.csv"}
        assert not list(open_store(out).list("part-"))
    assert found["on"] == "2 rank(s) of Ray"
    for name in ("top1", "top5", "mean_class", "records", "samples", "unreadable"):
        assert found[name] == pytest.approx(trained["score"][name])

    assert cli.main(["evaluate", str(result.parent), "--data", ssv2_shards, "--protocol", "ssv2-2x3"]) == 0
    said = capfd.readouterr().out
    assert "2 temporal clips x 3 spatial crops = 6 views; short side 32, crop 32 (as ssv2-2x3)" in said
    assert "8 of 11 rows (3 not in the shards, left out); 0 unreadable counted wrong" in said
    assert "Worst classes" in said

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("vast").experiment_id], "tags.`run.kind` = 'evaluate'")
    assert len(runs) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {run_id}
