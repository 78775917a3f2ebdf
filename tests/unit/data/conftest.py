"""A small shard data set of really encoded clips."""

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vast.data.config import DataConfig
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

CLASSES = [
    "Holding something",
    "Pulling something from left to right",
    "Pulling something from right to left",
    "Turning something",
]
# Unequal shards, so that an error in their arithmetic shows.
SHARDS = {"train": (9, 8, 6), "val": (4, 3)}

torch.set_num_threads(1)


def encode_clip(num_frames: int, width: int = 128, height: int = 96, seed: int = 0, fps: int = 12) -> bytes:
    """Encode an mp4 whose frames all differ, with the settings that shards are written with."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    buffer = io.BytesIO()
    options = {
        "preset": "veryfast",
        "tune": "fastdecode",
        "crf": "23",
        "x264-params": "scenecut=0:keyint=30:min-keyint=30",
    }
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for i in range(num_frames):
            picture = np.roll(texture, 2 * i, axis=1)
            # A bar whose place tells the number of the frame.
            picture[:8, : width * (i + 1) // num_frames] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encode_clip


def write_split(folder: Path, split: str, counts: tuple[int, ...]) -> SplitInfo:
    rows, shards = [], []
    for shard, count in enumerate(counts):
        writer = ShardWriter(folder / shard_name(split, shard))
        for _ in range(count):
            i = len(rows)
            num_frames = (24, 24, 5)[i % 3]
            width, height = ((128, 96), (96, 128))[i % 2]
            media = encode_clip(num_frames, width, height, seed=i)
            where = writer.add(f"{split}_{i:03d}", media, meta={"label": i % len(CLASSES)})
            rows.append(
                SampleRow(
                    key=f"{split}_{i:03d}",
                    shard=shard_name(split, shard),
                    offset=where.offset,
                    size_bytes=where.size_bytes,
                    label=i % len(CLASSES),
                    source_id=str(i),
                    duration_s=num_frames / 12,
                    video_fps=12.0,
                    width=width,
                    height=height,
                    num_frames=num_frames,
                    sha256=where.sha256,
                )
            )
        shards.append(writer.finish())
    index_sha256 = write_index(str(folder), split, rows)
    size_bytes = sum(shard.size_bytes for shard in shards)
    return SplitInfo(
        records=len(rows),
        samples=len(rows),
        failures=0,
        size_bytes=size_bytes,
        index_sha256=index_sha256,
        shards=shards,
    )


@pytest.fixture(scope="session")
def data_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """23 training and 7 validation samples: both orientations, and some clips shorter than what is drawn."""
    folder = tmp_path_factory.mktemp("data_set")
    splits = {split: write_split(folder, split, counts) for split, counts in SHARDS.items()}
    manifest = Manifest(
        name="tiny",
        classes=CLASSES,
        classes_digest=classes_digest(CLASSES),
        splits=splits,
        annotations={},
        transcode={},
        software={},
        plan_digest="sha256:0",
        digest=dataset_digest(splits),
    )
    write_manifest(str(folder), manifest)
    return str(folder)


@pytest.fixture
def config(data_url: str) -> DataConfig:
    return DataConfig(
        url=data_url,
        num_frames=8,
        frame_stride=2,
        crop_size=64,
        train_short_side=(64, 80),
        eval_short_side=72,
        num_readers=0,
    )
