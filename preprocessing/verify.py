"""Reads a whole data set back and says what is wrong with it; also describes one for people."""

import gc
import hashlib
import io
import json
import tarfile
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from vast.dataset_format import (
    FAILURES_KEY,
    UNLABELLED,
    Manifest,
    SampleIndex,
    SampleRow,
    ShardInfo,
    index_key,
    read_index,
    read_manifest,
)
from vast.errors import StoreError, UserError
from vast.storage import Store, open_store


@dataclass(frozen=True)
class SplitDescription:
    """One line of `vast data show`."""

    split: str
    records: int
    samples: int
    failures: int
    shards: int
    size_bytes: int
    """Bytes of the shards."""
    hours: float
    """Sum of the clips' durations."""
    classes: int
    """Classes that occur in the split."""
    failures_by_reason: dict[str, int]
    """Most frequent first."""


def describe(url: str) -> tuple[Manifest, list[SplitDescription]]:
    """Return a data set's manifest and one description a split, from its manifest, indexes and failures.

    Raises:
        UserError: There is no data set at `url`.
    """
    manifest = read_manifest(url)
    failures = _read_failures(open_store(url))
    descriptions = []
    for split, info in manifest.splits.items():
        index = read_index(url, split)
        reasons = Counter(str(failure["reason"]) for failure in failures if failure["split"] == split)
        labels = set(index.label.tolist()) - {UNLABELLED}
        descriptions.append(
            SplitDescription(
                split=split,
                records=info.records,
                samples=info.samples,
                failures=info.failures,
                shards=len(info.shards),
                size_bytes=info.size_bytes,
                hours=float(index.duration_s.sum()) / 3600,
                classes=len(labels),
                failures_by_reason=dict(reasons.most_common()),
            )
        )
    return manifest, descriptions


def verify(url: str, *, decode_sample: int = 20) -> list[str]:
    """Read everything at `url` back and return the problems, one line each; none when the data set is whole.

    Every byte is read: sizes and digests of shards, indexes and samples, the agreement of index, json members and
    manifest. `decode_sample` clips of each split are decoded, spread evenly, and one shard of each split is read with
    plain webdataset, the field's own client.

    Raises:
        StoreError: The store cannot be reached.
    """
    try:
        manifest = read_manifest(url)
    except UserError as error:
        return [str(error)]
    store = open_store(url)
    problems = [*_check_files(store, manifest), *_check_failures(store, manifest)]
    for split in manifest.splits:
        problems += _check_split(url, store, manifest, split, decode_sample)
    return problems


def _check_files(store: Store, manifest: Manifest) -> Iterator[str]:
    named = {shard.name for info in manifest.splits.values() for shard in info.shards}
    for key in store.list():
        if key.endswith(".tar") and key not in named:
            yield f"{key}: a shard that the manifest does not name; clients that read *.tar would take it in"


def _read_failures(store: Store) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in store.get_bytes(FAILURES_KEY).splitlines()]
    except ValueError as error:
        raise UserError(f"{store.url}/{FAILURES_KEY} is not JSON, line by line: {error}") from error


def _check_failures(store: Store, manifest: Manifest) -> Iterator[str]:
    try:
        counts = Counter(failure.get("split") for failure in _read_failures(store))
    except (UserError, StoreError) as error:
        yield str(error)
        return
    for split, info in manifest.splits.items():
        if counts[split] != info.failures:
            yield f"{FAILURES_KEY}: {counts[split]} lines for {split}, the manifest says {info.failures}"


def _check_split(url: str, store: Store, manifest: Manifest, split: str, decode_sample: int) -> Iterator[str]:
    info = manifest.splits[split]
    name = index_key(split)
    try:
        if (found := hashlib.sha256(store.get_bytes(name)).hexdigest()) != info.index_sha256:
            yield f"{name}: sha256 is {found}, the manifest says {info.index_sha256}"
        index = read_index(url, split)
    except (UserError, StoreError) as error:
        yield str(error)
        return
    yield from _check_index(name, index, manifest, split)
    picks = {int(i) for i in np.linspace(0, len(index) - 1, min(decode_sample, len(index)))}
    for number, shard in enumerate(info.shards):
        rows = {int(i): index.row(int(i)) for i in np.flatnonzero(index.shard == shard.name)}
        with tempfile.TemporaryDirectory(prefix="vast-verify-") as folder:
            path = Path(folder, shard.name)
            try:
                store.get_file(shard.name, path)
            except StoreError as error:
                yield str(error)
                continue
            yield from _check_shard(path, shard, rows, manifest.classes)
            for i in sorted(picks & rows.keys()):
                yield from _check_clip(path, rows[i])
            if number == 0:
                yield from _check_webdataset(path, list(rows.values()))


def _check_index(name: str, index: SampleIndex, manifest: Manifest, split: str) -> Iterator[str]:
    info = manifest.splits[split]
    if len(index) != info.samples:
        yield f"{name}: {len(index)} rows, the manifest says {info.samples} samples"
    if repeated := [key for key, count in Counter(index.key.tolist()).items() if count > 1]:
        yield f"{name}: {len(repeated)} keys occur more than once, {repeated[0]} first"
    if unknown := set(index.shard.tolist()) - {shard.name for shard in info.shards}:
        yield f"{name}: names shards that the manifest does not: {', '.join(sorted(unknown))}"
    bad = np.flatnonzero((index.label < UNLABELLED) | (index.label >= len(manifest.classes)))
    if len(bad):
        row = index.row(int(bad[0]))
        yield f"{name}: {row.key} has label {row.label}, there are {len(manifest.classes)} classes"


def _check_shard(path: Path, shard: ShardInfo, rows: dict[int, SampleRow], classes: list[str]) -> Iterator[str]:
    size_bytes = path.stat().st_size
    if size_bytes != shard.size_bytes:
        yield f"{shard.name}: {size_bytes} bytes, the manifest says {shard.size_bytes}"
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.sha256:
        yield f"{shard.name}: sha256 is {found}, the manifest says {shard.sha256}"
    try:
        with tarfile.open(path, "r:") as tar:
            members = {member.name: _read_member(tar, member) for member in tar}
    except (tarfile.TarError, OSError, EOFError) as error:
        yield f"{shard.name}: is no whole tar: {error}"
        return
    if len(members) != 2 * shard.samples:
        yield f"{shard.name}: {len(members)} members, expected two for each of {shard.samples} samples"
    if shard.samples != len(rows):
        yield f"{shard.name}: the index has {len(rows)} of its {shard.samples} samples"
    for row in rows.values():
        yield from _check_member(members, row, classes)


@dataclass(frozen=True)
class _Member:
    offset: int
    size_bytes: int
    sha256: str
    text: bytes
    """Content of a json member, or nothing: a shard need not fit into memory twice."""


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> _Member:
    file = tar.extractfile(member)
    payload = file.read() if file is not None else b""
    text = payload if member.name.endswith(".json") else b""
    return _Member(member.offset_data, len(payload), hashlib.sha256(payload).hexdigest(), text)


def _check_member(members: dict[str, _Member], row: SampleRow, classes: list[str]) -> Iterator[str]:
    where = f"{row.shard}, {row.key}"
    media, text = members.get(f"{row.key}.mp4"), members.get(f"{row.key}.json")
    if media is None or text is None:
        yield f"{where}: the shard has no {row.key}.mp4 or no {row.key}.json"
        return
    if (media.offset, media.size_bytes) != (row.offset, row.size_bytes):
        place = f"{media.offset}, {media.size_bytes} bytes"
        yield f"{where}: lies at {place}; the index says {row.offset}, {row.size_bytes} bytes"
    elif media.sha256 != row.sha256:
        yield f"{where}: the clip's bytes do not have the index's sha256"
    try:
        meta = json.loads(text.text)
    except ValueError as error:
        yield f"{where}: its json cannot be read: {error}"
        return
    expected = {"label": row.label, "source_id": row.source_id, "num_frames": row.num_frames}
    expected["class"] = classes[row.label] if 0 <= row.label < len(classes) else None
    for name, value in expected.items():
        if meta.get(name) != value:
            yield f"{where}: its json says {name} {meta.get(name)!r}, the index says {value!r}"


def _check_clip(path: Path, row: SampleRow) -> Iterator[str]:
    where = f"{row.shard}, {row.key}"
    with open(path, "rb") as file:
        file.seek(row.offset)
        media = file.read(row.size_bytes)
    try:
        with av.open(io.BytesIO(media), mode="r", format="mp4") as container:
            frames = [(frame.width, frame.height) for frame in container.decode(video=0)]
    except (av.FFmpegError, ValueError, IndexError) as error:
        yield f"{where}: cannot be decoded: {error}"
        return
    if len(frames) != row.num_frames:
        yield f"{where}: decodes to {len(frames)} frames, the index says {row.num_frames}"
    if sizes := set(frames) - {(row.width, row.height)}:
        yield f"{where}: frames are {sorted(sizes)}, the index says {row.width}x{row.height}"


def _check_webdataset(path: Path, rows: list[SampleRow]) -> Iterator[str]:
    import webdataset

    found = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            # Never .decode(): it unpickles members by their suffix.
            for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
                found.append((sample["__key__"], len(sample.get("mp4", b"")), "json" in sample))
            # webdataset leaves the closing of its files to the collector, which would complain in a place of ours.
            gc.collect()
    except Exception as error:  # whatever the client raises is the finding
        yield f"{path.name}: webdataset cannot read it: {error!r}"
        return
    expected = [(row.key, row.size_bytes, True) for row in sorted(rows, key=lambda row: row.offset)]
    if found != expected:
        yield f"{path.name}: webdataset reads {len(found)} samples that are not the index's {len(expected)}"
