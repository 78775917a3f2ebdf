"""Whether a store can be reached, read and written from here, and how fast."""

import os
import time
import uuid
from dataclasses import dataclass

from pipelines.preflight.findings import Problem
from vast.errors import ObjectMissing, StoreError, UserError
from vast.storage import open_store

PROBE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class StoreFacts:
    """What became of a store; an empty error means that it can be used."""

    url: str
    error: str = ""
    read_mb_s: float = 0.0
    write_mb_s: float = 0.0
    """0 where nothing was written."""


def try_reading(url: str, key: str, most_bytes: int = PROBE_BYTES) -> StoreFacts:
    """Read the beginning of an object; its absence is another check's finding."""
    try:
        store = open_store(url)
        size = min(most_bytes, store.size(key))
        begun = time.perf_counter()
        store.get_range(key, 0, size)
        return StoreFacts(url, read_mb_s=size / 1e6 / (time.perf_counter() - begun))
    except ObjectMissing:
        return StoreFacts(url)
    except (UserError, StoreError) as error:
        return StoreFacts(url, _first(error))


def try_writing(url: str) -> StoreFacts:
    """Write an object of eight megabytes, read it back and remove it."""
    key = f".vast-check-{uuid.uuid4().hex}"
    data = os.urandom(PROBE_BYTES)
    try:
        store = open_store(url)
        next(store.list(key), None)  # some servers make a bucket that is written into
        begun = time.perf_counter()
        store.put_bytes(key, data)
        written = time.perf_counter()
        same = store.get_bytes(key) == data
        read = time.perf_counter()
        store.delete(key)
    except (UserError, StoreError) as error:
        return StoreFacts(url, _first(error))
    if not same:
        return StoreFacts(url, "what was written comes back as something else")
    return StoreFacts(url, "", PROBE_BYTES / 1e6 / (read - written), PROBE_BYTES / 1e6 / (written - begun))


def store_problem(facts: StoreFacts, what: str, where: str = "") -> list[Problem]:
    """The problem of a store that cannot be used, if it cannot."""
    if not facts.error:
        return []
    found, _, known = facts.error.partition("; ")  # some messages say what to do themselves
    found = found.removeprefix(f"{facts.url}: ")
    advice = (
        "Check the name, AWS_ENDPOINT_URL, AWS_REGION and the credentials in the environment of "
        f"{where or 'this machine'}, and that they may do this in that bucket"
        if facts.url.startswith("s3://")
        else "Give a folder that can be written"
    )
    if known:
        advice = f"{known[:1].upper()}{known[1:]}"
    subject = f"{what} {facts.url}" + (f" from {where}" if where else "")
    return [Problem("store", subject, found, advice)]


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
