"""Training batches out of a real S3 server are those out of a folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vast.data.config import DataConfig
from vast.data.dataset import ShardDataset
from vast.data.loader import EvalLoader, TrainLoader
from vast.dataset_format import (
    Manifest,
    SampleRow,
    SplitInfo,
    classes_digest,
    dataset_digest,
    write_manifest,
)
from vast.errors import StoreError
from vast.sample_index import write_index
from vast.shard_writer import ShardWriter
from vast.storage import join_url, open_store

NUM_SAMPLES = 6
NUM_FRAMES = 12


def build(folder: Path, make_clip: Callable[..., Path]) -> None:
    writer = ShardWriter(folder / "train-000000.tar")
    rows = []
    for i in range(NUM_SAMPLES):
        media = make_clip(folder / f"{i}.mp4", num_frames=NUM_FRAMES, seed=i).read_bytes()
        where = writer.add(f"clip_{i}", media)
        rows.append(
            SampleRow(
                key=f"clip_{i}",
                shard="train-000000.tar",
                offset=where.offset,
                size_bytes=where.size_bytes,
                label=i % 2,
                source_id=str(i),
                duration_s=1.0,
                video_fps=12.0,
                width=64,
                height=48,
                num_frames=NUM_FRAMES,
                sha256=where.sha256,
            )
        )
    shard = writer.finish()
    split = SplitInfo(
        records=NUM_SAMPLES,
        samples=NUM_SAMPLES,
        failures=0,
        size_bytes=shard.size_bytes,
        index_sha256=write_index(str(folder), "train", rows),
        shards=[shard],
    )
    manifest = Manifest(
        name="tiny",
        classes=["a", "b"],
        classes_digest=classes_digest(["a", "b"]),
        splits={"train": split},
        annotations={},
        transcode={},
        software={},
        plan_digest="sha256:0",
        digest=dataset_digest({"train": split}),
    )
    write_manifest(str(folder), manifest)


@pytest.fixture
def local_url(tmp_path: Path, make_clip: Callable[..., Path]) -> str:
    build(tmp_path, make_clip)
    return str(tmp_path)


@pytest.fixture
def remote_url(local_url: str, s3_url: str) -> str:
    url = join_url(s3_url, "tiny/v1")
    store = open_store(url)
    for name in ("train-000000.tar", "train.parquet", "manifest.json"):
        store.put_file(name, Path(local_url) / name)
    return url


def load(url: str, num_readers: int) -> list[torch.Tensor]:
    config = DataConfig(
        url=url, num_frames=4, frame_stride=2, crop_size=32, eval_short_side=32, num_readers=num_readers
    )
    dataset = ShardDataset(url, "train")
    train = TrainLoader(dataset, config, seed=1, global_batch=3, stop_step=4)
    clips = [batch.clip_BCTHW for _, batches in train for batch in batches]
    for batch in EvalLoader(dataset, config, "2x3", batch_size=4):
        assert batch.failed == []
        clips.append(batch.clip_BVCTHW)
    return clips


@pytest.mark.parametrize("num_readers", [0, 2])
def test_s3_gives_the_same_clips_as_a_folder(local_url: str, remote_url: str, num_readers: int) -> None:
    # A fork server that was started before the S3 variables were set must not matter.
    expected = load(local_url, num_readers)
    found = load(remote_url, num_readers)
    assert len(found) == len(expected) == 6
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_a_shard_that_is_gone_is_named(remote_url: str) -> None:
    config = DataConfig(url=remote_url, num_frames=4, crop_size=32, eval_short_side=32, num_readers=1)
    dataset = ShardDataset(remote_url, "train")
    open_store(remote_url).delete("train-000000.tar")
    with pytest.raises(StoreError, match=r"train-000000\.tar"):
        list(TrainLoader(dataset, config, seed=1, global_batch=3, stop_step=1))
    (batch,) = EvalLoader(dataset, config, "1x1", batch_size=NUM_SAMPLES)
    assert [sample for sample, _ in batch.failed] == list(range(NUM_SAMPLES))
    assert all("train-000000.tar" in reason for _, reason in batch.failed)
