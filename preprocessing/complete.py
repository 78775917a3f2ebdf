"""The end of a build: is every shard there, then sample indexes, failures and, last, the manifest."""

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import av
import imageio_ffmpeg
import PIL

from preprocessing.lock import PrefixLock
from preprocessing.plan import Plan
from preprocessing.records import Annotations, Failure
from preprocessing.scratch import shard_folder
from preprocessing.write import ShardJob, read_report
from vast.dataset_format import (
    FAILURES_KEY,
    UNLISTED_KEY,
    Manifest,
    ShardInfo,
    SplitInfo,
    classes_digest,
    dataset_digest,
    write_manifest,
)
from vast.errors import ObjectMissing, StoreError, UserError
from vast.sample_index import IndexWriter
from vast.storage import Store

NUM_THREADS = 8
"""Requests at a time to the store."""
_CHUNK_BYTES = 16 << 20
_ROW_BYTES = 200  # of a sample index; a hundred at most has been seen


@dataclass(frozen=True)
class Done:
    """What the driver keeps of a finished shard; its rows stay in the store until the index is written."""

    info: ShardInfo
    version: str
    failures: tuple[Failure, ...]


def is_intact(store: Store, done: Done) -> bool:
    """Tell whether the store holds the shard that the report describes."""
    try:
        found = store.stat(done.info.name)
        if found.size_bytes != done.info.size_bytes:
            return False
        if found.version == done.version:
            return True
        # Written again by a worker that outlived its build: the same bytes, if it is one of ours.
        sha256 = hashlib.sha256()
        for offset in range(0, found.size_bytes, _CHUNK_BYTES):
            size_bytes = min(_CHUNK_BYTES, found.size_bytes - offset)
            sha256.update(store.get_range(done.info.name, offset, size_bytes))
        return sha256.hexdigest() == done.info.sha256
    except ObjectMissing:
        return False


def complete(
    store: Store,
    job: ShardJob,
    annotations: Annotations,
    plan: Plan,
    done: Mapping[str, Done],
    lock: PrefixLock,
) -> Manifest:
    """Write all that says where the samples are, the manifest last."""
    failures = [*plan.failures, *(failure for each in done.values() for failure in each.failures)]
    if not any(each.info.samples for each in done.values()):
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(f.reason for f in failures).most_common())
        raise UserError(f"{annotations.name}: no record could be encoded ({reasons}); the first: {failures[0].detail}")
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        intact = pool.map(lambda shard: is_intact(store, done[shard.name]), plan.shards)
        lost = [shard.name for shard, good in zip(plan.shards, intact, strict=True) if not good]
    if lost:
        raise StoreError(
            f"{job.url}: {', '.join(lost[:5])} cannot be seen from here or were replaced; a cluster needs a store that "
            "all its nodes share. The same command writes them again"
        )
    splits = {split: _split(store, job, split, plan, done, failures) for split in sorted(plan.num_records)}
    failure_lines = _failure_lines(failures)
    unlisted_lines = _lines({"source_name": name} for name in sorted(annotations.unlisted))
    store.put_bytes(FAILURES_KEY, failure_lines)
    store.put_bytes(UNLISTED_KEY, unlisted_lines)
    manifest = Manifest(
        name=annotations.name,
        media=annotations.media,
        classes=list(annotations.classes),
        classes_digest=classes_digest(annotations.classes),
        splits=splits,
        unlisted=len(annotations.unlisted),
        failures_sha256=hashlib.sha256(failure_lines).hexdigest(),
        unlisted_sha256=hashlib.sha256(unlisted_lines).hexdigest(),
        annotations=dict(annotations.digests),
        transcode=job.settings.model_dump(mode="json"),
        software={
            "vast-video": importlib.metadata.version("vast-video"),
            "ffmpeg": imageio_ffmpeg.get_ffmpeg_version(),
            "av": av.__version__,
            "pillow": PIL.__version__,
        },
        plan_digest=plan.digest,
        digest=dataset_digest(splits),
    )
    lock.check()
    write_manifest(job.url, manifest)
    return manifest


def _split(
    store: Store, job: ShardJob, split: str, plan: Plan, done: Mapping[str, Done], failures: Sequence[Failure]
) -> SplitInfo:
    shards = [shard for shard in plan.shards if shard.split == split]
    replaced = 0
    needed_bytes = sum(done[shard.name].info.samples for shard in shards) * _ROW_BYTES
    with shard_folder(job.scratch, needed_bytes) as folder, IndexWriter(job.url, split, folder) as index:
        for shard in shards:
            rows = read_report(store, shard).rows
            index.append(rows)
            of_replacements = {record.key for record in shard.records if record.replaced}
            replaced += sum(row.key in of_replacements for row in rows)
        index_sha256 = index.finish()
    infos = [done[shard.name].info for shard in shards]
    return SplitInfo(
        records=plan.num_records[split],
        samples=sum(info.samples for info in infos),
        failures=sum(failure.split == split for failure in failures),
        replaced=replaced,
        size_bytes=sum(info.size_bytes for info in infos),
        index_sha256=index_sha256,
        shards=infos,
    )


def _failure_lines(failures: Sequence[Failure]) -> bytes:
    ordered = sorted(failures, key=lambda failure: (failure.split, failure.key, failure.reason, failure.detail))
    return _lines(asdict(failure) for failure in ordered)


def _lines(entries: Iterable[dict[str, str]]) -> bytes:
    return "".join(json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n" for entry in entries).encode()
