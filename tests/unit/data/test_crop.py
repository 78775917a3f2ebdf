import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vast.data.crop import Box, crop_resize, jittered_box, random_resized_box, view_box

SIDE = st.integers(1, 700)
SEED = st.integers(0, 2**32)


def check(box: Box, height: int, width: int) -> None:
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


@given(SIDE, SIDE, st.floats(0.01, 1), st.floats(0.01, 1), SEED)
def test_random_resized_box_lies_inside(height: int, width: int, a: float, b: float, seed: int) -> None:
    box = random_resized_box(height, width, (min(a, b), max(a, b)), (0.75, 4 / 3), np.random.default_rng(seed))
    check(box, height, width)


def test_random_resized_box_keeps_to_area_and_aspect() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_resized_box(256, 340, (0.2, 0.6), (0.75, 4 / 3), rng) for _ in range(300)]
    areas = np.array([box.height * box.width / (256 * 340) for box in boxes])
    aspects = np.array([box.width / box.height for box in boxes])
    assert areas.min() > 0.19
    assert areas.max() < 0.61
    assert areas.std() > 0.08
    assert aspects.min() > 0.74
    assert aspects.max() < 1.35


def test_a_shape_that_never_fits_gives_the_largest_central_box() -> None:
    box = random_resized_box(100, 1000, (1.0, 1.0), (0.75, 4 / 3), np.random.default_rng(0))
    assert box == Box(0, 433, 100, 133)


@given(SIDE, SIDE, st.integers(1, 256), st.integers(0, 100), SEED)
def test_jittered_box_lies_inside(height: int, width: int, crop_size: int, extra: int, seed: int) -> None:
    short_side = (crop_size, crop_size + extra)
    box = jittered_box(height, width, crop_size, short_side, np.random.default_rng(seed))
    check(box, height, width)
    assert box.height == box.width


@given(SIDE, SIDE, st.integers(1, 256), st.integers(0, 100))
def test_three_views_span_the_longer_side(height: int, width: int, crop_size: int, extra: int) -> None:
    boxes = [view_box(height, width, crop_size, crop_size + extra, view, 3) for view in range(3)]
    for box in boxes:
        check(box, height, width)
    first, middle, last = boxes
    assert middle == view_box(height, width, crop_size, crop_size + extra)
    if width >= height:
        assert (first.left, last.left + last.width) == (0, width)
        assert first.top == last.top == middle.top
    else:
        assert (first.top, last.top + last.height) == (0, height)
        assert first.left == last.left == middle.left


def test_a_short_side_equal_to_the_crop_uses_all_rows() -> None:
    assert view_box(240, 427, 224, 224) == Box(0, 93, 240, 240)
    assert view_box(240, 427, 224, 256).height == 210


def make_gradient(height: int, width: int) -> Tensor:
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    frame_CHW = torch.stack([(rows + 0 * columns) % 256, (columns + 0 * rows) % 256, (rows + columns) % 256])
    return torch.stack([frame_CHW, 255 - frame_CHW]).to(torch.uint8)


def test_crop_resize_of_the_same_size_is_the_cut_itself() -> None:
    frames_TCHW = make_gradient(40, 60)
    cut_THWC = torch.empty(2, 32, 32, 3, dtype=torch.uint8)
    crop_resize(frames_TCHW, Box(3, 7, 32, 32), cut_THWC)
    assert torch.equal(cut_THWC, frames_TCHW[:, :, 3:35, 7:39].permute(0, 2, 3, 1))


@pytest.mark.parametrize("side", [17, 48, 90])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_crop_resize_agrees_with_float_interpolation(side: int, memory_format: torch.memory_format) -> None:
    frames_TCHW = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 96, 128), dtype=np.uint8))
    frames_TCHW = frames_TCHW.contiguous(memory_format=memory_format)
    small_THWC = torch.empty(3, 32, 32, 3, dtype=torch.uint8)
    crop_resize(frames_TCHW, Box(2, 5, side, side), small_THWC)
    small_TCHW = small_THWC.permute(0, 3, 1, 2)
    exact_TCHW = torch.nn.functional.interpolate(
        frames_TCHW[:, :, 2 : 2 + side, 5 : 5 + side].double(), size=(32, 32), mode="bilinear", antialias=True
    )
    assert small_TCHW.dtype == torch.uint8
    assert (small_TCHW.double() - exact_TCHW).abs().max() <= 1
