"""What the whole stack costs a training step: Ray Train, tracking and checkpoints against bare torchrun DDP.

    python benchmarks/train_overhead.py            5 rounds of 120 steps a side: about ten minutes on two cores
    python benchmarks/train_overhead.py --quick    2 rounds of 40 steps, about two minutes

A step of either side is 32 clips in one pass, about a third of a second here; `overhead_ms` is what the stack adds.

By default ranks take half the cores. What Ray runs on every machine besides them (daemons, and actors of Ray Train that
wake a hundred times a second each) takes about a tenth of a core whatever the ranks do: little beside a training node's
cores, but a twentieth of a machine of two cores that has a rank on each, which `--ranks 2` shows there.

Both sides train the same model from the same TrainLoader with the same optimizer on as many ranks, in turns. The bare
side is what one writes by hand under torchrun: load, forward, backward, clip, step; nothing is logged, scored or saved.
The stack is `vast pretrain`: supervised Ray Train, figures to MLflow every tenth step, a checkpoint after every 40th.
Evaluation is left out on both sides. A step's time is that of all steps after the first ten, divided by their number;
`ratio` is the median over the rounds. The last line is JSON, with the seconds from the command to the first step.
"""

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM_UP = 10


def main() -> None:
    """Make clips, let the sides take turns, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=0, help="turns of each side (default: 5, quick 2)")
    parser.add_argument("--ranks", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--side", choices=["bare", "stack"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        if args.side == "bare":
            bare(args.folder)
        else:
            stack(args.folder, args.ranks)
        return
    num_rounds = args.rounds or (2 if args.quick else 5)
    with tempfile.TemporaryDirectory(prefix="vast-overhead-") as name:
        figures = measure(Path(name), args.ranks, num_rounds, epochs=10 if args.quick else 30)
    print(json.dumps(figures))


def measure(folder: Path, num_ranks: int, num_rounds: int, epochs: int) -> dict[str, Any]:
    """All figures, from rounds in which each side trains once."""
    config = make_config(folder, epochs, num_train=128, global_batch=32)
    found: dict[str, list[dict[str, Any]]] = {"bare": [], "stack": []}
    for number in range(num_rounds):
        for side in ("bare", "stack") if number % 2 else ("stack", "bare"):
            turn = folder / f"{side}-{number}"
            turn.mkdir()
            (turn / "config.json").write_text(json.dumps({**config, "seed": number}))
            found[side].append(run(side, turn, num_ranks))
            told = found[side][-1]
            print(
                f"{side:5}  {told['step_s'] * 1e3:7.1f} ms a step; first step after {told['first_step_s']:.1f} s",
                flush=True,
            )
    steps = [(bare["step_s"], stack["step_s"]) for bare, stack in zip(found["bare"], found["stack"], strict=True)]
    ratios = [stack_s / bare_s for bare_s, stack_s in steps]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "overhead_ms": round(1e3 * statistics.median(stack_s - bare_s for bare_s, stack_s in steps), 2),
        "bare_step_s": _median(found["bare"], "step_s"),
        "stack_step_s": _median(found["stack"], "step_s"),
        "bare_first_step_s": _median(found["bare"], "first_step_s"),
        "stack_first_step_s": _median(found["stack"], "first_step_s"),
        "stack_start": {part: _median([told["start"] for told in found["stack"]], part) for part in START_PARTS},
        "steps": found["bare"][0]["steps"],
        "ranks": num_ranks,
        "load": round(os.getloadavg()[0], 1),
    }


def _median(entries: list[dict[str, Any]], name: str) -> float:
    return round(statistics.median(entry[name] for entry in entries), 4)


def make_config(folder: Path, epochs: int, num_train: int, global_batch: int) -> dict[str, Any]:
    """A data set of generated clips and a run on it."""
    from preprocessing.build import build_dataset
    from preprocessing.ssv2 import read_ssv2
    from preprocessing.synth import synth_ssv2
    from preprocessing.transcode import TranscodeSettings

    made = synth_ssv2(folder / "raw", num_train=num_train, num_val=8, seed=3, num_workers=1)
    annotations = read_ssv2(made.annotations, made.videos)
    url = str(folder / "shards")
    build_dataset(url, annotations, TranscodeSettings(short_side=64), samples_per_shard=32, num_workers=0)
    return {
        "name": "overhead",
        "model": {"name": "vast_micro"},
        "data": {"url": url, "num_frames": 8, "crop_size": 64, "eval_short_side": 64, "num_readers": 0},
        # one pass a step, as the bare side takes it
        "optim": {"epochs": epochs, "global_batch": global_batch, "max_micro_batch": global_batch},
        "eval": {"every_epochs": epochs},
        "checkpoint": {"every_epochs": epochs, "every_steps": 40},
        "log_every_steps": 10,
    }


def run(side: str, turn: Path, num_ranks: int) -> dict[str, Any]:
    """One side's turn, in processes of its own; times are from before they start."""
    from pipelines.training.launch import ALLOCATOR

    words = [__file__, "--side", side, "--folder", str(turn), "--ranks", str(num_ranks)]
    if side == "bare":
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BEGUN": str(time.time())}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{turn}/mlflow.db", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # what the stack sets for its ranks, so that the allocator is not what is compared
    environment |= ALLOCATOR
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the {side} side failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    told: dict[str, Any] = json.loads((turn / "told.json").read_text())
    return told


def since_begun() -> float:
    """Seconds since the command was given."""
    return time.time() - float(os.environ["BEGUN"])


def tell(folder: Path, times: dict[int, float], first_step_s: float, **more: Any) -> None:
    """Write a side's figures: `times` has clock readings by the number of steps done."""
    steps = [step for step in times if step >= WARM_UP]
    first, last = min(steps), max(steps)
    told = {"step_s": (times[last] - times[first]) / (last - first), "steps": last, "first_step_s": first_step_s}
    (folder / "told.json").write_text(json.dumps({**told, **more}))


# --- bare -------------------------------------------------------------------------------------------------------------


def bare(folder: Path) -> None:
    """One rank under torchrun."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.functional import cross_entropy

    from vast.data.augment import normalise
    from vast.data.dataset import ShardDataset
    from vast.data.loader import TrainLoader
    from vast.models.variants import create_model
    from vast.train.config import TrainConfig
    from vast.train.optim import build_optimizer, learning_rate, set_learning_rate

    dist.init_process_group("gloo")
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    config = TrainConfig.model_validate_json((folder / "config.json").read_text())
    dataset = ShardDataset(config.data.url, config.data.train_split)
    torch.manual_seed(config.seed)
    model = create_model(config.model, num_classes=len(dataset.classes))
    optimizer = build_optimizer(model, config.optim)
    network: nn.Module = model
    if num_ranks > 1:
        network = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
    batch = config.optim.global_batch
    per_epoch = len(dataset) // batch
    stop = per_epoch * config.optim.epochs
    loader = TrainLoader(
        dataset, config.data, seed=config.seed, global_batch=batch, rank=rank, num_ranks=num_ranks, stop_step=stop
    )
    times: dict[int, float] = {}
    first_step_s = 0.0
    for step, (micro_batch,) in loader:
        set_learning_rate(optimizer, learning_rate(step, config.optim, per_epoch))
        optimizer.zero_grad(set_to_none=True)
        logits_BK = network(normalise(micro_batch.clip_BCTHW, config.data.mean, config.data.std))
        cross_entropy(logits_BK, micro_batch.label_B).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
        times[step + 1] = time.time()
        first_step_s = first_step_s or since_begun()
    if rank == 0:
        tell(folder, times, first_step_s)
    dist.barrier()
    os._exit(0)  # freeing what DDP holds may wait for gloo's threads for ever; see vast.train.evaluate


# --- the stack --------------------------------------------------------------------------------------------------------

START_PARTS = ("imports_s", "ray_s", "tracking_run_s", "ranks_s", "first_step_s")


def stack(folder: Path, num_ranks: int) -> None:
    """The driver of `vast pretrain`, with a terminal that keeps the time."""
    import pipelines.training.launch
    from pipelines.terminal import Bar, Terminal
    from pipelines.training.ranks import Ranks
    from vast.train.config import TrainConfig

    at: dict[str, float] = {}

    class Clock(Terminal):
        def say(self, text: str, style: str = "") -> None:
            super().say(text, style)
            if config.run_name() in text:
                at.setdefault("tracking_run_s", since_begun())
            if "steps to go" in text:
                at.setdefault("ranks_s", since_begun())

    class Watch(Bar):
        def set(self, done: int, total: int | None, note: str = "") -> None:
            if done > 0:
                at.setdefault("first_step_s", since_begun())

    config = TrainConfig.model_validate_json((folder / "config.json").read_text())
    terminal = Clock(sys.stdout)
    terminal.progress = lambda what, total: _Entered(Watch(lambda *_: None))  # type: ignore[method-assign,assignment]
    at["imports_s"] = since_begun()
    pipelines.training.launch.connect(None)
    at["ray_s"] = since_begun()
    done = pipelines.training.launch.train(
        config, terminal, ranks=Ranks.of(num_ranks), output=str(folder / "runs"), kind="benchmark"
    )
    from mlflow import MlflowClient

    history = MlflowClient(done.tracking.tracking_uri).get_metric_history(done.tracking.run_id, "train/loss")
    # logged when the step was done; what is before the first one is start-up, and the steps before ten are warm-up
    times = {point.step: point.timestamp / 1000 for point in history}
    begun = [0.0, *(at[part] for part in START_PARTS[:-1])]
    parts = {part: round(at[part] - before, 3) for part, before in zip(START_PARTS, begun, strict=True)}
    tell(folder, times, at["first_step_s"], start=parts)


class _Entered:
    """A context manager that gives what it was given."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __enter__(self) -> Any:
        return self.value

    def __exit__(self, *error: object) -> None:
        """Nothing."""


if __name__ == "__main__":
    main()
