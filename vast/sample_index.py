"""The sample index: one parquet file a split that says where each sample lies, written as a stream and read in parts.

A data set may have tens of millions of samples, so nobody holds the whole index: opening reads the file's footer, and
a look-up reads the one row group that the row is in. Row groups are small, as a shuffled epoch asks for single rows all
over the file: with 2048 rows a look-up fetches about 120 KB and decodes them in about a millisecond, while the footer
of ten million samples has 3.5 MB.

Digests are stored in hex. As bytes they would make the file only 4 % smaller, since zstd halves hex digits again, and
this way every other tool that opens the file shows what `sha256sum` prints.
"""

import contextlib
import hashlib
import tempfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vast.dataset_format import SampleRow, index_key, read_manifest
from vast.errors import ObjectMissing, StoreError, UserError
from vast.remote_parquet import ParquetError, RemoteParquet
from vast.storage import Store, open_store

ROW_GROUP = 2048
# Decoded row groups that one index keeps: all of a data set of a million and a half samples.
KEPT_BYTES = 256 << 20

_TYPES = {
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
# Columns with few different values in a row group; a dictionary of the others would only be in the way.
_REPETITIVE = ["shard", "label", "duration_s", "video_fps", "width", "height", "num_frames"]
# Row groups that are asked for and decoded at a time, and requests in flight.
_GROUPS_AT_ONCE = 64
_NUM_THREADS = 8


class SampleIndex:
    """The sample index of one split, read in parts as they are needed; position i is sample i of the split.

    The row groups read last are kept up to a bound, so the index of a usual data set is read once. It may be pickled,
    and used after a fork and from several threads.

    Raises:
        UserError: The data set has no such split, or the file is no sample index.
        StoreError: The store failed.
    """

    def __init__(self, store: Store, split: str) -> None:
        self._where = f"{store.url}/{index_key(split)}"
        self._advice = f"run `vast data verify {store.url}`"
        try:
            self._file = RemoteParquet(store, index_key(split))
            _check_schema(self._file.schema)
        except ObjectMissing as error:
            splits = ", ".join(sorted(read_manifest(store.url).splits))
            raise UserError(f"{store.url} has no split {split!r}; it has: {splits}") from error
        except ParquetError as error:
            raise UserError(f"{self._where} is no sample index: {error}; {self._advice}") from error
        # No lock guards it, as a lock held during a fork stays locked; what is done with it bears to be interrupted.
        self._kept: OrderedDict[int, _RowGroup] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}

    def __len__(self) -> int:
        return self._file.starts[-1]

    def row(self, i: int) -> SampleRow:
        """Return sample i.

        Raises:
            IndexError: There is no such sample.
            StoreError: The part of the file cannot be read or is damaged.
        """
        return self.rows([i])[0]

    def rows(self, samples: Sequence[int]) -> list[SampleRow]:
        """Return some samples in the order asked for; each row group is read once, several at a time.

        Raises:
            IndexError: There is no such sample.
            StoreError: A part of the file cannot be read or is damaged.
        """
        positions: dict[int, list[int]] = {}
        for position, i in enumerate(samples):
            if not 0 <= i < len(self):
                raise IndexError(f"{self._where} has {len(self)} samples, none with the number {i}")
            positions.setdefault(bisect_right(self._file.starts, i) - 1, []).append(position)
        found: dict[int, SampleRow] = {}
        for number, group in self._groups(list(positions)):
            for position in positions[number]:
                found[position] = group.row(samples[position] - self._file.starts[number])
        return [found[position] for position in range(len(samples))]

    def column(self, name: str) -> NDArray[Any]:
        """Return one column of all samples: numbers as they are stored, texts as an array of str objects.

        Raises:
            StoreError: A part of the file cannot be read or is damaged.
        """
        return self.columns([name])[name]

    def columns(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return some columns of all samples; of the others no byte is read.

        Raises:
            StoreError: A part of the file cannot be read or is damaged.
        """
        parts: dict[str, list[NDArray[Any]]] = {name: [_no_values(_TYPES[name])] for name in names}
        for _, group in self._groups(range(len(self._file.starts) - 1), names):
            for name in names:
                parts[name].append(group.column(name))
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _groups(self, numbers: Sequence[int], names: Sequence[str] | None = None) -> Iterator[tuple[int, "_RowGroup"]]:
        """Yield row groups with the named columns at least; those that are read whole are kept."""
        for start in range(0, len(numbers), _GROUPS_AT_ONCE):
            batch = numbers[start : start + _GROUPS_AT_ONCE]
            groups = {number: group for number in batch if (group := self._kept.get(number)) is not None}
            missing = [number for number in batch if number not in groups]
            for number, group in zip(missing, self._read(missing, names or list(_TYPES)), strict=True):
                groups[number] = group
            for number in batch:
                if names is None:
                    self._keep(number, groups[number])
                yield number, groups[number]

    def _keep(self, number: int, group: "_RowGroup") -> None:
        """Make a row group the one used last, and drop those used longest ago beyond the bound."""
        is_new = number not in self._kept
        self._kept[number] = group
        with contextlib.suppress(KeyError):  # another thread was faster
            self._kept.move_to_end(number)
            while is_new and len(self._kept) > 1 and sum(g.size_bytes for g in [*self._kept.values()]) > KEPT_BYTES:
                self._kept.popitem(last=False)

    def _read(self, numbers: Sequence[int], names: Sequence[str]) -> "list[_RowGroup]":
        if len(numbers) < 2:
            return [self._read_group(number, names) for number in numbers]
        # A pool of its own each time: threads that wait for work would be lost in a fork.
        with ThreadPoolExecutor(min(_NUM_THREADS, len(numbers))) as pool:
            return list(pool.map(lambda number: self._read_group(number, names), numbers))

    def _read_group(self, number: int, names: Sequence[str]) -> "_RowGroup":
        try:
            return _RowGroup(self._file.read_group(number, names, dictionaries=["shard"]))
        except ParquetError as error:
            first, end = self._file.starts[number : number + 2]
            raise StoreError(
                f"{self._where}: samples {first}..{end - 1} cannot be read, the file is damaged or was replaced: "
                f"{error}; {self._advice}"
            ) from error


class _RowGroup:
    """Some columns of a row group, decoded.

    Keys, ids and digests stay as arrow has them, which takes a third of the memory of str objects. A row group has few
    shards, so its rows share their names.
    """

    def __init__(self, table: Any) -> None:
        self._columns: dict[str, Any] = {}
        for name in table.column_names:
            values = table.column(name).combine_chunks()
            if pa.types.is_dictionary(values.type):
                self._columns[name] = _texts(values.dictionary)[values.indices.to_numpy()]
            else:
                self._columns[name] = values if values.type == pa.string() else values.to_numpy()
        self.size_bytes = sum(values.nbytes for values in self._columns.values())

    def row(self, i: int) -> SampleRow:
        return SampleRow(
            **{
                name: values.item(i) if isinstance(values, np.ndarray) else values[i].as_py()
                for name, values in self._columns.items()
            }
        )

    def column(self, name: str) -> NDArray[Any]:
        values = self._columns[name]
        return values if isinstance(values, np.ndarray) else _texts(values)


def _texts(values: Any) -> NDArray[Any]:
    texts: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return texts


def _no_values(kind: Any) -> NDArray[Any]:
    return np.empty(0, object if kind == pa.string() else kind.to_pandas_dtype())


def _check_schema(schema: Any) -> None:
    for name, kind in _TYPES.items():
        if name not in schema.names:
            raise ParquetError(f"it has no column {name!r}")
        if schema.field(name).type != kind:
            raise ParquetError(f"its column {name!r} is {schema.field(name).type}, expected {kind}")


class IndexWriter:
    """Writes the sample index of a split; rows are appended as they come, and the same rows give the same bytes.

    How they were batched leaves no trace. Memory holds one row group of them; the file grows in `scratch`, or in the
    system's temporary folder, until `finish` puts it. Leaving the context before that puts nothing.
    """

    def __init__(self, url: str, split: str, scratch: Path | None = None) -> None:
        self._store = open_store(url)
        self._key = index_key(split)
        self._folder = tempfile.TemporaryDirectory(prefix="vast-index-", dir=scratch)
        self._path = Path(self._folder.name, self._key)
        self._schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _TYPES.items()])
        self._parquet = pq.ParquetWriter(
            self._path,
            self._schema,
            compression="zstd",
            use_dictionary=_REPETITIVE,
            # Statistics help searches for values, of which there are none here, and would double the footer.
            write_statistics=False,
            store_schema=False,
            write_page_checksum=True,
        )
        self._rows: list[SampleRow] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parquet.close()
        self._folder.cleanup()

    def append(self, rows: Iterable[SampleRow]) -> None:
        """Append rows; their order is the order of the samples."""
        for row in rows:
            self._rows.append(row)
            if len(self._rows) == ROW_GROUP:
                self._flush()

    def finish(self) -> str:
        """Put the index, complete or not at all, and return its hex sha256.

        Raises:
            StoreError: The store does not take it.
        """
        if self._rows:
            self._flush()
        self._parquet.close()
        with open(self._path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self._store.put_file(self._key, self._path)
        return sha256

    def _flush(self) -> None:
        columns = [pa.array(map(attrgetter(field.name), self._rows), field.type) for field in self._schema]
        # A table is a row group of its own: where the rows before it ended does not matter.
        self._parquet.write_table(pa.table(columns, schema=self._schema), row_group_size=ROW_GROUP)
        self._rows.clear()


def read_index(url: str, split: str) -> SampleIndex:
    """Open the sample index of a split.

    Raises:
        UserError: There is no such split, or the file is no sample index.
    """
    return SampleIndex(open_store(url), split)


def write_index(url: str, split: str, rows: Iterable[SampleRow]) -> str:
    """Write the sample index of a split at once and return its hex sha256."""
    with IndexWriter(url, split) as writer:
        writer.append(rows)
        return writer.finish()
