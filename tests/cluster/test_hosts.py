"""Training across three hosts: one is killed, one is cut off and comes back; the weights are those of a single host."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.hosts import Cluster, Host, cluster, why_not
from tests.integration.kill_training import published_hash
from tests.integration.test_kill_training import config_for, whole_hash
from vast.train.config import TrainConfig

pytestmark = pytest.mark.cluster
LIMIT_S = 300.0
STARTED = "steps to go"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path / "cluster"
    folder.mkdir()
    with cluster(folder, [1, 1, 1]) as made:
        yield made


def wait_for(what: str, condition: object, log: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"waited for {what}; it said:\n{log.read_text(errors='replace')[-6000:]}"
        time.sleep(0.3)


def victim(made: Cluster) -> Host:
    """A host with a rank that is not the head."""
    return next(host for host in made.hosts[1:] if host.has_rank())


def test_a_host_that_dies_and_a_host_that_is_cut_off(hosts: Cluster, ssv2_shards: str, tmp_path: Path) -> None:
    config = config_for(ssv2_shards, epochs=40)
    whole = whole_hash(config, tmp_path / "whole")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config))
    log = tmp_path / "driver.log"
    words = [sys.executable, "-m", "pipelines.cli", "pretrain", str(recipe), "--ranks", "2"]
    words += ["--address", hosts.head_address, "--output", str(tmp_path / "runs")]
    driver = hosts.popen(hosts.hosts[0], words, log, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db")

    def starts() -> int:
        assert driver.poll() in (None, 0), log.read_text(errors="replace")[-6000:]
        return log.read_text(errors="replace").count(STARTED)

    def run_url() -> Path:
        return tmp_path / "runs" / TrainConfig.model_validate(config).run_name()

    wait_for("training", lambda: starts() == 1, log)
    wait_for("a checkpoint", lambda: (run_url() / "checkpoint_manager_snapshot.json").exists(), log)
    assert sum(host.has_rank() for host in hosts.hosts) == 2
    killed = victim(hosts)
    assert killed.kill() > 3
    wait_for("training without the killed host", lambda: starts() == 2, log)

    hosts.start_ray(killed)
    cut_off = victim(hosts)
    hosts.cut(cut_off)
    wait_for("training without the host that is cut off", lambda: starts() == 3, log)
    hosts.heal(cut_off)

    assert driver.wait(timeout=LIMIT_S) == 0, log.read_text(errors="replace")[-6000:]
    said = log.read_text(errors="replace")
    assert "resumed at step" in said
    assert published_hash(str(run_url())) == whole, said[-6000:]


def test_a_stranger_without_the_token_is_not_let_in(hosts: Cluster) -> None:
    program = f"import ray; ray.init({hosts.head_address!r}); print('in')"
    words = ["ip", "netns", "exec", hosts.hosts[1].name, sys.executable, "-c", program]
    environment = {**hosts.environment(), "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "in" not in done.stdout.split()
    assert "token" in done.stderr.lower(), json.dumps(done.stderr[-2000:])
