"""Runs that are cut up: over ranks, by Ctrl-C, by SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

TINY = ["data.num_frames=4", "data.crop_size=32", "data.eval_short_side=32", "optim.global_batch=8"]


# --- ranks ------------------------------------------------------------------------------------------------------------


def train_without_ray(num_ranks, tree, folder):
    """Run the config on plain processes; returns {"weights": state dict, "score": JSON}."""
    folder.mkdir()
    program = str(Path(__file__).with_name("train_rank.py"))
    commands = [
        [sys.executable, program, str(r), str(num_ranks), json.dumps(tree), str(folder)] for r in range(num_ranks)
    ]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=120) for process in processes] == [0] * num_ranks
    return torch.load(folder / "out", weights_only=True)


def test_two_ranks_do_what_one_does_at_the_same_global_batch(ssv2_shards, tmp_path):
    tree = {
        "name": "ranks",
        "model": {"name": "vast_micro"},
        "data": {"url": ssv2_shards, "num_frames": 4, "sampling": "uniform", "crop_size": 32, "eval_short_side": 32},
        "optim": {"epochs": 1, "global_batch": 8, "max_micro_batch": 2},
    }
    tree["data"]["num_readers"] = 0
    found = {n: train_without_ray(n, tree, tmp_path / str(n)) for n in (1, 2)}
    for name, weight in found[1]["weights"].items():
        # AdamW's first steps divide by the gradient's own size, so rounding of tiny gradients is enlarged
        torch.testing.assert_close(
            found[2]["weights"][name], weight, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    one, two = (json.loads(found[n]["score"]) for n in (1, 2))
    assert (one["records"], one["samples"]) == (two["records"], two["samples"])


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
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        for snapshot in folder.glob("runs/*/checkpoint_manager_snapshot.json"):
            text = snapshot.read_text()
            steps = [int(name.split("step-")[1][:8]) for name in text.split('"') if "step-" in name]
            if steps and max(steps) > beyond:
                return max(steps)
        time.sleep(0.05)
    raise AssertionError("no checkpoint in two minutes")


@pytest.mark.slow
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
    out, err = process.communicate(timeout=180)
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
