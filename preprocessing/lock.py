"""The lock on a data set's prefix: one build writes there, and a build that was killed keeps nobody out.

The lock is an object beside the shards that says who holds it. Its holder renews it four times within the time after
which it would expire. Whoever finds it, on the holder's machine, sees in the process table whether the holder lives. A
holder on another machine is gone when the object has stayed the same for that time by the clock of the one who waits;
the clocks of two machines are never compared.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from vast.errors import ObjectMissing, StoreError, UserError
from vast.storage import Store

LOCK_KEY = "lock.json"
TTL_S = 60.0

# Locks that this process holds or asks for. One that names this process and is not among them was left behind when the
# store failed.
_HELD: set[str] = set()
_RENEWAL_TRIES = 5


class _Holder(BaseModel):
    """What the lock object says."""

    model_config = ConfigDict(frozen=True)

    owner: str  # of this one lock, drawn at random
    host: str
    boot_id: str
    pid_namespace: str  # containers may share a host's name, and each numbers its own processes
    pid: PositiveInt
    process_start: int  # see process_start(); numbers of processes are used again
    purpose: str
    since: str  # by the holder's clock, for people
    expires_s: PositiveFloat  # without a renewal for so long the holder counts as gone
    num_renewals: int = 0  # makes every renewal another object

    def to_json(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()

    def is_here(self) -> bool:
        """Tell whether the holder's process is, or was, one of this machine's as we see them."""
        return (self.host, self.boot_id, self.pid_namespace) == _this_machine()

    def is_gone(self) -> bool:
        """Tell whether a holder that is here has ended."""
        left_by_us = self.pid == os.getpid() and self.owner not in _HELD
        return left_by_us or not is_alive(self.pid, self.process_start)

    def __str__(self) -> str:
        return f"{self.purpose} (process {self.pid} on {self.host}, since {self.since})"


class PrefixLock:
    """Holds a prefix for one writer for as long as the `with` block runs."""

    def __init__(
        self, store: Store, purpose: str, *, ttl_s: float = TTL_S, on_wait: Callable[[str], None] | None = None
    ) -> None:
        """Nothing is locked before the `with` block.

        Args:
            store: The prefix.
            purpose: What is being done there, told to whoever finds the prefix locked.
            ttl_s: Seconds without a renewal, as the store may fail for a while, after which others may take over.
            on_wait: Called with a sentence when a dead holder's lock is waited for or taken over.
        """
        self._store = store
        self._ttl_s = ttl_s
        self._on_wait = on_wait
        self._mine = _new_holder(purpose, ttl_s)
        self._renewed_at = 0.0
        self._lost = ""
        self._trouble: Exception | None = None
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="prefix-lock", daemon=True)

    def __enter__(self) -> Self:
        """Lock the prefix.

        Raises:
            UserError: Another process that lives holds it.
            StoreError: The store failed.
        """
        _HELD.add(self._mine.owner)
        try:
            self._acquire()
        except BaseException:
            _HELD.discard(self._mine.owner)
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        # A lock that cannot be removed expires, and whatever made the store fail has its own error.
        with contextlib.suppress(StoreError, UserError):
            self._release()
        _HELD.discard(self._mine.owner)

    def check(self) -> None:
        """Make sure that the prefix is still ours; to be called before what must not be mixed with another's work.

        After it nobody takes over for half of the lock's time, unless the store does not take renewals just then.

        Raises:
            StoreError: Another process has taken over, or may have.
        """
        with self._mutex:
            if self._silence_s() >= self._ttl_s / 2:
                self._try_to_renew()
            if self._lost:
                raise StoreError(self._lost)
            if self._silence_s() >= self._ttl_s:
                raise StoreError(
                    f"{self._store.url}: the lock could not be renewed for {self._silence_s():.0f} s, so another "
                    f"process may have taken over: {self._trouble}"
                ) from self._trouble

    def _acquire(self) -> None:
        while True:
            begun = _clock()
            if self._store.create(LOCK_KEY, self._mine.to_json()):
                break
            found = self._read()
            if found is None:
                continue  # released just now
            version, holder = found
            if holder is not None and holder.is_here():
                if not holder.is_gone():
                    raise self._refusal(holder)
                self._tell(f"{holder} has ended without removing its lock; taking over")
            elif not self._has_expired(version, holder):
                continue
            begun = _clock()
            if self._store.replace(LOCK_KEY, self._mine.to_json(), version):
                break
        self._renewed_at = begun

    def _has_expired(self, version: str, holder: _Holder | None) -> bool:
        """Wait for a sign of life as long as the lock lasts; return False when it is to be looked at anew."""
        who = str(holder) if holder else f"a {LOCK_KEY} that cannot be read"
        wait_s = holder.expires_s if holder else self._ttl_s
        self._tell(f"locked by {who}; waiting up to {wait_s:.0f} s to see whether that process still lives")
        deadline = _clock() + wait_s
        while (left_s := deadline - _clock()) > 0:
            time.sleep(min(left_s, wait_s / 40))
            found = self._read()
            if found is None:
                return False
            if found[0] != version:
                if holder and found[1] and found[1].owner == holder.owner:
                    raise self._refusal(holder)
                return False
        self._tell(f"no sign of life from {who}; taking over")
        return True

    def _refusal(self, holder: _Holder) -> UserError:
        return UserError(
            f"{self._store.url}: another process is writing here: {holder}. Two cannot share a prefix: wait until it "
            "is done, end it and start again to go on where it stood, or give another prefix"
        )

    def _read(self) -> tuple[str, _Holder | None] | None:
        """Return the object's version and what it says, None for what is no lock of ours; None when it is not there."""
        try:
            # In this order: content that is newer than the version only makes a replacement fail.
            version = self._store.stat(LOCK_KEY).version
            content = self._store.get_bytes(LOCK_KEY)
        except ObjectMissing:
            return None
        try:
            return version, _Holder.model_validate_json(content)
        except ValidationError:
            return version, None

    def _keep_renewing(self) -> None:
        while not self._stop.wait(self._ttl_s / 4):
            with self._mutex:
                if self._lost:
                    return
                self._try_to_renew()

    def _try_to_renew(self) -> None:
        try:
            self._renew()
        except (StoreError, UserError) as error:
            self._trouble = error

    def _renew(self) -> None:
        for _ in range(_RENEWAL_TRIES):
            begun = _clock()
            found = self._read()
            self._mine = self._mine.model_copy(update={"num_renewals": self._mine.num_renewals + 1})
            if found is None:
                if self._silence_s() >= self._ttl_s:
                    self._lost = (
                        f"{self._store.url}: the lock expired and is gone; another process may have taken over, "
                        "written here and ended"
                    )
                    return
                # Nobody may remove it but ourselves.
                done = self._store.create(LOCK_KEY, self._mine.to_json())
            elif found[1] is None or found[1].owner != self._mine.owner:
                self._lost = f"{self._store.url}: the lock was taken over by {found[1] or 'an unknown process'}"
                return
            else:
                done = self._store.replace(LOCK_KEY, self._mine.to_json(), found[0])
            if done:
                self._renewed_at = begun
                return
        raise StoreError(f"{self._store.url}: {LOCK_KEY} changes while it is being renewed")

    def _release(self) -> None:
        if not self._lost and self._silence_s() >= self._ttl_s / 2:
            # Otherwise another process may take over between the look and the removal.
            self._renew()
        found = None if self._lost else self._read()
        if found is not None and found[1] is not None and found[1].owner == self._mine.owner:
            self._store.delete(LOCK_KEY)

    def _silence_s(self) -> float:
        return _clock() - self._renewed_at

    def _tell(self, text: str) -> None:
        if self._on_wait is not None:
            self._on_wait(f"{self._store.url}: {text}")


def process_start(pid: int) -> int:
    """Return when a process began, in ticks since the machine did; 0 when it is not there or cannot be seen."""
    fields = _process_fields(pid)
    return int(fields[19]) if fields else 0


def is_alive(pid: int, start: int) -> bool:
    """Tell whether the process of this number that began at `start` (see `process_start`) still runs.

    A process that was killed and that its parent has not noticed yet does not run.
    """
    fields = _process_fields(pid)
    if fields:
        return fields[0] not in ("Z", "X") and start in (0, int(fields[19]))
    try:
        os.kill(pid, 0)  # sends nothing; for systems without /proc, or with one that hides others' processes
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _process_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third, the state, on."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    # The second field, the program's name, may hold anything.
    return content.rpartition(b")")[2].decode().split()


def _new_holder(purpose: str, ttl_s: float) -> _Holder:
    host, boot_id, pid_namespace = _this_machine()
    return _Holder(
        owner=uuid.uuid4().hex,
        host=host,
        boot_id=boot_id,
        pid_namespace=pid_namespace,
        pid=os.getpid(),
        process_start=process_start(os.getpid()),
        purpose=purpose,
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        expires_s=ttl_s,
    )


def _this_machine() -> tuple[str, str, str]:
    boot_id = pid_namespace = ""
    with contextlib.suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pid_namespace = os.readlink("/proc/self/ns/pid")
    return socket.gethostname(), boot_id, pid_namespace


def _clock() -> float:
    # Goes on while the machine sleeps, as the others' clocks do.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
