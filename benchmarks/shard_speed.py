"""How fast videos become shards, against bare ffmpeg on the same clips with the same arguments.

    python benchmarks/shard_speed.py            48 clips, 5 rounds: some minutes
    python benchmarks/shard_speed.py --quick    24 clips, 2 rounds: about a minute

The clips are made here by the packaged ffmpeg: 1280x720, 30 frames a second, 10 s, H.264. Each round runs, in turn,

    (a) `build_dataset` with N Ray workers: probing, encoding, proving every clip, packing, hashing, indexing;
    (b) `xargs -P N` over the ffmpeg commands that (a) runs, printing nothing and keeping nothing but their files.

so that whatever else the machine does falls on both. `ratio_vs_ffmpeg` is the time of (b) over that of (a), the median
over the rounds; 1 is as fast as the encoder alone. On a machine that does other things too it comes out lower, as
ffmpeg's many threads get more of a busy core than the one that proves; `cpu_ratio` compares the CPU seconds of one clip
(the least of several runs) and bears that better. Two costs are paid once a data set and not once a clip: starting Ray
and its workers is measured apart; what a build takes beyond its clips (plan, lock, Ray's first task, index, manifest)
is part of (a) and also told as `fixed_s`. The floor is what ffmpeg itself takes: its CPU seconds for a clip, alone,
over the cores. The last line is JSON.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import psutil

from pipelines.training.launch import connect
from preprocessing.build import build_dataset
from preprocessing.probe import open_video, probe
from preprocessing.records import Annotations, Record
from preprocessing.sources import list_sources
from preprocessing.transcode import PROFILES, TranscodeSettings, ffmpeg_arguments, transcode

NUM_DIFFERENT = 4
CLIP_S = 10.0


def main() -> None:
    """Make clips, run both in turn, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="Ray workers, and processes of xargs")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="s256", help="how to encode")
    options = parser.parse_args()
    num_clips, num_rounds = (24, 2) if options.quick else (48, 5)
    with tempfile.TemporaryDirectory(prefix="vast-shard-speed-") as name:
        figures = measure(Path(name), PROFILES[options.profile], num_clips, num_rounds, options.workers)
    report(figures)
    print(json.dumps(figures))


def measure(
    folder: Path, settings: TranscodeSettings, num_clips: int, num_rounds: int, num_workers: int
) -> dict[str, Any]:
    """Return all figures; times in seconds.

    Args:
        folder: For clips and outputs.
        settings: How to encode.
        num_clips: In each run.
        num_rounds: Of both runs.
        num_workers: At a time.
    """
    annotations = make_clips(folder / "raw", num_clips)
    commands = bare_commands(annotations, settings, folder / "bare")
    floor = measure_one(annotations.records[0].file.path, commands[0], settings)
    begun = time.monotonic()
    connect(None)
    ray_s = time.monotonic() - begun
    few = dataclasses.replace(annotations, records=annotations.records[:num_workers])
    first_s = run_build(folder / "first", few, settings, num_workers)
    small = [run_build(folder / f"small{number}", few, settings, num_workers) for number in range(3)]
    fixed_s = max(0.0, min(small) - min(run_bare(commands[:num_workers], num_workers) for _ in range(3)))
    shards, bare = [], []
    with PeakMemory() as memory:
        for number in range(num_rounds):
            url = folder / f"shards{number}"
            # Whoever is first has the machine as the others leave it, so they take turns at that, too.
            for is_build in (number % 2 == 0, number % 2 == 1):
                if is_build:
                    shards.append(run_build(url, annotations, settings, num_workers))
                else:
                    bare.append(run_bare(commands, num_workers))
            print(f"round {number + 1} of {num_rounds}: shards {shards[-1]:.2f} s, bare ffmpeg {bare[-1]:.2f} s")
    shards_s, bare_s = statistics.median(shards), statistics.median(bare)
    return {
        "benchmark": "shard_speed",
        "profile": settings.profile,
        "clips": num_clips,
        "rounds": num_rounds,
        "workers": num_workers,
        "cores": os.cpu_count(),
        "ratio_vs_ffmpeg": round(statistics.median(b / a for a, b in zip(shards, bare, strict=True)), 4),
        "cpu_ratio": round(floor["ffmpeg_cpu_s"] / floor["transcode_cpu_s"], 4),
        "shards_s": round(shards_s, 3),
        "ffmpeg_s": round(bare_s, 3),
        "shards_clips_per_s": round(num_clips / shards_s, 3),
        "ffmpeg_clips_per_s": round(num_clips / bare_s, 3),
        "shards_rounds_s": [round(seconds, 3) for seconds in shards],
        "ffmpeg_rounds_s": [round(seconds, 3) for seconds in bare],
        "ray_start_s": round(ray_s, 3),
        "fixed_s": round(fixed_s, 3),
        "first_build_s": round(first_s, 3),
        "floor_s": round(num_clips * floor["ffmpeg_cpu_s"] / min(num_workers, os.cpu_count() or 1), 3),
        **{name: round(value, 4) for name, value in floor.items()},
        **memory.figures(),
    }


def report(figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    clips, workers = figures["clips"], figures["workers"]
    print(f"{clips} clips of {CLIP_S:g} s, 1280x720, profile {figures['profile']}, {workers} workers, medians:")
    print(f"  shards       {figures['shards_s']:7.2f} s  {figures['shards_clips_per_s']:6.2f} clips/s")
    print(f"  bare ffmpeg  {figures['ffmpeg_s']:7.2f} s  {figures['ffmpeg_clips_per_s']:6.2f} clips/s")
    print(f"  ratio        {figures['ratio_vs_ffmpeg']:7.3f}    (1 is as fast as the encoder alone)")
    print(f"  fixed        {figures['fixed_s']:7.2f} s  of that time any build takes, however few its clips")
    print(f"  floor        {figures['floor_s']:7.2f} s  {figures['ffmpeg_cpu_s']:.3f} CPU s a clip in ffmpeg alone")
    extra = 1000 * (figures["transcode_cpu_s"] - figures["ffmpeg_cpu_s"])
    proving = f"probing and proving; CPU ratio {figures['cpu_ratio']:.3f}"
    print(f"  ours           {extra:5.0f} ms of CPU a clip beside it: {proving}")
    first = f"then {figures['first_build_s']:.2f} s for the first clip of each worker"
    print(f"  start-up     {figures['ray_start_s']:7.2f} s  Ray, {first}")
    print(
        f"  memory       {figures['peak_rss_worker_mb']:7.0f} MB a worker, {figures['peak_rss_ffmpeg_mb']:.0f} ffmpeg"
    )


def make_clips(folder: Path, num_clips: int) -> Annotations:
    """Encode a few different clips and link them under as many names as are wanted."""
    folder.mkdir()
    for number in range(min(NUM_DIFFERENT, num_clips)):
        picture = f"testsrc2=s=1280x720:r=30:d={CLIP_S:g},rotate=t*{0.02 * (number + 1)},noise=alls=6:allf=t"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", picture]
        command += ["-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "fast", str(folder / f"{number:06d}.mp4")]
        subprocess.run(command, check=True)
    for number in range(NUM_DIFFERENT, num_clips):
        os.link(folder / f"{number % NUM_DIFFERENT:06d}.mp4", folder / f"{number:06d}.mp4")
    files = list_sources(folder).files
    records = tuple(Record(f"speed_{file.stem}", "train", file.stem, 0, file) for file in files)
    return Annotations("speed", ("clip",), records, (), {}, ())


def bare_commands(annotations: Annotations, settings: TranscodeSettings, folder: Path) -> list[list[str]]:
    """Return the ffmpeg command of every clip, told to be quiet."""
    folder.mkdir()
    commands = []
    for record in annotations.records:
        with open_video(record.file.path) as descriptor:
            info = probe(descriptor)
        command = ffmpeg_arguments(record.file.path, str(folder / f"{record.key}.mp4"), settings, info)
        command[command.index("-v") + 1] = "error"
        commands.append(command)
    return commands


def run_build(url: Path, annotations: Annotations, settings: TranscodeSettings, num_workers: int) -> float:
    """Build a data set and return how long it took, from the call to its return."""
    per_shard = max(1, len(annotations.records) // (2 * num_workers))
    begun = time.monotonic()
    result = build_dataset(str(url), annotations, settings, samples_per_shard=per_shard, num_workers=num_workers)
    seconds = time.monotonic() - begun
    if result.manifest.splits["train"].samples != len(annotations.records):
        raise RuntimeError(f"{result.manifest.splits['train'].failures} clips failed")
    return seconds


def run_bare(commands: Sequence[Sequence[str]], num_workers: int) -> float:
    """Run the commands, so many at a time, and return how long they took."""
    words = "".join(f"{word}\0" for command in commands for word in command)
    line = ["xargs", "-0", "-P", str(num_workers), "-n", str(len(commands[0])), "env"]
    begun = time.monotonic()
    subprocess.run(line, input=words.encode(), check=True)
    return time.monotonic() - begun


def measure_one(path: str, command: Sequence[str], settings: TranscodeSettings, repeats: int = 5) -> dict[str, float]:
    """Return the CPU seconds of one clip: ffmpeg's alone, and those of `transcode` with all its processes."""
    transcode(path, settings)  # imports what the proof needs
    bare, whole = [], []
    for _ in range(repeats):
        begun = cpu_s()
        subprocess.run(command, check=True)
        bare.append(cpu_s() - begun)
        begun = cpu_s()
        transcode(path, settings)
        whole.append(cpu_s() - begun)
    return {"ffmpeg_cpu_s": min(bare), "transcode_cpu_s": min(whole)}


def cpu_s() -> float:
    """Return the CPU seconds of this process and of all its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class PeakMemory:
    """Watches the resident memory of Ray's workers and of their ffmpeg processes."""

    def __init__(self) -> None:
        self._peaks = {"worker": 0.0, "ffmpeg": 0.0}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def figures(self) -> dict[str, float]:
        """Return the peaks in MB."""
        return {f"peak_rss_{name}_mb": round(peak, 1) for name, peak in self._peaks.items()}

    def _watch(self) -> None:
        while not self._is_over.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                try:
                    name, parent = process.name(), process.parent()
                    kind = "ffmpeg" if name.startswith("ffmpeg") else "worker" if name.startswith("ray::") else ""
                    if kind and parent is not None and parent.name() != "xargs":
                        self._peaks[kind] = max(self._peaks[kind], process.memory_info().rss / 1e6)
                except psutil.Error:
                    continue


if __name__ == "__main__":
    main()
