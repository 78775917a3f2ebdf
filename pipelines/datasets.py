"""The data-set commands: generate, shard, show, verify, each with its progress and its table."""

import json
from collections import Counter
from pathlib import Path

from pipelines.config import absolute
from pipelines.terminal import Terminal
from preprocessing.build import build_dataset
from preprocessing.kinetics import read_kinetics
from preprocessing.records import Annotations
from preprocessing.ssv2 import read_ssv2
from preprocessing.synth import SynthSet, synth_kinetics, synth_ssv2
from preprocessing.transcode import TranscodeSettings
from preprocessing.verify import describe
from preprocessing.verify import verify as verify_dataset
from vast.dataset_format import FAILURES_KEY, Manifest, read_manifest
from vast.storage import open_store

KINETICS_NAMES = {"kinetics400": "k400", "kinetics600": "k600", "kinetics700": "k700"}


def synth(
    dataset: str, out: Path, terminal: Terminal, *, num_train: int, num_val: int, seed: int, workers: int
) -> SynthSet:
    """Generate a data set and say how to shard it."""
    make = {"ssv2": synth_ssv2, "kinetics": synth_kinetics}[dataset]
    with terminal.progress(f"encoding {dataset} clips", num_train + num_val) as bar:
        made = make(out, num_train=num_train, num_val=num_val, seed=seed, num_workers=workers, on_progress=bar.set)
    planted = sum(len(faults) for faults in made.planted.values())
    total = sum(made.records.values())
    terminal.say(f"  {total} records in {len(made.classes)} classes, {planted} of them bad on purpose")
    return made


def read_annotations(dataset: str, annotations: Path, videos: Path, name: str = "") -> Annotations:
    """The annotation files of a supported data set, matched with its video files."""
    if dataset == "ssv2":
        return read_ssv2(annotations, videos, name=name or "ssv2")
    return read_kinetics(annotations, videos, name=name or KINETICS_NAMES[dataset])


def shard(
    dataset: str,
    annotations: Path,
    videos: Path,
    out: str,
    terminal: Terminal,
    *,
    name: str = "",
    short_side: int = 256,
    samples_per_shard: int = 400,
    seed: int = 0,
    workers: int = 0,
    overwrite: bool = False,
) -> Manifest:
    """Shard a data set on the connected Ray cluster, showing how far it is and what failed."""
    found = read_annotations(dataset, annotations, videos, name)
    settings = TranscodeSettings(short_side=short_side)
    with terminal.progress(f"encoding {found.name} shards", None) as bar:
        result = build_dataset(
            absolute(out),
            found,
            settings,
            samples_per_shard=samples_per_shard,
            seed=seed,
            num_workers=workers or None,
            overwrite=overwrite,
            on_progress=lambda done, total, failed: bar.set(done, total, f"{failed} failed" if failed else ""),
        )
    if result.was_complete:
        terminal.say(f"  {found.name}: already complete, nothing to do")
    for split, info in result.manifest.splits.items():
        terminal.say(
            f"  {found.name} {split}: {info.records} records = {info.samples} samples + {info.failures} failures, "
            f"{len(info.shards)} shards, {info.size_bytes / 1e6:.1f} MB"
        )
    return result.manifest


def failures_by_reason(url: str) -> Counter[str]:
    """How many records of the data set at `url` failed, by reason."""
    lines = open_store(url).get_bytes(FAILURES_KEY).splitlines()
    return Counter(json.loads(line)["reason"] for line in lines)


def show(url: str, terminal: Terminal) -> None:
    """Print what a data set holds."""
    manifest, descriptions = describe(url)
    terminal.say(f"{manifest.name}  {url}")
    terminal.say(f"{len(manifest.classes)} classes, created {manifest.created}, {manifest.digest}")
    columns = ["split", "records", "samples", "failures", "shards", "MB", "hours", "classes", "failures by reason"]
    rows = []
    for one in descriptions:
        reasons = ", ".join(f"{count} {reason}" for reason, count in one.failures_by_reason.items())
        counts = [str(number) for number in (one.records, one.samples, one.failures, one.shards)]
        rows.append(
            [one.split, *counts, f"{one.size_bytes / 1e6:.1f}", f"{one.hours:.2f}", str(one.classes), reasons or "none"]
        )
    terminal.table("", columns, rows)


def verify(url: str, terminal: Terminal, *, decode: int) -> list[str]:
    """Re-read a data set, print every problem, and return them."""
    read_manifest(url)  # nothing there is a mistake in what was asked, not a damaged data set
    problems = verify_dataset(url, decode_sample=decode)
    for problem in problems:
        terminal.say(f"  {problem}", style="red")
    terminal.say(
        f"{len(problems)} problem(s) in {url}" if problems else f"no problems: every byte of {url} is as it was written"
    )
    return problems
