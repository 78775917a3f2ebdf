"""The data-set commands: generate, show, preview, verify, compare, export, each with its progress and its table."""

import itertools
import json
from collections import Counter
from pathlib import Path

from pipelines.terminal import Terminal
from preprocessing.describe import SplitDescription, describe
from preprocessing.export_lists import ListFormat, export_list
from preprocessing.leaks import find_leaks
from preprocessing.preview import contact_sheet
from preprocessing.synth import SynthSet, synth_kinetics, synth_ssv2
from preprocessing.verify import verify as verify_dataset
from vast.dataset_format import FAILURES_KEY, UNLISTED_KEY, read_manifest
from vast.errors import UserError
from vast.storage import open_store


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


def failures_by_reason(url: str) -> Counter[str]:
    """How many records of the data set at `url` failed, by reason."""
    lines = open_store(url).get_bytes(FAILURES_KEY).splitlines()
    return Counter(json.loads(line)["reason"] for line in lines)


def show(url: str, terminal: Terminal) -> None:
    """Print what a data set holds."""
    manifest, descriptions = describe(url)
    terminal.say(f"{manifest.name}  {url}")
    terminal.say(f"{len(manifest.classes)} classes, {manifest.media}s, {manifest.digest}")
    settings = ", ".join(f"{name} {value}" for name, value in manifest.transcode.items())
    terminal.say(f"encoded with {settings}")
    columns = ["split", "records", "samples", "failures", "replaced", "shards", "MB", "classes", "failures by reason"]
    rows = []
    for one in descriptions:
        reasons = ", ".join(f"{count} {reason}" for reason, count in one.failures_by_reason.items())
        counts = [str(number) for number in (one.records, one.samples, one.failures, one.replaced, one.shards)]
        rows.append([one.split, *counts, f"{one.size_bytes / 1e6:.1f}", str(one.classes), reasons or "none"])
    terminal.table("", columns, rows)
    if manifest.media == "video":
        columns = ["split", "hours", "shortest s", "median s", "longest s", "frames a second", "sizes"]
        terminal.table("", columns, [_timing(one) for one in descriptions])
    for one in descriptions:
        if one.empty_classes:
            names = ", ".join(one.empty_classes[:5]) + (" …" if len(one.empty_classes) > 5 else "")
            terminal.say(f"{one.split}: {len(one.empty_classes)} classes without a sample: {names}")
    if manifest.unlisted:
        terminal.say(f"{manifest.unlisted} raw files that no record asked for: {UNLISTED_KEY}")


def _timing(one: SplitDescription) -> list[str]:
    lengths = [f"{length:.2f}" for length in one.duration_s] if one.duration_s else ["-"] * 3
    rates = ", ".join(f"{rate:g} ({count})" for rate, count in list(one.fps.items())[:3])
    sizes = ", ".join(f"{size} ({count})" for size, count in list(one.sizes.items())[:3])
    return [one.split, f"{one.hours:.2f}", *lengths, rates, sizes]


def preview(
    url: str, out: Path, terminal: Terminal, *, split: str, num_classes: int, clips_per_class: int, seed: int
) -> None:
    """Write a contact sheet as a PNG."""
    sheet = contact_sheet(url, split=split, num_classes=num_classes, clips_per_class=clips_per_class, seed=seed)
    try:
        sheet.save(out, format="PNG")
    except OSError as error:
        raise UserError(f"--out: cannot write {out}: {error.strerror or error}") from error
    terminal.say(f"{out}: {sheet.width}x{sheet.height}")


def verify(url: str, terminal: Terminal, *, decode: int, decode_all: bool) -> list[str]:
    """Re-read a data set, print every problem, and return them."""
    read_manifest(url)  # nothing there is a mistake in what was asked, not a damaged data set
    with terminal.progress("reading shards back", None) as bar:
        problems = verify_dataset(
            url, decode_sample=decode, decode_all=decode_all, on_progress=bar.set, on_note=terminal.warn
        )
    for problem in problems:
        terminal.say(f"  {problem}", style="red")
    terminal.say(
        f"{len(problems)} problem(s) in {url}" if problems else f"no problems: every byte of {url} is as it was written"
    )
    return problems


def leaks(url: str, other: str, terminal: Terminal) -> bool:
    """Print which splits share source videos, and tell whether any do."""
    found = find_leaks(url, other)
    rows = []
    for pair in found.pairs:
        shares = [f"{pair.shared_samples_a} ({pair.share_a:.1%})", f"{pair.shared_samples_b} ({pair.share_b:.1%})"]
        rows.append([pair.split_a, pair.split_b, str(pair.num_shared), *shares, ", ".join(pair.examples)])
    columns = ["split of A", "split of B", "shared videos", "samples of A", "samples of B", "examples"]
    terminal.table("", columns, rows)
    return bool(found.leaks)


def export(
    url: str, out: Path | None, terminal: Terminal, *, split: str, form: ListFormat, extract: Path | None
) -> None:
    """Write a list for another toolbox, and the clips it names."""
    with terminal.progress("extracting clips", None) as bar:
        count = itertools.count(1)
        made = export_list(
            url, split, format=form, out=out, extract=extract, on_clip=lambda: bar.set(next(count), None)
        )
    terminal.say(f"{made.path}: {made.num_samples} lines for {form}; classes in {made.classes_path}")
    if extract is not None:
        terminal.say(f"{extract}: {made.num_extracted} clips written, {made.extracted_bytes / 1e6:.1f} MB")
