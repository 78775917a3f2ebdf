"""Training killed at random instants, on a folder and on an S3 store that keeps failing, ends with the same weights."""

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.faulty_proxy import RESET_BEFORE, FaultyProxy, seeded
from tests.integration.kill_training import LIMIT_S, STARTED, Driver, pause, published_hash, weights_hash
from vast.storage import open_store
from vast.train.config import TrainConfig

HERE = Path(__file__).parent
RANKS = 2
OUTAGE_S = 30.0


def config_for(url: str, **optim: Any) -> dict[str, Any]:
    """A run of two dozen epochs of three steps, a checkpoint after every fourth step."""
    return {
        "name": "killed",
        "model": {"name": "vast_micro"},
        "data": {"url": url, "num_frames": 4, "crop_size": 32, "eval_short_side": 32, "num_readers": 0},
        "optim": {"epochs": 24, "warmup_epochs": 1, "global_batch": 8, **optim},
        "eval": {"every_epochs": 8},
        "checkpoint": {"every_epochs": 24, "every_steps": 4},
    }


def whole_weights(config: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the run without Ray and without interruption."""
    folder.mkdir()
    program = str(HERE / "train_rank.py")
    words = [[sys.executable, program, str(rank), str(RANKS), json.dumps(config), str(folder)] for rank in range(RANKS)]
    processes = [subprocess.Popen(command) for command in words]
    assert [process.wait(timeout=300) for process in processes] == [0] * RANKS
    weights: dict[str, torch.Tensor] = torch.load(folder / "out", weights_only=True)["weights"]
    return weights


def whole_hash(config: dict[str, Any], folder: Path) -> str:
    """Their hash."""
    return weights_hash(whole_weights(config, folder))


def campaign(config: dict[str, Any], output: str, whole: str, *options: str) -> dict[str, Any]:
    environment = {**os.environ, "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(HERE / "kill_training.py"), json.dumps(config), output, whole, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    print(done.stderr)
    assert done.returncode == 0, done.stderr[-8000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.survival
def test_ranks_raylet_controller_and_driver_are_killed(ssv2_shards: str, tmp_path: Path) -> None:
    config = config_for(ssv2_shards)
    whole = whole_hash(config, tmp_path / "whole")
    victims = "rank,rank,rank,driver,raylet,controller"
    found = campaign(config, str(tmp_path / "runs"), whole, "--kills", "20", "--seed", "1", "--victims", victims)
    print(found)
    assert sum(found.get(victim, 0) for victim in ("rank", "driver", "raylet", "controller")) == 20


@pytest.mark.survival
def test_the_same_weights_through_a_store_that_keeps_failing(ssv2_shards: str, s3_server: Any, tmp_path: Path) -> None:
    whole = whole_hash(config_for(ssv2_shards), tmp_path / "whole")
    bucket = s3_server.make_bucket()
    with s3_server.in_environment():
        store = open_store(f"s3://{bucket}/shards")
        for path in Path(ssv2_shards).iterdir():
            store.put_file(path.name, path)
    with FaultyProxy(s3_server.endpoint, seeded(7, 0.08)) as proxy, s3_server.in_environment():
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        options = ("--kills", "2", "--seed", "2", "--victims", "rank,driver")
        found = campaign(config_for(f"s3://{bucket}/shards"), f"s3://{bucket}/runs", whole, *options)
    print(found, dict(proxy.injected))
    assert found["rank"] + found["driver"] == 2
    assert sum(proxy.injected.values()) > 20


@pytest.mark.survival
def test_a_store_that_is_gone_for_half_a_minute(
    ssv2_shards: str, s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(ssv2_shards)
    whole = whole_hash(config, tmp_path / "whole")
    output = f"s3://{s3_server.make_bucket()}/runs"
    with FaultyProxy(s3_server.endpoint) as proxy, s3_server.in_environment():
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        driver = Driver(TrainConfig.model_validate(config), output, str(RANKS), tmp_path / "log")
        try:
            assert driver.wait(training=True)
            proxy.schedule = lambda request, number: RESET_BEFORE
            time.sleep(OUTAGE_S)
            proxy.schedule = lambda request, number: None
            assert not pause(driver, LIMIT_S)
        finally:
            driver.end()
        said = (tmp_path / "log").read_text()
        assert published_hash(f"{output}/{TrainConfig.model_validate(config).run_name()}") == whole, said
    assert proxy.injected[RESET_BEFORE] > 0
    assert "training goes on and tries again" in said
    assert said.count(STARTED) == 1  # nothing was restarted
