"""Clips for the loader's benchmark: a few different ones, encoded once and held under as many keys as are wanted."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

from preprocessing.transcode import PROFILES, transcode
from vast.dataset_format import (
    Manifest,
    SampleRow,
    SplitInfo,
    classes_digest,
    dataset_digest,
    shard_name,
    write_manifest,
)
from vast.sample_index import write_index
from vast.shard_writer import ShardWriter

CLASSES = ["clip"]
NUM_SHARDS = 4
NUM_DIFFERENT = 2
CLIP_S = 10


@dataclass(frozen=True)
class Clips:
    """What all sides read."""

    url: str
    """The shard data set."""
    encoded: list[bytes]
    """The different clips as they are in the shards; sample i holds number `i % len(encoded)`."""
    originals: list[bytes]
    """The 720p files that they were made of, in the same order."""
    num_frames: int
    """Frames of each."""
    num_samples: int


def make(folder: Path, num_samples: int) -> Clips:
    """Encode the different clips and write a data set of them."""
    (folder / "shards").mkdir()
    paths = [folder / f"original_{number}.mp4" for number in range(NUM_DIFFERENT)]
    for number, path in enumerate(paths):
        _encode_original(path, number)
    originals = [path.read_bytes() for path in paths]
    made = [transcode(path, PROFILES["s256"]) for path in paths]
    rows, shards = [], []
    for shard in range(NUM_SHARDS):
        writer = ShardWriter(folder / "shards" / shard_name("train", shard))
        for i in range(num_samples * shard // NUM_SHARDS, num_samples * (shard + 1) // NUM_SHARDS):
            clip = made[i % len(made)]
            where = writer.add(f"clip_{i:06d}", clip.media, meta={"label": 0})
            rows.append(
                SampleRow(
                    key=f"clip_{i:06d}",
                    shard=shard_name("train", shard),
                    offset=where.offset,
                    size_bytes=where.size_bytes,
                    label=0,
                    source_id=str(i),
                    duration_s=clip.duration_s,
                    video_fps=clip.video_fps,
                    width=clip.width,
                    height=clip.height,
                    num_frames=clip.num_frames,
                    sha256=where.sha256,
                )
            )
        shards.append(writer.finish())
    url = str(folder / "shards")
    split = SplitInfo(
        records=num_samples,
        samples=num_samples,
        failures=0,
        size_bytes=sum(shard.size_bytes for shard in shards),
        index_sha256=write_index(url, "train", rows),
        shards=shards,
    )
    manifest = Manifest(
        name="speed",
        classes=CLASSES,
        classes_digest=classes_digest(CLASSES),
        splits={"train": split},
        annotations={},
        transcode={},
        software={},
        plan_digest="sha256:0",
        digest=dataset_digest({"train": split}),
    )
    write_manifest(url, manifest)
    return Clips(url, [clip.media for clip in made], originals, made[0].num_frames, num_samples)


def _encode_original(path: Path, number: int) -> None:
    """Encode moving shapes under noise, at 720p and 30 frames a second."""
    picture = f"testsrc2=s=1280x720:r=30:d={CLIP_S},noise=alls=6:allf=t:all_seed={number}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", picture]
    command += ["-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "veryfast", str(path)]
    subprocess.run(command, check=True)
