"""A parquet file in a store, read in parts: at first its footer, then the row groups and columns that are asked for."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vast.storage import Store

_MAGIC = b"PAR1"
# Read at once from the end of the file; one more read fetches a longer footer.
_TAIL_BYTES = 128 << 10


class ParquetError(ValueError):
    """The file is no parquet file, or a part of it is damaged; the message says in which way, but not which file."""


class RemoteParquet:
    """A parquet file of a store. It may be pickled, and used after a fork and from several threads.

    Raises:
        ParquetError: The object does not end as a parquet file.
        StoreError: The store failed, or there is no such object.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._size_bytes = store.size(key)
        self._open(self._read_footer())

    def __getstate__(self) -> tuple[Store, str, int, bytes]:
        return self._store, self._key, self._size_bytes, self._footer

    def __setstate__(self, state: tuple[Store, str, int, bytes]) -> None:
        self._store, self._key, self._size_bytes, footer = state
        self._open(footer)

    def read_group(self, group: int, names: Sequence[str], dictionaries: Sequence[str] = ()) -> Any:
        """Read some columns of a row group into an arrow table.

        Pages are checked against their checksums, where the file has any.

        Args:
            group: Number of the row group.
            names: Columns; no byte of the others is read.
            dictionaries: Columns to leave as codes into their distinct values.

        Raises:
            ParquetError: The row group is damaged, or the file was replaced.
            StoreError: The store failed.
        """
        file = _Parts(self._size_bytes)
        for start, size_bytes in self._ranges(group, names):
            file.add(start, self._store.get_range(self._key, start, size_bytes))
        try:
            parquet = pq.ParquetFile(
                pa.PythonFile(file, "r"),
                metadata=self._metadata,
                read_dictionary=list(dictionaries),
                # Neither read-ahead nor threads of arrow's own: what is needed is here, and they do not survive a fork.
                pre_buffer=False,
                page_checksum_verification=True,
            )
            table = parquet.read_row_group(group, columns=list(names), use_threads=False)
            # Checksums cover pages but not their headers, which say how many values there are.
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise ParquetError(str(error).strip()) from error
        if table.num_rows != (expected := self.starts[group + 1] - self.starts[group]):
            raise ParquetError(f"a row group has {table.num_rows} rows, its footer says {expected}")
        return table

    def _ranges(self, group: int, names: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Yield (start, size) of some columns of a row group; those that touch are one."""
        places = []
        meta = self._metadata.row_group(group)
        for name in names:
            chunk = meta.column(self.schema.names.index(name))
            start, size_bytes = chunk.data_page_offset, chunk.total_compressed_size
            if chunk.has_dictionary_page:
                start = min(start, chunk.dictionary_page_offset)
            if start < 0 or size_bytes < 0 or start + size_bytes > self._size_bytes:
                raise ParquetError(f"its footer says that column {name!r} lies outside of the file")
            places.append((start, size_bytes))
        places.sort()
        while places:
            start, size_bytes = places.pop(0)
            while places and places[0][0] == start + size_bytes:
                size_bytes += places.pop(0)[1]
            yield start, size_bytes

    def _read_footer(self) -> bytes:
        tail_bytes = min(self._size_bytes, _TAIL_BYTES)
        tail = self._store.get_range(self._key, self._size_bytes - tail_bytes, tail_bytes)
        footer_bytes = int.from_bytes(tail[-8:-4], "little") + 8
        if tail[-4:] != _MAGIC or footer_bytes + len(_MAGIC) > self._size_bytes:
            raise ParquetError("it does not end as a parquet file does")
        if footer_bytes > tail_bytes:
            start = self._size_bytes - footer_bytes
            tail = self._store.get_range(self._key, start, footer_bytes - tail_bytes) + tail
        return tail[-footer_bytes:]

    def _open(self, footer: bytes) -> None:
        self._footer = footer
        try:
            self._metadata = pq.read_metadata(pa.BufferReader(footer))
            self.schema = self._metadata.schema.to_arrow_schema()
            groups = [self._metadata.row_group(group) for group in range(self._metadata.num_row_groups)]
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ParquetError(str(error).strip()) from error
        sizes = [group.num_rows for group in groups]
        if min(sizes, default=0) < 0 or any(group.num_columns != len(self.schema.names) for group in groups):
            raise ParquetError("its footer contradicts itself")
        self.starts: list[int] = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        """First row of each row group, and at the end the number of all rows."""


class _Parts(io.RawIOBase):
    """Parts of a file, each in its place; what is between them cannot be read."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._parts: list[tuple[int, bytes]] = []
        self._position = 0

    def add(self, start: int, data: bytes) -> None:
        self._parts.append((start, data))

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        for start, data in self._parts:
            within = self._position - start
            if within >= 0 and within + size <= len(data):
                self._position += size
                return data[within : within + size]
        raise OSError(f"its columns are not where its footer says: {size} bytes from {self._position} on")
