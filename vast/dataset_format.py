"""The shard data set, format 1: what it consists of, and its manifest, read and written.

A data set is a prefix in a store:

    manifest.json       written last: its presence means that the data set is complete
    <split>.parquet     the sample index, one row a sample
    <split>-000000.tar  plain WebDataset shards: <key>.mp4 (pictures: <key>.jpg) followed by <key>.json
    failures.jsonl      one line for each record that is in no shard, with the reason
    unlisted.jsonl      one line for each raw file that no record asks for

The sample index is read and written by vast.sample_index, a shard is written by vast.shard_writer.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from vast.errors import ObjectMissing, UserError
from vast.storage import open_store

FORMAT_VERSION = 1
MANIFEST_KEY = "manifest.json"
FAILURES_KEY = "failures.jsonl"
UNLISTED_KEY = "unlisted.jsonl"
UNLABELLED = -1


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
    replaced: int = 0
    """Samples whose raw file comes from a set of replacements for broken ones."""
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
        if not 0 <= self.replaced <= self.samples:
            problems.append(f"replaced {self.replaced} is not between 0 and samples {self.samples}")
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
    media: Literal["video", "image"] = "video"
    """What a sample is: an mp4 or a picture."""
    classes: list[str]
    """Class names; the position is the label id."""
    classes_digest: str
    """`classes_digest(classes)`."""
    splits: dict[str, SplitInfo]
    """Split name to its counts and shards."""
    unlisted: int = 0
    """Raw files that no record asks for, each with a line in unlisted.jsonl."""
    failures_sha256: str = ""
    """Hex digest of failures.jsonl; empty in data sets that were built without it."""
    unlisted_sha256: str = ""
    """Hex digest of unlisted.jsonl; empty in data sets that were built without it."""
    annotations: dict[str, str]
    """Name of each annotation file to its hex sha256."""
    transcode: dict[str, Any]
    """Settings with which the samples were encoded."""
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


def class_difference(ours: Sequence[str], theirs: Sequence[str], we: str) -> str:
    """Say in words where two class lists part, label id by label id; empty when they do not.

    Args:
        ours: The list that is held to be right.
        theirs: A data set's.
        we: Where ours is, as in "in the model".
    """
    if list(ours) == list(theirs):
        return ""
    counts = f"{len(theirs)} classes there, {len(ours)} {we}"
    for label, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            return f"{counts}; label id {label} is {their!r} there and {our!r} {we}"
    label = min(len(ours), len(theirs))
    extra = f"{theirs[label]!r} only there" if len(theirs) > label else f"{ours[label]!r} only {we}"
    return f"{counts}; label id {label} is {extra}"


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
    # Builds once wrote the time of day here; without it equal builds are equal byte for byte.
    content.pop("created", None)
    # Not a field, as it depends on how the fields are spelled; data sets that were built without it have none.
    checksum = content.pop("checksum", None)
    if checksum is not None and checksum != manifest_checksum(content):
        raise UserError(f"{url}/{MANIFEST_KEY} is damaged: its checksum does not belong to the rest; build it again")
    if version != FORMAT_VERSION:
        raise UserError(f"{url} has format version {version}; this program reads {FORMAT_VERSION}: build it again")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in error.errors()]
        raise UserError(f"{url}/{MANIFEST_KEY} contradicts itself: " + "; ".join(lines)) from error


def write_manifest(url: str, manifest: Manifest) -> None:
    """Write the manifest, which declares the data set complete: call it after everything else."""
    open_store(url).put_bytes(MANIFEST_KEY, encode_manifest(manifest))


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as it is written, with its checksum."""
    content = manifest.model_dump(mode="json")
    text = json.dumps({**content, "checksum": manifest_checksum(content)}, indent=1, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode()


def manifest_checksum(content: Mapping[str, Any]) -> str:
    """Return the digest of a manifest's fields, by which a damaged one is told."""
    return _digest(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())


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


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
