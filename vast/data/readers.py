"""Reader processes that may crash or hang, and the batches they fill.

A batch is a slot of shared memory; its samples are dealt out to all readers, which decode straight into it, so nothing
is copied and the first batch of a run takes as long as its samples, divided by the readers. The memory has no name
(memfd), so nothing is left of it after a SIGKILL, and the size of /dev/shm, 64 MB in a container, does not matter.

What a reader is doing stands in a board of shared memory: its job, and when it last moved. A reader that dies or has
not moved for the time limit is killed by its process id and replaced. Its job is given to a reader that has nothing
else; if that is lost too, the sample counts as damaged. Its other jobs go to other readers, and so do those that it did
and had no time to tell of. Waiting for the store counts as moving: how long the store is waited for is the source's
decision.

Reader processes come from a fork server. A plain fork would copy the locks of a training process's threads (CUDA,
gRPC, OpenMP) in an unknown state. Spawned ones each import torch again (about two seconds), and with torch 2.13
some abort when they exit ("terminate called without an active exception", no data needed). The server is a clean
process that has the imports done, so later readers start in a fraction of a second and evaluation can afford new ones.
"""

import contextlib
import logging
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vast.data.reader import Filled, Request, SampleReader, decode, num_bytes
from vast.data.reader_link import Batch, Link, Ticket
from vast.data.reader_process import BOARD_DTYPE, IDLE, Ready, serve
from vast.data.shared_file import SharedFile
from vast.data.slots import Slots
from vast.errors import ReaderError

# Dead and hung readers are looked for this often while waiting.
_POLL_S = 1.0
# Forking takes milliseconds, but the fork server's imports on a busy machine many seconds.
_START_LIMIT_S = 300.0
# Readers lost one after the other, without a job done and without one to blame.
_MAX_LOST = 5
# A reader gets its jobs in runs of neighbours, of which several are dealt out for each reader, to even out the load.
_RUN_JOBS = 8
_RUNS_A_READER = 2
# Jobs in flight for each reader, so that bytes are fetched while other samples are decoded.
_JOBS_AHEAD = 4
_MOST_BYTES_AHEAD = 2 << 30

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A batch: its pixels, and what each job gave besides."""

    request: Request
    pixels: Tensor
    """(request.num_places, *place_shape), uint8; rows of damaged samples hold anything."""
    filled: Sequence[Filled]
    """In the order of the request's jobs."""


def answers(
    reader: SampleReader,
    requests: Iterable[Request],
    *,
    num_readers: int,
    max_places: int,
    held: int,
    timeout_s: float,
) -> Generator[Answer, None, None]:
    """Yield the answer to each request, in order.

    Args:
        reader: What each process does with a sample.
        requests: What is wanted.
        num_readers: Processes; 0: none, this one decodes.
        max_places: Most rows of a request.
        held: Answers that the caller holds on to at a time; beyond that they are copied.
        timeout_s: A reader that does not move for so long has hung.

    Raises:
        StoreError: A sample cannot be read.
        UserError: The store refuses.
        ReaderError: Readers die for no reason that a sample gives.
    """
    if num_readers == 0:
        return _in_process(reader, requests)
    return ReaderPool(reader, num_readers, max_places, held, timeout_s).answers(requests)


def _in_process(reader: SampleReader, requests: Iterable[Request]) -> Generator[Answer, None, None]:
    """Decode here; the next request's bytes are fetched meanwhile."""
    coming: deque[tuple[Request, list[Any]]] = deque()
    try:
        for request in requests:
            coming.append((request, reader.source.submit([job.row for job in request.jobs])))
            if len(coming) > 1:
                yield _filled_here(reader, *coming.popleft())
        while coming:
            yield _filled_here(reader, *coming.popleft())
    finally:
        reader.source.close()


def _filled_here(reader: SampleReader, request: Request, coming: list[Any]) -> Answer:
    pixels = torch.empty((request.num_places, *reader.place_shape), dtype=torch.uint8)
    filled = []
    for job, future in zip(request.jobs, coming, strict=True):
        filled.append(decode(reader, job, future)([pixels[place] for place in job.places]))
    return Answer(request, pixels, filled)


class ReaderPool:
    """Some reader processes and the shared memory that they fill; for one iteration."""

    def __init__(self, reader: SampleReader, num_readers: int, max_places: int, held: int, timeout_s: float) -> None:
        self._reader = reader
        self._held = held
        self._timeout_s = timeout_s
        slot_bytes = max_places * num_bytes(reader.place_shape)
        self._ahead = _batches_ahead(num_readers, max_places, held, slot_bytes)
        self._slots = Slots(self._ahead + held, slot_bytes)
        self._board_file = SharedFile("vast-board", num_readers * BOARD_DTYPE.itemsize)
        self._board = np.frombuffer(self._board_file.map, BOARD_DTYPE)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["vast.data.reader_process", *reader.source.libraries])
        self._links: list[Link] = []
        self._num_tickets = 0
        self._lost_in_a_row = 0
        # Runs of tickets that no reader has, and tickets whose reader was lost.
        self._backlog: deque[list[Ticket]] = deque()
        self._suspects: deque[Ticket] = deque()
        self._num_readers = num_readers

    def answers(self, requests: Iterable[Request]) -> Generator[Answer, None, None]:
        """Yield the answer to each request, in order; ends the readers at the end."""
        waiting, batches = iter(requests), deque[Batch]()
        try:
            for number in range(self._num_readers):
                self._links.append(self._start(number))
            self._begin(waiting, batches)
            while batches:
                while batches[0].num_missing:
                    self._turn()
                answer = self._answer(batches.popleft())
                # Readers have work while the caller has the answer.
                self._begin(waiting, batches)
                yield answer
                del answer
        finally:
            self.close()

    def close(self) -> None:
        """End the readers; answers that were handed over stay valid."""
        for link in self._links:
            link.connection.close()  # which a reader takes as the order to end
        deadline = time.monotonic() + _POLL_S
        for link in self._links:
            link.process.join(max(0.0, deadline - time.monotonic()))
            link.end()
        self._links = []

    def _begin(self, waiting: Iterator[Request], batches: "deque[Batch]") -> None:
        """Deal out the jobs of as many requests as may be in flight."""
        while len(batches) < self._ahead and (request := next(waiting, None)) is not None:
            batch = Batch(request, self._slots.take())
            batches.append(batch)
            tickets = [self._ticket(batch, number) for number in range(len(request.jobs))]
            # Neighbours in a shard come together, for the source merges their ranges.
            tickets.sort(key=lambda ticket: (ticket.job.row.shard, ticket.job.row.offset))
            size = max(1, min(_RUN_JOBS, len(tickets) // (_RUNS_A_READER * self._num_readers)))
            self._backlog.extend(tickets[start : start + size] for start in range(0, len(tickets), size))
            self._deal()

    def _ticket(self, batch: "Batch", number: int) -> "Ticket":
        self._num_tickets += 1
        return Ticket(self._num_tickets, batch, number)

    def _deal(self) -> None:
        """Give what nobody has to readers: suspects alone, the rest to those with the least to do."""
        while self._suspects:
            idle = next((link for link in self._links if not link.tickets), None)
            if idle is None:
                break
            idle.give([self._suspects.popleft()], alone=True)
        while self._backlog:
            open_links = [link for link in self._links if not link.alone]
            if not open_links:
                break
            min(open_links, key=lambda link: len(link.tickets)).give(self._backlog.popleft())
        for link in self._links:
            link.send()

    def _turn(self) -> None:
        """Wait for news of the readers, and take in all there is."""
        wait([thing for link in self._links for thing in (link.connection, link.process.sentinel)], self._pause_s())
        for number, link in enumerate(self._links):
            lost = self._take_in(link)
            if lost:
                self._replace(number, f"ended with exit code {link.exit_code()}")
            elif self._hangs(number, link):
                self._replace(number, f"hung for more than {self._timeout_s:g} s (data.reader_timeout_s)")
        self._deal()

    def _pause_s(self) -> float:
        return min(_POLL_S, self._timeout_s / 4)

    def _take_in(self, link: "Link") -> bool:
        """Take in what a reader has sent; return whether there will be no more."""
        try:
            while link.connection.poll():
                self._receive(link, link.connection.recv())
        except (EOFError, ConnectionError):
            return True
        return not link.process.is_alive()

    def _receive(self, link: "Link", message: Any) -> None:
        link.heard_s = time.monotonic()
        if isinstance(message, Ready):
            link.ready = True
            return
        self._lost_in_a_row = 0
        for number, outcome in message:
            if isinstance(outcome, Exception):
                raise outcome
            ticket = link.tickets.pop(number)
            ticket.batch.put(ticket.number, outcome)
        link.alone = link.alone and bool(link.tickets)

    def _hangs(self, number: int, link: "Link") -> bool:
        now = time.monotonic()
        if not link.ready:
            if now - link.heard_s > _START_LIMIT_S:
                raise ReaderError(f"a reader process has not started within {_START_LIMIT_S:.0f} s")
            return False
        moved_s = max(link.heard_s, float(self._board[number]["moved_s"]))
        return bool(link.tickets) and now - moved_s > self._timeout_s

    def _replace(self, number: int, fate: str) -> None:
        """Put a new reader in a lost one's place, and its jobs back among those that nobody has."""
        link = self._links[number]
        link.end()
        suspect = link.tickets.pop(int(self._board[number]["ticket"]), None)
        if suspect is None:
            self._lost_in_a_row += 1
            _log.warning("a reader process %s while it had no sample in hand; it is replaced", fate)
            if self._lost_in_a_row >= _MAX_LOST:
                raise ReaderError(
                    f"{self._lost_in_a_row} reader processes in a row were lost before they did anything; the last one "
                    f"{fate}. If the system ends them for want of memory, lower data.num_readers"
                )
        else:
            self._blame(suspect, fate)
        orphans = list(link.tickets.values())
        self._backlog.extendleft([ticket] for ticket in reversed(orphans))
        self._links[number] = self._start(number)

    def _blame(self, ticket: "Ticket", fate: str) -> None:
        """Have a sample tried once more, or count it as damaged."""
        batch, job = ticket.batch, ticket.job
        batch.num_lost[ticket.number] += 1
        what = f"{self._reader.source.describe(job.row)}: a reader process {fate} over it"
        if batch.num_lost[ticket.number] == 1:
            _log.warning("%s; it is tried once more", what)
            self._suspects.append(ticket)
        else:
            batch.put(ticket.number, Filled(damage=f"{what}, for the second time"))

    def _start(self, number: int) -> "Link":
        self._board[number] = (IDLE, 0.0)
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=serve,
            args=(
                self._reader,
                number,
                theirs,
                self._board_file,
                self._slots.file,
                self._slots.shape,
                # The server keeps the environment of its own start; credentials may have come later.
                dict(os.environ),
            ),
            name=f"reader-{number}",
            daemon=True,
        )
        with _without_main():
            process.start()
        theirs.close()  # so that the end of the reader is the end of the pipe
        return Link(process, ours)

    def _answer(self, batch: "Batch") -> Answer:
        pixels = self._slots.hand_over(batch.slot, (batch.request.num_places, *self._reader.place_shape), self._held)
        return Answer(batch.request, pixels, [batch.filled[number] for number in range(len(batch.request.jobs))])


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program from processes that are started: each would run it first, to have what it defines.

    Readers need nothing of it; a worker of Ray's would import Ray once more in each (a second, and memory), and a
    program without `if __name__ == "__main__"` would start itself over and over.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


def _batches_ahead(num_readers: int, max_places: int, held: int, slot_bytes: int) -> int:
    """Return how many batches may be in flight: what a step takes, enough for all readers, within the memory."""
    wanted = max(2, held // 2 + 1, -(-_JOBS_AHEAD * num_readers // max_places))
    return max(1, min(wanted, _MOST_BYTES_AHEAD // max(1, slot_bytes)))
