"""`vast shard`: raw files to a data set, with progress, an account of every record, and a run in MLflow."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines import plots, tracking
from pipelines.config import absolute
from pipelines.terminal import Bar, Terminal
from pipelines.training.launch import connect
from preprocessing.build import BuildResult, build_dataset, check_matches
from preprocessing.describe import SplitDescription, describe
from preprocessing.diagnosis import FailureLimit
from preprocessing.imagenet import read_imagenet
from preprocessing.images import ImageSettings
from preprocessing.kinetics import read_kinetics
from preprocessing.list_lines import Format
from preprocessing.lists import read_folder, read_list
from preprocessing.preview import contact_sheet
from preprocessing.records import Annotations
from preprocessing.sources import Progress
from preprocessing.ssv2 import read_ssv2
from preprocessing.transcode import PROFILES, TranscodeSettings
from vast.dataset_format import Manifest
from vast.errors import StoreError, UserError

KINETICS_NAMES = {"kinetics400": "k400", "kinetics600": "k600", "kinetics700": "k700"}


@dataclass(frozen=True)
class ShardRequest:
    """What is asked for; the fields are the command's options."""

    kind: str
    """kinetics400, kinetics600, kinetics700, ssv2, imagenet or folder."""
    videos: Path
    out: str
    annotations: Path | None = None
    name: str = ""
    splits: tuple[str, ...] = ()
    """Train and val when empty; of a folder, all it has."""
    replacements: Path | None = None
    classes: Path | None = None
    list_format: Format = "auto"
    """Who wrote the lists of a folder."""
    profile: str = "s256"
    short_side: int = 0
    """Overrules the profile's when above 0."""
    samples_per_shard: int = 400
    seed: int = 0
    workers: int = 0
    """All CPUs when 0."""
    max_failures: FailureLimit | None = None
    overwrite: bool = False
    scratch: Path | None = None
    track: bool = True


def read_annotations(request: ShardRequest, on_scan: Progress | None = None) -> Annotations:
    """Read the annotation files and match them with the raw files.

    Args:
        request: What is asked for.
        on_scan: Called with (archives scanned, archives in all).

    Raises:
        UserError: They cannot be read, or do not go with the kind.
    """
    kind, videos, scans = request.kind, request.videos, absolute(request.out)
    if kind == "folder":
        return _read_folder(request, scans, on_scan)
    splits = request.splits or ("train", "val")
    if kind == "imagenet":
        name = request.name or "imagenet1k"
        return read_imagenet(
            videos, name=name, splits=splits, classes_file=request.classes, scans=scans, on_scan=on_scan
        )
    if request.annotations is None:
        raise UserError(f"--annotations: {kind} needs the folder of its published annotation files")
    if kind == "ssv2":
        name = request.name or "ssv2"
        return read_ssv2(request.annotations, videos, name=name, splits=splits, scans=scans, on_scan=on_scan)
    return read_kinetics(
        request.annotations,
        videos,
        version=kind,
        name=request.name or KINETICS_NAMES[kind],
        splits=splits,
        classes_file=request.classes,
        replacements=request.replacements,
        scans=scans,
        on_scan=on_scan,
    )


def _read_folder(request: ShardRequest, scans: str, on_scan: Progress | None) -> Annotations:
    name = request.name or request.videos.resolve().name
    if request.annotations is None:
        return read_folder(
            request.videos,
            name=name,
            splits=request.splits,
            classes_file=request.classes,
            scans=scans,
            on_scan=on_scan,
        )
    return read_list(
        request.annotations,
        request.videos,
        name=name,
        splits=request.splits,
        classes_file=request.classes,
        format=request.list_format,
        scans=scans,
        on_scan=on_scan,
    )


def settings_of(request: ShardRequest, media: str) -> TranscodeSettings | ImageSettings:
    """Return how to encode: the profile, with what the request changes."""
    changes = {"short_side": request.short_side} if request.short_side else {}
    if media == "image":
        return ImageSettings(**changes)
    profile = PROFILES[request.profile]
    return TranscodeSettings.model_validate({**profile.model_dump(), **changes})


def shard(request: ShardRequest, terminal: Terminal, address: str | None = None) -> Manifest:
    """Shard a data set on a Ray cluster, showing how far it is and what failed.

    Args:
        request: What is asked for.
        terminal: Where the story goes.
        address: See `launch.connect`; nothing is started before the annotations have been read.

    Raises:
        UserError: See `read_annotations` and `build_dataset`.
        StoreError: The store failed.
    """
    with terminal.progress("reading annotations and listing files", None) as bar:
        found = read_annotations(request, bar.set)
    for note in found.notes:
        terminal.say(f"  {note}")
    check_matches(found, request.max_failures)
    connect(address)
    out = absolute(request.out)
    with terminal.progress(f"encoding {found.name}", None) as bar:
        result = build_dataset(
            out,
            found,
            settings_of(request, found.media),
            samples_per_shard=request.samples_per_shard,
            seed=request.seed,
            num_workers=request.workers or None,
            overwrite=request.overwrite,
            max_failures=request.max_failures,
            scratch=request.scratch,
            on_progress=_Pace(bar).show,
            on_wait=terminal.warn,
        )
    if result.was_complete:
        terminal.say(f"  {found.name}: already complete, nothing to do")
    elif result.reused_shards:
        terminal.say(f"  {found.name}: {result.reused_shards} shards of an earlier, interrupted run were used again")
    for split, info in result.manifest.splits.items():
        replaced = f" ({info.replaced} from replacements)" if info.replaced else ""
        terminal.say(
            f"  {found.name} {split}: {info.records} records = {info.samples} samples{replaced} + {info.failures} "
            f"failures, {len(info.shards)} shards, {info.size_bytes / 1e6:.1f} MB"
        )
    if result.manifest.unlisted:
        terminal.say(f"  {result.manifest.unlisted} files that no record asks for: unlisted.jsonl")
    if request.track and not result.was_complete:
        _track(request, out, result, terminal)
    return result.manifest


class _Pace:
    """Adds to a bar how fast records go by and how many of them failed."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._begun = time.monotonic()
        self._first: int | None = None  # a continued build begins with what an earlier one has done

    def show(self, done: int, total: int, failed: int) -> None:
        self._first = done if self._first is None else self._first
        rate = (done - self._first) / max(1e-9, time.monotonic() - self._begun)
        self._bar.set(done, total, f"{rate:.1f} records/s, {failed} failed")


def _track(request: ShardRequest, out: str, result: BuildResult, terminal: Terminal) -> None:
    """Log one MLflow run about the data set; it is complete whatever happens here."""
    manifest, descriptions = describe(out)
    try:
        run = tracking.create_run(
            tracking.tracking_uri(),
            f"shard-{manifest.name}",
            params={
                **{f"transcode.{name}": value for name, value in manifest.transcode.items()},
                "samples_per_shard": request.samples_per_shard,
                "seed": request.seed,
                "plan_digest": manifest.plan_digest,
            },
            tags={"dataset.digest": manifest.digest, "dataset.url": out, "run.kind": "shard"},
        )
        with tracking.ending(run):
            tracking.log_figures(run, _figures(manifest, descriptions, result))
            with TemporaryDirectory() as folder:
                _draw(Path(folder), out, manifest, descriptions)
                problem = tracking.log_files(run, Path(folder))
    except (UserError, StoreError) as error:
        problem = str(error)
    if problem:
        terminal.warn(f"the data set is complete, but its summary is not in MLflow: {problem}")
    else:
        terminal.say(f"  MLflow run {run.run_id} in {run.tracking_uri}")


def _figures(manifest: Manifest, descriptions: list[SplitDescription], result: BuildResult) -> dict[str, float]:
    figures: dict[str, float] = {"bytes_in": result.source_bytes, "unlisted": manifest.unlisted}
    figures["bytes_out"] = sum(info.size_bytes for info in manifest.splits.values())
    if result.encoded:
        figures["clips_per_s"] = result.encoded / max(1e-9, result.seconds)
    reasons: Counter[str] = Counter()
    for one in descriptions:
        counts = {"records": one.records, "samples": one.samples, "failures": one.failures, "hours": one.hours}
        figures |= {f"{one.split}/{name}": value for name, value in counts.items()}
        reasons.update(one.failures_by_reason)
    return figures | {f"failures/{reason}": count for reason, count in reasons.items()}


def _draw(folder: Path, out: str, manifest: Manifest, descriptions: list[SplitDescription]) -> None:
    for one in descriptions:
        title = f"{manifest.name} {one.split}"
        if one.failures:
            plots.failures_by_reason(folder / f"{one.split}_failures.png", one.failures_by_reason, title)
        if not one.samples:
            continue
        plots.class_histogram(folder / f"{one.split}_classes.png", manifest.classes, one.class_counts, title)
        if manifest.media == "video":
            plots.duration_histogram(folder / f"{one.split}_durations.png", one.durations_s, title)
        contact_sheet(out, split=one.split).save(folder / f"{one.split}_contact_sheet.png")
