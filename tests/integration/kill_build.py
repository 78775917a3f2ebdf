"""Builds one data set over and over, killed at random instants, and compares what comes out; prints one JSON line.

    python kill_build.py RAW URL --kills 25 --seed 1 [--workers 2] [--victims workers]

RAW is a Kinetics-like folder (train.csv, val.csv, videos). Each build is a process of its own that gets SIGKILL after a
random time; the next one continues it. Whenever a build ends, its prefix must be the uninterrupted one to the last byte
and the campaign goes on with a fresh prefix. With --workers the builds use a local Ray, else they encode by themselves;
with --victims workers the drivers are left alone and Ray's workers are killed in the middle of their shards.
"""

import argparse
import faulthandler
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil

from preprocessing.build import build_dataset
from preprocessing.kinetics import read_kinetics
from preprocessing.transcode import TranscodeSettings
from preprocessing.verify import verify
from vast.dataset_format import MANIFEST_KEY
from vast.storage import join_url, open_store

# A local Ray takes about so long to start; kills are spread over that time too.
RAY_START_S = 6.0
# Ray's own processes of killed drivers; they end by themselves, some only after a while.
ORPHANS: list[psutil.Process] = []
SETTINGS = TranscodeSettings(short_side=32)


def content(url: str) -> dict[str, str]:
    store = open_store(url)
    return {key: hashlib.sha256(store.get_bytes(key)).hexdigest() for key in store.list()}


def hidden(url: str) -> list[str]:
    """Files of a local prefix that the store does not list."""
    root = Path(url)
    return [] if "://" in url else sorted(path.name for path in root.rglob(".*"))


def build(raw: Path, url: str, num_workers: int) -> None:
    if num_workers:
        import ray

        ray.init(
            "local", num_cpus=num_workers, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20
        )
    annotations = read_kinetics(raw, raw / "videos")
    build_dataset(url, annotations, SETTINGS, samples_per_shard=3, num_workers=num_workers)


def start(act: Callable[..., None], *arguments: object) -> int:
    """Call a function in a process of its own.

    It is forked, which saves the imports; so this process itself must never have decoded anything: a fork has the locks
    of libraries' threads, and not the threads.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def finished(pid: int, seconds: float) -> int | None:
    """Wait; the exit code when the process has ended by then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def kill_workers(driver: int, rng: random.Random, most: int) -> tuple[int, int]:
    """Kill the driver's shard writers one at a time until it ends; returns how many, and its exit code."""
    kills = 0
    while (code := finished(driver, rng.uniform(0.1, 1.0))) is None:
        try:
            tree = psutil.Process(driver).children(recursive=True)
            writers = [process for process in tree if "_write" in " ".join(process.cmdline())]
            if writers and kills < most:
                rng.choice(writers).kill()
                kills += 1
        except psutil.Error:
            continue  # it ended while being looked at
    return kills, code


def kill_drivers(
    args: argparse.Namespace, url: str, rng: random.Random, most: int, whole_s: float, whole: dict[str, str]
) -> int:
    """Kill builds of one prefix until one ends by itself; returns how many were killed."""
    kills = 0
    while True:
        pid = start(build, args.raw, url, args.workers)
        code = finished(pid, whole_s * rng.random() if kills < most else 300)
        if code is not None:
            assert code == 0, f"a build after {kills} kills ended with {code}; its traceback is above"
            return kills
        ORPHANS.extend(psutil.Process(pid).children(recursive=True))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
        if open_store(url).exists(MANIFEST_KEY):
            found = content(url)
            broken = [key for key, digest in whole.items() if found.get(key) != digest]
            assert not broken, f"after kill {kills} the manifest is there, but {broken} are not whole"


def check(url: str, whole: dict[str, str]) -> None:
    """The prefix is the uninterrupted one, and nothing else lies there."""
    found = content(url)
    assert found == whole, sorted({*found} ^ {*whole}) or [key for key in whole if found[key] != whole[key]]
    assert not hidden(url), hidden(url)
    assert verify(url) == []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("raw", type=Path)
    parser.add_argument("url")
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--victims", choices=["driver", "workers"], default="driver")
    args = parser.parse_args()
    faulthandler.enable()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        # Who encodes leaves no trace, so the reference needs no Ray; the second shows how long a warm build takes.
        for name in ("cold", "whole"):
            begun = time.monotonic()
            assert finished(start(build, args.raw, f"{folder}/{name}", 0), 300) == 0, "the uninterrupted build failed"
            whole_s = time.monotonic() - begun + (RAY_START_S if args.workers else 0)
        whole = content(f"{folder}/whole")
        assert content(f"{folder}/cold") == whole
    kills = rounds = 0
    while kills < args.kills:
        url = join_url(args.url, f"round-{rounds}")
        rounds += 1
        if args.victims == "workers":
            more, code = kill_workers(start(build, args.raw, url, args.workers), rng, args.kills - kills)
            assert code == 0, f"the build did not survive its workers and ended with {code}; its traceback is above"
            kills += more
        else:
            kills += kill_drivers(args, url, rng, args.kills - kills, whole_s, whole)
        assert (ended := finished(start(check, url, whole), 300)) == 0, f"{url}: its check ended with {ended}"
    for orphan in psutil.wait_procs(ORPHANS, timeout=2)[1]:
        orphan.kill()
    print(json.dumps({"kills": kills, "rounds": rounds, "seed": args.seed, "whole_s": round(whole_s, 2)}))


if __name__ == "__main__":
    main()
