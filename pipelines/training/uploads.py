"""Checkpoints on their way to the store: complete or absent, in the background, and checked before they are used.

A checkpoint is a folder of files. `checkpoint.json`, which lists them with sizes and digests, is taken away first and
put last, so a folder that has it is whole; what is fetched is checked against it, whatever a disk did in between.
"""

import datetime
import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from vast.errors import ObjectDamaged, ObjectMissing, StoreError
from vast.storage import open_store

MARKER = "checkpoint.json"
MAX_BEHIND = 4  # each is a copy of the weights and the optimizer in this process's memory or on its disk
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0


class TornCheckpointError(Exception):
    """What lies there is not a whole checkpoint; the message says what is wrong with it."""


def put_checkpoint(url: str, folder: Path) -> None:
    """Store the files of `folder` as the checkpoint at `url`.

    Raises:
        StoreError: the store fails; there may be files now, but no checkpoint.
    """
    store = open_store(url)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    listing = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files}
    store.delete(MARKER)
    for path in files:
        store.put_file(path.name, path)
    store.put_bytes(MARKER, json.dumps({"files": listing}, indent=1).encode())


def get_checkpoint(url: str, folder: Path) -> None:
    """Fetch the checkpoint at `url` into `folder` and check every file.

    Raises:
        TornCheckpointError: a file is missing or not what was written.
        StoreError: the store fails.
    """
    store = open_store(url)
    try:
        listing = dict(json.loads(store.get_bytes(MARKER))["files"])
    except ObjectMissing as error:
        raise TornCheckpointError(f"{url} has no {MARKER}: it was never whole") from error
    except (ValueError, KeyError, TypeError) as error:
        raise TornCheckpointError(f"{url}/{MARKER} cannot be read: {error}") from error
    for name, expected in listing.items():
        if name != Path(name).name or name in ("", ".", ".."):  # whoever wrote it wants to write elsewhere
            raise TornCheckpointError(f"{url}/{MARKER} names {name!r}, which is no plain file name")
        try:
            store.get_file(name, folder / name)
        except (ObjectMissing, ObjectDamaged) as error:
            raise TornCheckpointError(str(error)) from error
        found = {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        if found != expected:
            raise TornCheckpointError(
                f"{url}/{name} holds {found['bytes']} bytes ({found['sha256'][:12]}); "
                f"{expected['bytes']} bytes ({expected['sha256'][:12]}) were written"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Uploads:
    """Counts the checkpoints that are not stored yet, and keeps trying while the run goes on.

    `admit` is for the training thread; `store` runs in Ray Train's upload thread, one checkpoint after the other.
    """

    def __init__(self, patience_s: float, note: Callable[[str], None]) -> None:
        """Give the store `patience_s` when training cannot go on without it; `note` tells a person."""
        self.patience_s, self.note = patience_s, note
        self._behind = 0
        self._changed = threading.Condition()
        self._ended = False
        self._trouble = ""

    def admit(self, step: int) -> None:
        """Count one more checkpoint; waits while MAX_BEHIND are under way.

        Raises:
            StoreError: none of them could be stored for `patience_s` either.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._behind < MAX_BEHIND, self.patience_s):
                raise StoreError(
                    f"checkpoints: {self._behind} are waiting to be stored, and for {self.patience_s:.0f} s "
                    f"(data.store_patience_s) none could be, so training stops at step {step}; the store said: "
                    f"{self._trouble or 'nothing'}"
                )
            self._behind += 1

    def store(self, url: str, folder: Path, before: Callable[[], None] | None = None) -> None:
        """Put one checkpoint; a store that fails is asked again until training ends, and then for `patience_s`.

        `before` stores what must be there when the checkpoint is, with the same patience.
        """
        wait_s, failing_since = _FIRST_WAIT_S, 0.0
        last_chance = None
        while True:
            try:
                if before is not None:
                    before()
                put_checkpoint(url, folder)
                break
            except StoreError as error:
                now = time.monotonic()
                if not failing_since:
                    failing_since = now
                    self.note(f"a checkpoint cannot be stored, training goes on and tries again: {error}")
                self._trouble = f"{datetime.datetime.now():%H:%M:%S} {error}"
                if self._ended:
                    last_chance = last_chance or now + self.patience_s
                    if now > last_chance:
                        raise
            with self._changed:
                self._changed.wait(_FIRST_WAIT_S if self._ended else wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        if failing_since:
            self.note(f"the checkpoint is stored, {time.monotonic() - failing_since:.0f} s late")
        with self._changed:
            self._behind -= 1
            self._changed.notify_all()

    def end(self) -> None:
        """Training has ended: from now on the store's time is limited."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
