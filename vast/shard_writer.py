"""One shard of the data set: a plain tar that any WebDataset client reads, written to a local file."""

import contextlib
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vast.dataset_format import ShardInfo

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SUFFIX = re.compile(r"[a-z0-9]+")


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
