"""Lists of a sharded data set for other toolboxes, and its clips as the files that they read.

The paths in a list are relative to the list's folder, so both can be moved together. Keys hold no spaces, and nothing
with a space in it is written to a list that spaces separate.
"""

import concurrent.futures
import hashlib
import io
import os
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from vast.dataset_format import UNLABELLED, SampleRow, read_manifest
from vast.errors import StoreError, UserError
from vast.sample_index import SampleIndex, read_index
from vast.storage import Store, open_store

ListFormat = Literal["mmaction2", "slowfast", "xvit", "uniformer", "videomae", "video2dataset"]
"""Who reads the list; pytorchvideo reads SlowFast's."""

NUM_THREADS = 8
BATCH = 1024
CLASSES_FILE = "classes.txt"

_SEPARATORS = {"mmaction2": " ", "slowfast": " ", "xvit": ",", "uniformer": ",", "videomae": " "}
_SUFFIXES = {"mmaction2": ".txt", "video2dataset": ".parquet"}
# The others take a path alone for an unlabelled video.
_NEED_LABELS = ("uniformer", "videomae")


@dataclass(frozen=True)
class ExportedList:
    """What was written."""

    path: Path
    """The list."""
    classes_path: Path
    """Class names, one a line in label-id order."""
    num_samples: int
    """Lines of the list."""
    num_extracted: int
    """Clips that were written; those that were there already do not count."""
    extracted_bytes: int


def export_list(
    url: str,
    split: str,
    *,
    format: ListFormat = "mmaction2",
    out: str | os.PathLike[str] | None = None,
    extract: str | os.PathLike[str] | None = None,
    on_clip: Callable[[], None] | None = None,
) -> ExportedList:
    """Write the list of a split, in the order of its sample index, and the class names beside it.

    Args:
        url: The data set.
        split: The split.
        format: Who will read the list.
        out: The list's path; `<split>.csv`, .txt or .parquet in `extract` or the working directory when None.
        extract: Folder for the clips, as `<key>.mp4`, each checked against its sha256. Those that are there already
            are kept, so that an interrupted export goes on. Without it, the list names files that are not there.
        on_clip: Called after each clip that is in `extract`.

    Raises:
        UserError: There is no such split, the toolbox cannot read such a list, or files of other content are there.
        StoreError: The data set cannot be read.
    """
    if format not in get_args(ListFormat):
        raise UserError(f"--format: {format!r}; expected one of {', '.join(get_args(ListFormat))}")
    manifest = read_manifest(url)
    index = read_index(url, split)
    suffix = "jpg" if manifest.media == "image" else "mp4"
    folder = Path(extract) if extract is not None else None
    path = Path(out) if out is not None else (folder or Path()) / f"{split}{_SUFFIXES.get(format, '.csv')}"
    columns = index.columns(["key", "label"])
    where = "." if folder is None else os.path.relpath(folder, path.parent)
    paths = [f"{key}.{suffix}" if where == "." else f"{where}/{key}.{suffix}" for key in columns["key"]]
    content = _content(format, split, paths, columns["label"].tolist(), manifest.classes)
    try:
        classes_path = _write_classes(path.parent, manifest.classes)
        sizes = _extract(open_store(url), index, folder, suffix, on_clip) if folder is not None else []
        # The list comes last, as it says that the clips are there.
        _write(path, content)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise UserError(f"cannot write {error.filename or path}: {error.strerror or error}") from error
    written = [size for size in sizes if size]
    return ExportedList(path, classes_path, len(paths), len(written), sum(written))


def _content(
    format: ListFormat, split: str, paths: Sequence[str], labels: Sequence[int], classes: Sequence[str]
) -> bytes:
    if format == "video2dataset":
        return _parquet(paths, labels, classes)
    if format in _NEED_LABELS and UNLABELLED in labels:
        others = ", ".join(name for name in get_args(ListFormat) if name not in _NEED_LABELS)
        raise UserError(f"{split} has samples without a label, which {format} cannot read; formats that can: {others}")
    separator = _SEPARATORS[format]
    if paths and re.search(r"\s" if separator == " " else rf"[{separator}\n\r]", os.path.dirname(paths[0])):
        where = os.path.dirname(paths[0])
        raise UserError(f"{where!r} would stand in each line, and {format} splits lines there; use another folder")
    lines = (
        f"{path}\n" if label == UNLABELLED else f"{path}{separator}{label}\n"
        for path, label in zip(paths, labels, strict=True)
    )
    return "".join(lines).encode()


def _parquet(paths: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> bytes:
    names = [None if label == UNLABELLED else classes[label] for label in labels]
    ids = [None if label == UNLABELLED else label for label in labels]
    columns = {
        "path": pa.array(paths, pa.string()),
        "label": pa.array(names, pa.string()),
        "label_id": pa.array(ids, pa.int32()),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _write_classes(folder: Path, classes: Sequence[str]) -> Path:
    path = folder / CLASSES_FILE
    content = "".join(f"{name}\n" for name in classes).encode()
    if path.exists() and path.read_bytes() != content:
        raise UserError(f"{path} is there and holds other classes; export to another folder, or remove it")
    _write(path, content)
    return path


def _extract(
    store: Store, index: SampleIndex, folder: Path, suffix: str, on_clip: Callable[[], None] | None
) -> list[int]:
    """Write the clips that are not there yet; returns the bytes written for each sample."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = []
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as threads:
        for start in range(0, len(index), BATCH):
            rows = index.rows(range(start, min(start + BATCH, len(index))))
            for size in threads.map(lambda row: _extract_one(store, row, folder / f"{row.key}.{suffix}"), rows):
                sizes.append(size)
                if on_clip is not None:
                    on_clip()
    return sizes


def _extract_one(store: Store, row: SampleRow, path: Path) -> int:
    if path.exists():
        if hashlib.sha256(path.read_bytes()).hexdigest() != row.sha256:
            raise UserError(f"{path} is there and is another clip; extract each data set and split to its own folder")
        return 0
    media = store.get_range(row.shard, row.offset, row.size_bytes)
    if (found := hashlib.sha256(media).hexdigest()) != row.sha256:
        raise StoreError(
            f"{store.url}: sample {row.key} in {row.shard} has sha256 {found[:12]}…, the index says "
            f"{row.sha256[:12]}…; run `vast data verify {store.url}`"
        )
    _write(path, media)
    return len(media)


def _write(path: Path, content: bytes) -> None:
    """Write a file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
