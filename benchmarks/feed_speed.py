"""Whether readers keep a device busy: training steps on decoded clips against steps on clips that lie there already.

    python benchmarks/feed_speed.py                    5 rounds of 20 s a side: about six minutes
    python benchmarks/feed_speed.py --quick            2 short rounds: about a minute
    python benchmarks/feed_speed.py data.repeats=1     the recipe with other settings

On a GPU: the recipe pretrain_k400_vast_ti_8f (VAST-Ti, 8 frames of 224x224, bf16, its whole augmentation), compiled.
Without one: the same recipe with VAST-micro on clips of 112x112 in fp32, which shows the path and says little of GPUs.
The clips are made here: 10 s at 30 frames a second, as the default profile encodes them. Three sides take turns:

    synthetic    steps on one batch that stays on the device: what it could do if clips cost nothing
    real         steps on what the loader reads, decodes and crops
    loader       the loader alone: what that many reader processes deliver to nobody

    ratio_real_vs_synthetic    median over the rounds; the loss is what a device waits for clips, and their copy to it
    reader_cores_needed        readers that deliver what `synthetic` eats, from what each delivers to nobody

The last line is JSON.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from loader_sides import clips as clip_files

from pipelines.config import resolve
from vast.data.dataset import ShardDataset
from vast.data.loader import TrainLoader
from vast.data.reader import TrainBatch
from vast.errors import UserError
from vast.models.variants import create_model
from vast.train.checkpoint import TrainState
from vast.train.config import TrainConfig
from vast.train.job import Place
from vast.train.optim import build_optimizer
from vast.train.stall import Stopwatch
from vast.train.step import Stepper, Taken

RECIPE = "pretrain_k400_vast_ti_8f"
ON_GPU = ["optim.compile=true", "optim.global_batch=64"]
ON_CPU = [
    "model.name=vast_micro",
    "data.crop_size=112",
    "data.eval_short_side=128",
    "optim.precision=fp32",
    "optim.global_batch=16",
]
NUM_CLASSES = 400
STEPS_PER_EPOCH = 1000  # of the schedule alone
WARM_S = 1.0


def main() -> None:
    """Make clips, let the sides take turns, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--readers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="reader processes")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="other settings of the recipe")
    options = parser.parse_args()
    num_rounds, turn_s = (2, 4.0) if options.quick else (5, 20.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 2) - options.readers))
    words = [*(ON_GPU if device.type == "cuda" else ON_CPU), f"data.num_readers={options.readers}", *options.settings]
    with tempfile.TemporaryDirectory(prefix="vast-feed-speed-") as name:
        try:
            # nothing is scored here, so there is no second split to look at
            config = resolve(RECIPE, [*words, f"data.url={name}/shards"], data_sets=False)
        except UserError as error:
            parser.error(str(error))
        clip_files.make(Path(name), num_samples=128)
        figures = measure(config, device, num_rounds, turn_s)
    print(json.dumps(figures))


def measure(config: TrainConfig, device: torch.device, num_rounds: int, turn_s: float) -> dict[str, Any]:
    """All figures, from rounds in which each side has a turn."""
    dataset = ShardDataset(config.data.url, config.data.train_split)
    trainer = Trainer(config, device, dataset)
    with contextlib.closing(steps_of(dataset, config)) as real, contextlib.closing(steps_of(dataset, config)) as alone:
        first = next(real)
        sides = {
            "synthetic": trainer.train(itertools.repeat([on_device(batch, device) for batch in first])),
            "real": trainer.train(itertools.chain([first], real)),
            "loader": (clips_in(batches) for batches in alone),
        }
        found: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(num_rounds):
            for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
                found[name].append(turn(sides[name], turn_s))
                print(f"round {number}: {name}: {found[name][-1]:.1f} clips/s", file=sys.stderr)
    readers = config.data.num_readers
    return {
        "ratio_real_vs_synthetic": round(median_ratio(found["real"], found["synthetic"]), 3),
        "reader_cores_needed": round(readers * median_ratio(found["synthetic"], found["loader"]), 1),
        "clips_per_s": {name: round(statistics.median(speeds), 1) for name, speeds in found.items()},
        "readers": readers,
        "repeats": config.data.repeats,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "model": config.model.name,
        "clip": [config.data.num_frames, config.data.crop_size, config.data.crop_size],
        "batch": [trainer.accumulation, trainer.micro_batch],
        "precision": config.optim.precision,
        "compile": config.optim.compile,
        "torch": torch.__version__,
    }


class Trainer:
    """A model and its steps, which all sides take in turns.

    Args:
        config: What to train.
        device: Where.
        dataset: What the loader reads; tells how a global batch is split.
    """

    def __init__(self, config: TrainConfig, device: torch.device, dataset: ShardDataset) -> None:
        torch.manual_seed(config.seed)
        model = create_model(config.model, num_classes=NUM_CLASSES).to(device)
        scaler = torch.amp.GradScaler(device.type, enabled=config.optim.precision == "fp16")
        state = TrainState(model, build_optimizer(model, config.optim), scaler=scaler)
        loader = loader_of(dataset, config)
        self.micro_batch, self.accumulation = loader.micro_batch, loader.accumulation
        self._stepper = Stepper(
            config,
            Place(device=device),
            state,
            steps_per_epoch=STEPS_PER_EPOCH,
            micro_batch=self.micro_batch,
            accumulation=self.accumulation,
            stopwatch=Stopwatch(device),
        )
        self._numbers = itertools.count()

    def train(self, steps: Iterator[Sequence[TrainBatch]]) -> Iterator[int]:
        """Take steps as the loop does, one ahead of the device; yield the clips of each that is done."""
        ahead: Taken | None = None
        for batches in steps:
            taken = self._stepper(next(self._numbers), batches, wants_stop=False)
            if ahead is not None:
                ahead.figures()
            ahead = taken
            yield clips_in(batches)


def turn(steps: Iterator[int], seconds: float) -> float:
    """Take steps for so long; return clips a second."""
    warm = time.perf_counter() + WARM_S
    next(steps)  # the first one compiles
    while time.perf_counter() < warm:
        next(steps)
    begun, clips = time.perf_counter(), 0
    while (wall_s := time.perf_counter() - begun) < seconds:
        clips += next(steps)
    return clips / wall_s


def loader_of(dataset: ShardDataset, config: TrainConfig) -> TrainLoader:
    """The loader as the loop makes it on one rank, without an end."""
    return TrainLoader(
        dataset,
        config.data,
        seed=config.seed,
        global_batch=config.optim.global_batch,
        max_micro_batch=config.optim.max_micro_batch,
        stop_step=10**9,
    )


def steps_of(dataset: ShardDataset, config: TrainConfig) -> Iterator[list[TrainBatch]]:
    """The micro-batches of each step."""
    with contextlib.closing(iter(loader_of(dataset, config))) as steps:
        for _, batches in steps:
            yield batches


def on_device(batch: TrainBatch, device: torch.device) -> TrainBatch:
    """A batch of its own whose clips and labels lie on the device already."""
    parts = {name: getattr(batch, name).clone().to(device) for name in ("clip_BCTHW", "label_B", "weight_B")}
    return replace(batch, **parts)


def clips_in(batches: Sequence[TrainBatch]) -> int:
    """Clips of a step."""
    return sum(len(batch.sample_B) for batch in batches)


def median_ratio(one: list[float], other: list[float]) -> float:
    """The median of the rounds' own ratios."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    main()
