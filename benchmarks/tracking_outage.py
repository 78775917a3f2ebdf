"""What a training step costs while the MLflow server is dead, against while it answers, in turns within one run.

    python benchmarks/tracking_outage.py            6 rounds of 40 s a side: about twelve minutes
    python benchmarks/tracking_outage.py --quick    1 round of 15 s a side: shows the path

One rank of `vast finetune` trains on generated clips and logs some twenty figures every second step, many times what a
real run logs. In each round the server is killed (SIGKILL), and started again over the same database. The seconds in
which it starts and takes what had waited are left out: importing MLflow keeps a core busy on whatever machine it runs,
here the rank's own. A round's ratio is the median step without the server over the median of the two sides around it.
The last line is JSON; `points_missing` and `points_doubled` compare the database with what the run logged, at its end.
"""

import argparse
import collections
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from learning import make_set
from mlflow import MlflowClient

from pipelines.training.history import History, read_history

SETTLE_S = 5.0
LIMIT_S = 180.0
LONG_RUN = ["optim.epochs=100000", "eval.every_epochs=100000", "checkpoint.every_epochs=100000", "log_every_steps=2"]
SMALL = ["data.num_frames=4", "data.crop_size=32", "data.eval_short_side=32", "data.num_readers=0"]


class Server:
    """MLflow over a database, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        words += ["--artifacts-destination", str(self.folder / "files")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words], env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)
                return
            time.sleep(0.3)
        raise SystemExit(f"the MLflow server did not start: {self.folder / 'mlflow.log'}")

    def kill(self) -> None:
        """SIGKILL, workers too."""
        for process in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def main() -> None:
    """Train, kill and start the server in turns, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=0, help="(default: 6, quick 1)")
    parser.add_argument("--out", default=".vast/outage", metavar="DIR", help="(default: .vast/outage)")
    args = parser.parse_args()
    rounds, side_s = args.rounds or (1 if args.quick else 6), 15.0 if args.quick else 40.0
    out = Path(args.out).resolve()
    shutil.rmtree(out / "measured", ignore_errors=True)
    ssv2 = make_set(out, "ssv2", (32, 16), ["--annotations", "labels", "--videos", "20bn-something-something-v2"])
    folder = out / "measured"
    folder.mkdir()
    server = Server(folder)
    server.start()
    try:
        windows, run = measure(folder, server, ssv2, rounds, side_s)
        history = read_history(str(run))
        print(json.dumps({**ratios(history, windows), **kept(server, history)}))
    finally:
        server.kill()


def measure(
    folder: Path, server: Server, ssv2: Path, rounds: int, side_s: float
) -> tuple[list[tuple[float, float]], Path]:
    """Train through the rounds.

    Returns:
        Begin and end of each side in seconds since 1970, with the server answering in those of even number; the run.
    """
    words = ["finetune", "demo_finetune_ssv2", f"data.url={ssv2}", *SMALL, *LONG_RUN, "--output", str(folder / "runs")]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri, "VAST_SPOOL": str(folder / "spool")}
    with (folder / "driver.log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *words, "--ranks", "1"], env=environment, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: losses(server), driver)
        windows = [side(side_s)]
        for number in range(rounds):
            server.kill()
            windows.append(side(side_s))
            server.start()
            wait_for(lambda: not any(path.stat().st_size for path in folder.glob("spool/*/*.points")), driver)
            windows.append(side(side_s))
            print(f"round {number + 1} of {rounds} done", flush=True)
        driver.send_signal(signal.SIGTERM)
        driver.wait(timeout=LIMIT_S)
    finally:
        if driver.poll() is None:
            driver.kill()
    (run,) = (folder / "runs").iterdir()
    return windows, run


def side(seconds: float) -> tuple[float, float]:
    """Let things settle, then let some seconds pass."""
    time.sleep(SETTLE_S)
    begun = time.time()
    time.sleep(seconds)
    return begun, time.time()


def wait_for(ready: Any, driver: "subprocess.Popen[bytes]") -> None:
    """Wait until something is so while the run goes on."""
    deadline = time.monotonic() + LIMIT_S
    while not ready():
        if driver.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the run ended, or what was waited for did not come; see driver.log")
        time.sleep(0.2)


def ratios(history: History, windows: list[tuple[float, float]]) -> dict[str, Any]:
    """Step times of the sides, and what they say."""
    step_s, at_s = history.value_S_of["time/step_s"], history.at_ms_S / 1e3
    sides = [step_s[(at_s > begun) & (at_s < ended)] for begun, ended in windows]
    medians = [float(np.median(values)) for values in sides]
    found = [medians[n] / statistics.mean((medians[n - 1], medians[n + 1])) for n in range(1, len(medians), 2)]
    return {
        "ratio": round(statistics.median(found), 4),
        "ratios": [round(ratio, 4) for ratio in found],
        "step_ms_with": [round(1e3 * median, 2) for median in medians[::2]],
        "step_ms_without": [round(1e3 * median, 2) for median in medians[1::2]],
        "p99_ms_with": round(1e3 * float(np.percentile(np.concatenate(sides[::2]), 99)), 1),
        "p99_ms_without": round(1e3 * float(np.percentile(np.concatenate(sides[1::2]), 99)), 1),
        "logs_a_side": round(statistics.mean(map(len, sides))),
        "load": round(os.getloadavg()[0], 1),
    }


def losses(server: Server) -> list[int]:
    """Steps whose loss the server has."""
    client = MlflowClient(server.uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return [point.step for run in runs for point in client.get_metric_history(run.info.run_id, "train/loss")]


def kept(server: Server, history: History) -> dict[str, int]:
    """Points of the run's loss in the database, against those that it logged."""
    there = collections.Counter(losses(server))
    logged = {int(step) for step in history.step_S[~np.isnan(history.value_S_of["train/loss"])]}
    return {
        "points": len(logged),
        "points_missing": len(logged - set(there)),
        "points_doubled": sum(count - 1 for count in there.values()),
    }


if __name__ == "__main__":
    main()
