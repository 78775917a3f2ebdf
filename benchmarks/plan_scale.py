"""How long it takes to plan a data set of a million records, and in how much memory.

    python benchmarks/plan_scale.py            1 000 000 records
    python benchmarks/plan_scale.py --quick      200 000 records

The records are made up, in the shape of Kinetics: ids of eleven characters, class folders, two splits. A process of its
own makes them and plans, so its peak of resident memory (VmHWM) counts records, plan and interpreter. The last line is
JSON.
"""

import argparse
import json
import multiprocessing
import pickle
import random
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocessing.plan import make_plan
from preprocessing.records import Annotations, Record, kinetics_key
from preprocessing.sources import VideoFile
from preprocessing.transcode import TranscodeSettings

NUM_CLASSES = 700
ID_LETTERS = string.ascii_letters + string.digits + "-_"


def main() -> None:
    """Measure in a fresh process and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 000 records")
    num_records = 200_000 if parser.parse_args().quick else 1_000_000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures = pool.apply(measure, (num_records,))
    print(
        f"{num_records} records: made in {figures['make_records_s']} s, planned in {figures['plan_s']} s, "
        f"{figures['peak_rss_mb']} MB at most"
    )
    print(json.dumps(figures))


def measure(num_records: int) -> dict[str, Any]:
    """Make records and plan them, in a process that has done nothing else."""
    base_mb = resident_mb("VmRSS")
    begun = time.perf_counter()
    annotations = Annotations("k700", tuple(class_names()), tuple(make_records(num_records)), (), {}, ())
    made = time.perf_counter()
    plan = make_plan(annotations, TranscodeSettings())
    planned = time.perf_counter()
    return {
        "records": num_records,
        "shards": len(plan.shards),
        "seconds": round(planned - begun, 2),
        "make_records_s": round(made - begun, 2),
        "plan_s": round(planned - made, 2),
        "peak_rss_mb": resident_mb("VmHWM"),
        "before_mb": base_mb,
        "shard_plan_bytes": len(pickle.dumps(plan.shards[0])),
        "digest": plan.digest,
    }


def class_names() -> list[str]:
    """Return class names of about the usual length."""
    return [f"doing something number {number}" for number in range(NUM_CLASSES)]


def make_records(num_records: int) -> Iterator[Record]:
    """Yield records like those that a copy of Kinetics gives."""
    rng = random.Random(0)
    classes = class_names()
    for number in range(num_records):
        label = rng.randrange(NUM_CLASSES)
        youtube_id = "".join(rng.choices(ID_LETTERS, k=11))
        start_s = rng.randrange(1000)
        name = f"{classes[label]}/{youtube_id}_{start_s:06d}_{start_s + 10:06d}.mp4"
        yield Record(
            key=kinetics_key("k700", youtube_id, start_s),
            split="val" if number % 16 == 0 else "train",
            source_id=youtube_id,
            label=label,
            file=VideoFile("/data/kinetics/videos", name, rng.randrange(100_000, 10_000_000)),
            start_s=start_s,
            end_s=start_s + 10,
        )


def resident_mb(field: str) -> int:
    """Return this process's resident memory: VmRSS now, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) // 1024


if __name__ == "__main__":
    main()
