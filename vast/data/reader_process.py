"""The life of one reader process: jobs come through a pipe, pixels go into shared memory, news goes back.

A thread takes jobs in as they come and has their bytes fetched; the main thread decodes them in turn. So the bytes of
later samples come while earlier ones are decoded, and the pipe is always read: its end, when the parent has ended in
whatever way, ends this process at once, even from within a decoder that hangs (it does not hold the GIL).

A crop is a tenth of a job. While a core of the machine is idle, it is done beside the decoding of the next sample;
where all are busy that would cost more (the frames have left the cache by then), and the main thread crops itself.
"""

import ctypes
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vast.data.reader import Job, SampleReader, decode, num_bytes
from vast.data.shared_file import SharedFile
from vast.errors import ReaderError, StoreError, UserError

# What stands in the board about each reader.
BOARD_DTYPE = np.dtype([("ticket", np.int64), ("moved_s", np.float64)])
IDLE = -1
# While it waits for the store a reader moves this often.
_BEAT_S = 0.5
# glibc's numbers of three settings, and the largest threshold that all its versions take.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 32 << 20

_Done = TypeVar("_Done")


class Ready:
    """What a reader sends first."""


def serve(
    reader: SampleReader,
    number: int,
    connection: Connection,
    board: SharedFile,
    slots: SharedFile,
    slots_shape: tuple[int, int],
    environment: Mapping[str, str],
) -> None:
    """Do jobs until the pipe ends.

    Args:
        reader: What is done with a sample.
        number: This reader's row of the board.
        connection: Jobs come from here, in lists of `(ticket, slot, job)`. When a list is done, or at the first error,
            a list of `(ticket, Filled or error)` goes back: to wake the parent takes as long as to load a clip's bytes.
        board: The board's memory.
        slots: The batches' memory.
        slots_shape: Number of slots, and bytes of each.
        environment: The parent's environment variables.
    """
    os.environ.clear()
    os.environ.update(environment)
    # Ctrl-C reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()
    state = np.frombuffer(board.map, BOARD_DTYPE)[number : number + 1]
    pixels = torch.from_numpy(np.frombuffer(slots.map, np.uint8)).view(slots_shape)
    jobs: SimpleQueue[tuple[int, int, Job, Future[bytes], bool]] = SimpleQueue()
    news: list[tuple[int, Any]] = []
    threading.Thread(target=_take_in, args=(connection, reader, jobs), daemon=True).start()
    connection.send(Ready())
    cropper = ThreadPoolExecutor(1)
    beside: Future[tuple[int, Any]] | None = None
    while True:
        ticket, slot, job, coming, is_last = jobs.get()
        # First the time: a job that seems to have begun long ago would seem to hang.
        state["moved_s"] = time.monotonic()
        state["ticket"] = ticket
        crop = _attempt(reader, job, partial(decode, reader, job, _Beating(coming, state)))
        if beside is not None:
            news.append(beside.result())
            beside = None
        finish = partial(_finish, ticket, crop, reader, job, _places(reader, pixels[slot], job))
        if not is_last and not isinstance(crop, Exception) and _a_core_is_idle():
            beside = cropper.submit(finish)
        else:
            news.append(finish())
        del crop, finish  # which hold frames
        state["ticket"] = IDLE
        state["moved_s"] = time.monotonic()
        if is_last or any(isinstance(outcome, Exception) for _, outcome in news):
            try:
                connection.send(news)
            except OSError:
                os._exit(0)  # nobody wants to know any more
            news = []


def _a_core_is_idle() -> bool:
    """Whether fewer threads run on this machine, this one included, than this process may use cores."""
    running = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
    return int(running) < len(os.sched_getaffinity(0))


def _finish(ticket: int, crop: Any, reader: SampleReader, job: Job, places: list[Tensor]) -> tuple[int, Any]:
    """Do the second half of a job, unless the first one failed."""
    return ticket, crop if isinstance(crop, Exception) else _attempt(reader, job, partial(crop, places))


def _attempt(reader: SampleReader, job: Job, work: Callable[[], _Done]) -> _Done | Exception:
    """Do part of a job; what it gave, or the error that the parent is to raise."""
    try:
        return work()
    except (StoreError, UserError) as error:
        return error
    except Exception as error:
        trace = traceback.format_exc()
        return ReaderError(f"{reader.source.describe(job.row)}: {type(error).__name__}: {error}\n{trace}")


def keep_freed_memory() -> None:
    """Tell malloc to keep what is freed for the next clip.

    Frames come in blocks of megabytes. By default glibc maps each anew and unmaps it, and the page faults cost more
    than a tenth of decoding. One arena for all threads, since each keeps what it frees to itself: where samples come
    from S3 a reader has half the memory, and it does not grow. Where malloc is another one nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 4 * _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, 1)


def _take_in(connection: Connection, reader: SampleReader, jobs: "SimpleQueue[Any]") -> None:
    """Have the bytes of all jobs that come fetched, and put the jobs in line."""
    try:
        while True:
            run = connection.recv()
            coming = reader.source.submit([job.row for _, _, job in run])
            for number, ((ticket, slot, job), future) in enumerate(zip(run, coming, strict=True), start=1):
                jobs.put((ticket, slot, job, future, number == len(run)))
    except (EOFError, OSError):
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        # The parent is gone, or wants no more. Without ceremony: threads of decoders and of the store may hang.
        os._exit(0)


class _Beating:
    """A future that moves the reader's entry in the board while it is waited for."""

    def __init__(self, coming: "Future[bytes]", state: Any) -> None:
        self._coming = coming
        self._state = state

    def result(self) -> bytes:
        while True:
            try:
                data = self._coming.result(_BEAT_S)
            except TimeoutError:
                if self._coming.done():
                    raise
            else:
                self._state["moved_s"] = time.monotonic()
                return data
            self._state["moved_s"] = time.monotonic()


def _places(reader: SampleReader, slot: Tensor, job: Job) -> list[Tensor]:
    size_bytes = num_bytes(reader.place_shape)
    return [slot[place * size_bytes : (place + 1) * size_bytes].view(reader.place_shape) for place in job.places]
