"""The files beside the shards read back: what does not belong there, failures and unlisted files, line by line."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import get_args

from preprocessing.lock import LOCK_KEY
from preprocessing.object_stream import ObjectStream
from preprocessing.records import Failure, Stage
from preprocessing.write import REPORTS
from vast.dataset_format import FAILURES_KEY, MANIFEST_KEY, UNLISTED_KEY, Manifest, encode_manifest, index_key
from vast.errors import StoreError
from vast.storage import LocalStore, Store, is_temporary

MAX_SHOWN = 10
"""Problems of one kind that are told in full."""

# What the rest of preprocessing leaves at a data set's URL, by the beginning of its name.
_STRAY = {
    REPORTS: "the report of a build that has not ended; run `vast shard` again with the same arguments",
    "scan-": "a list of an archive's members that a build has left; it may be deleted",
    LOCK_KEY: "the lock of a build that runs, or that was killed; run `vast shard` again with the same arguments",
}


def check_files(store: Store, manifest: Manifest) -> Iterator[str]:
    """Yield files that do not belong to the data set, or are named as its parts without being so."""
    if store.get_bytes(MANIFEST_KEY) != encode_manifest(manifest):
        yield f"{MANIFEST_KEY}: is not spelled as this program writes it"
    shards = {shard.name for info in manifest.splits.values() for shard in info.shards}
    ours = {MANIFEST_KEY, FAILURES_KEY, UNLISTED_KEY, *map(index_key, manifest.splits), *shards}
    strays = [key for key in store.list() if key not in ours]
    yield from first(f"{_shown(key)}: {_kind_of_stray(key)}" for key in strays)
    if isinstance(store, LocalStore):
        # A store does not list them.
        found = sorted(entry.name for entry in os.scandir(store.url) if is_temporary(entry.name))
        why = "a temporary file of a writer that was killed; it may be deleted"
        yield from first(f"{_shown(name)}: {why}" for name in found)


def _shown(name: str) -> str:
    """Return a name of someone else's making so that it stays on its line and can be printed."""
    return name if name.isprintable() else repr(name)


def _kind_of_stray(key: str) -> str:
    for beginning, kind in _STRAY.items():
        if key.startswith(beginning):
            return kind
    if key.endswith(".tar"):
        return "a shard that the manifest does not name; clients that read *.tar would take it in"
    return "a file that does not belong to the data set"


def check_failures(store: Store, manifest: Manifest, failed: dict[str, list[str]]) -> Iterator[str]:
    """Check failures.jsonl, and gather the keys of records that were tried, by split."""
    names = {field.name for field in fields(Failure)}
    counts = Counter[str]()
    try:
        yield from _check_digest(store, FAILURES_KEY, manifest.failures_sha256)
        for number, line in enumerate(_lines(store, FAILURES_KEY), 1):
            where = f"{FAILURES_KEY}, line {number}"
            entry = _entry(line, names)
            if entry is None:
                yield f"{where}: is no JSON object with the texts {', '.join(sorted(names))}"
                continue
            counts[entry["split"]] += 1
            if entry["split"] not in manifest.splits:
                yield f"{where}: has split {entry['split']!r}, the manifest has {', '.join(sorted(manifest.splits))}"
            if entry["stage"] not in get_args(Stage) or not entry["reason"]:
                yield f"{where}: has stage {entry['stage']!r} and reason {entry['reason']!r}"
            if entry["stage"] != "match":  # a second line of a key fails there although the first is a sample
                failed.setdefault(entry["split"], []).append(entry["key"])
    except StoreError as error:
        yield f"{FAILURES_KEY}: cannot be read: {error}"
        return
    for split, info in manifest.splits.items():
        if counts[split] != info.failures:
            yield f"{FAILURES_KEY}: {counts[split]} lines for {split}, the manifest says {info.failures}"


def check_unlisted(store: Store, manifest: Manifest) -> Iterator[str]:
    """Check unlisted.jsonl."""
    count = 0
    try:
        yield from _check_digest(store, UNLISTED_KEY, manifest.unlisted_sha256)
        for count, line in enumerate(_lines(store, UNLISTED_KEY), 1):
            if _entry(line, {"source_name"}) is None:
                yield f"{UNLISTED_KEY}, line {count}: is no JSON object with the text source_name"
    except StoreError as error:
        yield f"{UNLISTED_KEY}: cannot be read: {error}"
        return
    if count != manifest.unlisted:
        yield f"{UNLISTED_KEY}: {count} lines, the manifest says {manifest.unlisted}"


def _check_digest(store: Store, key: str, sha256: str) -> Iterator[str]:
    if (found := ObjectStream(store, key).sha256()) != sha256:
        yield f"{key}: sha256 is {found}, the manifest says {sha256 or 'nothing'}"


def _lines(store: Store, key: str) -> Iterator[bytes]:
    """Yield an object's lines, and one that is no JSON where the last one has no end."""
    stream = ObjectStream(store, key)
    yield from stream.lines()
    if stream.size_bytes and store.get_range(key, stream.size_bytes - 1, 1) != b"\n":
        yield b"cut off"


def _entry(line: bytes, names: set[str]) -> dict[str, str] | None:
    """Return a line's JSON object if it has exactly these fields, all texts."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.keys() != names:
        return None
    return entry if all(isinstance(value, str) for value in entry.values()) else None


def first(problems: Iterable[str], shown: int = MAX_SHOWN) -> Iterator[str]:
    """Yield the first problems, and how many more there are."""
    count = 0
    for count, problem in enumerate(problems, 1):
        if count <= shown:
            yield problem
    if count > shown:
        yield f"and {count - shown} more of this kind"
