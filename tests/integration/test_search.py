"""Campaigns through the command, on real Ray, with a real MLflow store; and campaigns whose driver is killed."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipelines.config import resolve
from pipelines.search.config import resolve_search, trial_config
from pipelines.search.record import CampaignRecord, read_campaign, trial_url
from tests.integration.test_training import train_without_ray

TINY = {
    "data": {"num_frames": 4, "crop_size": 32, "eval_short_side": 32, "num_readers": 0},
    "optim": {"global_batch": 8, "warmup_epochs": 0},
}
LR = {"optim.lr": {"loguniform": [1.0e-4, 1.0e-2]}}


def write_recipe(folder: Path, shards: str, epochs: int, **search: object) -> str:
    tree = {"base": "demo_search", "name": "campaign", **TINY, "search": {"space": LR, **search}}
    tree["data"] = {**TINY["data"], "url": shards}
    tree["optim"] = {**TINY["optim"], "epochs": epochs, "lr": 4.0e-3}  # the first trial's, whatever the demo trains at
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(path)


def environment(folder: Path) -> dict[str, str]:
    found = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONUNBUFFERED": "1"}
    found.pop("RAY_ADDRESS", None)
    return found


def command(recipe: str, *words: str, output: str = "runs") -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", "search", recipe, *words, "--output", output]


def search(folder: Path, recipe: str, *words: str, output: str = "runs") -> tuple[CampaignRecord, str]:
    done = subprocess.run(
        command(recipe, *words, output=output),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (url,) = (folder / output).iterdir()
    return read_campaign(str(url)), done.stdout


def check_tree(folder: Path, record: CampaignRecord) -> None:
    """One run for the campaign, one for each trial, all ended, none twice and none without its parent."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("vast").experiment_id])
    by_url: dict[str, list[str]] = {}
    for run in runs:
        by_url.setdefault(run.data.tags["run.url"], []).append(run.info.run_id)
    expected = {record.url, *(trial_url(record.url, trial.id) for trial in record.trials)}
    assert set(by_url) == expected
    assert all(len(ids) == 1 for ids in by_url.values())
    assert by_url[record.url] == [record.tracking.run_id]
    for run in runs:
        if run.info.run_id != record.tracking.run_id:
            assert run.data.tags["mlflow.parentRunId"] == record.tracking.run_id
    states = {trial.tracking.run_id: trial.state for trial in record.trials if trial.tracking}
    for run in runs:
        assert run.info.status == ("FAILED" if states.get(run.info.run_id) == "failed" else "FINISHED")


@pytest.mark.campaign
def test_a_campaign_stops_trials_learns_from_them_and_survives_one_that_fails(ssv2_shards, tmp_path):
    space = {
        **LR,
        "optim.name": {"choice": ["adamw", "sgd"]},
        "optim.momentum": {"uniform": [0.5, 0.9], "when": {"optim.name": "sgd"}},
        # four clips of a step are no multiple of a pair, which mixup needs: no such trial can be trained
        "optim.max_micro_batch": {"choice": [8, 1]},
        "data.augment.mixup_alpha": {"choice": [0.0, 0.8]},
    }
    recipe = write_recipe(tmp_path, ssv2_shards, 3, algorithm="tpe", num_trials=5, reduction_factor=2, space=space)
    record, said = search(tmp_path, recipe, "search.max_steps=5")
    assert "search.max_steps: " in said
    assert len(record.trials) < 5

    record, said = search(tmp_path, recipe)  # more budget continues
    assert [trial.id for trial in record.trials] == [f"{n:04d}" for n in range(5)]
    assert record.trials[0].drawn == {
        "optim.lr": 0.004,
        "optim.name": "adamw",
        "optim.max_micro_batch": 8,
        "data.augment.mixup_alpha": 0.0,
    }
    for trial in record.trials:
        impossible = trial.drawn["optim.max_micro_batch"] == 1 and trial.drawn["data.augment.mixup_alpha"] > 0
        assert (trial.state == "failed") == impossible, trial
        assert ("optim.momentum" in trial.drawn) == (trial.drawn["optim.name"] == "sgd")
        if impossible:
            assert "optim.max_micro_batch" in trial.error
        else:
            assert trial.steps_trained == trial.reports[-1].step  # none twice
            assert trial.state == ("finished" if trial.reports[-1].epoch == 3 else "stopped"), trial
    assert record.steps_trained < record.steps_to_the_end
    assert record.ranked()[0].value("eval/top1") >= record.trials[0].value("eval/top1")
    check_tree(tmp_path, record)

    (tmp_path / "runs" / record.url.rpartition("/")[2] / "told.json").unlink()  # as if killed just before
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    client.update_run(record.tracking.run_id, status="RUNNING")
    again, said = search(tmp_path, recipe)
    assert again.trials == record.trials
    assert "updates" in said
    check_tree(tmp_path, record)
    assert "5 trials of `campaign` over" in client.get_run(record.tracking.run_id).data.tags["mlflow.note.content"]
    logged = {file.path for file in client.list_artifacts(record.tracking.run_id)}
    assert {"trials.csv", "parallel_coordinates.png", "importance.png", "best_so_far.png"} <= logged
    best = record.ranked()[0]
    assert resolve(f"{record.url}/best_recipe.yaml", []).flat().items() >= best.drawn.items()

    # The best trial's settings and the same training code make the same weights without any search.
    base, _ = resolve_search(recipe, [])
    finished = next(trial for trial in record.trials if trial.state == "finished")
    config = trial_config(base, finished.drawn, "alone")
    alone = train_without_ray(1, config.model_dump(mode="json"), tmp_path / "alone")
    model = load_file(Path(trial_url(record.url, finished.id)) / "model" / "model.safetensors")
    assert all(weight.equal(alone["weights"][name]) for name, weight in model.items())


@pytest.mark.campaign
def test_trials_of_several_ranks_take_the_same_batches(ssv2_shards, tmp_path):
    recipe = write_recipe(tmp_path, ssv2_shards, 2, scheduler="none", num_trials=1, ranks_per_trial=2)
    record, _ = search(tmp_path, recipe)
    (trial,) = record.trials
    assert trial.state == "finished"
    base, _ = resolve_search(recipe, [])
    config = trial_config(base, trial.drawn, "alone")
    alone = train_without_ray(2, config.model_dump(mode="json"), tmp_path / "alone")
    model = load_file(Path(trial_url(record.url, trial.id)) / "model" / "model.safetensors")
    assert all(weight.equal(alone["weights"][name]) for name, weight in model.items())


@pytest.mark.campaign
def test_a_trial_whose_process_is_killed_goes_on_from_its_last_state(ssv2_shards, tmp_path):
    recipe = write_recipe(tmp_path, ssv2_shards, 30, scheduler="none", num_trials=1)
    log = tmp_path / "out.txt"
    with log.open("wb") as out:
        driver = subprocess.Popen(command(recipe), cwd=tmp_path, env=environment(tmp_path), stdout=out, stderr=out)
    for reached in ("epoch   2", "epoch  12"):  # search.max_failures allows three
        deadline = time.monotonic() + 300
        while reached not in log.read_text():
            assert driver.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (process,) = [each for each in psutil.Process(driver.pid).children(recursive=True) if runs_a_trial(each)]
        process.kill()
    assert driver.wait(timeout=300) == 0, log.read_text()[-3000:]

    (url,) = (tmp_path / "runs").iterdir()
    record = read_campaign(str(url))
    (trial,) = record.trials
    assert trial.state == "finished"
    assert [report.epoch for report in trial.reports] == list(range(1, 31))
    assert trial.steps_trained == record.steps_per_trial  # no step whose state was kept was made again
    base, _ = resolve_search(recipe, [])
    config = trial_config(base, trial.drawn, "alone")
    alone = train_without_ray(1, config.model_dump(mode="json"), tmp_path / "alone")
    model = load_file(Path(trial_url(record.url, trial.id)) / "model" / "model.safetensors")
    assert all(weight.equal(alone["weights"][name]) for name, weight in model.items())
    check_tree(tmp_path, record)


def runs_a_trial(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "".join(process.cmdline()).startswith("ray::ImplicitFunc")
    return False


@pytest.mark.campaign
def test_a_driver_killed_three_times_changes_nothing(ssv2_shards, tmp_path):
    """A population is a function of the seed: the killed campaign is to end with the very same trials and weights."""
    recipe = write_recipe(tmp_path, ssv2_shards, 6, scheduler="pbt", num_trials=5, perturb_epochs=2, quantile=0.4)
    whole, _ = search(tmp_path, recipe, output="whole")
    assert any(trial.exploits for trial in whole.trials)

    (killed := tmp_path / "killed").mkdir()
    generator = random.Random(5)
    log = killed / "out.txt"
    kills = 0
    while kills < 3:
        with log.open("ab") as out:
            driver = subprocess.Popen(command(recipe), cwd=killed, env=environment(killed), stdout=out, stderr=out)
        epochs = log.read_text().count("epoch ")
        deadline = time.monotonic() + 300
        while log.read_text().count("epoch ") <= epochs and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(generator.uniform(0, 6))
        assert driver.poll() is None, log.read_text()[-3000:]
        orphans = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        kills += 1
        for process in psutil.wait_procs(orphans, timeout=generator.uniform(0, 3))[1]:
            process.kill()  # sooner or later the host is gone with it
        psutil.wait_procs(orphans, timeout=20)
    record, said = search(killed, recipe)

    assert re.search(r"continuing: \d of 5 trials have ended", said)
    for trial, twin in zip(record.trials, whole.trials, strict=True):
        assert (trial.id, trial.drawn, trial.state) == (twin.id, twin.drawn, "finished")
        assert [(r.epoch, r.step, r.figures) for r in trial.reports] == [
            (r.epoch, r.step, r.figures) for r in twin.reports
        ]
        assert [(e.source, e.epoch, e.changes) for e in trial.exploits] == [
            (e.source, e.epoch, e.changes) for e in twin.exploits
        ]
        assert trial.steps_trained == record.steps_per_trial  # no step whose state was kept was made again
        models = [Path(trial_url(each.url, trial.id)) / "model" / "model.safetensors" for each in (record, whole)]
        assert models[0].read_bytes() == models[1].read_bytes()
    check_tree(killed, record)
