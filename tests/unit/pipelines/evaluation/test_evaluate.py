"""`vast evaluate` in one process: what it refuses, what it writes, and how it continues."""

import csv
import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from pipelines import tracking
from pipelines.evaluation import evaluate, ranks
from pipelines.evaluation.evaluate import EvaluateRequest
from pipelines.evaluation.parts import EvalJob, join_parts, part_key
from pipelines.find_model import find_model
from pipelines.terminal import Terminal
from vast.data.config import DataConfig
from vast.dataset_format import dataset_digest, read_manifest, write_manifest
from vast.errors import UserError
from vast.models.variants import create_model
from vast.sample_index import read_index, write_index
from vast.storage import open_store
from vast.train.checkpoint import ModelCard, save_model
from vast.train.config import TrainConfig


@pytest.fixture(scope="module", autouse=True)
def store_uri(tmp_path_factory):
    """One tracking store for all: to make one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield uri


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    threads = torch.get_num_threads()
    monkeypatch.setattr(ranks.os, "cpu_count", lambda: 1)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def make_model(folder, data_url, *, classes=None, **changes):
    """A micro model with random weights and a card that says that it was trained on `data_url`."""
    manifest = read_manifest(data_url)
    tree = {
        "name": "tiny",
        "model": {"name": "vast_micro"},
        "data": {"url": data_url, "num_frames": 4, "sampling": "uniform", "crop_size": 32, "eval_short_side": 40},
        "eval": {"protocol": "1x1", "batch_videos": 3},
    }
    tree["data"]["num_readers"] = 0
    config = TrainConfig.model_validate({**tree, **changes})
    classes = manifest.classes if classes is None else classes
    torch.manual_seed(1)
    model = create_model(config.model, num_classes=len(classes))
    torch.nn.init.normal_(model.head.weight)
    save_model(folder, model, ModelCard(config.model_dump(mode="json"), list(classes), manifest.digest, step=12))
    return str(folder)


@pytest.fixture(scope="module")
def tiny(ssv2_shards, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("runs") / "tiny" / "model", ssv2_shards)


def run(model, data, **options):
    return evaluate.evaluate(EvaluateRequest(model=model, data=data, **options), Terminal(sys.stderr))


@pytest.fixture(scope="module")
def damaged(ssv2_shards, tmp_path_factory):
    """The data set with one validation clip that is no mp4 and one whose bytes are not those of the index."""
    folder = tmp_path_factory.mktemp("damaged") / "shards"
    shutil.copytree(ssv2_shards, folder)
    index = read_index(str(folder), "val")
    rows = index.rows(range(len(index)))
    for number, honest in ((1, True), (6, False)):
        row = rows[number]
        shard = folder / row.shard
        shard.chmod(0o644)
        content = bytearray(shard.read_bytes())
        content[row.offset : row.offset + row.size_bytes] = bytes(row.size_bytes)
        shard.write_bytes(content)
        if honest:
            rows[number] = dataclasses.replace(row, sha256=hashlib.sha256(bytes(row.size_bytes)).hexdigest())
    write_index(str(folder), "val", rows)
    return str(folder)


# --- parts ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60_000), st.integers(1, 32))
def test_parts_hold_each_sample_once_in_whole_batches(num_samples, batch_videos):
    job = EvalJob("", "val", num_samples, DataConfig(url="x"), "1x1", batch_videos, None, False)
    assert [sample for part in job.parts for sample in part] == list(range(num_samples))
    assert all(len(part) % batch_videos == 0 for part in job.parts[:-1])
    assert len(job.parts) <= 2 * 128


def test_parts_that_do_not_hold_each_sample_once_are_refused(tiny, ssv2_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_finish", lambda *_: None)  # so the parts stay
    run(tiny, ssv2_shards, out=str(tmp_path / "out"))
    parts = [(tmp_path / "out" / part_key(number)).read_bytes() for number in range(3)]
    for wrong in ([parts[0], parts[0], parts[1]], [parts[1], parts[2]], [parts[0], parts[2]], parts[:2]):
        with pytest.raises(RuntimeError, match=r"not each once|the split has 8"):
            join_parts(wrong, tmp_path / "joined", 8)


# --- what it writes ---------------------------------------------------------------------------------------------------


def test_every_row_is_in_the_predictions_and_unreadable_ones_say_why(tiny, damaged, tmp_path, store_uri):
    done = run(tiny, damaged, out=str(tmp_path / "out"), protocol="2x3", save_probabilities=True)
    whole = run(tiny, damaged, out=str(tmp_path / "out"), protocol="2x3", save_probabilities=True)  # read back
    assert json.loads(json.dumps(done.content)) == whole.content
    assert whole.report.score.to_json() == done.report.score.to_json()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "confusion_matrix.png",
        "confusions.csv",
        "evaluation.json",
        "most_confused.png",
        "per_class.csv",
        "per_class_accuracy.png",
        "predictions.parquet",
        "request.json",
        "worst_mistakes.png",
    ]
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    index, classes = read_index(damaged, "val"), read_manifest(damaged).classes
    assert json.loads(table.schema.metadata[b"classes"]) == classes
    rows = table.to_pylist()
    assert [row["sample"] for row in rows] == list(range(8))
    assert [row["key"] for row in rows] == index.column("key").tolist()
    assert [row["label"] for row in rows] == index.column("label").tolist()
    for row in rows:
        if row["sample"] in (1, 6):
            assert row["key"] in row["error"]
            assert (row["rank"], row["top_ids"], row["top_probs"], row["probs"]) == (None, [], [], None)
        else:
            order = np.argsort(-np.array(row["probs"]), kind="stable")
            assert row["error"] is None
            assert row["top_ids"] == order[:5].tolist()
            assert row["top_probs"] == [row["probs"][k] for k in row["top_ids"]]
            assert order[row["rank"]] == row["label"]
            assert sum(row["probs"]) == pytest.approx(1, abs=1e-5)
    assert "sha256" in rows[6]["error"]
    score = done.report.score
    assert (score.records, score.samples, score.unreadable) == (11, 8, 2)
    assert score.top1 == pytest.approx(100 * sum(row["rank"] == 0 for row in rows) / 8)
    assert score.top5 == pytest.approx(100 * sum(row["rank"] is not None and row["rank"] < 5 for row in rows) / 8)
    assert done.content["denominator"] == "8 of 11 rows (3 not in the shards, left out); 2 unreadable counted wrong"

    with (tmp_path / "out" / "per_class.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == classes
    assert sum(int(line["samples"]) for line in lines) == 8
    with (tmp_path / "out" / "confusions.csv").open(encoding="utf-8") as file:
        counts = [int(line["count"]) for line in csv.DictReader(file)]
    assert sum(counts) == 6 - sum(row["rank"] == 0 for row in rows)

    client = MlflowClient(store_uri)
    record = client.get_run(done.tracking.run_id)
    assert record.info.status == "FINISHED"
    assert record.data.metrics["eval/top1"] == pytest.approx(score.top1)
    assert record.data.tags["dataset.digest"] == read_manifest(damaged).digest
    assert record.data.tags["model.url"] == tiny
    assert record.data.params["crop_size"] == "32"
    assert record.inputs.dataset_inputs[0].dataset.name == "ssv2/val"
    names = {file.path for file in client.list_artifacts(done.tracking.run_id)}
    # probabilities of all classes stay in the results
    pictures = {"confusion_matrix.png", "most_confused.png", "per_class_accuracy.png", "worst_mistakes.png"}
    assert names == {"confusions.csv", "evaluation.json", "per_class.csv", *pictures}


def test_an_interrupted_evaluation_continues_where_it_stood(tiny, ssv2_shards, tmp_path, monkeypatch, store_uri):
    whole = run(tiny, ssv2_shards, out=str(tmp_path / "whole"))
    scored = []

    def breaking(job, model, numbers, on_samples):
        for number, table in ranks.score_here(job, model, numbers, on_samples):
            if len(scored) == 2:
                raise KeyboardInterrupt
            scored.append(number)
            yield number, table

    out = tmp_path / "out"
    monkeypatch.setattr(evaluate, "score_here", breaking)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, ssv2_shards, out=str(out))
    assert sorted(path.name for path in out.iterdir()) == [part_key(0), part_key(1), "request.json"]
    begun = json.loads((out / "request.json").read_text())["tracking"]["run_id"]
    assert MlflowClient(store_uri).get_run(begun).info.status == "KILLED"
    scored.clear()
    done = run(tiny, ssv2_shards, out=str(out))
    assert scored == [2]
    assert done.tracking.run_id == begun
    assert MlflowClient(store_uri).get_run(begun).info.status == "FINISHED"
    assert (out / "predictions.parquet").read_bytes() == (tmp_path / "whole" / "predictions.parquet").read_bytes()
    assert done.report == dataclasses.replace(whole.report, score=done.report.score)


def test_results_of_another_evaluation_are_not_touched(tiny, ssv2_shards, tmp_path):
    run(tiny, ssv2_shards, out=str(tmp_path / "out"))
    with pytest.raises(
        UserError, match=r"--out: .* holds another evaluation, with temporal_clips 1, not 2.*another place"
    ):
        run(tiny, ssv2_shards, out=str(tmp_path / "out"), protocol="2x1")


def test_without_a_place_the_results_are_named_after_what_was_evaluated(tiny, ssv2_shards, tmp_path):
    done = run(tiny, ssv2_shards)
    assert Path(done.out).parent == tmp_path / "evaluations"
    assert Path(done.out).name.startswith("tiny-val-1x1-")
    assert run(tiny, ssv2_shards).tracking == done.tracking


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_other_classes_are_refused_with_the_first_difference(ssv2_shards, tmp_path):
    classes = list(read_manifest(ssv2_shards).classes)
    swapped = [*classes[:2], classes[3], classes[2], *classes[4:]]
    model = make_model(tmp_path / "model", ssv2_shards, classes=swapped)
    with pytest.raises(UserError, match=f"label id 2 is {classes[2]!r} there and {classes[3]!r} in the model"):
        run(model, ssv2_shards)


def changed(url, folder, change):
    """A copy of a data set whose manifest was changed."""
    shutil.copytree(url, folder)
    write_manifest(str(folder), read_manifest(url).model_copy(update=change))
    return str(folder)


def test_pictures_are_refused_for_a_model_of_clips(tiny, ssv2_shards, tmp_path):
    images = changed(ssv2_shards, tmp_path / "images", {"media": "image"})
    with pytest.raises(UserError, match="holds images, and vast_micro was trained on clips of 4 frames"):
        run(tiny, images)


def test_a_split_that_is_not_there_or_has_no_labels_is_refused(tiny, ssv2_shards, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--split: no split 'test' in .*; it has train, val"):
        run(tiny, ssv2_shards, split="test")
    folder = tmp_path / "unlabelled"
    shutil.copytree(ssv2_shards, folder)
    index = read_index(str(folder), "val")
    write_index(str(folder), "val", [dataclasses.replace(row, label=-1) for row in index.rows(range(len(index)))])
    monkeypatch.setattr(evaluate, "score_here", lambda *_: pytest.fail("it was scored before it was looked at"))
    with pytest.raises(UserError, match="8 of 8 samples have no label"):
        run(tiny, str(folder))


def test_videos_that_were_trained_on_are_refused_with_numbers(tiny, ssv2_shards, tmp_path):
    with pytest.raises(UserError, match=r"the model was trained on this very split, train of .*--allow-leaks"):
        run(tiny, ssv2_shards, split="train")
    copy = shutil.copytree(ssv2_shards, tmp_path / "copy")
    with pytest.raises(UserError, match=r"train and train share 24 sources: 24 of 24 samples \(100\.0 %\)"):
        run(tiny, str(copy), split="train")
    done = run(tiny, str(copy), split="train", allow_leaks=True)
    assert done.report.score.samples == 24
    assert "share 24 sources" in done.content["leaks"]["leaks"][0]


def test_a_leak_of_the_weights_that_the_model_began_from_is_found(ssv2_shards, tmp_path):
    data = {"url": ssv2_shards, "num_frames": 4, "crop_size": 32, "eval_short_side": 32, "num_readers": 0}
    ancestor = make_model(tmp_path / "ancestor" / "model", ssv2_shards, data={**data, "train_split": "val"})
    parent = make_model(tmp_path / "parent" / "model", ssv2_shards, init_from=str(Path(ancestor).parent))
    model = make_model(tmp_path / "model", ssv2_shards, init_from=parent)
    with pytest.raises(UserError, match=r"ancestor, whose weights it began from, was trained on this very split"):
        run(model, ssv2_shards)


def test_training_data_that_is_gone_cannot_be_compared_and_that_is_said(ssv2_shards, tmp_path, capfd):
    gone = shutil.copytree(ssv2_shards, tmp_path / "gone")
    model = make_model(tmp_path / "model", str(gone), init_from=str(tmp_path / "nowhere"))
    shutil.rmtree(gone)
    done = run(model, ssv2_shards)
    said = capfd.readouterr().err
    assert "not checked for videos that were trained on: what the model was trained on" in said
    assert f"{tmp_path}/nowhere, whose weights it began from, was trained on: no model.json is there" in said
    assert len(done.content["leaks"]["unchecked"]) == 2


def test_a_data_set_of_other_content_than_was_trained_on_is_said(ssv2_shards, tmp_path):
    manifest = read_manifest(ssv2_shards)
    other = shutil.copytree(ssv2_shards, tmp_path / "other")
    model = make_model(tmp_path / "model", str(other))
    first, *rest = manifest.splits["train"].shards
    shards = [first.model_copy(update={"sha256": "0" * 64}), *rest]
    splits = {**manifest.splits, "train": manifest.splits["train"].model_copy(update={"shards": shards})}
    write_manifest(str(other), manifest.model_copy(update={"splits": splits, "digest": dataset_digest(splits)}))
    done = run(model, ssv2_shards)
    assert "is no longer what the model was trained on" in done.content["leaks"]["unchecked"][0]


# --- MODEL ------------------------------------------------------------------------------------------------------------


def test_a_model_is_found_by_its_folder_its_run_and_the_ids_of_both_runs(tiny, ssv2_shards, store_uri, tmp_path):
    run_url = str(Path(tiny).parent)
    training = tracking.create_run(store_uri, "tiny", params={}, tags={"run.url": run_url, "run.kind": "finetune"})
    open_store(run_url).put_bytes("run.json", json.dumps(dataclasses.asdict(training)).encode())
    for text in (tiny, run_url, training.run_id, f"runs:/{training.run_id}"):
        found = find_model(text)
        assert (found.url, found.training_run) == (tiny, training)
    done = run(training.run_id, ssv2_shards, out=str(tmp_path / "out"))
    assert find_model(done.tracking.run_id).url == tiny
    tags = MlflowClient(store_uri).get_run(done.tracking.run_id).data.tags
    assert tags["mlflow.parentRunId"] == tags["training.run_id"] == training.run_id
    (Path(run_url) / "run.json").unlink()


def test_a_model_that_is_not_found_says_where_it_was_looked_for(tmp_path, store_uri):
    with pytest.raises(UserError, match=rf"no model at {tmp_path}/nowhere: neither model.json nor model/model.json"):
        find_model("nowhere")
    with pytest.raises(UserError, match=r"has no run 0{32}; set MLFLOW_TRACKING_URI"):
        find_model("0" * 32)
    with pytest.raises(UserError, match=r"MODEL: models:/act@champion: not in the registry at sqlite:"):
        find_model("models:/act@champion")
    with pytest.raises(UserError, match=r"expected models:/NAME@ALIAS"):
        find_model("models:/act")
    other = tracking.create_run(store_uri, "shards", params={}, tags={"run.kind": "shard"})
    with pytest.raises(UserError, match="is of kind shard and made no model"):
        find_model(other.run_id)


def test_a_run_that_has_not_finished_says_what_its_last_checkpoint_is(tmp_path):
    for step in (8, 16):
        folder = tmp_path / "run" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"has not finished; its last checkpoint is .*/run/step-00000016"):
        find_model("run")


def test_a_model_of_another_version_is_refused_with_the_settings_that_differ(tiny, ssv2_shards, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "old")
    card = json.loads((model / "model.json").read_text())
    card["config"]["optim"]["lr_per_machine"] = 0.1
    (model / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"made by another version of this program: its optim\.lr_per_machine"):
        run(str(model), ssv2_shards)
