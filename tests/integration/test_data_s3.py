"""Training batches out of a real S3 server are those out of a folder, whatever happens on the way."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import vast.storage_s3_requests
from tests.integration.faulty_proxy import (
    CUT_BODY,
    EMPTY_BODY,
    ERROR_500,
    LOST_RESPONSE,
    RESET_AFTER_HEAD,
    RESET_BEFORE,
    RESET_BODY,
    RESET_IN_HEAD,
    SLOW_DOWN,
    FaultyProxy,
    Request,
    seeded,
)
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


def config_for(url: str, num_readers: int) -> DataConfig:
    return DataConfig(url=url, num_frames=4, frame_stride=2, crop_size=32, eval_short_side=32, num_readers=num_readers)


def load(url: str, num_readers: int) -> list[torch.Tensor]:
    config = config_for(url, num_readers)
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


READ_FAULTS = (
    *(ERROR_500, SLOW_DOWN, RESET_BEFORE, LOST_RESPONSE, RESET_IN_HEAD),
    *(RESET_AFTER_HEAD, CUT_BODY, RESET_BODY, EMPTY_BODY),
)


@pytest.fixture
def proxy(remote_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy between this process and the server, which has the data set."""
    monkeypatch.setattr(vast.storage_s3_requests, "FIRST_PAUSE_S", 0.01)
    with FaultyProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.mark.parametrize("num_readers", [0, 2])
def test_faults_of_the_store_change_no_batch(
    local_url: str, remote_url: str, proxy: FaultyProxy, num_readers: int
) -> None:
    expected = load(local_url, 0)
    proxy.schedule = seeded(num_readers, rate=0.6, faults=READ_FAULTS)
    found = load(remote_url, num_readers)
    assert proxy.injected.total() > 2
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("num_readers", [0, 2])
def test_an_outage_within_the_patience_is_waited_for(
    local_url: str, remote_url: str, proxy: FaultyProxy, num_readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The store gives up after few tries, so that it is the loader that waits.
    monkeypatch.setattr(vast.storage_s3_requests, "TRIES", 1)
    dataset = ShardDataset(remote_url, "train")
    dataset.index.rows(range(NUM_SAMPLES))
    is_up = threading.Event()
    proxy.schedule = lambda request, number: None if is_up.is_set() else ERROR_500
    threading.Timer(3.0, is_up.set).start()
    config = config_for(remote_url, num_readers).model_copy(update={"reader_timeout_s": 2.0})
    begun = time.monotonic()
    (batch,) = next(iter(TrainLoader(dataset, config, seed=1, global_batch=3, stop_step=1)))[1]
    assert time.monotonic() - begun >= 2.9
    assert batch.skipped == []
    assert proxy.injected[ERROR_500] > 2
    (expected,) = next(
        iter(
            TrainLoader(ShardDataset(local_url, "train"), config_for(local_url, 0), seed=1, global_batch=3, stop_step=1)
        )
    )[1]
    assert torch.equal(batch.clip_BCTHW, expected.clip_BCTHW)


def test_an_outage_beyond_the_patience_ends_training_and_evaluation(
    remote_url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vast.storage_s3_requests, "TRIES", 2)
    dataset = ShardDataset(remote_url, "train")
    dataset.index.rows(range(NUM_SAMPLES))

    def broken(request: Request, number: int) -> str:
        return SLOW_DOWN

    proxy.schedule = broken
    config = config_for(remote_url, 0).model_copy(update={"store_patience_s": 1.0})
    with pytest.raises(StoreError, match=r"clip_\d in train-000000\.tar.*SlowDown"):
        list(TrainLoader(dataset, config, seed=1, global_batch=3, stop_step=1))
    # It is not that these videos are unreadable.
    with pytest.raises(StoreError, match="SlowDown"):
        list(EvalLoader(dataset, config, "1x1", batch_size=2))
