"""A reader process as its pool sees it: what it has been given, and what has been heard of it."""

import select
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

from vast.data.reader import Filled, Job, Request

# A killed process is gone in no time, unless it is in the midst of a system call that cannot be interrupted.
_END_LIMIT_S = 10.0


@dataclass
class Batch:
    """A request on its way."""

    request: Request
    slot: int
    """Where its pixels go."""
    filled: dict[int, Filled] = field(default_factory=dict)
    """What each job gave, by its number in the request."""
    num_lost: Counter[int] = field(default_factory=Counter)
    """Readers that were lost over each job."""

    @property
    def num_missing(self) -> int:
        """Jobs that have not been done."""
        return len(self.request.jobs) - len(self.filled)

    def put(self, number: int, filled: Filled) -> None:
        """Take in what a job gave."""
        self.filled[number] = filled


@dataclass(frozen=True)
class Ticket:
    """One job of a batch, under a number that is never used again."""

    id: int
    batch: Batch
    number: int
    """Which job of the request."""

    @property
    def job(self) -> Job:
        """What is to be done."""
        return self.batch.request.jobs[self.number]


class Link:
    """One reader process."""

    def __init__(self, process: ForkServerProcess, connection: Connection) -> None:
        self.process = process
        self.connection = connection
        self.tickets: dict[int, Ticket] = {}
        self.alone = False
        """It has a suspect and gets nothing else."""
        self.ready = False
        self.heard_s = time.monotonic()
        self._unsent: deque[list[tuple[int, int, Job]]] = deque()

    def give(self, tickets: Sequence[Ticket], alone: bool = False) -> None:
        """Have it do jobs, once it has done those before."""
        if not self.tickets:
            self.heard_s = time.monotonic()  # its time begins now
        self.alone = alone
        self.tickets.update((ticket.id, ticket) for ticket in tickets)
        self._unsent.append([(ticket.id, ticket.batch.slot, ticket.job) for ticket in tickets])

    def send(self) -> None:
        """Send what it has not been told yet, as far as it listens: one that is stopped must not stop us."""
        poll = select.poll()
        poll.register(self.connection, select.POLLOUT)
        # A socket polls as writable while most of its buffer is free, so a message of a few kB fits.
        while self._unsent and any(events & select.POLLOUT for _, events in poll.poll(0)):
            try:
                self.connection.send(self._unsent.popleft())
            except OSError:
                return  # it is dead, which shows when its answers are taken in

    def end(self) -> None:
        """Kill the process unless it has ended, and wait for it: from then on it writes nothing any more."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join(_END_LIMIT_S)
        self.connection.close()

    def exit_code(self) -> int | None:
        """Return what the process ended with."""
        self.process.join(_END_LIMIT_S)
        return self.process.exitcode
