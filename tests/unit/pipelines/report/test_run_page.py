import json
import platform
import shutil
from dataclasses import asdict, replace
from unittest.mock import Mock

import pytest

from pipelines import cli, tracking
from pipelines.report.run_facts import default_settings, gather
from pipelines.report.write import write_report
from pipelines.tracking import RunRef
from pipelines.training.history import HistoryKeeper
from tests.unit.pipelines.report.read_page import EVIL, Page
from tests.unit.pipelines.report.runs import make_evaluation, make_run
from vast.dataset_format import read_manifest
from vast.storage import open_store
from vast.train.checkpoint import ModelCard
from vast.train.config import TrainConfig


@pytest.fixture(autouse=True)
def mlflow_here(tmp_path, empty_mlflow, monkeypatch):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("VAST_SPOOL", str(tmp_path / "spool"))
    monkeypatch.chdir(tmp_path)


def read(out):
    page = Page(out.read_text(encoding="utf-8"))
    page.check()
    return page


def test_the_story_of_a_run(tmp_path, ssv2_shards):
    before, _ = make_run(tmp_path / "runs", ssv2_shards, name="before")
    url, ref = make_run(tmp_path / "runs", ssv2_shards, init_from=before)
    out = tmp_path / "report.html"
    assert write_report(url, out) == "run"
    text = read(out).text
    manifest = read_manifest(ssv2_shards)
    train = manifest.splits["train"]
    for part in (
        "top-1 90.00 %",
        "Measured on 25 of 32 rows (7 not in the shards, left out); 1 unreadable counted wrong.",
        f"Training train {train.records} {train.samples} {train.failures} {ssv2_shards}",
        manifest.digest,
        "waiting for data 25.0 %",
        "computing 70.0 %",
        "samples skipped because they could not be decoded 2",
        "1 25 class 0 class 1",
        "has not been evaluated on its own yet",
        f"vast export {url} --format pt2",
        f"{before} before 30 30.00",
        "The last of these was started from scratch.",
        "optim.lr 0.004 0.001",
        "data.url " + ssv2_shards,
        "Git commit",
        f"Software Python {platform.python_version()}, vast-video",
        "GPUs of that machine",
        "Nodes 3",
        ref.run_id,
    ):
        assert part in text, part
    assert "could not be read" not in text
    by_id = tmp_path / "by-id.html"
    write_report(ref.run_id, by_id)
    assert read(by_id).text.partition("Made by")[0] == text.partition("Made by")[0]


def test_evaluations_of_the_run_are_in_its_story_and_have_their_own(tmp_path, ssv2_shards):
    classes = [EVIL, *(f"class {k}" for k in range(1, 8))]
    url, ref = make_run(tmp_path / "runs", ssv2_shards, classes=classes)
    evaluation = make_evaluation(tmp_path / "evaluation", ref, url, classes)
    write_report(url, tmp_path / "run.html")
    text = read(tmp_path / "run.html").text
    assert "4x3 val 77.50 98.00 76.00 8 of 9 rows" in text
    assert "<script>alert(1)</script>" in text  # as text, and the checks find no such element
    for what in (str(tmp_path / "evaluation"), evaluation.run_id):
        assert write_report(what, tmp_path / "evaluation.html") == "evaluation"
        text = read(tmp_path / "evaluation.html").text
        assert "small at step 30 on val of ssv2: 77.50 % top-1" in text
        assert "not kept in this folder" in text
        assert "Allowed leak" in text
        assert "taken for class 1: 1 (25.0 %)" in text


def test_curves_need_no_tracking_server_where_the_run_kept_them(tmp_path, ssv2_shards):
    url, _ = make_run(tmp_path / "runs", ssv2_shards)
    keeper = HistoryKeeper(url, Mock())
    for step in (10, 20):
        keeper.started(step - 10, ranks=2)
        keeper.log(step, {"train/loss": 1.0, "optim/lr": 1e-3, "stall/wait_share": 0.4, "stall/compute_share": 0.6})
        keeper.log(step, {"eval/top1": 33.0})
    keeper.write(20)
    (tmp_path / "mlflow.db").unlink()
    write_report(url, tmp_path / "report.html")
    text = read(tmp_path / "report.html").text
    assert "loss over step: training loss" in text
    assert "waiting for data 40.0 %" in text
    assert "top-1: 33 at step 20" in text
    assert "times, environment and evaluations: MLflow: there is no tracking database" in text
    assert "restarts that came as far as a save 1" in text


def test_a_run_that_has_not_finished_says_so(tmp_path, ssv2_shards):
    url, _ = make_run(tmp_path / "runs", ssv2_shards, finished=False)
    write_report(url, tmp_path / "report.html")
    text = read(tmp_path / "report.html").text
    assert "There is no final score yet" in text
    assert "the newest state is of step 30" in text
    assert "published when the run finishes" in text


def test_what_cannot_be_read_is_named_and_the_rest_told(tmp_path, ssv2_shards):
    url, _ = make_run(tmp_path / "runs", ssv2_shards, init_from=str(tmp_path / "gone"))
    store = open_store(url)
    plain = json.loads(store.get_bytes("result.json"))
    plain["card"]["config"]["data"]["url"] = str(tmp_path / "no-shards")
    store.put_bytes("result.json", json.dumps(plain).encode())
    store.put_bytes("model/model.json", json.dumps(plain["card"]).encode())
    (tmp_path / "mlflow.db").unlink()
    write_report(url, tmp_path / "report.html")
    text = read(tmp_path / "report.html").text
    assert "top-1 90.00 %" in text
    assert "there is no tracking database" in text
    assert "cannot be read any more" in text
    assert "no-shards" in text
    assert not (tmp_path / "mlflow.db").exists()  # asking made no new one


def test_a_run_without_a_checkpoint_is_told_as_mlflow_has_it(tmp_path, ssv2_shards):
    url, _ = make_run(tmp_path / "runs", ssv2_shards, finished=False)
    open_store(url).delete("step-00000030/model.json")
    write_report(url, tmp_path / "report.html")
    text = read(tmp_path / "report.html").text
    assert "there is no checkpoint yet" in text
    assert "optim.lr 0.004 0.001" in text
    assert "optim.epochs" not in text.partition("differ from the defaults")[2].partition("All ")[0]  # as by default


def test_settings_of_another_version_are_told_too(tmp_path, ssv2_shards):
    url, _ = make_run(tmp_path / "runs", ssv2_shards)
    store = open_store(url)
    card = json.loads(store.get_bytes("model/model.json"))
    card["config"]["optim"]["gone_since"] = 1
    store.put_bytes("model/model.json", json.dumps(card).encode())
    write_report(url, tmp_path / "report.html")
    text = read(tmp_path / "report.html").text
    assert "written by another version of this program" in text
    assert "optim.lr 0.004" in text


def test_many_classes_are_a_curve_and_extremes(tmp_path, ssv2_shards):
    url, _ = make_run(tmp_path / "runs", ssv2_shards, num_classes=174)
    write_report(url, tmp_path / "report.html")
    page = read(tmp_path / "report.html")
    assert "Top-1 of 174 classes, of the samples that could be scored." in page.text
    assert "The 10 best and 10 worst." in page.text
    assert "Confusion matrix" not in page.text
    assert len(page.source) < 300_000


def test_defaults_are_those_of_the_config():
    config = TrainConfig.model_validate({"name": "x", "model": {"name": "vast_ti"}, "data": {"url": "y"}})
    defaults = default_settings()
    assert set(config.flat()) - set(defaults) == {"name", "model.name", "data.url"}
    assert {path: value for path, value in config.flat().items() if path in defaults} == defaults


def test_the_newest_checkpoint_speaks_for_an_unfinished_run(tmp_path, ssv2_shards):
    url, _ = make_run(tmp_path / "runs", ssv2_shards, finished=False)
    store = open_store(url)
    card = ModelCard(**json.loads(store.get_bytes("step-00000030/model.json")))
    store.put_bytes("step-00000020/model.json", json.dumps(asdict(replace(card, step=20))).encode())
    assert gather(url).card == card


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing-here"], "nothing to report on at"),
        (["0" * 32], "has no run"),
        (["SHARD-RUN"], "is of kind shard and has no folder"),
        (["RUN", "--out", "runs"], "is a folder"),
        (["RUN", "--out", "file/report.html"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_message(tmp_path, ssv2_shards, capsys, words, message):
    url, _ = make_run(tmp_path / "runs", ssv2_shards)
    (tmp_path / "file").touch()
    shard = tracking.create_run(tracking.tracking_uri(), "shard", params={}, tags={"run.kind": "shard"})
    given = {"RUN": url, "SHARD-RUN": shard.run_id}
    assert cli.main(["report", *(given.get(word, word) for word in words)]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "mlflow.store" not in line]
    assert message in said
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(("ours", "told"), [(True, "cannot be read from http"), (False, "which is not asked")])
def test_a_tracker_that_does_not_answer_costs_no_more_than_its_part(
    tmp_path, ssv2_shards, free_port, monkeypatch, ours, told
):
    url, ref = make_run(tmp_path / "runs", ssv2_shards)
    store = open_store(url)
    gone = RunRef(f"http://127.0.0.1:{free_port}", ref.run_id)
    store.put_bytes("run.json", json.dumps(asdict(gone)).encode())
    if ours:  # a server that only the folder names is not asked
        monkeypatch.setenv("MLFLOW_TRACKING_URI", gone.tracking_uri)
    write_report(url, tmp_path / "report.html")
    text = read(tmp_path / "report.html").text
    assert told in text
    assert "top-1 90.00 %" in text
