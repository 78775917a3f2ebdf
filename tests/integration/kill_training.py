"""Trains one small run over and over, killed at random instants, and compares the weights; prints one JSON line.

    python kill_training.py CONFIG_JSON OUTPUT WHOLE --kills 20 --seed 1 [--victims rank,raylet,controller,driver]

WHOLE is the SHA-256 of the weights of the uninterrupted run (see `weights_hash`). The run is a driver of its own, which
continues by itself when a rank, Ray's controller or its raylet gets SIGKILL, and which is started again when it got one
itself. When a run ends, its weights must be those of the uninterrupted one to the last bit, and a fresh run begins.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch
from safetensors.torch import load as load_safetensors

from vast.storage import join_url, open_store
from vast.train.config import TrainConfig

# Names of the processes below a driver, as `ps` shows them.
NAMES = {"rank": "ray::RayTrainWork", "controller": "ray::TrainControl", "raylet": "raylet"}
STARTED = "steps to go"  # in the driver's story
LIMIT_S = 240.0


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """One hash of all weights, whatever file they come from."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def published_hash(run_url: str) -> str:
    return weights_hash(load_safetensors(open_store(run_url).get_bytes("model/model.safetensors")))


def drive(config: TrainConfig, output: str, ranks: str, cpus: int) -> None:
    """One driver: what `vast pretrain` does, on a local Ray with as many CPUs as asked for."""
    import ray

    from pipelines.stopping import Interrupted
    from pipelines.terminal import Terminal
    from pipelines.training.launch import train
    from pipelines.training.ranks import Ranks

    if cpus:
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        train(config, Terminal(sys.stdout), ranks=Ranks.parse(ranks), output=output, kind="test")
    except Interrupted as error:
        sys.exit(128 + error.signum)


class Driver:
    """A driver process and all that Ray starts for it."""

    def __init__(self, config: TrainConfig, output: str, ranks: str, log: Path, cpus: int = 0) -> None:
        words = [sys.executable, __file__, config.model_dump_json(), output, "-", "--drive"]
        words += ["--ranks", ranks, "--cpus", str(cpus)]
        with log.open("ab") as file:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.log = log
        self.starts = log.read_text(errors="replace").count(STARTED)

    def ended(self) -> bool:
        """Whether it has ended by itself, as it should.

        Raises:
            AssertionError: it failed.
        """
        code = self.process.poll()
        assert code in (None, 0), f"exit code {code}; it said:\n{self.log.read_text(errors='replace')[-6000:]}"
        return code == 0

    def wait(self, *, training: bool) -> bool:
        """Wait until there are ranks, or until they train; False when the driver has ended instead."""
        deadline = time.monotonic() + LIMIT_S
        while not self.ended():
            starts = self.log.read_text(errors="replace").count(STARTED)
            if self.below("rank") and (starts > self.starts or not training):
                self.starts = starts
                return True
            assert time.monotonic() < deadline, f"no ranks; it said:\n{self.log.read_text(errors='replace')[-6000:]}"
            time.sleep(0.1)
        return False

    def below(self, kind: str) -> list[psutil.Process]:
        """Its processes of one kind."""
        try:
            tree = psutil.Process(self.process.pid).children(recursive=True)
            return [process for process in tree if process.name().startswith(NAMES[kind][:15])]
        except psutil.Error:
            return []

    def end(self, patience_s: float = 0.0) -> None:
        """SIGKILL the driver, and what has not ended with it by then."""
        try:
            orphans = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            orphans = []
        self.process.kill()
        self.process.wait()
        for orphan in psutil.wait_procs(orphans, timeout=patience_s)[1]:
            orphan.kill()
        psutil.wait_procs(orphans, timeout=10)

    def kill(self, kind: str, rng: random.Random) -> bool:
        """SIGKILL one process of a kind; False when there is none now."""
        if kind == "driver":
            self.end(patience_s=rng.uniform(0, 2))  # sooner or later the host is gone with it
            return True
        try:
            rng.choice(self.below(kind)).send_signal(signal.SIGKILL)
        except (IndexError, psutil.NoSuchProcess):
            return False
        return True


def campaign(args: argparse.Namespace, rng: random.Random, scratch: Path) -> Counter[str]:
    """Kill until there have been enough; every run that ends is compared."""
    config = TrainConfig.model_validate_json(args.config)
    kinds = args.victims.split(",")
    victims = [kinds[number % len(kinds)] for number in range(args.kills)]
    rng.shuffle(victims)
    done: Counter[str] = Counter()
    while victims or not done["rounds"]:
        output, log = join_url(args.output, f"round-{done['rounds']}"), scratch / f"driver-{done['rounds']}.log"
        driver = Driver(config, output, args.ranks, log)
        # Most are hit while they train, some in the seconds of their start.
        while victims and driver.wait(training=rng.random() < 0.75) and pause(driver, rng.uniform(0, args.longest_s)):
            if driver.kill(victims[-1], rng):
                print(f"killed the {victims[-1]}", file=sys.stderr, flush=True)
                done[victims[-1]] += 1
                if victims.pop() == "driver":
                    driver = Driver(config, output, args.ranks, log)
        pause(driver, LIMIT_S)
        assert driver.ended(), f"no end after {LIMIT_S} s; it said:\n{log.read_text(errors='replace')[-6000:]}"
        found = published_hash(join_url(output, config.run_name()))
        assert found == args.whole, f"other weights; it said:\n{log.read_text(errors='replace')[-6000:]}"
        done["rounds"] += 1
    return done


def pause(driver: Driver, seconds: float) -> bool:
    """Wait; False when the driver has ended by then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if driver.ended():
            return False
        time.sleep(0.02)
    return not driver.ended()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("output")
    parser.add_argument("whole")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", default="rank,raylet,controller,driver")
    parser.add_argument("--longest-s", type=float, default=5.0)
    parser.add_argument("--ranks", default="2")
    parser.add_argument("--cpus", type=int, default=0)
    parser.add_argument("--drive", action="store_true")
    args = parser.parse_args()
    if args.drive:
        drive(TrainConfig.model_validate_json(args.config), args.output, args.ranks, args.cpus)
        return
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vast-kills-") as scratch:
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{scratch}/mlflow.db")
        done = campaign(args, random.Random(args.seed), Path(scratch))
    print(json.dumps({**done, "seed": args.seed, "seconds": round(time.monotonic() - begun)}))


if __name__ == "__main__":
    main()
