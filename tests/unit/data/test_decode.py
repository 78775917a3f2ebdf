import importlib
import io
from collections.abc import Callable

import av
import numpy as np
import pytest
import torch

from vast.data import decode
from vast.data.decode import decode_frames
from vast.errors import DecodeError

NUM_FRAMES = 75  # two keyframes inside


@pytest.fixture(scope="module")
def clip(encode: Callable[..., bytes]) -> bytes:
    return encode(NUM_FRAMES)


@pytest.fixture(scope="module")
def sequential(clip: bytes) -> np.ndarray:
    with av.open(io.BytesIO(clip)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize(
    "indices",
    [
        [0],
        [1, 0],
        [74, 30, 29],
        [5, 5, 5, 6],
        list(range(NUM_FRAMES)),
        np.random.default_rng(0).integers(0, NUM_FRAMES, 40).tolist(),
        np.sort(np.random.default_rng(1).integers(0, NUM_FRAMES, 16)).tolist(),
    ],
)
def test_any_frames_equal_those_of_a_sequential_decode(clip: bytes, sequential: np.ndarray, indices: list[int]) -> None:
    frames_TCHW = decode_frames(clip, np.array(indices))
    assert frames_TCHW.dtype == torch.uint8
    assert frames_TCHW.shape == (len(indices), 3, 96, 128)
    found_THWC = frames_TCHW.permute(0, 2, 3, 1).numpy().astype(np.int16)
    for found_HWC, index in zip(found_THWC, indices, strict=True):
        distance = np.abs(sequential - found_HWC).mean((1, 2, 3))
        # Colour conversion differs by a level or two between FFmpeg versions; another frame is much further away.
        assert distance[index] < 2
        assert distance.argmin() == index


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>" * 50])
def test_what_is_no_mp4_is_a_decode_error_without_noise(data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DecodeError, match=r"bytes that begin with .* are no mp4"):
        decode_frames(data, np.arange(4))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("damage", ["truncated", "zeroed"])
def test_a_damaged_video_is_a_decode_error(clip: bytes, damage: str) -> None:
    middle = len(clip) // 2
    zeroed = clip[: middle // 2] + bytes(middle) + clip[middle // 2 + middle :]
    data = {"truncated": clip[:middle], "zeroed": zeroed}[damage]
    with pytest.raises(DecodeError, match=rf"decord cannot decode {len(data)} bytes"):
        decode_frames(data, np.arange(NUM_FRAMES))


def test_a_harmful_setting_of_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECORD_EOF_RETRY_MAX", "64")
    with pytest.warns(UserWarning, match="DECORD_EOF_RETRY_MAX is set: low values"):
        importlib.reload(decode)


def test_a_frame_behind_the_end_is_a_decode_error(clip: bytes) -> None:
    with pytest.raises(DecodeError, match=r"frame 75 was asked for, the video has frames 0\.\.74"):
        decode_frames(clip, np.array([3, NUM_FRAMES]))
