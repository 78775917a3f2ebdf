import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from vast.data.config import DataConfig
from vast.data.dataset import ShardDataset
from vast.data.decode import decode_frames
from vast.data.loader import EvalLoader, TrainLoader
from vast.errors import DecodeError

FIRST = np.array([0])


def picture(width: int = 40, height: int = 24) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)).resize((width, height))


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_a_picture_is_a_video_of_one_frame() -> None:
    data = encoded(picture(), quality=95)
    frames_TCHW = decode_frames(data, FIRST)
    assert frames_TCHW.shape == (1, 3, 24, 40)
    assert frames_TCHW.dtype == torch.uint8
    assert frames_TCHW.is_contiguous(memory_format=torch.channels_last)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(frames_TCHW[0].permute(1, 2, 0).numpy(), np.asarray(image))
    again_TCHW = decode_frames(data, np.array([0, 0, 0]))
    assert torch.equal(again_TCHW, frames_TCHW.expand(3, -1, -1, -1))


def test_grey_becomes_rgb_and_exif_turns_nothing() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert decode_frames(encoded(picture().convert("L")), FIRST).shape == (1, 3, 24, 40)
    assert decode_frames(encoded(picture(), exif=exif), FIRST).shape == (1, 3, 24, 40)


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(320, 240))[:700],
        encoded(picture(320, 240))[:-400],
        b"\xff\xd8\xff\xe0 and no picture behind it",
        encoded(picture()).replace(b"\xff\xc0", b"\xff\xc3"),
    ],
    ids=["header only", "cut short", "nothing", "another process"],
)
def test_a_damaged_picture_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError, match=rf"{len(data)} bytes"):
        decode_frames(data, FIRST)


def test_a_later_frame_of_a_picture_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match=r"frame 7 was asked for, a picture has frame 0 only: set data\.num_frames=1"):
        decode_frames(encoded(picture()), np.arange(8))


@pytest.fixture
def config(picture_shards: str) -> DataConfig:
    return DataConfig(url=picture_shards, num_frames=1, crop_size=56, eval_short_side=64, num_readers=0)


def test_pictures_are_trained_on_as_clips_of_one_frame(config: DataConfig) -> None:
    dataset = ShardDataset(config.url, "train")
    loader = TrainLoader(
        dataset, config, seed=1, global_batch=16, max_micro_batch=16, rank=0, num_ranks=1, start_step=0, stop_step=4
    )
    labels = dataset.index.column("label")
    seen = []
    for batch in (batch for _, micro_batches in loader for batch in micro_batches):
        assert batch.clip_BCTHW.shape == (16, 3, 1, 56, 56)
        assert batch.label_B.tolist() == labels[batch.sample_B.numpy()].tolist()
        assert (batch.clip_BCTHW.flatten(1).float().std(1) > 5).all()
        seen += batch.sample_B.tolist()
    assert sorted(seen) == list(range(64))


def test_an_evaluation_sees_the_centre_of_each_picture(config: DataConfig) -> None:
    dataset = ShardDataset(config.url, "val")
    found = torch.zeros((16, 3, 56, 56), dtype=torch.uint8)
    for batch in EvalLoader(dataset, config, "1x1", rank=0, num_ranks=1, batch_size=5):
        assert batch.failed == []
        found[batch.sample_B] = batch.clip_BVCTHW[:, 0, :, 0]
    for i in range(16):
        with Image.open(io.BytesIO(dataset.read(i))) as image:
            left, top = (image.width - 56) // 2, (image.height - 56) // 2
            wanted_HWC = np.asarray(image.crop((left, top, left + 56, top + 56)))
        assert np.array_equal(found[i].permute(1, 2, 0).numpy(), wanted_HWC), f"sample {i}"
