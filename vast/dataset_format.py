"""The shard data set, format 1: manifest, sample index and shards, read and written.

A data set is a prefix in a store:

    manifest.json       written last: its presence means that the data set is complete
    <split>.parquet     the sample index, one row a sample
    <split>-000000.tar  plain WebDataset shards: <key>.mp4 followed by <key>.json
    failures.jsonl      one line for each record that is in no shard, with the reason
"""

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from vast.errors import ObjectMissing, UserError
from vast.storage import open_store

FORMAT_VERSION = 1
MANIFEST_KEY = "manifest.json"
FAILURES_KEY = "failures.jsonl"
UNLABELLED = -1

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SUFFIX = re.compile(r"[a-z0-9]+")
_PARQUET_TYPES = {
    "key": pa.string(),
    "shard": pa.string(),
    "offset": pa.int64(),
    "size_bytes": pa.int64(),
    "label": pa.int32(),
    "source_id": pa.string(),
    "duration_s": pa.float64(),
    "video_fps": pa.float64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "num_frames": pa.int32(),
    "sha256": pa.string(),
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ShardInfo(_Part):
    """One tar of samples, as it lies in the store."""

    name: str
    """File name, relative to the data set."""
    size_bytes: int
    """Size of the tar."""
    sha256: str
    """Hex digest of the tar."""
    samples: int
    """Number of samples inside."""


class SplitInfo(_Part):
    """One split; every record is either a sample or a failure."""

    records: int
    """Lines of the annotation file."""
    samples: int
    """Records that are in the shards."""
    failures: int
    """Records that are not, each with a line in failures.jsonl."""
    size_bytes: int
    """Bytes of all shards."""
    index_sha256: str
    """Hex digest of the split's parquet file."""
    shards: list[ShardInfo]
    """The shards, in order."""

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        problems = []
        if self.records != self.samples + self.failures:
            problems.append(f"records {self.records} is not samples {self.samples} + failures {self.failures}")
        if self.samples != (in_shards := sum(shard.samples for shard in self.shards)):
            problems.append(f"samples {self.samples} is not the shards' sum {in_shards}")
        if self.size_bytes != (in_shards := sum(shard.size_bytes for shard in self.shards)):
            problems.append(f"size_bytes {self.size_bytes} is not the shards' sum {in_shards}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Manifest(_Part):
    """What a data set says about itself."""

    format_version: int = FORMAT_VERSION
    """Version of this format."""
    name: str
    """Name of the data set, for people."""
    created: str
    """UTC time of the build, ISO 8601."""
    classes: list[str]
    """Class names; the position is the label id."""
    classes_digest: str
    """`classes_digest(classes)`."""
    splits: dict[str, SplitInfo]
    """Split name to its counts and shards."""
    annotations: dict[str, str]
    """Name of each annotation file to its hex sha256."""
    transcode: dict[str, Any]
    """Settings with which the videos were encoded."""
    software: dict[str, str]
    """Versions of the programs that made the data set."""
    plan_digest: str
    """Digest of records, settings and seed: the same plan gives the same shards."""
    digest: str
    """`dataset_digest(splits)`, the identity of the content."""

    @model_validator(mode="after")
    def _digests_agree(self) -> Self:
        problems = []
        if self.classes_digest != classes_digest(self.classes):
            problems.append("classes_digest does not belong to classes")
        if self.digest != dataset_digest(self.splits):
            problems.append("digest does not belong to the shards' sha256")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def classes_digest(classes: Sequence[str]) -> str:
    """Identify a class list, order included."""
    return _digest(json.dumps(list(classes), ensure_ascii=False).encode())


def dataset_digest(splits: Mapping[str, SplitInfo]) -> str:
    """Identify a data set's content: a hash over the shards' hashes, splits by name, shards in order."""
    lines = [f"{name}/{shard.name} {shard.sha256}\n" for name in sorted(splits) for shard in splits[name].shards]
    return _digest("".join(lines).encode())


def shard_name(split: str, index: int) -> str:
    """Return the file name of a split's shard."""
    return f"{split}-{index:06d}.tar"


def index_key(split: str) -> str:
    """Return the file name of a split's sample index."""
    return f"{split}.parquet"


def read_manifest(url: str) -> Manifest:
    """Read the manifest of the data set at `url`.

    Raises:
        UserError: There is no data set, it has another format version, or its manifest is damaged.
    """
    try:
        raw = open_store(url).get_bytes(MANIFEST_KEY)
    except ObjectMissing as error:
        raise UserError(
            f"no data set at {url}: there is no {MANIFEST_KEY}; check the URL, or finish the build that writes there"
        ) from error
    try:
        content = json.loads(raw)
        version = content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{url}/{MANIFEST_KEY} is damaged: {error!r}; build the data set again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{url} has format version {version}; this program reads {FORMAT_VERSION}: build it again")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in error.errors()]
        raise UserError(f"{url}/{MANIFEST_KEY} contradicts itself: " + "; ".join(lines)) from error


def write_manifest(url: str, manifest: Manifest) -> None:
    """Write the manifest, which declares the data set complete: call it after everything else."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
    open_store(url).put_bytes(MANIFEST_KEY, (text + "\n").encode())


@dataclass(frozen=True)
class SampleRow:
    """One line of the sample index."""

    key: str
    shard: str
    offset: int
    """First byte of the media member's payload inside the tar."""
    size_bytes: int
    """Bytes of that payload."""
    label: int
    """Label id, or UNLABELLED."""
    source_id: str
    """The video's id in its data set of origin; clips of one video share it."""
    duration_s: float
    video_fps: float
    width: int
    height: int
    num_frames: int
    sha256: str
    """Hex digest of the payload."""


@dataclass(frozen=True)
class SampleIndex:
    """The sample index as columns of equal length; position i is sample i of the split.

    Fixed-width arrays rather than objects: reader processes made by fork share them without copying.
    """

    key: NDArray[np.str_]
    shard: NDArray[np.str_]
    offset: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    label: NDArray[np.int32]
    source_id: NDArray[np.str_]
    duration_s: NDArray[np.float64]
    video_fps: NDArray[np.float64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    num_frames: NDArray[np.int32]
    sha256: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.key)

    def row(self, i: int) -> SampleRow:
        """Return sample i as plain Python values."""
        return SampleRow(**{field.name: getattr(self, field.name)[i].item() for field in fields(self)})


def read_index(url: str, split: str) -> SampleIndex:
    """Read the sample index of a split.

    Raises:
        UserError: There is no such split, or the file is no sample index.
    """
    where = f"{url}/{index_key(split)}"
    try:
        raw = open_store(url).get_bytes(index_key(split))
    except ObjectMissing as error:
        splits = ", ".join(sorted(read_manifest(url).splits))
        raise UserError(f"{url} has no split {split!r}; it has: {splits}") from error
    try:
        table = pq.read_table(io.BytesIO(raw), use_threads=False)
        columns = {name: table.column(name).to_numpy() for name in _PARQUET_TYPES}
    except (pa.ArrowException, KeyError) as error:
        raise UserError(f"{where} is no sample index: {error}; run `vast data verify {url}`") from error
    for name, parquet_type in _PARQUET_TYPES.items():
        columns[name] = columns[name].astype(np.str_ if parquet_type == pa.string() else columns[name].dtype)
    return SampleIndex(**columns)


def write_index(url: str, split: str, rows: Iterable[SampleRow]) -> str:
    """Write the sample index of a split and return its hex sha256; the same rows give the same bytes."""
    content = [asdict(row) for row in rows]
    columns = {name: pa.array([row[name] for row in content], kind) for name, kind in _PARQUET_TYPES.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    open_store(url).put_bytes(index_key(split), buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


@dataclass(frozen=True)
class SampleRange:
    """Where a sample's media lies in its shard, and the digest of those bytes."""

    offset: int
    size_bytes: int
    sha256: str


class ShardWriter:
    """Writes one shard to a local file, byte for byte the same for the same samples.

    Headers carry no clock and no user; owner and mode are those that webdataset's own writer uses. Leaving the context
    by an exception removes the file; otherwise `finish` tells what was written. The tar is hashed while it is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._file = open(self._path, "wb")  # noqa: SIM115 - closed by finish or __exit__
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0
        self._keys: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            self._file.close()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    def add(self, key: str, media: bytes, suffix: str = "mp4", meta: Mapping[str, Any] | None = None) -> SampleRange:
        """Append one sample: `<key>.<suffix>`, then `<key>.json`.

        Raises:
            ValueError: The key is ill-formed or in the shard already; WebDataset readers would lose such a sample.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot be a sample's key: only A-Z a-z 0-9 _ - may be in it")
        if not _SUFFIX.fullmatch(suffix) or suffix == "json":
            raise ValueError(f"{suffix!r} cannot be a media suffix: only a-z 0-9 may be in it, and not json")
        if key in self._keys:
            raise ValueError(f"{self._path.name} has the key {key!r} already")
        self._keys.add(key)
        offset = self._member(f"{key}.{suffix}", media)
        text = json.dumps(dict(meta or {}), sort_keys=True, ensure_ascii=False, allow_nan=False)
        self._member(f"{key}.json", text.encode())
        return SampleRange(offset, len(media), hashlib.sha256(media).hexdigest())

    def finish(self) -> ShardInfo:
        """Close the tar and describe it; the shard's name is the file's."""
        # Two zero blocks end an archive; tar pads to whole records.
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self._size_bytes % tarfile.RECORDSIZE))
        self._file.close()
        return ShardInfo(
            name=self._path.name,
            size_bytes=self._size_bytes,
            sha256=self._sha256.hexdigest(),
            samples=len(self._keys),
        )

    def _member(self, name: str, payload: bytes) -> int:
        header = tarfile.TarInfo(name)
        header.size = len(payload)
        header.mode = 0o444
        header.uname = header.gname = "bigdata"
        self._write(header.tobuf(tarfile.PAX_FORMAT))
        offset = self._size_bytes
        self._write(payload)
        self._write(bytes(-len(payload) % tarfile.BLOCKSIZE))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._size_bytes += len(data)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
