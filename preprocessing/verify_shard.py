"""One shard read back: its bytes, its tar, its samples against the index, and some of them decoded."""

import hashlib
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.ffmpeg import ClipError
from preprocessing.object_stream import Member, ObjectStream, TarError, tar_members
from preprocessing.profiles import TranscodeSettings, gop_frames
from preprocessing.proof import Claim, prove
from vast.dataset_format import UNLABELLED, Manifest, SampleRow, ShardInfo
from vast.errors import StoreError
from vast.storage import Store

SUFFIXES = {"video": "mp4", "image": "jpg"}
"""Kind of media to the suffix of its member."""
MAX_PROBLEMS = 10
"""Problems of one shard that are told in full; a shifted index would give one for each sample."""

_MAX_JSON_BYTES = 1 << 20
_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class ShardFindings:
    """What reading a shard has shown."""

    problems: list[str] = field(default_factory=list)
    key_hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """`key_hash` of each sample that the index has in this shard."""
    num_replaced: int = 0
    """Samples whose raw file came from a set of replacements."""


@dataclass(frozen=True)
class ShardCheck:
    """What a shard has to be."""

    info: ShardInfo
    split: str
    manifest: Manifest
    rows: Sequence[SampleRow] | None
    """What the index says of its samples; None when there is no index to be trusted."""
    decode: Collection[str]
    """Keys of the samples to decode."""
    settings: TranscodeSettings | None
    """How clips are encoded; None for pictures, and for clips that cannot be proven for want of it."""

    def run(self, store: Store, on_sample: Callable[[], None]) -> ShardFindings:
        """Read the shard once, a chunk at a time; only clips that are decoded are held whole.

        Args:
            store: Where it is.
            on_sample: Called after each sample.
        """
        reader = _Reader(self, on_sample)
        try:
            stream = ObjectStream(store, self.info.name)
            if stream.size_bytes != self.info.size_bytes:
                reader.note(f"{stream.size_bytes} bytes, the manifest says {self.info.size_bytes}")
            try:
                reader.read(stream)
            except TarError as error:
                reader.note(f"is no whole tar: {error}")
            if (found := stream.sha256()) != self.info.sha256:
                reader.note(f"sha256 is {found}, the manifest says {self.info.sha256}", first=True)
        except (StoreError, ValueError) as error:  # also a shard whose name is no key of a store
            reader.note(f"cannot be read: {error}", first=True)
        return reader.findings()


class _Reader:
    """Walks through the members and notes what is wrong."""

    def __init__(self, check: ShardCheck, on_sample: Callable[[], None]) -> None:
        self._check, self._on_sample = check, on_sample
        self._suffix = SUFFIXES[check.manifest.media]
        self._rows = {row.key: row for row in check.rows or ()}
        self._seen: set[str] = set()
        self._problems: list[str] = []
        self._num_replaced = 0

    def note(self, problem: str, *, first: bool = False) -> None:
        self._problems.insert(0 if first else len(self._problems), f"{self._check.info.name}: {problem}")

    def findings(self) -> ShardFindings:
        shown = self._problems[:MAX_PROBLEMS]
        if len(self._problems) > MAX_PROBLEMS:
            shown.append(f"{self._check.info.name}: and {len(self._problems) - MAX_PROBLEMS} more problems")
        hashes = np.fromiter((key_hash(row.key) for row in self._check.rows or ()), np.uint64)
        return ShardFindings(shown, hashes, self._num_replaced)

    def read(self, stream: ObjectStream) -> None:
        """Read all samples: pairs of a media member and its json."""
        members = tar_members(stream)
        for member in members:
            key, _, suffix = member.name.partition(".")
            if suffix != self._suffix or not _KEY.fullmatch(key):
                self.note(f"{member.name!r} stands where a sample's {self._suffix} is expected")
                continue
            if key in self._seen:
                self.note(f"{key} is in it twice")
            self._seen.add(key)
            self._read_media(stream, member, key)
            meta = next(members, None)
            if meta is None or meta.name != f"{key}.json":
                self.note(f"{key}: {meta.name if meta else 'the end'} follows where its json is expected")
            else:
                self._read_json(stream, meta, key)
            self._on_sample()
        if len(self._seen) != self._check.info.samples:
            self.note(f"{len(self._seen)} samples, the manifest says {self._check.info.samples}")
        if self._check.rows is not None:
            for key in [key for key in self._rows if key not in self._seen]:
                self.note(f"{key} is not in it, the index says it is")

    def _read_media(self, stream: ObjectStream, member: Member, key: str) -> None:
        row = self._rows.get(key)
        if row is None:
            if self._check.rows is not None:
                self.note(f"{key} is not in the index")
            return
        if (member.offset, member.size_bytes) != (row.offset, row.size_bytes):
            self.note(
                f"{key} lies at byte {member.offset} and has {member.size_bytes} bytes, "
                f"the index says at {row.offset}, {row.size_bytes} bytes"
            )
        if not UNLABELLED <= row.label < len(self._check.manifest.classes):
            self.note(
                f"{key} has label {row.label} in the index, there are {len(self._check.manifest.classes)} classes"
            )
        wanted = key in self._check.decode
        sha256, pieces = hashlib.sha256(), []
        for piece in stream.pieces(member.size_bytes):
            sha256.update(piece)
            if wanted:
                pieces.append(piece)
        if sha256.hexdigest() != row.sha256:
            # What is known to be damaged is not given to a decoder.
            self.note(f"{key}: its {self._suffix} has not the index's sha256")
        elif wanted:
            for problem in self._decode(b"".join(pieces), row):
                self.note(f"{key}: {problem}")

    def _decode(self, media: bytes, row: SampleRow) -> Iterator[str]:
        if self._check.manifest.media == "image":
            yield from _decode_picture(media, row)
        elif self._check.settings is not None:
            yield from _prove_clip(media, row, self._check.settings)

    def _read_json(self, stream: ObjectStream, member: Member, key: str) -> None:
        try:
            meta = json.loads(stream.read(min(member.size_bytes, _MAX_JSON_BYTES)))
            if not isinstance(meta, dict):
                raise ValueError(f"it is a {type(meta).__name__}")
        except (ValueError, RecursionError) as error:
            self.note(f"{key}: its json cannot be read: {error}")
            return
        self._num_replaced += meta.get("replaced") is True
        if (row := self._rows.get(key)) is not None:
            for name, value in self._expected(row).items():
                if name not in meta or meta[name] != value:
                    self.note(f"{key}: its json says {name} {meta.get(name)!r}, the index says {value!r}")

    def _expected(self, row: SampleRow) -> dict[str, Any]:
        classes = self._check.manifest.classes
        measured = ("duration_s", "video_fps", "width", "height", "num_frames")
        return {
            "split": self._check.split,
            "label": row.label,
            "class": classes[row.label] if 0 <= row.label < len(classes) else None,
            "source_id": row.source_id,
            **{name: getattr(row, name) for name in measured},
        }


def key_hash(key: str) -> int:
    """Return 64 bits that stand for a key: the keys of ten million samples would take a gigabyte."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest())


def check_webdataset(store: Store, info: ShardInfo, media: str, rows: Sequence[SampleRow]) -> Iterator[str]:
    """Read a shard with plain webdataset, the field's own client, and yield what is not as in the index.

    Its own stages read our stream, so that no shard has to be fetched into a file first.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    suffix = SUFFIXES[media]
    expected = sorted(rows, key=lambda row: row.offset)
    found = 0
    try:
        source = {"url": info.name, "stream": ObjectStream(store, info.name)}
        # Never .decode(): it unpickles members by their suffix.
        for found, sample in enumerate(group_by_keys(tar_file_expander([source])), 1):
            row = expected[found - 1] if found <= len(expected) else None
            read = sample["__key__"], len(sample.get(suffix, b"")), "json" in sample
            if row is None or read != (row.key, row.size_bytes, True):
                yield f"{info.name}: webdataset reads sample {found} otherwise than the index has it: {read[0]}"
                return
    except Exception as error:  # whatever the client raises is the finding
        yield f"{info.name}: webdataset cannot read it: {error!r}"
        return
    if found != len(expected):
        yield f"{info.name}: webdataset reads {found} samples, the index has {len(expected)}"


def _prove_clip(media: bytes, row: SampleRow, settings: TranscodeSettings) -> Iterator[str]:
    """Yield what the proof of the encoder finds, with the index as the claim."""
    gop = gop_frames(Fraction(row.video_fps), settings)
    try:
        measured = prove(media, Claim(row.num_frames, row.width, row.height, gop))
    except ClipError as error:
        yield f"is not as the index says or cannot be decoded: {error.detail}"
        return
    except Exception as error:  # a decoder that breaks down on it has shown that it is bad
        yield f"cannot be decoded: {error!r}"
        return
    for name in ("duration_s", "video_fps"):
        if abs(getattr(measured, name) - getattr(row, name)) > 1e-5:
            yield f"its {name} is {getattr(measured, name)}, the index says {getattr(row, name)}"


def _decode_picture(media: bytes, row: SampleRow) -> Iterator[str]:
    try:
        with Image.open(io.BytesIO(media), formats=["JPEG"]) as image:
            image.load()
            size = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        yield f"cannot be decoded: {error}"
        return
    if size != (row.width, row.height):
        yield f"is {size[0]}x{size[1]}, the index says {row.width}x{row.height}"
