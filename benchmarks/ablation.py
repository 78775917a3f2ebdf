"""Which mixer, and which switches of the Affine-Shift block, learn motion best at equal multiply-adds.

    python benchmarks/ablation.py --jobs 2      the whole campaign, resumable; writes the table into benchmarks/results
    python benchmarks/ablation.py --report      the table of the runs that are there, nothing is trained
    python benchmarks/ablation.py --quick       four short runs on generated clips, about a minute

One small skeleton (8 frames of 32x32 pixels, patches of 8x8, 4 blocks of 64 channels) is trained on two sets of clips
whose labels only the order of frames tells (`ablation_parts.clips`). Tokens, width and depth are the same everywhere;
what a mixer saves or costs goes into the hidden width of the MLPs until the multiply-adds of a clip agree with those of
the default block with an MLP ratio of 4. Steps, batches, weight decay and warm-up are equal too. The learning rate is
each mixer's best of `LEARNING_RATES` on generated validation clips, with a seed that is not in the table; a switch of
Affine-Shift keeps Affine-Shift's rate. How hard the clips are was settled once, with the default block alone.

A finished run is a line of JSON in the runs file (in the cache folder), so that an interrupted campaign goes on where
it stood. The last line printed is JSON: accuracies (mean over seeds) and their differences to the default block.

Dimensions: B clips · C colours · T frames · H rows · W columns · K classes.
"""

import argparse
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ablation_parts import report as ablation_report
from ablation_parts.clips import DATA_SETS, MARGIN, NUM_FRAMES, SIDE, SIZES, load_split
from torch import Tensor

from vast.models.blocks import Block, Mlp
from vast.models.cost import count_macs, count_params
from vast.models.variants import ModelConfig, Size
from vast.models.vast import Vast, init_weights

SKELETON = Size(dims=(64,), depths=(4,), mlp_ratio=4, patch_size=8, source="small enough for hundreds of runs on a CPU")
HIDDEN_STEP = 4
"""Hidden channels of the MLPs are matched to a multiple of this: 0.5 % of the multiply-adds."""
LEARNING_RATES = (2e-3, 4e-3)
SWEEP_SET, SWEEP_SEED = "generated", 100
BASELINE = "affine_shift"


@dataclass(frozen=True)
class Variant:
    """One row of the table: a mixer, or the default block with something changed."""

    name: str
    group: str
    changes: dict[str, Any] = field(default_factory=dict)
    sets: tuple[str, ...] = tuple(DATA_SETS)
    """Sets of clips that it is trained on; the finer switches on one only, to save time."""


def _switch(name: str, **changes: Any) -> Variant:
    return Variant(name, "switch", changes)


def _fine(name: str, **changes: Any) -> Variant:
    return Variant(name, "switch", changes, ("filmed",))


MIXERS = (
    Variant(BASELINE, "mixer"),
    Variant("joint_attention", "mixer", {"mixer": "joint_attention"}),
    Variant("divided_attention", "mixer", {"mixer": "divided_attention"}),
    Variant("window_attention 4x2x2", "mixer", {"mixer": "window_attention", "window_size": (4, 2, 2)}),
    Variant("tsm", "mixer", {"mixer": "tsm"}),
    Variant("pooling", "mixer", {"mixer": "pooling"}),
    Variant("conv3d", "mixer", {"mixer": "conv3d"}),
)
SWITCHES = (
    _switch("scale=false", scale=False),
    _switch("bias=false", bias=False),
    _switch("scale=false bias=false", scale=False, bias=False),
    _switch("temporal_shift=false", temporal_shift=False),
    _fine("shift_fraction=0", shift_fraction=0.0),
    _fine("shift_fraction=1/16", shift_fraction=0.0625),
    _fine("affine_input=s", affine_input="s"),
    _fine("scale_pool=frame", scale_pool="frame"),
    _fine("bias_kernel=3x3x3", bias_kernel="3x3x3"),
    _fine("bias_kernel=3x3x3 temporal_shift=false", bias_kernel="3x3x3", temporal_shift=False),
    _fine("shift_border=replicate", shift_border="replicate"),
    _fine("output_projection=false", output_projection=False),
    _fine("position_encoding=true", position_encoding=True),
    _fine("layer_scale=0.1", layer_scale=0.1),
)
VARIANTS = {variant.name: variant for variant in (*MIXERS, *SWITCHES)}


@dataclass(frozen=True)
class Budget:
    """What every run gets alike."""

    steps: int = 300
    batch: int = 32
    warmup_steps: int = 30
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    curve_points: int = 10


@dataclass(frozen=True)
class Run:
    """One training run; equal runs give equal results."""

    variant: str
    data: str
    seed: int
    learning_rate: float
    budget: Budget = Budget()

    @property
    def key(self) -> str:
        """What tells this run from any other."""
        return json.dumps(asdict(self), sort_keys=True)


# --- models at equal multiply-adds ------------------------------------------------------------------------------------


class SkeletonConfig(ModelConfig):
    """A model configuration with a size of its own instead of one of the table."""

    skeleton: Size = SKELETON

    @property
    def size(self) -> Size:
        """Widths and depths."""
        return self.skeleton


def build(variant: Variant, num_classes: int, hidden: int) -> Vast:
    """Build the skeleton with a mixer or switches, and so many hidden channels in each MLP."""
    model = Vast(SkeletonConfig(name="vast_micro", **variant.changes), num_classes)
    for block in model.modules():
        if isinstance(block, Block):
            block.mlp = Mlp(block.norm2.normalized_shape[0], hidden)
            block.mlp.apply(init_weights)
    return model


def macs_of(model: Vast) -> int:
    """Multiply-adds of one clip."""
    return count_macs(model, (1, 3, NUM_FRAMES, SIDE, SIDE))


def match_hidden(variant: Variant, num_classes: int) -> int:
    """Hidden channels of the MLPs that bring a variant to the multiply-adds of the default block.

    Raises:
        ValueError: the mixer alone costs more than the default block with its MLP.
    """
    dim = SKELETON.dims[0]
    usual = dim * SKELETON.mlp_ratio
    target = macs_of(build(VARIANTS[BASELINE], num_classes, usual))
    least, step = (macs_of(build(variant, num_classes, hidden)) for hidden in (HIDDEN_STEP, 2 * HIDDEN_STEP))
    hidden = HIDDEN_STEP * (1 + round((target - least) / (step - least)))
    if hidden < HIDDEN_STEP:
        raise ValueError(f"{variant.name} takes {least} multiply-adds a clip, more than the {target} of {BASELINE}")
    return hidden


# --- one run ----------------------------------------------------------------------------------------------------------


def train(run: Run, cache: Path) -> dict[str, Any]:
    """Train and test one model; return its line of the runs file."""
    torch.manual_seed(run.seed)
    begun, budget = time.thread_time(), run.budget
    num_classes, variant = DATA_SETS[run.data], VARIANTS[run.variant]
    hidden = match_hidden(variant, num_classes)
    model = build(variant, num_classes, hidden)
    clips_NTCHW, labels_N = load_split(run.data, "train", cache)
    optimizer = make_optimizer(model, run)
    rng = np.random.default_rng(run.seed)
    order = np.concatenate([rng.permutation(len(labels_N)) for _ in range(_epochs(budget, len(labels_N)))])
    losses, curve = [], []
    for step in range(budget.steps):
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * schedule(step, budget)
        rows = np.sort(order[step * budget.batch : (step + 1) * budget.batch])
        clip_BCTHW = normalise(crop(clips_NTCHW[rows], rng))
        loss = F.cross_entropy(model(clip_BCTHW), torch.from_numpy(labels_N[rows]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), budget.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % max(1, budget.steps // budget.curve_points) == 0:
            curve.append([step + 1, round(float(np.mean(losses)), 4), accuracy(model, run.data, "val", cache)])
            losses.clear()
    return {
        **asdict(run),
        "hidden": hidden,
        "macs": macs_of(model),
        "params": count_params(model),
        "curve": curve,
        "val": curve[-1][2],
        "test": accuracy(model, run.data, "test", cache),
        "test_shuffled": accuracy(model, run.data, "test", cache, shuffled=True),
        "seconds": round(time.thread_time() - begun, 1),
    }


def _epochs(budget: Budget, num_clips: int) -> int:
    return math.ceil(budget.steps * budget.batch / num_clips)


def make_optimizer(model: Vast, run: Run) -> torch.optim.AdamW:
    """AdamW that leaves vectors and position kernels alone."""
    spared = model.no_weight_decay()
    decayed = [p for name, p in model.named_parameters() if name not in spared]
    others = [p for name, p in model.named_parameters() if name in spared]
    groups = [{"params": decayed, "weight_decay": run.budget.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=run.learning_rate)


def schedule(step: int, budget: Budget) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < budget.warmup_steps:
        return (step + 1) / budget.warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - budget.warmup_steps) / (budget.steps - budget.warmup_steps)))


def crop(clips_BTCHW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut a square out of each clip, at a random place that is the same in all its frames."""
    corners = rng.integers(MARGIN + 1, size=(len(clips_BTCHW), 2))
    return np.stack([clip[..., y : y + SIDE, x : x + SIDE] for clip, (y, x) in zip(clips_BTCHW, corners, strict=True)])


def normalise(clips_BTCHW: np.ndarray) -> Tensor:
    """clip_BCTHW of about mean 0 and deviation 1."""
    return torch.from_numpy(clips_BTCHW).permute(0, 2, 1, 3, 4).float().sub_(127.5).div_(64.0).contiguous()


@torch.inference_mode()
def accuracy(model: Vast, data: str, split: str, cache: Path, shuffled: bool = False) -> float:
    """Accuracy on the middle crops of a split; `shuffled` puts the frames of each clip in a random order first."""
    clips_NTCHW, labels_N = load_split(data, split, cache)
    rng, half = np.random.default_rng(0), MARGIN // 2
    model.eval()
    correct = 0
    for start in range(0, len(labels_N), 128):
        clips_BTCHW = clips_NTCHW[start : start + 128, ..., half : half + SIDE, half : half + SIDE]
        if shuffled:
            clips_BTCHW = np.stack([clip[rng.permutation(NUM_FRAMES)] for clip in clips_BTCHW])
        guesses = model(normalise(np.ascontiguousarray(clips_BTCHW))).argmax(1).numpy()
        correct += int((guesses == labels_N[start : start + 128]).sum())
    model.train()
    return round(correct / len(labels_N), 4)


# --- the campaign -----------------------------------------------------------------------------------------------------


def run_all(runs: Iterable[Run], known: dict[str, dict[str, Any]], path: Path, cache: Path, jobs: int) -> None:
    """Train what is not yet known, add it to the runs file line by line and to `known`."""
    missing = [run for run in runs if run.key not in known]
    work = partial(train, cache=cache)
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for number, line in enumerate(pool.imap(work, missing), 1):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            known[_key_of(line)] = line
            print(
                f"{number}/{len(missing)} {line['data']} {line['variant']} seed {line['seed']} "
                f"lr {line['learning_rate']}: {line['test']:.3f}, shuffled {line['test_shuffled']:.3f}, "
                f"{line['macs'] / 1e6:.2f} MMACs, {line['seconds']} s",
                flush=True,
            )


def read_runs(path: Path) -> dict[str, dict[str, Any]]:
    """Finished runs by key; a last line that was cut off is left out."""
    known = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        known[_key_of(line)] = line
    return known


def _key_of(line: dict[str, Any]) -> str:
    fields = {name: line[name] for name in ("variant", "data", "seed", "learning_rate")}
    return Run(**fields, budget=Budget(**line["budget"])).key


def sweep_runs(budget: Budget) -> list[Run]:
    """Every mixer at every learning rate on the generated clips, with a seed of its own."""
    return [Run(mixer.name, SWEEP_SET, SWEEP_SEED, rate, budget) for mixer in MIXERS for rate in LEARNING_RATES]


def table_runs(data_sets: Iterable[str], num_seeds: int, budget: Budget, known: dict[str, dict[str, Any]]) -> list[Run]:
    """All rows of the table, seed by seed and the finer switches last, each at its mixer's best rate of the sweep."""
    sweep = sorted(sweep_runs(budget), key=lambda run: known[run.key]["val"])
    best = {run.variant: run.learning_rate for run in sweep}  # the last one wins
    return [
        Run(variant.name, data, seed, best[variant.name if variant.group == "mixer" else BASELINE], budget)
        for everywhere in (True, False)  # what matters most first
        for seed in range(num_seeds)
        for data in data_sets
        for variant in VARIANTS.values()
        if data in variant.sets and (variant.sets == tuple(DATA_SETS)) == everywhere
    ]


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Train what is missing, write the table, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four short runs on generated clips")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes of one thread each")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--data", choices=[*DATA_SETS, "both"], default="both", help="(default: both)")
    parser.add_argument("--cache", default="", metavar="DIR", help="clips and finished runs (default: .vast/ablation)")
    parser.add_argument(
        "--results", default="", metavar="DIR", help="where the table goes (default: benchmarks/results)"
    )
    args = parser.parse_args()
    cache = Path(args.cache or ".vast/ablation").resolve()
    cache.mkdir(parents=True, exist_ok=True)
    if args.quick:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(quick(Path(scratch))))
        return
    data_sets = tuple(DATA_SETS) if args.data == "both" else (args.data,)
    path, budget = cache / "runs.jsonl", Budget()
    known = read_runs(path)
    if not args.report:
        for data in data_sets:
            for split in SIZES:
                load_split(data, split, cache)  # here, not in several processes at once
        run_all(sweep_runs(budget), known, path, cache, args.jobs)
        run_all(table_runs(data_sets, args.seeds, budget, known), known, path, cache, args.jobs)
    if waiting := sum(run.key not in known for run in sweep_runs(budget)):
        raise SystemExit(f"{path}: {waiting} runs of the sweep over learning rates are missing; start without --report")
    sweep = [known[run.key] for run in sweep_runs(budget)]
    # A runs file may also hold rows at a rate that another sweep chose: they are not of this table.
    planned = table_runs(data_sets, args.seeds, budget, known)
    lines = [known[run.key] for run in planned if run.key in known]
    report = ablation_report.summarise(lines, list(VARIANTS), BASELINE)
    folder = Path(args.results) if args.results else Path(__file__).parent / "results"
    ablation_report.write(report, lines, sweep, VARIANTS, folder, settings() | {"planned_runs": len(planned)})
    print(json.dumps(report))


def quick(cache: Path) -> dict[str, Any]:
    """Four short runs: too few steps to learn motion, enough to see that each part runs."""
    budget = Budget(steps=40, batch=16, warmup_steps=4)
    names = (BASELINE, "temporal_shift=false", "joint_attention", "conv3d")
    SIZES.update(train=320, val=64, test=64)
    lines = [train(Run(name, "generated", 0, 2e-3, budget), cache) for name in names]
    return {"quick": True, **ablation_report.summarise(lines, list(VARIANTS), BASELINE)}


def settings() -> dict[str, Any]:
    """What every run has in common, for the head of the table."""
    return {
        "skeleton": {"dims": SKELETON.dims, "depths": SKELETON.depths, "patch_size": SKELETON.patch_size},
        "clip": [3, NUM_FRAMES, SIDE, SIDE],
        "budget": asdict(Budget()),
        "learning_rates": LEARNING_RATES,
        "clips": SIZES,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


if __name__ == "__main__":
    main()
