"""Temporary folders of shard writers: room is waited for, and what killed writers left is removed."""

import contextlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from preprocessing.lock import is_alive, process_start
from vast.errors import UserError

SPARE_BYTES = 256 << 20
WAIT_S = 600.0

_NAME = re.compile(r"vast-shard-(?P<host>.+)-(?P<pid>\d+)-(?P<start>\d+)-[^-]+")


@contextlib.contextmanager
def shard_folder(scratch: Path | None, needed_bytes: int, wait_s: float = WAIT_S) -> Iterator[Path]:
    """Make a folder for one shard's temporary files and remove it at the end.

    Several writers share a disk, so one that finds too little room waits for the others to finish their shards.

    Args:
        scratch: Where to make it; the system's temporary folder when None.
        needed_bytes: What the shard may come to take.
        wait_s: How long to wait for room, seconds.

    Raises:
        UserError: The folder cannot be made, or there was no room all the time.
    """
    root = scratch or Path(tempfile.gettempdir())
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        _await_room(root, needed_bytes + SPARE_BYTES, wait_s)
        prefix = f"vast-shard-{_host()}-{os.getpid()}-{process_start(os.getpid())}-"
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    except OSError as error:
        raise UserError(f"--scratch: cannot use {root} on {socket.gethostname()}: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _await_room(root: Path, needed_bytes: int, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while (free := shutil.disk_usage(root).free) < needed_bytes:
        if time.monotonic() >= deadline:
            raise UserError(
                f"--scratch: {root} on {socket.gethostname()} has {free / 1e9:.1f} GB free, a shard needs "
                f"{needed_bytes / 1e9:.1f} GB; free some, name another folder, or make smaller shards"
            )
        time.sleep(1.0)


def _sweep(root: Path) -> None:
    """Remove folders of writers of this machine that are no more; SIGKILL leaves no one to clean up after them."""
    for entry in root.glob("vast-shard-*"):
        name = _NAME.fullmatch(entry.name)
        if name and name["host"] == _host() and not is_alive(int(name["pid"]), int(name["start"])):
            shutil.rmtree(entry, ignore_errors=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())
