"""What the network learns because of its parts: each shift axis, and pretraining, at equal steps.

    python benchmarks/learning.py            twelve seeds of axes, three of pretraining: 75 minutes on two cores
    python benchmarks/learning.py --quick    few clips and steps: shows the path, not the accuracy

Clips are generated and really encoded (`vast synth`), and sharded with a user's commands. The SSv2-like classes come in
time-reversed pairs, so single frames reach 50 %.

1. axes: VAST-micro on 16 frames from scratch, against itself with the shift along one axis switched off. The recipe's
   own loop, one run a core.
2. start: the demo's fine-tuning from Kinetics-like pretraining, against the same from scratch. By a user's commands,
   one run after the other.

Both train for few epochs (`SHORT`). Networks learn motion late and then at once, and in the end all that can learn it
do: over twelve epochs, the luck of when they do so hides what a spatial axis is worth (`results/`).

Finished runs are kept under --out, so that an interrupted campaign continues. The last line is JSON: for every setting
top-1 of each seed with mean and deviation, and the differences that matter, in points:

    margin_over_ablated         the whole network minus the one with an axis off, seed by seed, with its standard error
    margin_over_best_ablated    the smallest of their means
    margin_over_scratch         mean from pretraining minus mean from scratch
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from pipelines.config import resolve
from pipelines.training.launch import ALLOCATOR
from vast.train.job import Place
from vast.train.loop import Run
from vast.train.metrics import Score

WHOLE = "all axes"
AXES = {
    WHOLE: [],
    "no shift along time": ["model.temporal_shift=false"],
    "no shift along height": ["model.vertical_shift=false"],
    "no shift along width": ["model.horizontal_shift=false"],
}
KINETICS_LISTS = ["--annotations", "annotations", "--videos", "videos"]
FRAMES = ["data.num_frames=16", "data.num_readers=0"]
LONG = ["optim.epochs=16", "eval.every_epochs=16", "checkpoint.every_epochs=16"]
"""Pretraining until it tells motion: after the demo's 6 epochs of half the clips it goes by looks (42 % of 8 classes),
and starting from that is worse than starting from scratch (51 % against 83 % after `SHORT`, seed 0;
both measured at a rate of 4e-3)."""
SHORT = ["optim.epochs=3", "optim.warmup_epochs=0.5", "eval.every_epochs=3", "checkpoint.every_epochs=3"]
"""So few steps that starting from scratch has hardly begun to learn motion."""
STARTS = {"from pretraining": True, "from scratch": False}


def main() -> None:
    """Make the clips, train every setting, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few clips and steps")
    parser.add_argument("--seeds", type=int, metavar="N", help="(default: 12 of axes, 3 of start)")
    parser.add_argument("--only", choices=["axes", "start"], help="one part")
    parser.add_argument("--out", default=".vast/learning", metavar="DIR", help="(default: .vast/learning)")
    args = parser.parse_args()
    out = Path(args.out).resolve() / ("quick" if args.quick else "full")
    num_train, num_val, num_kinetics_val = (32, 16, 8) if args.quick else (640, 960, 80)
    less = ["optim.epochs=1", "optim.warmup_epochs=0", "eval.every_epochs=1"] if args.quick else []
    ssv2 = make_set(
        out, "ssv2", num_train, num_val, ["--annotations", "labels", "--videos", "20bn-something-something-v2"]
    )
    scores: dict[str, list[float]] = {}
    if args.only != "start":
        scores |= compare_axes(out, ssv2, 1 if args.quick else args.seeds or 12, less)
    if args.only != "axes":
        kinetics = make_set(out, "kinetics", num_train, num_kinetics_val, KINETICS_LISTS)
        scores |= compare_starts(out, ssv2, kinetics, 1 if args.quick else args.seeds or 3, less)
    print(json.dumps(summary(scores, args.quick)))


def compare_axes(out: Path, ssv2: Path, num_seeds: int, less: list[str]) -> dict[str, list[float]]:
    """Top-1 of each axis, seed by seed."""
    settings = list(itertools.product(range(num_seeds), AXES))  # seed by seed, so that what is there early compares
    jobs = []
    for seed, axis in settings:
        name = f"axes-{list(AXES).index(axis)}-{seed}"
        jobs.append([*FRAMES, *SHORT, *AXES[axis], *less, f"data.url={ssv2}", f"seed={seed}", f"name={name}"])
    scores: dict[str, list[float]] = {}
    os.environ |= ALLOCATOR
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for (seed, axis), found in zip(settings, pool.map(partial(train_here, out), jobs), strict=True):
            scores.setdefault(axis, []).append(found)
            print(f"{axis}, seed {seed}: {found:.1f} %", flush=True)
    return scores


def compare_starts(out: Path, ssv2: Path, kinetics: Path, num_seeds: int, less: list[str]) -> dict[str, list[float]]:
    """Top-1 from pretraining and from scratch, seed by seed."""
    scores: dict[str, list[float]] = {}
    for seed in range(num_seeds):
        model, _ = train(out, "demo_pretrain_kinetics", [*LONG, *less, f"data.url={kinetics}", f"seed={seed}"])
        for label, pretrained in STARTS.items():
            begun = [f"init_from={model}"] if pretrained else []
            words = [*SHORT, *begun, *less, f"data.url={ssv2}", f"seed={seed}", f"name=start-{pretrained:d}"]
            scores.setdefault(label, []).append(train(out, "demo_finetune_ssv2", words)[1])
    return scores


def make_set(out: Path, kind: str, num_train: int, num_val: int, layout: list[str]) -> Path:
    """Generate and shard one data set, unless it is there."""
    raw, shards = out / "raw" / kind, out / "shards" / kind
    if not raw.is_dir():
        vast("synth", kind, "--out", str(raw), "--train", str(num_train), "--val", str(num_val))
    if not (shards / "manifest.json").is_file():
        paths = [str(raw / word) if not word.startswith("--") else word for word in layout]
        classes = ["--classes", str(raw / "annotations" / "classes.txt")] if kind == "kinetics" else []
        name = "kinetics400" if kind == "kinetics" else kind
        vast("shard", name, *paths, *classes, "--out", str(shards), "--short-side", "96", "--samples-per-shard", "50")
    return shards


class Watcher:
    """Observer that keeps the last score, and tracker of nothing."""

    top1 = 0.0

    def evaluated(self, epoch: int, step: int, result: Score) -> bool:
        """Keep it."""
        self.top1 = result.top1
        return False

    def wants_stop(self) -> bool:
        """Never."""
        return False

    def started(self, message: str, step: int, total_steps: int) -> None:
        """Nothing."""

    def stepped(self, step: int, total_steps: int, figures: dict[str, float]) -> None:
        """Nothing."""

    def saved(self, step: int, figures: dict[str, float], write: Callable[[Path], None]) -> None:
        """Nothing."""

    def noted(self, text: str) -> None:
        """Nothing."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Nothing."""


def train_here(out: Path, words: list[str]) -> float:
    """Train the demo's fine-tuning in this process, on one thread, or read its top-1 if it is done."""
    config = resolve("demo_finetune_ssv2", words)
    kept = out / "axes" / f"{config.run_name()}.json"
    if not kept.is_file():
        torch.set_num_threads(1)
        watcher = Watcher()
        Run(config, Place(), watcher, watcher).fit()
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(watcher.top1))
    return float(json.loads(kept.read_text()))


def train(out: Path, recipe: str, words: list[str]) -> tuple[str, float]:
    """Train a recipe by command (or find it finished) and return the model's URL and its top-1."""
    said = vast("finetune", recipe, "--output", str(out / "runs"), "--ranks", "2", *words)
    model = next(line.split(maxsplit=1)[1] for line in said.splitlines() if line.startswith("model "))
    run = Path(model).parent
    top1: float = json.loads((run / "result.json").read_text())["score"]["top1"]
    print(f"{run.name}: {top1:.1f} %  ({' '.join(words)})", flush=True)
    return model, top1


def vast(*words: str) -> str:
    """Run a `vast` command as a user would."""
    done = subprocess.run([sys.executable, "-m", "pipelines.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"vast {' '.join(words)} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def summary(scores: dict[str, list[float]], quick: bool) -> dict[str, Any]:
    """Means, deviations, and the margins."""
    figures: dict[str, Any] = {"quick": quick, "top1": {label: spread(found) for label, found in scores.items()}}
    if WHOLE in scores:
        margins = {axis: margin(scores[WHOLE], scores[axis]) for axis in AXES if axis != WHOLE}
        figures["margin_over_ablated"] = margins
        figures["margin_over_best_ablated"] = min(found["mean"] for found in margins.values())
    if all(label in scores for label in STARTS):
        pretrained, scratch = (figures["top1"][label]["mean"] for label in STARTS)
        figures["margin_over_scratch"] = round(pretrained - scratch, 2)
    return figures


def margin(whole: list[float], ablated: list[float]) -> dict[str, Any]:
    """Mean of the seeds' own differences, and its standard error."""
    differences = [one - other for one, other in zip(whole, ablated, strict=True)]
    found = spread(differences)
    error = None if found["std"] is None else round(found["std"] / len(differences) ** 0.5, 2)
    return {**found, "standard_error": error}


def spread(values: list[float]) -> dict[str, Any]:
    """Each value, their mean and deviation."""
    return {
        "seeds": [round(value, 2) for value in values],
        "mean": round(statistics.mean(values), 2),
        "std": round(statistics.stdev(values), 2) if len(values) > 1 else None,
    }


if __name__ == "__main__":
    main()
