"""Runs that are cut up: over ranks, by Ctrl-C, by SIGKILL."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipelines import cli
from pipelines.training.history import read_history
from vast.data.dataset import ShardDataset

TINY = ["data.num_frames=4", "data.crop_size=32", "data.eval_short_side=32", "optim.global_batch=8"]


# --- ranks ------------------------------------------------------------------------------------------------------------


def train_without_ray(num_ranks, tree, folder, plan=None):
    """Run the config on plain processes; returns {"weights": ..., "raw": ..., "ranks": what each of them told}."""
    folder.mkdir()
    program = str(Path(__file__).with_name("train_rank.py"))
    words = [json.dumps(tree), str(folder), json.dumps(plan or {})]
    commands = [[sys.executable, program, str(rank), str(num_ranks), *words] for rank in range(num_ranks)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=180) for process in processes] == [0] * num_ranks
    told = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(num_ranks)]
    return {**torch.load(folder / "out", weights_only=True), "ranks": told}


def damaged(shards: str, folder: Path) -> tuple[str, str]:
    """A copy of a data set in which one training sample's bytes are wrong; its URL and the sample's key."""
    shutil.copytree(shards, folder)
    row = ShardDataset(str(folder), "train").index.rows([3])[0]
    with (folder / row.shard).open("r+b") as file:
        file.seek(row.offset + row.size_bytes // 2)
        file.write(bytes(64))
    return str(folder), row.key


def rank_tree(url, **optim):
    """Everything that is random or shared between clips is on."""
    return {
        "name": "ranks",
        "model": {"name": "vast_micro", "drop_path": 0.3, "head_dropout": 0.2},
        "data": {
            "url": url,
            "num_frames": 4,
            "sampling": "uniform",
            "crop_size": 32,
            "eval_short_side": 32,
            "num_readers": 0,
            "max_skipped": 0.1,
            "augment": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "rand_num_layers": 2, "erase_prob": 0.3},
        },
        # sgd, for AdamW enlarges the rounding of gradients that are zero but for it
        "optim": {
            "name": "sgd",
            "lr": 0.1,
            "epochs": 2,
            "global_batch": 8,
            "max_micro_batch": 4,
            "ema_decay": 0.9,
            "label_smoothing": 0.1,
            **optim,
        },
        "eval": {"every_epochs": 2},
        "log_every_steps": 1,
    }


def test_one_two_and_four_ranks_make_the_same_weights_at_the_same_global_batch(ssv2_shards, tmp_path):
    """Also where a sample cannot be used, and where a step is skipped as one clip, on one rank, has no finite loss."""
    url, key = damaged(ssv2_shards, tmp_path / "damaged")
    plan = {"spoil": [2, 5]}
    found = {n: train_without_ray(n, rank_tree(url), tmp_path / str(n), plan) for n in (1, 2, 4)}
    one = found[1]
    (alone,) = one["ranks"]
    assert (alone["faults"]["nonfinite"], alone["faults"]["skipped"]) == (1, 2)  # the sample, in each of two epochs
    assert max((weight - one["weights"][name]).abs().max() for name, weight in one["raw"].items()) > 1e-3
    for n in (2, 4):
        for kind in ("weights", "raw"):
            for name, weight in one[kind].items():
                torch.testing.assert_close(
                    found[n][kind][name], weight, rtol=0, atol=1e-6, msg=lambda m, n=n, name=name: f"{n} {name}: {m}"
                )
        ranks = found[n]["ranks"]
        assert all(rank["faults"] == alone["faults"] for rank in ranks)
        assert len(notes := [note for rank in ranks for note in rank["notes"]]) in (1, 2)  # once for each rank it meets
        assert all(f"sample {key} is skipped: " in note for note in notes)
        losses = ranks[0]["losses"]
        assert all(losses[step] == pytest.approx(loss, rel=1e-5, nan_ok=True) for step, loss in alone["losses"].items())
        assert (ranks[0]["score"]["records"], ranks[0]["score"]["samples"]) == (
            alone["score"]["records"],
            alone["score"]["samples"],
        )


def test_one_rank_that_asks_to_stop_stops_all_and_what_they_saved_goes_on_bit_for_bit(ssv2_shards, tmp_path):
    """On three ranks, where the order of a sum matters; of two numbers it does not."""
    tree = {**rank_tree(ssv2_shards, global_batch=12), "log_every_steps": 50}
    cut = train_without_ray(3, tree, tmp_path / "cut", {"stop": [1, 1]})
    assert [(rank["step"], rank["interrupted"]) for rank in cut["ranks"]] == [(2, True)] * 3
    whole = train_without_ray(3, tree, tmp_path / "whole")
    rest = train_without_ray(3, tree, tmp_path / "rest", {"own": str(tmp_path / "cut" / "step-2")})
    for kind in ("raw", "weights"):
        assert all(torch.equal(weight, rest[kind][name]) for name, weight in whole[kind].items())


# --- interruption -----------------------------------------------------------------------------------------------------


def start(folder: Path, words: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "pipelines.cli", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )


def read_until(text: str, process: subprocess.Popen[str]) -> str:
    """Read lines of the process until one holds `text`; returns that line."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"ended without saying {text!r}")


def wait_for_checkpoint(folder: Path, beyond: int, process: subprocess.Popen[str]) -> int:
    """Wait until a checkpoint later than step `beyond` is committed; returns its step."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        for snapshot in folder.glob("runs/*/checkpoint_manager_snapshot.json"):
            text = snapshot.read_text()
            steps = [int(name.split("step-")[1][:8]) for name in text.split('"') if "step-" in name]
            if steps and max(steps) > beyond:
                return max(steps)
        time.sleep(0.05)
    raise AssertionError("no checkpoint in five minutes")


@pytest.mark.campaign
def test_ctrl_c_then_sigkill_then_the_same_command_resumes_and_ends_as_if_nothing_had_happened(ssv2_shards, tmp_path):
    # 24 epochs of 3 steps; a rank has one thread here, since the order of a sum over threads is not ours to promise
    settings = [f"data.url={ssv2_shards}", *TINY, "optim.epochs=24", "checkpoint.every_steps=6", "eval.every_epochs=24"]
    settings += ["checkpoint.every_epochs=24"]
    words = ["finetune", "demo_finetune_ssv2", *settings, "--ranks", "2"]

    process = start(tmp_path, words)
    first = wait_for_checkpoint(tmp_path, 0, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the foreground group
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the same command continues" in err
    assert "Traceback" not in err

    process = start(tmp_path, words)
    assert "resumed at step" in read_until("steps to go", process)
    second = wait_for_checkpoint(tmp_path, first, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)

    process = start(tmp_path, words)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert int(out.split("resumed at step ")[1].split()[0]) >= second
    assert "from this run's last checkpoint" in out

    process = start(tmp_path, words)
    out, _ = process.communicate(timeout=60)
    assert "already finished at step 72" in out

    (model,) = tmp_path.glob("runs/*/model/model.safetensors")
    card = json.loads((model.parent / "model.json").read_text())
    whole = train_without_ray(2, card["config"], tmp_path / "whole")["weights"]
    assert all(torch.equal(weight, whole[name]) for name, weight in load_file(model).items())

    # one MLflow run, not one for each start, and its figures reach the last step
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("vast").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]
    steps = {point.step for point in client.get_metric_history(runs[0].info.run_id, "train/loss")}
    assert max(steps) == 72


@pytest.mark.campaign
def test_the_best_checkpoints_and_the_last_are_kept(ray_local, ssv2_shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    words = [f"data.url={ssv2_shards}", *TINY, "optim.epochs=7", "eval.every_epochs=1", "checkpoint.keep_best=2"]
    assert cli.main(["finetune", "demo_finetune_ssv2", *words, "--ranks", "1"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    kept = {int(folder.parent.name.removeprefix("step-")) for folder in run.glob("step-*/checkpoint.json")}
    steps, top1 = read_history(str(run)).series("eval/top1")
    score = dict(zip(steps.tolist(), top1.tolist(), strict=True))
    last = max(score)
    assert last in kept
    assert len(kept - {last}) in (1, 2)  # the last may be one of the best
    dropped = set(score) - kept
    assert dropped
    assert min(score[step] for step in kept - {last}) >= max(score[step] for step in dropped)
