"""Runs that are told to stop or move, find a torn checkpoint, get other ranks, or lose the MLflow server."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from tests.conftest import start_mlflow
from tests.integration.kill_training import LIMIT_S, Driver, pause, published_hash
from tests.integration.test_kill_training import config_for, whole_hash, whole_weights
from vast.train.config import TrainConfig

Start = Callable[..., Driver]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a driver over runs/ in the test's folder; it is ended with the test."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    drivers: list[Driver] = []

    def begin(config: TrainConfig, ranks: str, cpus: int = 2) -> Driver:
        log = tmp_path / f"driver-{len(drivers)}.log"
        drivers.append(Driver(config, str(tmp_path / "runs"), ranks, log, cpus))
        return drivers[-1]

    yield begin
    for driver in drivers:
        driver.end()


def stop(driver: Driver, signum: int) -> str:
    """Ask the driver to end and see that it does, with the shell's exit code; returns what it said."""
    driver.process.send_signal(signum)
    assert driver.process.wait(timeout=LIMIT_S) == 128 + signum, driver.log.read_text(errors="replace")[-6000:]
    return driver.log.read_text(errors="replace")


def wait_for_checkpoint(run: Path, driver: Driver) -> None:
    while not list(run.glob("step-*/checkpoint.json")):
        assert pause(driver, 0.1)


@pytest.mark.survival
def test_ranks_that_are_told_to_go_move_and_a_torn_checkpoint_is_passed_over(
    ssv2_shards: str, start: Start, tmp_path: Path
) -> None:
    config = TrainConfig.model_validate(config_for(ssv2_shards))
    run = tmp_path / "runs" / config.run_name()
    whole = whole_hash(config_for(ssv2_shards), tmp_path / "whole")

    driver = start(config, "2")
    assert driver.wait(training=True)
    driver.below("rank")[0].send_signal(signal.SIGTERM)
    assert driver.wait(training=True)  # again, without anyone's help
    wait_for_checkpoint(run, driver)
    said = stop(driver, signal.SIGTERM)
    assert "the ranks were told to go and have saved" in said
    assert "saved at step" in said

    newest = max(run.glob("step-*"))
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    driver = start(config, "2")
    assert not pause(driver, LIMIT_S)
    assert f"{newest.name} is not used" in driver.log.read_text()
    assert published_hash(str(run)) == whole


@pytest.mark.survival
def test_a_run_goes_on_with_fewer_ranks(ssv2_shards: str, start: Start, tmp_path: Path) -> None:
    # plain SGD: AdamW's first steps divide by the gradient's own size and so enlarge the rounding of tiny ones
    tree = config_for(ssv2_shards, name="sgd", lr=0.01, weight_decay=0.0)
    config = TrainConfig.model_validate(tree)
    whole = whole_weights(tree, tmp_path / "whole")
    run = tmp_path / "runs" / config.run_name()
    for ranks in ("2..4", "2"):
        driver = start(config, ranks, cpus=4)
        assert driver.wait(training=True)
        said = stop(driver, signal.SIGINT)
        assert f"on {ranks[-1]} rank(s)" in said
    driver = start(config, "1", cpus=4)
    assert not pause(driver, LIMIT_S)
    assert "resumed at step" in driver.log.read_text()
    for name, weight in load_file(run / "model" / "model.safetensors").items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.survival
def test_training_goes_on_without_the_mlflow_server_and_every_figure_is_there_once_it_is_back(
    ssv2_shards: str, start: Start, free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = config_for(ssv2_shards)
    tree["optim"]["epochs"] = epochs = 300
    tree |= {"eval": {"every_epochs": epochs}, "checkpoint": {"every_epochs": epochs, "every_steps": 20}}
    config = TrainConfig.model_validate(tree | {"log_every_steps": 2})
    run = tmp_path / "runs" / config.run_name()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("VAST_SPOOL", str(tmp_path / "spool"))
    server = start_mlflow(tmp_path, free_port)
    try:
        driver = start(config, "2")
        assert driver.wait(training=True)
        wait_for_checkpoint(run, driver)
        kill_tree(server.pid)
        before = newest_step(run)
        while newest_step(run) < before + 100:
            assert pause(driver, 0.1), "the run ended before the server could come back"
        assert list((tmp_path / "spool").glob("*/*.points"))
        server = start_mlflow(tmp_path, free_port)
        assert not pause(driver, LIMIT_S)
        client = MlflowClient(f"http://127.0.0.1:{free_port}")
        (tracked,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
        steps = [point.step for point in client.get_metric_history(tracked.info.run_id, "train/loss")]
        assert steps == list(range(2, 3 * epochs + 1, 2))
        assert tracked.info.status == "FINISHED"
        assert not list((tmp_path / "spool").glob("*/*.points"))
    finally:
        kill_tree(server.pid)


def newest_step(run: Path) -> int:
    return max(int(folder.parent.name.removeprefix("step-")) for folder in run.glob("step-*/checkpoint.json"))


def kill_tree(pid: int) -> None:
    """SIGKILL a process and those below it; none is fine."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in (*top.children(recursive=True), top):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs([top], timeout=10)
