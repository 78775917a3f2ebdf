"""Every command of the README is run, on generated data and with a small model."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import cli, tracking
from tests.integration.ray_nodes import RayNodes
from tests.integration.test_listening import listening
from vast.storage import open_store

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.strip()]

# What makes a recipe for GPUs run here; everything else is as written.
SMALL = ["model.name=vast_micro", "data.num_frames=4", "data.crop_size=32", "data.eval_short_side=32"]
SMALL += ["data.num_readers=0", "optim.global_batch=8", "optim.epochs=1", "optim.precision=fp32"]


def test_the_commands_are_the_expected_kinds():
    programs = {shlex.split(line)[0] for line in COMMANDS}
    assert programs == {"make", "vast", "export"}
    assert len([line for line in COMMANDS if line.startswith("vast ")]) >= 13


def test_the_paths_it_names_exist():
    for path in re.findall(r"`((?:vast|preprocessing|pipelines|infra|tests)/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path


@pytest.mark.campaign
def test_make_demo_takes_the_whole_path(tmp_path):
    assert "make demo" in COMMANDS
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    # the environment that runs these tests serves as the installed one
    make = ["make", "--no-print-directory", "demo", f"BIN={Path(sys.executable).parent}", f"DEMO={tmp_path}/demo"]
    installed = tmp_path / "installed"
    installed.touch()
    done = subprocess.run(
        [*make, f"INSTALLED={installed}", "DEMO_FLAGS=--quick"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Warning" not in done.stdout
    for part in (
        "records in",
        "108",
        "96",
        "12: ",
        "without temporal shift",
        "best trial",
        "vast ui --store sqlite:///",
    ):
        assert part in done.stdout
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["records"] == summary["samples"] + summary["failures"] == 108
    assert set(summary) == {
        "seconds_total",
        "records",
        "samples",
        "failures",
        "pretrain_top1",
        "finetune_top1",
        "no_temporal_shift_top1",
        "best_trial",
        "tracking_uri",
        "checkpoint",
    }
    assert (Path(summary["checkpoint"]) / "model.safetensors").is_file()


@pytest.mark.campaign
def test_every_vast_command(ray_local, s3_server, mlflow_server, tmp_path, monkeypatch, capfd):
    """The whole path through S3 and a tracking server, in the README's own words; then what it left in MLflow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "readme")
    monkeypatch.setenv("VAST_SPOOL", str(tmp_path / "spool"))
    run_name = "not trained yet"
    with s3_server.in_environment():
        bucket = s3_server.make_bucket()
        for name, dataset in (("kinetics", "k400"), ("ssv2", "ssv2")):
            words = ["synth", name, "--out", dataset, "--train", "16", "--val", "8", "--workers", "1"]
            assert cli.main(words) == 0
        said = {}
        for line in COMMANDS:
            words = shlex.split(line.replace("my-bucket", bucket).replace("RUN", run_name))
            if words[0] != "vast" or words[1] == "ui" or "--ranks" in words:
                continue  # `vast ui` and the cluster have tests of their own
            if words[1] in ("pretrain", "finetune", "check", "plan", "search"):
                words += SMALL
            if words[1] == "plan":
                words += ["--gpus", "1,2"]
            if words[1] in ("pretrain", "finetune"):
                words += ["--ranks", "2"]
            if words[1] == "finetune":
                words += ["data.num_readers=1"]  # reader processes under Ray, once
            if words[1] == "search":
                words += ["search.num_trials=2"]
            if words[1] == "synth":
                words += ["--train", "8", "--val", "8"]
            capfd.readouterr()
            assert cli.main(words[1:]) == 0, f"{line}: {capfd.readouterr().err}"
            out, _ = capfd.readouterr()
            said[words[1], words[2] if len(words) > 2 else ""] = out
            found = re.search(r"^model +s3://[^/]+/runs/([^/]+)/model$", out, flags=re.M)
            run_name = found[1] if found else run_name
    assert "19 records = 16 samples + 3 failures" in said["shard", "ssv2"]
    assert "on 2 rank(s)" in said["finetune", "finetune_ssv2_vast_ti_8f"]
    assert "reinitialised (head.weight, head.bias)" in said["finetune", "finetune_ssv2_vast_ti_8f"]
    evaluated = next(text for (verb, _), text in said.items() if verb == "evaluate")
    assert "8 of 11 rows (3 not in the shards, left out); 0 unreadable counted wrong" in evaluated
    assert "no problems: every byte" in said["data", "verify"]
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Training loss, means between logs." in report
    assert "8 of 11 rows (3 not in the shards, left out)" in report
    assert "What could not be read" not in report
    assert (tmp_path / "k400.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "ssv2-clips").glob("*.mp4"))) == 16
    check_mlflow(MlflowClient(mlflow_server))


def check_mlflow(client):
    runs = client.search_runs([client.get_experiment_by_name("readme").experiment_id])
    by_kind = {}
    for run in runs:
        by_kind.setdefault(run.data.tags["run.kind"], []).append(run)
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "pretrain": 1,
        "finetune": 1,
        "evaluate": 1,
        "register": 1,
        "search": 1,
        "trial": 2,
        "shard": 2,
    }
    for run in by_kind["shard"]:
        assert (
            run.data.metrics["train/records"] == run.data.metrics["train/samples"] + run.data.metrics["train/failures"]
        )
        assert run.data.metrics["clips_per_s"] > 0
        assert {"train_classes.png", "train_durations.png", "train_contact_sheet.png"} <= {
            file.path for file in client.list_artifacts(run.info.run_id)
        }
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in by_kind["trial"]} == {by_kind["search"][0].info.run_id}
    (train,) = by_kind["finetune"]
    assert train.data.params["optim.epochs"] == "1"
    assert train.data.params["model.name"] == "vast_micro"
    assert train.data.tags["dataset.digest"].startswith("sha256:")
    assert train.data.tags["mlflow.source.git.commit"]
    assert {"train/loss", "eval/top1", "eval/mean_class", "optim/lr"} <= set(train.data.metrics)
    names = {file.path for file in client.list_artifacts(train.info.run_id)}
    pictures = {f"{name}.png" for name in ("confusion_matrix", "most_confused", "per_class_accuracy")}
    pictures |= {"learning_curves.png", "where_time_goes.png"}
    assert names == {"recipe.yaml", "environment", "model", *pictures}
    (evaluation,) = by_kind["evaluate"]
    assert evaluation.data.tags["mlflow.parentRunId"] == train.info.run_id
    assert by_kind["register"][0].data.tags["mlflow.parentRunId"] == train.info.run_id
    assert train.data.tags["mlflow.parentRunId"] == by_kind["pretrain"][0].info.run_id
    read = client.get_run(evaluation.info.run_id).inputs.model_inputs
    assert [one.model_id for one in read] == [one.model_id for one in train.outputs.model_outputs]
    files = {file.path for file in client.list_artifacts(train.info.run_id, "model")}
    assert files == {"model/model.json", "model/model.safetensors"}


@pytest.fixture
def cluster(s3_server, tmp_path):
    nodes = RayNodes(tmp_path, dict(s3_server.environment))
    try:
        nodes.start(2)
        yield nodes
    finally:
        nodes.stop()


@pytest.mark.stack
def test_the_cluster_commands(cluster, s3_server, mlflow_server, ssv2_shards, tmp_path):
    bucket = s3_server.make_bucket()
    with s3_server.in_environment():
        store, source = open_store(f"s3://{bucket}/k400"), open_store(ssv2_shards)
        for key in source.list():
            store.put_bytes(key, source.get_bytes(key))
    lines = [line for line in COMMANDS if line.startswith("export ") or "--ranks" in line]
    given = {"head.internal:6379": cluster.address, "http://mlflow.internal:5000": mlflow_server, "my-bucket": bucket}
    given |= {"--ranks 16": "--ranks 2"}
    script = "\n".join(lines)
    for here, there in given.items():
        assert here in script
        script = script.replace(here, there)
    program, small = f"{sys.executable} -m pipelines.cli ", " ".join(SMALL)
    script = re.sub(r"^vast (.*)$", rf"{program}\1 {small}", script, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-euc", script],
        env=cluster.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "on 2 rank(s)" in done.stdout
    assert f"in {mlflow_server}" in done.stdout
    assert "2 ranks on 1 node sum 64 MiB over gloo" in done.stdout


def test_vast_ui_serves_the_runs_and_ends_when_told(tmp_path, free_port):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    tracking.create_run(store, "a run to see", params={}, tags={})
    command = [sys.executable, "-m", "pipelines.cli", "ui", "--store", store, "--port", str(free_port)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{free_port}"
    try:
        deadline = time.monotonic() + 120
        page = ""
        while not page and time.monotonic() < deadline:
            assert process.poll() is None
            with contextlib.suppress(OSError):
                page = urllib.request.urlopen(url, timeout=5).read().decode()
            time.sleep(0.3)
        assert "MLflow" in page
        assert {ip for _, ip, _ in listening(process.pid)} == {"127.0.0.1"}
    finally:
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert url in out
    assert err == ""
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)
