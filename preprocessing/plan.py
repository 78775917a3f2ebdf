"""Which record goes into which shard: decided before anything is encoded, the same for every run and machine."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from preprocessing.records import Annotations, Failure, Record
from preprocessing.transcode import TranscodeSettings
from vast.dataset_format import FORMAT_VERSION, shard_name
from vast.errors import UserError

DUPLICATE = "duplicate"


@dataclass(frozen=True)
class ShardPlan:
    """The records of one shard, in order."""

    split: str
    name: str
    """The shard's file name."""
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Plan:
    """A whole build, before it starts."""

    shards: tuple[ShardPlan, ...]
    failures: tuple[Failure, ...]
    """Records that cannot even be tried."""
    num_records: Mapping[str, int]
    """Split name to its lines in the annotation file."""
    digest: str
    """Identifies records, files, settings, seed and shard size: the same digest means the same shards."""


def make_plan(
    annotations: Annotations, settings: TranscodeSettings, *, samples_per_shard: int = 400, seed: int = 0
) -> Plan:
    """Shuffle each split's records and deal them to shards of equal counts, plus or minus one.

    The shuffle is global, so that also a client that only reads shards one after the other sees mixed classes. It
    sorts by a hash of seed and key: no random generator's version and no order of the annotation file matter.

    Raises:
        UserError: No record has a video file, or `samples_per_shard` is not positive.
    """
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard is {samples_per_shard}; expected at least 1")
    records, duplicates = _without_duplicates(annotations.records)
    failures = [*annotations.failures, *duplicates]
    splits = [record.split for record in records] + [failure.split for failure in failures]
    if not records:
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(f.reason for f in failures).items())
        raise UserError(f"{annotations.name}: no record has a video file ({reasons or 'no records at all'})")
    shards = []
    for split in sorted({record.split for record in records}):
        mixed = sorted((record for record in records if record.split == split), key=lambda r: _rank(seed, r.key))
        num_shards = -(-len(mixed) // samples_per_shard)
        for index in range(num_shards):
            start, end = (len(mixed) * edge // num_shards for edge in (index, index + 1))
            shards.append(ShardPlan(split, shard_name(split, index), tuple(mixed[start:end])))
    content = {
        "format_version": FORMAT_VERSION,
        "classes": annotations.classes,
        "transcode": settings.model_dump(mode="json"),
        "seed": seed,
        "samples_per_shard": samples_per_shard,
        "records": sorted(_identity(record) for record in records),
        "failures": sorted([failure.split, failure.key, failure.reason] for failure in failures),
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return Plan(
        shards=tuple(shards),
        failures=tuple(failures),
        num_records=Counter(splits),
        digest=f"sha256:{hashlib.sha256(text.encode()).hexdigest()}",
    )


def _without_duplicates(records: Iterable[Record]) -> tuple[list[Record], list[Failure]]:
    kept: dict[tuple[str, str], Record] = {}
    failures = []
    for record in records:
        first = kept.setdefault((record.split, record.key), record)
        if first is not record:
            detail = "an earlier line has the same key" + ("" if first.label == record.label else " and another label")
            failure = Failure(record.key, record.split, record.source_id, record.source_name, DUPLICATE, detail)
            failures.append(failure)
    return list(kept.values()), failures


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _identity(record: Record) -> list[str]:
    # The file's size stands for its content: a replaced file is another plan. Its folder is not part of it.
    try:
        size_bytes = os.stat(record.path).st_size
    except OSError:
        size_bytes = -1
    parts = (record.split, record.key, record.source_id, record.label, record.source_name, size_bytes)
    return [str(part) for part in (*parts, record.start_s, record.end_s)]
