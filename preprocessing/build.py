"""A whole data set: every shard as one Ray task or in this process, then indexes, failures and, last, the manifest."""

import importlib.metadata
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import av
import imageio_ffmpeg

from preprocessing.plan import Plan, ShardPlan, make_plan
from preprocessing.records import Annotations, Failure
from preprocessing.transcode import TranscodeSettings
from preprocessing.write import REPORTS, ShardReport, report_key, write_shard
from vast.dataset_format import (
    FAILURES_KEY,
    MANIFEST_KEY,
    Manifest,
    SplitInfo,
    classes_digest,
    dataset_digest,
    index_key,
    read_manifest,
    write_index,
    write_manifest,
)
from vast.errors import ObjectMissing, StoreError, UserError
from vast.storage import Store, open_store

Progress = Callable[[int, int, int], None]
"""Called with the records done, all records, and the failures among those done."""


@dataclass(frozen=True)
class BuildResult:
    """The data set and how it came about."""

    manifest: Manifest
    was_complete: bool
    """The same data set was there already and nothing was written."""
    reused_shards: int
    """Shards that an earlier build of the same plan, broken off, had finished."""


def build_dataset(
    url: str,
    annotations: Annotations,
    settings: TranscodeSettings | None = None,
    *,
    samples_per_shard: int = 400,
    seed: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> BuildResult:
    """Encode all records into shards at `url`.

    Workers and finishing order leave no trace: shards, indexes and failures.jsonl are byte for byte the same. A build
    that broke off goes on where it stopped when it is called again; one that is complete is left as it is.

    On a Ray cluster every node must see the videos under the same path and have its own S3 credentials and endpoint in
    its environment (AWS_*, through the node's image or secret): they are never passed in a runtime_env, which shows up
    in Ray's job data. A local folder as `url` must then be a file system that all nodes share.

    Args:
        url: Where the data set goes.
        annotations: Records and classes.
        settings: How to encode; the defaults when None.
        samples_per_shard: Records in a shard; 300 to 600 clips of ten seconds make a tar of 128 to 256 MB.
        seed: Of the shuffle.
        num_workers: Ray tasks at a time, one CPU each; None for all the cluster's CPUs, 0 to do without Ray.
        overwrite: Replace another data set that is complete at `url`.
        on_progress: Called after each shard.

    Raises:
        UserError: Another data set is at `url`, Ray has not been started, or no record could be encoded.
        StoreError: The store failed, or lost a shard.
    """
    if num_workers != 0:
        _check_ray()
    settings = settings or TranscodeSettings()
    plan = make_plan(annotations, settings, samples_per_shard=samples_per_shard, seed=seed)
    store = open_store(url)
    older = _older(url, store, overwrite)
    if older is not None and older.plan_digest == plan.digest:
        return BuildResult(older, was_complete=True, reused_shards=0)
    if older is not None and not overwrite:
        raise UserError(
            f"{url} holds another complete data set, {older.name!r} of {older.created}; "
            "give another prefix, or overwrite=True to replace it"
        )
    _clear(store, older, plan)
    reports = _finished(store, plan)
    reused = len(reports)
    total = sum(plan.num_records.values())
    _tell(on_progress, plan, reports, total)
    todo = [shard for shard in plan.shards if shard.name not in reports]
    for report in _write_all(todo, url, plan.digest, annotations.classes, settings, num_workers):
        reports[report.info.name] = report
        _tell(on_progress, plan, reports, total)
    ordered = [reports[shard.name] for shard in plan.shards]
    manifest = _complete(url, store, annotations, settings, plan, ordered)
    return BuildResult(manifest, was_complete=False, reused_shards=reused)


def _check_ray() -> None:
    import ray

    if not ray.is_initialized():
        raise UserError("Ray has not been started: call ray.init() first, or use num_workers=0 for this process alone")


def _older(url: str, store: Store, overwrite: bool) -> Manifest | None:
    try:
        return read_manifest(url) if store.exists(MANIFEST_KEY) else None
    except UserError:
        # Damaged, or of another format version: it cannot say which files are its own, but it can be replaced.
        if not overwrite:
            raise
        return None


def _clear(store: Store, older: Manifest | None, plan: Plan) -> None:
    """Remove what other builds left here; clients that read `*.tar` would take their shards for ours.

    Only files that a manifest or a report names are removed, and the manifest before all: without it a half replaced
    data set is what it is, incomplete.
    """
    store.delete(MANIFEST_KEY)
    if older is not None:
        for split, info in older.splits.items():
            for key in (FAILURES_KEY, index_key(split), *(shard.name for shard in info.shards)):
                store.delete(key)
    ours = {report_key(plan.digest, shard.name) for shard in plan.shards}
    for key in set(store.list(REPORTS)) - ours:
        store.delete(ShardReport.from_json(store.get_bytes(key)).info.name)
        store.delete(key)


def _finished(store: Store, plan: Plan) -> dict[str, ShardReport]:
    """Return the reports of shards that an earlier, broken off build of this plan has put whole."""
    reports = {}
    there = set(store.list(REPORTS))
    for shard in plan.shards:
        if (key := report_key(plan.digest, shard.name)) in there:
            report = ShardReport.from_json(store.get_bytes(key))
            if _is_there(store, report):
                reports[shard.name] = report
    return reports


def _is_there(store: Store, report: ShardReport) -> bool:
    try:
        return store.size(report.info.name) == report.info.size_bytes
    except ObjectMissing:
        return False


def _tell(on_progress: Progress | None, plan: Plan, reports: dict[str, ShardReport], total: int) -> None:
    if on_progress is not None:
        failures = len(plan.failures) + sum(len(report.failures) for report in reports.values())
        on_progress(failures + sum(len(report.rows) for report in reports.values()), total, failures)


def _write_all(
    shards: Sequence[ShardPlan],
    url: str,
    plan_digest: str,
    classes: Sequence[str],
    settings: TranscodeSettings,
    num_workers: int | None,
) -> Iterator[ShardReport]:
    """Yield the shards' reports as they finish."""
    if num_workers == 0:
        for shard in shards:
            yield write_shard(shard, url, plan_digest, classes, settings)
        return
    import ray

    if num_workers is None:
        num_workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    # A lost node is Ray's to retry, a store that fails for a while is ours; both write the same bytes again.
    task = ray.remote(num_cpus=1, max_retries=3, retry_exceptions=[StoreError])(write_shard)
    waiting = iter(shards)
    running: list[Any] = []
    try:
        while True:
            # No more tasks than run at once: a data set of a million records must not be pickled into Ray's queue.
            for shard in itertools.islice(waiting, num_workers - len(running)):
                running.append(task.remote(shard, url, plan_digest, classes, settings))
            if not running:
                return
            done, running = ray.wait(running, num_returns=1)
            yield ray.get(done[0])
    finally:
        for reference in running:
            ray.cancel(reference)


def _complete(
    url: str,
    store: Store,
    annotations: Annotations,
    settings: TranscodeSettings,
    plan: Plan,
    reports: Sequence[ShardReport],
) -> Manifest:
    """Write all that says where the samples are, the manifest last."""
    failures = [*plan.failures, *(failure for report in reports for failure in report.failures)]
    if not any(report.rows for report in reports):
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(f.reason for f in failures).most_common())
        raise UserError(f"{annotations.name}: no record could be encoded ({reasons}); the first: {failures[0].detail}")
    lost = [report.info.name for report in reports if not _is_there(store, report)]
    if lost:
        raise StoreError(
            f"{url}: {', '.join(lost)} cannot be seen from here; a cluster needs a store that all its nodes share"
        )
    splits = {split: _split(url, split, plan, reports, failures) for split in sorted(plan.num_records)}
    store.put_bytes(FAILURES_KEY, _failure_lines(failures))
    manifest = Manifest(
        name=annotations.name,
        created=_now(),
        classes=list(annotations.classes),
        classes_digest=classes_digest(annotations.classes),
        splits=splits,
        annotations=dict(annotations.digests),
        transcode=settings.model_dump(mode="json"),
        software={
            "vast-video": importlib.metadata.version("vast-video"),
            "ffmpeg": imageio_ffmpeg.get_ffmpeg_version(),
            "av": av.__version__,
        },
        plan_digest=plan.digest,
        digest=dataset_digest(splits),
    )
    write_manifest(url, manifest)
    for report in reports:
        store.delete(report_key(plan.digest, report.info.name))
    return manifest


def _split(url: str, split: str, plan: Plan, reports: Sequence[ShardReport], failures: Sequence[Failure]) -> SplitInfo:
    mine = [report for report in reports if report.split == split]
    rows = [row for report in mine for row in report.rows]
    return SplitInfo(
        records=plan.num_records[split],
        samples=len(rows),
        failures=sum(failure.split == split for failure in failures),
        size_bytes=sum(report.info.size_bytes for report in mine),
        index_sha256=write_index(url, split, rows),
        shards=[report.info for report in mine],
    )


def _failure_lines(failures: Sequence[Failure]) -> bytes:
    ordered = sorted(failures, key=lambda failure: (failure.split, failure.key, failure.reason, failure.detail))
    lines = (json.dumps(asdict(failure), sort_keys=True, ensure_ascii=False) for failure in ordered)
    return "".join(line + "\n" for line in lines).encode()


def _now() -> str:
    """Return the time of the build; SOURCE_DATE_EPOCH fixes it where a build must be reproducible to the last byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
