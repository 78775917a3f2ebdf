"""What `vast plan` predicts against what runs take: 1, 2 and 4 ranks of one small recipe on this machine.

    python benchmarks/plan_validation.py            3 rounds of 1, 2 and 4 ranks: about eight minutes on two cores
    python benchmarks/plan_validation.py --quick    1 short round

Every rank has one thread. The run on one rank, and sums over two gloo processes on the loopback, are measured; from
these alone the steps on 2 and 4 ranks are predicted, which share the cores if there are fewer. Ray's own processes take
their part of the cores too, which the plan does not know of. Memory: what a clip more in a pass adds to the largest
resident size of a process, against the activations that the plan counts. The last line is JSON; a ratio is predicted /
measured.
"""

import argparse
import json
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train_overhead import make_config

RANKS = (1, 2, 4)
CLIPS = (8, 64)
REPEATS = 20
LONG_BYTES = 64 * 2**20


def main() -> None:
    """Train in turns, predict, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=0, help="(default: 3, quick 1)")
    parser.add_argument("--side", choices=["train", "sum", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        {"train": train, "sum": sum_over_ranks, "memory": one_pass}[args.side](args.folder, args.number)
        return
    with tempfile.TemporaryDirectory(prefix="vast-plan-") as name:
        print(json.dumps(measure(Path(name), args.rounds or (1 if args.quick else 3), 6 if args.quick else 24)))


def measure(folder: Path, rounds: int, epochs: int) -> dict[str, Any]:
    """All figures."""
    from pipelines.plan.timing import Figure, Machine, plan_for
    from pipelines.plan.work import work_of
    from vast.train.config import TrainConfig

    tree = make_config(folder, epochs, num_train=64, global_batch=8)
    config = TrainConfig.model_validate(tree)
    work = work_of(config, samples=64)
    steps: dict[int, list[dict[str, float]]] = {ranks: [] for ranks in RANKS}
    sums: list[dict[str, float]] = []
    for number in range(rounds):
        for ranks in RANKS if number % 2 else RANKS[::-1]:
            turn = folder / f"{ranks}-{number}"
            turn.mkdir()
            (turn / "config.json").write_text(json.dumps({**tree, "seed": number}))
            steps[ranks].append(run("train", turn, ranks))
            print(f"{ranks} ranks: {1e3 * steps[ranks][-1]['step_s']:.1f} ms a step", flush=True)
        sums.append(run("sum", turn, 2))
    one = {part: statistics.median(told[part] for told in steps[1]) for part in ("step_s", "compute_s")}
    link = statistics.median(told["bytes_per_s"] for told in sums)
    latency = statistics.median(told["latency_s"] for told in sums)
    batch = config.optim.global_batch
    # readers run in the rank here (data.num_readers=0), so a clip costs a rank its decoding too
    machine = Machine(
        clips_per_s=Figure(batch / one["step_s"], "measured", ""),
        ranks_per_node=max(RANKS),
        full_speed_ranks=os.cpu_count() or 1,
        link_bytes_per_s=Figure(link, "measured", ""),
        inner_bytes_per_s=Figure(link, "measured", ""),
        latency_s=Figure(latency, "measured", ""),
    )
    found: dict[str, Any] = {"one_rank_ms": round(1e3 * one["step_s"], 1), "loopback_gbyte_s": round(link / 1e9, 3)}
    for ranks in RANKS[1:]:
        plan = plan_for(work, machine, ranks)
        took = statistics.median(told["step_s"] for told in steps[ranks])
        found[f"{ranks}_ranks"] = {
            "predicted_ms": round(1e3 * plan.step_s, 1),
            "measured_ms": round(1e3 * took, 1),
            "ratio": round(plan.step_s / took, 3),
        }
    few, many = (run("memory", folder, clips)["bytes"] for clips in CLIPS)
    a_clip = (many - few) / (CLIPS[1] - CLIPS[0])
    found["memory"] = {
        "predicted_mb_a_clip": round(work.kept_bytes_per_clip / 1e6, 2),
        "measured_mb_a_clip": round(a_clip / 1e6, 2),
        "ratio": round(work.kept_bytes_per_clip / a_clip, 3),
    }
    return {**found, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}


def run(side: str, folder: Path, number: int) -> dict[str, float]:
    """One measurement in processes of its own."""
    words = [__file__, "--side", side, "--folder", str(folder), "--number", str(number)]
    if side == "sum":
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    told: dict[str, float] = json.loads((folder / f"{side}.json").read_text())
    return told


def train(folder: Path, num_ranks: int) -> None:
    """The run on so many ranks, each with one CPU of Ray's and so one thread."""
    import numpy as np
    import ray

    from pipelines.terminal import Terminal
    from pipelines.training.history import read_history
    from pipelines.training.launch import connect
    from pipelines.training.launch import train as train_run
    from pipelines.training.ranks import Ranks
    from vast.train.config import TrainConfig

    ray.init("local", num_cpus=num_ranks, include_dashboard=False, object_store_memory=256 * 2**20, log_to_driver=False)
    connect(None)
    config = TrainConfig.model_validate_json((folder / "config.json").read_text())
    done = train_run(
        config, Terminal(sys.stdout), ranks=Ranks.of(num_ranks), output=str(folder / "runs"), kind="benchmark"
    )
    history = read_history(done.run_url)
    values = {name: history.series(name)[1] for name in ("time/step_s", "stall/compute")}
    told = {name: float(np.median(series[len(series) // 5 :])) for name, series in values.items()}
    plain = {"step_s": told["time/step_s"], "compute_s": told["stall/compute"]}
    (folder / "train.json").write_text(json.dumps(plain))


def sum_over_ranks(folder: Path, num_ranks: int) -> None:
    """A rank that sums a gradient's bytes, and next to nothing, over gloo."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")

    def seconds(size: int) -> float:
        values = torch.ones(size)
        times = []
        for _ in range(REPEATS):
            dist.barrier()
            begun = time.perf_counter()
            dist.all_reduce(values)
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    latency_s = seconds(1) / 2
    rate = 2 * (num_ranks - 1) / num_ranks * LONG_BYTES / seconds(LONG_BYTES // 4)
    if dist.get_rank() == 0:
        (folder / "sum.json").write_text(json.dumps({"bytes_per_s": rate, "latency_s": latency_s}))
    dist.barrier()
    os._exit(0)


def one_pass(folder: Path, clips: int) -> None:
    """The largest resident size of a process that makes one forward and backward pass."""
    import torch

    from vast.models.variants import create_model
    from vast.train.config import TrainConfig

    config = TrainConfig.model_validate_json(next(folder.glob("*/config.json")).read_text())
    model = create_model(config.model, 1000)
    side = config.data.crop_size
    model(torch.rand(clips, 3, config.data.num_frames, side, side)).sum().backward()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (folder / "memory.json").write_text(json.dumps({"bytes": peak}))


if __name__ == "__main__":
    main()
