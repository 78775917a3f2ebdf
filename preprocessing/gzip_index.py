"""Gzip streams: read once from the start to list the tar in them, later from anywhere by way of a seek index.

A seek index holds, every few megabytes of a stream, the state from which inflating can go on: 32 KB each. A reader
takes the one that it needs out of the index file, wherever that lies, so no node copies an index and no process keeps
one in memory.
"""

import contextlib
import io
import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import indexed_gzip

from preprocessing.members import ArchiveError, Pieces
from vast.errors import StoreError
from vast.storage import Store, open_store

GZIP_MAGIC = b"\x1f\x8b"

# What a reader inflates for nothing is half of this on average. Measured on members of 0.5 MB, on a shared core: with
# 1, 2, 4, 8, 16 MiB a read takes 3.6, 5.0, 8.1, 16, 28 ms where gzip has found something to compress, and with 4 MiB
# 1.4 ms where it has not; out of a plain tar 0.8 to 1.1 ms. Encoding takes a hundred times as long. The index has 0.8 %
# of its archive's size.
SPACING_BYTES = 4 << 20
# Archives of more than 16 GB get no more points than this.
_USUAL_POINTS = 4096
# Videos hardly shrink in gzip. What expands to more than all of these is a bomb, and its points would fill the memory.
_MAX_POINTS = 16_384
_MAX_RATIO = 32
_ALWAYS_BYTES = 1 << 30

_CHUNK_BYTES = 256 << 10
_STEP_BYTES = 32 << 20
_READ_BYTES = 16 << 20

# The file that indexed_gzip writes; its zran.h says what is where.
_HEAD = struct.Struct("<5sBBQQIII")
_POINT = struct.Struct("<QQBB")
_FORMAT = b"GZIDX", 1, 0
_WINDOW_BYTES = 32 << 10


class InflatedSource:
    """The content of a gzip file from the start to where it ends or is torn: a `Source` for `scan_tar`."""

    def __init__(self, pieces: Pieces, limit_bytes: int, on_position: Callable[[int], None]) -> None:
        """Start at the beginning.

        Args:
            pieces: The gzip file.
            limit_bytes: Inflate hardly more than this.
            on_position: Called every now and then with how many bytes have been inflated.
        """
        self.position = 0
        self.tear = ""
        self._pieces, self._limit_bytes, self._on_position = pieces, limit_bytes, on_position
        self._input, self._offset = b"", 0
        self._buffer, self._begin = b"", 0
        self._stream: zlib._Decompress | None = None
        self._num_streams = 0
        self._is_at_end = False
        self._inflated = 0

    def read(self, size_bytes: int) -> bytes:
        """See Source."""
        parts = []
        while size_bytes > 0 and (self._begin < len(self._buffer) or self._fill()):
            parts.append(self._buffer[self._begin : self._begin + size_bytes])
            self._begin += len(parts[-1])
            self.position += len(parts[-1])
            size_bytes -= len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, size_bytes: int) -> int:
        """See Source."""
        end = self.position + size_bytes
        while self.position < end and (self._begin < len(self._buffer) or self._fill()):
            step = min(end - self.position, len(self._buffer) - self._begin)
            self._begin += step
            self.position += step
        return size_bytes - (end - self.position)

    def unread(self, data: bytes) -> None:
        """See Source."""
        self._buffer, self._begin = data + self._buffer[self._begin :], 0
        self.position -= len(data)

    def _fill(self) -> bool:
        """Inflate some more; tell whether there was any."""
        while not self._is_at_end:
            if not self._input:
                self._input = self._pieces.pread(self._offset, _CHUNK_BYTES)
                self._offset += len(self._input)
            if self._stream is None:
                self._begin_stream()
            elif data := self._inflate(self._stream):
                if self._inflated // _STEP_BYTES < (self._inflated + len(data)) // _STEP_BYTES:
                    self._on_position(self._inflated)
                self._inflated += len(data)
                if self._inflated > self._limit_bytes:
                    self._end(f"expands to more than {self._limit_bytes} bytes, which no archive of videos does; left")
                self._buffer, self._begin = data, 0
                return True
        return False

    def _begin_stream(self) -> None:
        """Begin a gzip stream; several that follow one another, with zeros between them, count as one."""
        self._input = self._input.lstrip(b"\0") if self._num_streams else self._input
        if len(self._input) < len(GZIP_MAGIC):
            more = self._pieces.pread(self._offset, _CHUNK_BYTES)
            self._input += more
            self._offset += len(more)
            if not more:
                self._end("followed by a byte that is no gzip stream, cut off" if self._input else "")
        elif self._input.startswith(GZIP_MAGIC):
            self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
            self._num_streams += 1
        else:
            self._end("followed by bytes that are no gzip stream, cut off")

    def _inflate(self, stream: "zlib._Decompress") -> bytes:
        if not self._input:
            self._end("the gzip stream is cut off")
            return b""
        before = stream.copy()
        try:
            data = stream.decompress(self._input, 4 * _CHUNK_BYTES)
        except zlib.error:
            self._end("the gzip stream is damaged")
            return b"".join(_sound_part(before, self._input))
        self._input = stream.unused_data if stream.eof else stream.unconsumed_tail
        if stream.eof:
            self._stream = None
        return data

    def _end(self, tear: str) -> None:
        self.tear = tear
        self._is_at_end = True


def _sound_part(stream: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
    """Yield what can be inflated before the place that zlib has complained of."""
    with contextlib.suppress(zlib.error):
        for begin in range(len(data)):
            yield stream.decompress(data[begin : begin + 1])


class SeekIndexBuilder:
    """Makes a gzip file's seek index while another thread inflates the file to list what is in it.

    Inflating everything twice costs less than inflating up to every header once more when the index is there.
    """

    def __init__(self, pieces: Pieces) -> None:
        spacing_bytes = max(SPACING_BYTES, pieces.size_bytes // _USUAL_POINTS)
        self.limit_bytes = min(spacing_bytes * _MAX_POINTS, max(_ALWAYS_BYTES, _MAX_RATIO * pieces.size_bytes))
        self._file = indexed_gzip.IndexedGzipFile(
            fileobj=pieces.reader(),
            spacing=spacing_bytes,
            readbuf_size=_CHUNK_BYTES,
            buffer_size=_CHUNK_BYTES,
            skip_crc_check=True,  # the other thread does it
        )
        self._pool = ThreadPoolExecutor(1, "seek-index")
        self._running: Future[None] | None = None
        self._is_torn = False

    def cover(self, position: int) -> None:
        """Index what comes before `position`, after all that was asked for earlier; returns while that is done."""
        self._wait()
        if not self._is_torn:
            self._running = self._pool.submit(self._seek, position)

    def finish(self, path: Path) -> bool:
        """Write the index into a file; return whether there is anything in it."""
        self._wait()
        self._file.export_index(str(path))
        return any(True for _ in self._file.seek_points())

    def close(self) -> None:
        """Give back memory and thread."""
        self._pool.shutdown()
        self._file.close()

    def _seek(self, position: int) -> None:
        # Until it has seen some of the stream, the library looks ahead as if it would not expand at all: a bomb's end.
        self._file.seek(min(position, _CHUNK_BYTES))
        self._file.seek(position)

    def _wait(self) -> None:
        running, self._running = self._running, None
        try:
            if running is not None:
                running.result()
        except OSError:
            # It has looked ahead to where the stream is torn. The points before that are good, and enough.
            self._is_torn = True


@dataclass(frozen=True, slots=True)
class _SeekIndex:
    """The points of a seek index, without their states."""

    store: Store
    key: str
    size_bytes: int
    """Of the gzip file."""
    compressed: "array[int]"
    inflated: "array[int]"
    bits: bytes
    has_window: bytes
    num_windows: tuple[int, ...]
    """How many states lie before that of each point."""

    def around(self, offset: int) -> bytes:
        """Return an index file of two points: the one to start from, and one that bounds where it may be used."""
        point = bisect_right(self.inflated, offset) - 1
        begin = _HEAD.size + _POINT.size * len(self.inflated) + _WINDOW_BYTES * self.num_windows[point]
        window = self.store.get_range(self.key, begin, _WINDOW_BYTES) if self.has_window[point] else b""
        start = self.compressed[point], self.inflated[point], self.bits[point], self.has_window[point]
        bound = (self.size_bytes, 1 << 62, 0, 0)
        head = _HEAD.pack(*_FORMAT, self.size_bytes, 0, 2 * _WINDOW_BYTES, _WINDOW_BYTES, 2)
        return head + _POINT.pack(*start) + _POINT.pack(*bound) + window


@lru_cache(maxsize=512)
def _seek_index(url: str) -> _SeekIndex:
    base, _, key = url.rpartition("/")
    store = open_store(base)
    *form, size_bytes, _, _, window_bytes, num_points = _HEAD.unpack(store.get_range(key, 0, _HEAD.size))
    if tuple(form) != _FORMAT or window_bytes != _WINDOW_BYTES or not num_points:
        raise StoreError(f"{url} is no seek index that this release can read; remove it to have it made again")
    table = store.get_range(key, _HEAD.size, _POINT.size * num_points)
    compressed, inflated, bits, has_window = zip(*_POINT.iter_unpack(table), strict=True)
    num_windows = (0, *accumulate(has_window))
    return _SeekIndex(
        store,
        key,
        size_bytes,
        array("Q", compressed),
        array("Q", inflated),
        bytes(bits),
        bytes(has_window),
        num_windows,
    )


def inflated_chunks(pieces: Pieces, index_url: str, offset: int, size_bytes: int) -> Iterator[bytes]:
    """Yield bytes of a gzip file's content from `offset` on; a short or missing chunk means that it ends there.

    Raises:
        ArchiveError: The stream is damaged, or is not the one that the index was made for.
        OSError: The file cannot be read.
        StoreError: The seek index cannot be read.
    """
    index = _seek_index(index_url)
    for begin in range(offset, offset + size_bytes, _READ_BYTES):
        start = index.around(begin)
        try:
            with indexed_gzip.IndexedGzipFile(
                fileobj=pieces.reader(),
                auto_build=False,
                spacing=2 * _WINDOW_BYTES,
                readbuf_size=_CHUNK_BYTES,
                buffer_size=1,  # a buffer would be filled by inflating more than was asked for
            ) as file:
                file.import_index(fileobj=io.BytesIO(start))
                file.seek(begin)
                yield file.read(min(_READ_BYTES, offset + size_bytes - begin))
        except indexed_gzip.ZranError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            raise ArchiveError("the gzip stream is damaged, or has changed since it was listed") from error
