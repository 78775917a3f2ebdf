"""Training across three hosts: one is killed, one is cut off and comes back; the weights are those of a single host."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from pipelines.training.history import read_history
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


def test_a_run_leaves_a_host_that_is_drained_and_takes_another_that_joins(ssv2_shards: str, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    tree = config_for(ssv2_shards, epochs=20_000)  # more than it will come to
    tree |= {"eval": {"every_epochs": 20_000}, "checkpoint": {"every_epochs": 20_000, "every_steps": 20}}
    recipe, log = tmp_path / "recipe.yaml", tmp_path / "driver.log"
    recipe.write_text(yaml.safe_dump(tree))
    (folder := tmp_path / "cluster").mkdir()
    with cluster(folder, [1, 1]) as made:
        words = [sys.executable, "-m", "pipelines.cli", "pretrain", str(recipe), "--ranks", "1..2"]
        words += ["--address", made.head_address, "--output", str(tmp_path / "runs")]
        database = f"sqlite:///{tmp_path}/mlflow.db"
        driver = made.popen(made.hosts[0], words, log, MLFLOW_TRACKING_URI=database)

        def said(what: str) -> bool:
            text = log.read_text(errors="replace")
            assert driver.poll() is None, text[-6000:]
            return what in text

        wait_for("two ranks", lambda: said("on 2 rank(s)"), log)
        wait_for("a checkpoint", lambda: list(tmp_path.glob("runs/*/step-*/checkpoint.json")), log)
        made.drain(made.hosts[1])
        wait_for("the notice", lambda: said("the ranks were told to go and have saved"), log)
        wait_for("one rank", lambda: said("on 1 rank(s)"), log)
        made.hosts[1].kill()  # as its owner does at the deadline

        joined = made.add_link(2, 1)
        made.start_ray(joined)
        wait_for("two ranks again", lambda: log.read_text(errors="replace").count("on 2 rank(s)") == 2, log)
        assert joined.has_rank()
        newest = len(list(tmp_path.glob("runs/*/history/*")))
        wait_for("a save", lambda: len(list(tmp_path.glob("runs/*/history/*"))) > newest, log)
        driver.send_signal(signal.SIGTERM)  # `ip netns exec` has become the driver
        assert driver.wait(timeout=LIMIT_S) == 128 + signal.SIGTERM, log.read_text(errors="replace")[-6000:]

    (run,) = (tmp_path / "runs").iterdir()
    logged, _ = read_history(str(run)).series("train/loss")  # every tenth step, and the last one before each end
    assert set(range(10, int(logged[-1]) + 1, 10)) <= set(logged.tolist())
    client = MlflowClient(database)
    (tracked,) = client.search_runs([client.get_experiment_by_name("vast").experiment_id])
    points = client.get_metric_history(tracked.info.run_id, "train/loss")
    assert sorted(point.step for point in points) == logged.tolist()  # each once


def test_check_finds_a_firewall_between_hosts(ssv2_shards: str, tmp_path: Path) -> None:
    if reason := why_not() or ("" if shutil.which("nft") else "a firewall needs nftables"):
        pytest.skip(reason)
    words = [sys.executable, "-m", "pipelines.cli", "check", "demo_finetune_ssv2", f"data.url={ssv2_shards}", "--json"]
    words += ["data.num_frames=4", "data.crop_size=32", "data.eval_short_side=32", "optim.global_batch=8"]
    with cluster(tmp_path, [1, 1]) as made:

        def links() -> list[str]:
            done = subprocess.run(
                ["ip", "netns", "exec", made.hosts[0].name, *words, "--ranks", "2", "--address", made.head_address],
                env={**made.environment(), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
            plain = json.loads(done.stdout)
            problems = [one for one in plain["problems"] if one["area"] == "links"]
            assert done.returncode == (1 if problems else 0), done.stdout
            assert (plain["measured"].get("all_reduce_bytes_per_s", 0) > 0) is not bool(problems)
            return [f"{one['found']}. {one['advice']}" for one in problems]

        made.close_ports(made.hosts[0])  # where the ranks meet
        (told,) = links()
        assert "cannot sum over each other" in told
        assert "Open all TCP ports between the nodes" in told
        made.open_ports(made.hosts[0])
        assert links() == []


def test_a_stranger_without_the_token_is_not_let_in(hosts: Cluster) -> None:
    program = f"import ray; ray.init({hosts.head_address!r}); print('in')"
    words = ["ip", "netns", "exec", hosts.hosts[1].name, sys.executable, "-c", program]
    environment = {**hosts.environment(), "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "in" not in done.stdout.split()
    assert "token" in done.stderr.lower(), json.dumps(done.stderr[-2000:])
