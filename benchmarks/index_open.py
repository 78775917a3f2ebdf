"""How long it takes to open the sample index of ten million samples, and to look up rows all over it.

    python benchmarks/index_open.py            10 000 000 samples (about 2 minutes, and 600 MB of disk)
    python benchmarks/index_open.py --quick     1 000 000 samples

The index is written by the program's own writer into a temporary folder. A fresh process opens it from there, with the
file in the page cache, and counts the bytes that it asks of the store; another one measures the random look-ups of a
shuffled epoch in batches, as a training rank makes them, on this index and on a small one. The last line is JSON.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vast.dataset_format import SampleRow, index_key
from vast.sample_index import IndexWriter, SampleIndex
from vast.storage import LocalStore

SMALL_SAMPLES = 240_000
SAMPLES_PER_SHARD = 400
BATCH = 64
NUM_ROWS = 1000
EPOCH_S = 20.0


class CountingStore(LocalStore):
    """A folder that counts the bytes read of its files."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.bytes_read = 0

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """See Store."""
        self.bytes_read += size_bytes
        return super().get_range(key, offset, size_bytes)

    def get_bytes(self, key: str) -> bytes:
        """See Store."""
        data = super().get_bytes(key)
        self.bytes_read += len(data)
        return data


def main() -> None:
    """Write the indexes, measure each in fresh processes and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 000 000 samples")
    num_samples = 1_000_000 if parser.parse_args().quick else 10_000_000
    with tempfile.TemporaryDirectory(prefix="index-open-") as folder:
        written = in_fresh_process(write, folder, "large", num_samples)
        print(f"{num_samples} samples written in {written['write_s']} s, {written['write_peak_rss_mb']} MB at most")
        in_fresh_process(write, folder, "small", SMALL_SAMPLES)
        figures = {"samples": num_samples, **in_fresh_process(open_and_look_up, folder, "large"), **written}
        for split, name in (("small", f"{SMALL_SAMPLES // 1000}k"), ("large", f"{num_samples // 1_000_000}m")):
            for what, value in in_fresh_process(shuffled_epoch, folder, split).items():
                figures[f"epoch_{name}_{what}"] = value
    print(
        f"opened in {figures['open_s']} s and {figures['open_bytes_read']} of {figures['file_bytes']} bytes; "
        f"{NUM_ROWS} rows one by one in {figures['rows_s']} s; {figures['peak_rss_mb']} MB at most"
    )
    print(json.dumps(figures))


def in_fresh_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call a function in a process that has done nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def write(folder: str, split: str, num_samples: int) -> dict[str, Any]:
    """Write an index of made-up samples, shard by shard."""
    begun = time.perf_counter()
    with IndexWriter(folder, split) as writer:
        for first in range(0, num_samples, SAMPLES_PER_SHARD):
            writer.append(make_rows(first, min(SAMPLES_PER_SHARD, num_samples - first)))
        writer.finish()
    return {"write_s": round(time.perf_counter() - begun, 1), "write_peak_rss_mb": peak_rss_mb()}


def make_rows(first: int, count: int) -> Iterator[SampleRow]:
    """Yield the rows of one shard; ids and digests look like real ones and do not compress better."""
    offset = 512
    for number in range(first, first + count):
        digest = hashlib.sha256(number.to_bytes(8, "big"))
        chance = int.from_bytes(digest.digest()[:4], "big")
        size_bytes = 400_000 + chance % 1_200_000
        num_frames = 300 - (chance % 7 if chance % 3 == 0 else 0)
        source_id = digest.hexdigest()[:11]
        yield SampleRow(
            key=f"k700_{source_id}_{chance % 1000:06d}",
            shard=f"train-{first // SAMPLES_PER_SHARD:06d}.tar",
            offset=offset,
            size_bytes=size_bytes,
            label=chance % 700,
            source_id=source_id,
            duration_s=num_frames / 30,
            video_fps=30.0,
            width=454 if chance % 10 else 256,
            height=256 if chance % 10 else 454,
            num_frames=num_frames,
            sha256=hashlib.sha256(digest.digest()).hexdigest(),
        )
        offset += -(-size_bytes // 512) * 512 + 1536


def open_and_look_up(folder: str, split: str) -> dict[str, Any]:
    """Open an index and read its length and some rows, one by one and far apart."""
    store = CountingStore(folder)
    begun = time.perf_counter()
    index = SampleIndex(store, split)
    num_samples = len(index)
    opened = time.perf_counter()
    open_bytes_read = store.bytes_read
    samples = np.random.default_rng(0).integers(num_samples, size=NUM_ROWS).tolist()
    rows = [index.row(i) for i in samples]
    looked_up_s = time.perf_counter() - opened
    figures = {
        "open_s": round(opened - begun, 3),
        "open_bytes_read": open_bytes_read,
        "bytes_read": store.bytes_read,
        "file_bytes": os.path.getsize(Path(folder, index_key(split))),
        "rows_s": round(looked_up_s, 2),
        "peak_rss_mb": peak_rss_mb(),
    }
    for i, row in zip(samples, rows, strict=True):
        if row != list(make_rows(i - i % SAMPLES_PER_SHARD, i % SAMPLES_PER_SHARD + 1))[-1]:
            raise SystemExit(f"sample {i} came back as {row}")
    return figures


def shuffled_epoch(folder: str, split: str) -> dict[str, Any]:
    """Look up batches of a shuffled epoch, the whole of it or as much as the time allows."""
    index = SampleIndex(LocalStore(folder), split)
    samples = np.random.default_rng(0).permutation(len(index))
    begun = time.perf_counter()
    done = 0
    while done < len(samples) and time.perf_counter() - begun < EPOCH_S:
        done += len(index.rows(samples[done : done + BATCH].tolist()))
    return {"rows_per_s": round(done / (time.perf_counter() - begun)), "peak_rss_mb": peak_rss_mb()}


def peak_rss_mb() -> int:
    """Return the peak of this process's resident memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


if __name__ == "__main__":
    main()
