"""What the network learns because of its parts: each shift axis, and pretraining, at equal steps.

    python benchmarks/learning.py            16 frames, three seeds: about half an hour on two cores
    python benchmarks/learning.py --quick    few clips and steps: shows the path, not the accuracy

Clips are generated and really encoded (`vast synth`), sharded and trained with the same commands as a user's. The
SSv2-like classes come in time-reversed pairs, so single frames reach 50 %.

1. VAST-micro on 16 frames from scratch, against itself with the shift along one axis switched off.
2. Few steps of the demo's fine-tuning from Kinetics-like pretraining, against the same steps from scratch.

Finished runs are kept under --out, so an interrupted campaign continues. The last line is JSON: for every setting top-1
of each seed with mean and deviation, and the two differences that matter:

    margin_over_best_ablated    mean of the whole network minus the best mean with one axis off, in points
    margin_over_scratch         mean from pretraining minus mean from scratch, in points
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

WHOLE = "all axes"
AXES = {
    WHOLE: [],
    "no shift along time": ["model.temporal_shift=false"],
    "no shift along height": ["model.vertical_shift=false"],
    "no shift along width": ["model.horizontal_shift=false"],
}
FRAMES = ["data.num_frames=16", "optim.epochs=12", "eval.every_epochs=12", "checkpoint.every_epochs=12"]
"""The demo's steps. After half of them it is chance whether a network has learned motion yet: with all axes 98 and 50 %
(seeds 0 and 1), without height 60 and 86 %, without width 74 and 51 %."""
LONG = ["optim.epochs=16", "eval.every_epochs=16", "checkpoint.every_epochs=16"]
"""Pretraining until it tells motion: after the demo's 6 epochs of half the clips it goes by looks (42 % of 8 classes),
and starting from that is worse than starting from scratch (51 % against 83 % after `SHORT`, seed 0)."""
SHORT = ["optim.epochs=3", "optim.warmup_epochs=0.5", "eval.every_epochs=3", "checkpoint.every_epochs=3"]
"""So few steps that starting from scratch has not learned motion yet."""


def main() -> None:
    """Make the clips, train every setting, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few clips and steps")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--out", default=".vast/learning", metavar="DIR", help="(default: .vast/learning)")
    args = parser.parse_args()
    out = Path(args.out).resolve() / ("quick" if args.quick else "full")
    clips = (32, 16) if args.quick else (640, 240)
    seeds = range(1 if args.quick else args.seeds)
    less = ["optim.epochs=1", "optim.warmup_epochs=0", "eval.every_epochs=1"] if args.quick else []
    ssv2 = make_set(out, "ssv2", clips, ["--annotations", "labels", "--videos", "20bn-something-something-v2"])
    kinetics_lists = ["--annotations", "annotations", "--videos", "videos"]
    kinetics = make_set(out, "kinetics", (clips[0], clips[1] // 3), kinetics_lists)

    scores: dict[str, list[float]] = {}
    for seed in seeds:
        for number, (label, switches) in enumerate(AXES.items()):
            words = [*FRAMES, *switches, *less, f"data.url={ssv2}", f"seed={seed}", f"name=axes-{number}"]
            scores.setdefault(label, []).append(train(out, "demo_finetune_ssv2", words)[1])
        words = [*LONG, *less, f"data.url={kinetics}", f"seed={seed}"]
        model, _ = train(out, "demo_pretrain_kinetics", words)
        for label, start in (("from pretraining", [f"init_from={model}"]), ("from scratch", [])):
            words = [*SHORT, *start, *less, f"data.url={ssv2}", f"seed={seed}", f"name=start-{len(start)}"]
            scores.setdefault(label, []).append(train(out, "demo_finetune_ssv2", words)[1])
    print(json.dumps(summary(scores, args.quick)))


def make_set(out: Path, kind: str, clips: tuple[int, int], layout: list[str]) -> Path:
    """Generate and shard one data set, unless it is there."""
    raw, shards = out / "raw" / kind, out / "shards" / kind
    if not raw.is_dir():
        vast("synth", kind, "--out", str(raw), "--train", str(clips[0]), "--val", str(clips[1]))
    if not (shards / "manifest.json").is_file():
        paths = [str(raw / word) if not word.startswith("--") else word for word in layout]
        classes = ["--classes", str(raw / "annotations" / "classes.txt")] if kind == "kinetics" else []
        name = "kinetics400" if kind == "kinetics" else kind
        vast("shard", name, *paths, *classes, "--out", str(shards), "--short-side", "96", "--samples-per-shard", "50")
    return shards


def train(out: Path, recipe: str, words: list[str]) -> tuple[str, float]:
    """Train a recipe (or find it finished) and return the model's URL and its top-1 in percent."""
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
    """Means, deviations, and the two margins."""
    means = {label: statistics.mean(values) for label, values in scores.items()}
    return {
        "quick": quick,
        "top1": {
            label: {
                "seeds": [round(value, 2) for value in values],
                "mean": round(means[label], 2),
                "std": round(statistics.stdev(values), 2) if len(values) > 1 else None,
            }
            for label, values in scores.items()
        },
        "margin_over_best_ablated": round(means[WHOLE] - max(means[label] for label in AXES if label != WHOLE), 2),
        "margin_over_scratch": round(means["from pretraining"] - means["from scratch"], 2),
    }


if __name__ == "__main__":
    main()
