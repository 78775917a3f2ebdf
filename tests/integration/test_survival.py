"""Runs that are told to stop or to move, that find a torn checkpoint, and that go on with another number of ranks."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
