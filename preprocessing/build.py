"""A whole data set: every shard as one task, then indexes, failures and, last, the manifest.

Nothing half-written is ever readable through the manifest, and whoever is killed at any moment, the same call goes on
where it stood: shards are complete or absent, a shard's report marks it as done, and a lock keeps two builds apart.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from preprocessing.complete import NUM_THREADS, Done, complete, is_intact
from preprocessing.diagnosis import FailureLimit, diagnose
from preprocessing.lock import LOCK_KEY, PrefixLock
from preprocessing.plan import Plan, ShardPlan, make_plan
from preprocessing.ray_runner import check_ray, run_on_ray
from preprocessing.records import Annotations, Failure
from preprocessing.scans import SCANS, delete_scans
from preprocessing.transcode import TranscodeSettings
from preprocessing.write import REPORTS, Settings, ShardJob, ShardReport, read_report, report_key, write_shard
from vast.dataset_format import (
    FAILURES_KEY,
    MANIFEST_KEY,
    UNLISTED_KEY,
    Manifest,
    index_key,
    read_manifest,
    shard_name,
)
from vast.errors import UserError
from vast.storage import Store, open_store

Progress = Callable[[int, int, int], None]
"""Called with the records done, all records, and the failures among those done."""

# Fewer records say nothing about the share of bad ones.
MIN_TRIED = 100
_PLAN_MARK = f"{REPORTS}plan-"


@dataclass(frozen=True)
class BuildResult:
    """The data set and how it came about."""

    manifest: Manifest
    was_complete: bool
    """The same data set was there already and nothing was written."""
    reused_shards: int = 0
    """Shards that an earlier build of the same plan, broken off, had finished."""
    encoded: int = 0
    """Samples that this call has encoded."""
    source_bytes: int = 0
    """Bytes of the raw files of all records that were tried, by this call or an earlier one."""
    seconds: float = 0.0
    """Wall time that this call spent on writing shards."""


def build_dataset(
    url: str,
    annotations: Annotations,
    settings: Settings | None = None,
    *,
    samples_per_shard: int = 400,
    seed: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
    max_failures: FailureLimit | None = None,
    scratch: Path | None = None,
    on_progress: Progress | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> BuildResult:
    """Encode all records into shards at `url`.

    Workers and finishing order leave no trace: the finished prefix is byte for byte the same. A build that broke off
    goes on where it stopped when it is called again; one that is complete is left as it is.

    On a Ray cluster every node must see the raw files under the same path and have its own S3 credentials and endpoint
    in its environment (AWS_*, through the node's image or secret): they are never passed in a runtime_env, which shows
    up in Ray's job data. A local folder as `url` must then be a file system that all nodes share.

    Args:
        url: Where the data set goes.
        annotations: Records and classes.
        settings: How to encode; for videos the defaults when None.
        samples_per_shard: Records in a shard; 300 to 600 clips of ten seconds make a tar of 128 to 256 MB.
        seed: Of the shuffle.
        num_workers: Ray tasks at a time, one CPU each; None for all the cluster's CPUs, 0 to do without Ray.
        overwrite: Replace another data set that is complete at `url`.
        max_failures: Stop as soon as it is certain or very likely that more records than this will have failed.
        scratch: Folder for temporary files, on every node.
        on_progress: Called after each shard, with Ray also about once a second.
        on_wait: Called with a sentence while another machine's lock has not expired yet.

    Raises:
        UserError: Another data set is at `url` or another build writes there, Ray has not been started, no record could
            be encoded, or too many failed.
        StoreError: The store failed, or lost a shard.
    """
    if num_workers != 0:
        check_ray()
    settings = settings or TranscodeSettings()
    check_matches(annotations, max_failures)
    plan = make_plan(annotations, settings, samples_per_shard=samples_per_shard, seed=seed)
    store = open_store(url)
    older = _older(url, store, plan, overwrite)
    if older is not None and older.plan_digest == plan.digest and not _leftovers(store):
        return BuildResult(older, was_complete=True)
    share = _Share(annotations, plan, max_failures)
    with PrefixLock(store, f"vast shard {annotations.name}", on_wait=on_wait) as lock:
        store.sweep()
        older = _older(url, store, plan, overwrite)  # another build may have ended between the first look and the lock
        if older is not None and older.plan_digest == plan.digest:
            _tidy(url, store)
            return BuildResult(older, was_complete=True)
        _clear(url, store, older, plan, overwrite)
        begun = time.monotonic()
        job = ShardJob(url, annotations.classes, settings, scratch)
        build = _Build(plan, job, share, on_progress)
        reports = _finished(store, plan)
        reused = len(reports)
        build.done.update(reports)
        build.write(num_workers, lock)
        seconds = time.monotonic() - begun
        manifest = complete(store, job, annotations, plan, build.done, lock)
        _tidy(url, store)
    return BuildResult(
        manifest,
        was_complete=False,
        reused_shards=reused,
        encoded=sum(info.samples for info in manifest.splits.values()) - sum(r.info.samples for r in reports.values()),
        source_bytes=sum(record.file.size_bytes for shard in plan.shards for record in shard.records),
        seconds=seconds,
    )


def check_matches(annotations: Annotations, max_failures: FailureLimit | None) -> None:
    """Raise when so few records have a raw file that there is no point in beginning.

    Raises:
        UserError: None has one, or more than allowed have none; the message says what is probably wrong.
    """
    lost, total = len(annotations.failures), len(annotations.records) + len(annotations.failures)
    if lost and not annotations.records:
        raise UserError("\n  ".join([f"{annotations.name}: no record has a file", *diagnose(annotations)]))
    if max_failures is not None and lost > (share := max_failures.share_of(total)) * total:
        found = f"{lost} of {total} records have no usable file; --max-failures allows {share:.3%}"
        raise UserError("\n  ".join([f"{annotations.name}: {found}", *diagnose(annotations)]))


class _Build:
    """Shards being written, and what is known of those that are."""

    def __init__(self, plan: Plan, job: ShardJob, share: "_Share", on_progress: Progress | None) -> None:
        self.done: dict[str, Done] = {}
        self._plan, self._job, self._share, self._on_progress = plan, job, share, on_progress
        self._total = sum(plan.num_records.values())

    def write(self, num_workers: int | None, lock: PrefixLock) -> None:
        """Write the shards that are not done yet."""
        self._tell(0, 0)
        todo = [shard for shard in self._plan.shards if shard.name not in self.done]
        reports = self._alone(todo) if num_workers == 0 else run_on_ray(todo, self._job, num_workers, self._tell)
        for report in reports:
            self.done[report.info.name] = _kept(report)
            self._tell(0, 0)
            lock.check()

    def _alone(self, shards: Sequence[ShardPlan]) -> Iterator[ShardReport]:
        for shard in shards:
            yield write_shard(shard, self._job)

    def _tell(self, tried: int, failed: int) -> None:
        """Take in how far the shards are that are being written."""
        for done in self.done.values():
            tried += done.info.samples + len(done.failures)
            failed += len(done.failures)
        if self._on_progress is not None:
            not_tried = len(self._plan.failures)
            self._on_progress(not_tried + tried, self._total, not_tried + failed)
        self._share.check(tried, failed, (failure for done in self.done.values() for failure in done.failures))


class _Share:
    """The bound on failures; a build whose input is wrong must not run for days before it says so."""

    def __init__(self, annotations: Annotations, plan: Plan, limit: FailureLimit | None) -> None:
        self._annotations = annotations
        self._unmatched = len(plan.failures)
        self._total = sum(plan.num_records.values())
        self._limit = limit.share_of(self._total) if limit is not None else None

    def check(self, tried: int, failed: int, failures: Iterable[Failure]) -> None:
        """Raise when more records than allowed have failed, or, after many tries, almost certainly will."""
        if self._limit is None:
            return
        bound = self._limit * self._total
        # Shards are shuffled, so those tried stand for all; three standard deviations keep chance out.
        rate = failed / tried if tried >= MIN_TRIED else 0.0
        rate -= 3 * math.sqrt(rate * (1 - rate) / max(1, tried))
        expected = max(failed, rate * (self._total - self._unmatched))
        if self._unmatched + expected <= bound:
            return
        found = f"{self._unmatched} of {self._total} records have no usable file"
        if failed:
            found += f", and {failed} of the {tried} tried so far could not be encoded"
        why = diagnose(self._annotations)
        if tried_in_vain := list(failures):
            reasons = Counter(failure.reason for failure in tried_in_vain).most_common()
            said = ", ".join(f"{reason} {count}" for reason, count in reasons)
            first = tried_in_vain[0]
            why.insert(0, f"{said}; the first: {first.source_name}: {first.reason}: {first.detail}")
        raise UserError(
            "\n  ".join([f"stopped: {found}; --max-failures allows {self._limit:.3%} of the records", *why])
        )


def _kept(report: ShardReport) -> Done:
    return Done(report.info, report.version, report.failures)


def _older(url: str, store: Store, plan: Plan, overwrite: bool) -> Manifest | None:
    """Return the manifest at `url`, if there is one and it may stay or be replaced."""
    try:
        older = read_manifest(url) if store.exists(MANIFEST_KEY) else None
    except UserError:
        # Damaged, or of another format version: it cannot say which files are its own, but it can be replaced.
        if not overwrite:
            raise
        return None
    if older is not None and older.plan_digest != plan.digest and not overwrite:
        raise UserError(
            f"{url} holds another complete data set, {older.name!r} with {older.digest[:19]}; "
            "give another prefix, or --overwrite to replace it"
        )
    return older


def _leftovers(store: Store) -> bool:
    """Tell whether a build was killed after its manifest, or archives have been listed again since."""
    return store.exists(LOCK_KEY) or any(True for prefix in (REPORTS, SCANS) for _ in store.list(prefix))


def _tidy(url: str, store: Store) -> None:
    """Remove what only an unfinished build needs, and what workers that outlived theirs have left half-written."""
    store.sweep()
    for key in list(store.list(REPORTS)):
        store.delete(key)
    delete_scans(url)


def _clear(url: str, store: Store, older: Manifest | None, plan: Plan, overwrite: bool) -> None:
    """Remove what other builds left here; clients that read `*.tar` would take their shards for ours.

    A mark says which files a build writes before it writes any. Only files that a mark or a manifest names are removed,
    so whenever this is killed, the next call knows what is left to do.
    """
    marks = {key: json.loads(store.get_bytes(key)) for key in store.list(_PLAN_MARK)}
    shards = {shard.name for shard in plan.shards}
    if older is None and not marks and not overwrite and (foreign := shards & set(store.list())):
        raise UserError(
            f"{url} holds {len(foreign)} file(s) named as shards of this data set, such as {min(foreign)}, and nothing "
            "that says which build wrote them; give another prefix, or --overwrite to replace them"
        )
    if older is not None:
        counts = {split: len(info.shards) for split, info in older.splits.items()}
        marks |= _mark(store, older.plan_digest, counts)
    ours = _mark(store, plan.digest, Counter(shard.split for shard in plan.shards))
    for key in (MANIFEST_KEY, FAILURES_KEY, UNLISTED_KEY):
        store.delete(key)
    for counts in marks.values():
        for split, count in counts.items():
            # A shard of the same name is overwritten, or used again when its content would be the same.
            for key in {index_key(split), *(shard_name(split, i) for i in range(count))} - shards:
                store.delete(key)
    keep = {*ours, *(report_key(shard) for shard in plan.shards)}
    for key in [key for key in store.list(REPORTS) if key not in keep]:
        store.delete(key)


def _mark(store: Store, plan_digest: str, counts: Mapping[str, int]) -> dict[str, Mapping[str, int]]:
    """Write down how many shards of each split a build puts here."""
    key = f"{_PLAN_MARK}{plan_digest.removeprefix('sha256:')[:24]}.json"
    store.put_bytes(key, json.dumps(counts, sort_keys=True).encode())
    return {key: counts}


def _finished(store: Store, plan: Plan) -> dict[str, Done]:
    """Return what is known of the shards that an earlier, broken off build has put whole."""
    there = set(store.list(REPORTS))
    candidates = [shard for shard in plan.shards if report_key(shard) in there]

    def look(shard: ShardPlan) -> Done | None:
        done = _kept(read_report(store, shard))
        return done if is_intact(store, done) else None

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(look, candidates)
        return {shard.name: done for shard, done in zip(candidates, found, strict=True) if done is not None}
