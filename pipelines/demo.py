"""`vast demo`: the main job on generated, really encoded clips, as one story, with the figures in summary.json."""

import json
import os
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import tracking
from pipelines.config import resolve
from pipelines.datasets import failures_by_reason, synth
from pipelines.search.campaign import Campaign, run_search
from pipelines.shard import ShardRequest, shard
from pipelines.terminal import Terminal
from pipelines.training.launch import Finished, connect, train
from pipelines.training.ranks import Ranks
from preprocessing.synth import CLASSES_FILE
from vast.dataset_format import Manifest

RANKS = 2
SHORT_SIDE = 96  # of the demo's shards, pixels: the micro model sees 64x64 crops
SAMPLES_PER_SHARD = 50


@dataclass(frozen=True)
class DemoSet:
    """One generated data set of the demo, and where its layout puts things."""

    synth_as: str
    shard_as: str
    annotations: str
    videos: str
    classes: str = ""
    """Class list beside the annotations; the published one when empty."""


@dataclass(frozen=True)
class Scale:
    """How large a demo is."""

    clips: dict[str, tuple[int, int]]
    """Training and validation clips of each set."""
    overrides: tuple[str, ...] = ()
    """Settings of every training recipe that differ from the shipped ones."""


SETS = {
    "kinetics": DemoSet("kinetics", "kinetics400", "annotations", "videos", CLASSES_FILE),
    "ssv2": DemoSet("ssv2", "ssv2", "labels", "20bn-something-something-v2"),
}
FULL = Scale({"kinetics": (320, 80), "ssv2": (640, 240)})
SHORT_SEARCH = ("optim.epochs=2", "search.num_trials=4", "search.reduction_factor=2")
QUICK = Scale({"kinetics": (32, 16), "ssv2": (32, 16)}, ("optim.epochs=2", "search.num_trials=2"))


def run_demo(out: Path, terminal: Terminal, scale: Scale = FULL) -> None:
    """Generate, shard, pretrain, fine-tune, ablate, search; run again, it continues where it stood."""
    begun = time.monotonic()
    out = out.resolve()
    os.environ.setdefault("MLFLOW_TRACKING_URI", tracking.tracking_uri(out))
    terminal.say(f"everything goes to {out}; library output to {terminal.log_path}")

    terminal.heading("1/6  Raw videos, as Kinetics and Something-Something v2 publish them (generated, really encoded)")
    # a quick demo and a full one may share a folder
    folders = {name: f"{name}-{scale.clips[name][0]}" for name in SETS}
    raw = {name: _raw(name, scale.clips[name], out / "raw" / folders[name], terminal) for name in SETS}

    terminal.heading("2/6  Shards: re-encode, prove, pack (Ray tasks)")
    connect(None)
    shards = {name: out / "shards" / folders[name] for name in SETS}
    manifests = {name: _shards(SETS[name], raw[name], shards[name], terminal) for name in SETS}

    def run(recipe: str, kind: str, *overrides: str) -> Finished:
        config = resolve(recipe, [*scale.overrides, *overrides])
        return train(
            config, terminal, ranks=Ranks.of(min(RANKS, os.cpu_count() or 1)), output=str(out / "runs"), kind=kind
        )

    terminal.heading("3/6  Pretrain VAST on the Kinetics-like clips (Ray Train)")
    pretrained = run("demo_pretrain_kinetics", "pretrain", f"data.url={shards['kinetics']}")
    start = [f"data.url={shards['ssv2']}", f"init_from={pretrained.model_url}"]

    terminal.heading("4/6  Fine-tune on the SSv2-like clips, where only motion tells the classes apart")
    finetuned = run("demo_finetune_ssv2", "finetune", *start)

    terminal.heading(
        "5/6  The same recipe with the temporal shift switched off: single frames tell the pair, not the member"
    )
    switched_off = ["name=demo_no_temporal_shift", "model.temporal_shift=false"]
    ablated = run("demo_finetune_ssv2", "ablation", *switched_off, *start)

    terminal.heading("6/6  A short search (Ray Tune, ASHA)")
    campaign = run_search("demo_search", [*SHORT_SEARCH, *start, *scale.overrides], terminal, output=str(out / "runs"))

    summary = _summary(manifests, pretrained, finetuned, ablated, campaign, time.monotonic() - begun)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    reasons: Counter[str] = sum((failures_by_reason(str(url)) for url in shards.values()), Counter())
    _tell(summary, reasons, campaign.best.settings, out, terminal)


def _raw(name: str, clips: tuple[int, int], folder: Path, terminal: Terminal) -> Path:
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")  # renamed when complete, so a killed demo starts it anew
        shutil.rmtree(partial, ignore_errors=True)
        num_train, num_val = clips
        workers = os.cpu_count() or 1
        synth(SETS[name].synth_as, partial, terminal, num_train=num_train, num_val=num_val, seed=0, workers=workers)
        partial.rename(folder)
    return folder


def _shards(demo_set: DemoSet, raw: Path, out: Path, terminal: Terminal) -> Manifest:
    request = ShardRequest(
        kind=demo_set.shard_as,
        annotations=raw / demo_set.annotations,
        videos=raw / demo_set.videos,
        out=str(out),
        classes=raw / demo_set.annotations / demo_set.classes if demo_set.classes else None,
        short_side=SHORT_SIDE,
        samples_per_shard=SAMPLES_PER_SHARD,
    )
    return shard(request, terminal)


def _summary(
    manifests: dict[str, Manifest],
    pretrained: Finished,
    finetuned: Finished,
    ablated: Finished,
    campaign: Campaign,
    seconds: float,
) -> dict[str, Any]:
    splits = [split for manifest in manifests.values() for split in manifest.splits.values()]
    best, metric = campaign.best, campaign.record.metric
    return {
        "seconds_total": round(seconds, 1),
        "records": sum(split.records for split in splits),
        "samples": sum(split.samples for split in splits),
        "failures": sum(split.failures for split in splits),
        "pretrain_top1": round(pretrained.score.top1, 2),
        "finetune_top1": round(finetuned.score.top1, 2),
        "no_temporal_shift_top1": round(ablated.score.top1, 2),
        "best_trial": {
            "name": best.id,
            "top1": round(best.value(metric) or 0.0, 2),
            "epochs": best.reports[-1].epoch,
            "settings": best.changes,
        },
        "tracking_uri": finetuned.tracking.tracking_uri,
        "checkpoint": finetuned.model_url,
    }


def _tell(summary: dict[str, Any], reasons: Counter[str], settings: str, out: Path, terminal: Terminal) -> None:
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    best = summary["best_trial"]
    terminal.say("")
    terminal.table(
        "What happened",
        ["", ""],
        [
            ["records in", str(summary["records"])],
            ["samples in shards", str(summary["samples"])],
            ["failed", f"{summary['failures']}: {why}"],
            ["pretraining top-1", f"{summary['pretrain_top1']:.1f} %"],
            ["fine-tuning top-1", f"{summary['finetune_top1']:.1f} %"],
            ["without temporal shift", f"{summary['no_temporal_shift_top1']:.1f} %  (expected of single frames: 50 %)"],
            ["best trial", f"{best['top1']:.1f} % after {best['epochs']} epochs: {settings}"],
            ["model", summary["checkpoint"]],
            ["time", f"{summary['seconds_total']:.0f} s"],
        ],
    )
    terminal.say(f"figures: {out / 'summary.json'}")
    terminal.say(f"look at the runs: vast ui --store {summary['tracking_uri']}")
