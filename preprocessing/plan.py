"""Which record goes into which shard: decided before anything is encoded, the same for every run and machine."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from preprocessing.records import Annotations, Failure, Record
from vast.dataset_format import FORMAT_VERSION, UNLABELLED, shard_name
from vast.errors import UserError

DUPLICATE = "duplicate"

_all_of = attrgetter("split", "key", "stage", "reason", "source_id", "source_name", "detail")


@dataclass(frozen=True)
class ShardPlan:
    """The records of one shard, in order; small, as the process that writes the shard gets it and no other."""

    split: str
    name: str
    """The shard's file name."""
    records: tuple[Record, ...]
    digest: str
    """Identifies all that decides the shard's content: name, settings, and each record with its class and file."""


@dataclass(frozen=True)
class Plan:
    """A whole build, before it starts."""

    shards: tuple[ShardPlan, ...]
    failures: tuple[Failure, ...]
    """Records that cannot even be tried."""
    num_records: Mapping[str, int]
    """Split name to its lines in the annotation file."""
    digest: str
    """Identifies shards, failures and classes. Seed and shard size count by what they lead to."""


def make_plan(annotations: Annotations, settings: BaseModel, *, samples_per_shard: int = 400, seed: int = 0) -> Plan:
    """Shuffle each split's records and deal them to shards of equal counts, plus or minus one.

    The shuffle is global, so that also a client that only reads shards one after the other sees mixed classes. It
    sorts by a hash of seed and key: no random generator's version and no order of the annotation file matter. A
    million records take seconds, and little memory beyond the records themselves.

    Args:
        annotations: Records and classes.
        settings: How samples are encoded; any model, as it only has to be identified.
        samples_per_shard: Most records of a shard.
        seed: Of the shuffle.

    Raises:
        UserError: No record has a file, or `samples_per_shard` is not positive.
    """
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard is {samples_per_shard}; expected at least 1")
    if not annotations.records:
        reasons = Counter(failure.reason for failure in annotations.failures)
        found = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        what = "an image file" if annotations.media == "image" else "a video file"
        raise UserError(f"{annotations.name}: no record has {what} ({found or 'no records at all'})")
    failures = list(annotations.failures)
    shards: list[ShardPlan] = []
    head = {
        "format_version": FORMAT_VERSION,
        "media": annotations.media,
        "settings": settings.model_dump(mode="json"),
    }
    for split, mixed, ranks in _mixed_splits(annotations.records, seed):
        records, duplicates = _without_duplicates(mixed, ranks)
        failures += duplicates
        num_shards = -(-len(records) // samples_per_shard)
        edges = [len(records) * edge // num_shards for edge in range(num_shards + 1)]
        for index, (start, end) in enumerate(pairwise(edges)):
            dealt, name = tuple(records[start:end]), shard_name(split, index)
            lines = ([*_identity(record), _class(record, annotations.classes)] for record in dealt)
            shards.append(ShardPlan(split, name, dealt, _digest({**head, "split": split, "shard": name}, lines)))
    return Plan(
        shards=tuple(shards),
        failures=tuple(failures),
        num_records=Counter(line.split for lines in (annotations.records, annotations.failures) for line in lines),
        digest=_digest(
            {"classes": annotations.classes, "shards": [shard.digest for shard in shards]},
            sorted(map(_all_of, failures)),
        ),
    )


def _mixed_splits(records: Sequence[Record], seed: int) -> Iterator[tuple[str, list[Record], NDArray[np.uint64]]]:
    """Yield each split's name, its records sorted by rank, and their ranks; arrays of numbers do the sorting."""
    names = sorted({record.split for record in records})
    number = {name: i for i, name in enumerate(names)}
    splits = np.fromiter((number[record.split] for record in records), np.int32, len(records))
    ranks = np.fromiter((_rank(seed, record.key) for record in records), np.uint64, len(records))
    for name in names:
        members = np.flatnonzero(splits == number[name])
        members = members[np.argsort(ranks[members], kind="stable")]
        yield name, [records[i] for i in members.tolist()], ranks[members]


def _without_duplicates(mixed: list[Record], ranks: NDArray[np.uint64]) -> tuple[list[Record], list[Failure]]:
    """Keep one record of each key; which one does not depend on the order of the annotation file."""
    kept: list[Record] = []
    failures = []
    starts = np.flatnonzero(ranks[1:] != ranks[:-1]) + 1
    for start, end in pairwise([0, *starts, len(mixed)]):
        # Equal keys have equal ranks. That different keys have, too, is all but impossible, and does no harm.
        run = mixed[start:end]
        if len(run) > 1:
            run.sort(key=lambda record: (record.key, json.dumps(_identity(record))))
        for record in run:
            if kept and kept[-1].key == record.key:
                detail = "another line has the same key" + (
                    "" if kept[-1].label == record.label else " and another label"
                )
                place = (record.key, record.split, record.source_id, record.source_name)
                failures.append(Failure(*place, "match", DUPLICATE, detail))
            else:
                kept.append(record)
    return kept, failures


def _class(record: Record, classes: Sequence[str]) -> str | None:
    return None if record.label == UNLABELLED else classes[record.label]


def _rank(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")


def _identity(record: Record) -> list[Any]:
    # The file's size stands for its content: a replaced file is another plan. Its folder is not part of it.
    file = (record.source_name, record.file.size_bytes, record.replaced)
    return [record.key, record.source_id, record.label, record.start_s, record.end_s, *file]


def _digest(head: Mapping[str, Any], lines: Iterable[Sequence[Any]]) -> str:
    """Hash line by line: the text of a million failures need not be in memory."""
    # Escaped to ASCII, as names of files need not be valid Unicode.
    found = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for line in lines:
        found.update(b"\n" + json.dumps(line).encode())
    return f"sha256:{found.hexdigest()}"
