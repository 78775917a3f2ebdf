import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vast.data.augment import (
    Box,
    crop_resize,
    flip_table,
    jittered_box,
    normalise,
    random_resized_box,
    view_box,
)
from vast.errors import UserError

SIDE = st.integers(1, 700)
SEED = st.integers(0, 2**32)
SSV2_PAIRS = [
    ("Pulling something from left to right", "Pulling something from right to left"),
    ("Pushing something from left to right", "Pushing something from right to left"),
    ("Turning the camera left while filming something", "Turning the camera right while filming something"),
]


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
    cut_TCHW = crop_resize(frames_TCHW, Box(3, 7, 32, 32), 32)
    assert torch.equal(cut_TCHW, frames_TCHW[:, :, 3:35, 7:39])


@pytest.mark.parametrize("side", [17, 48, 90])
def test_crop_resize_agrees_with_float_interpolation(side: int) -> None:
    frames_TCHW = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 96, 128), dtype=np.uint8))
    small_TCHW = crop_resize(frames_TCHW, Box(2, 5, side, side), 32)
    exact_TCHW = torch.nn.functional.interpolate(
        frames_TCHW[:, :, 2 : 2 + side, 5 : 5 + side].double(), size=(32, 32), mode="bilinear", antialias=True
    )
    assert small_TCHW.dtype == torch.uint8
    assert (small_TCHW.double() - exact_TCHW).abs().max() <= 1


def test_flip_table_finds_the_pairs_of_something_something() -> None:
    others = ["Holding something", "Covering something with something", "Moving something up"]
    classes = [others[0], *[text for pair in SSV2_PAIRS for text in pair], *others[1:]]
    assert flip_table(classes).tolist() == [0, 2, 1, 4, 3, 6, 5, 7, 8]


@given(st.permutations([text for pair in SSV2_PAIRS for text in pair] + ["a", "b", "c", "leftovers", "upright"]))
def test_flip_table_undoes_itself_in_any_order(classes: list[str]) -> None:
    table = flip_table(classes)
    assert np.array_equal(table[table], np.arange(len(classes)))
    assert {frozenset({classes[i], classes[j]}) for i, j in enumerate(table) if i != j} == {
        frozenset(pair) for pair in SSV2_PAIRS
    }


def test_words_are_swapped_whole_and_keep_their_case() -> None:
    assert flip_table(["Left turn", "Right turn", "RIGHT", "LEFT", "leftover"]).tolist() == [1, 0, 3, 2, 4]


def test_a_class_without_its_twin_is_refused() -> None:
    with pytest.raises(UserError, match=r"1 of 2 classes.*'turning left'.*use flip=none"):
        flip_table(["turning left", "jumping"])


def test_normalise() -> None:
    clip_BCTHW = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    out_BCTHW = normalise(clip_BCTHW, mean, std)
    assert out_BCTHW.dtype == torch.float32
    for channel in range(3):
        expected = (clip_BCTHW[:, channel] / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(out_BCTHW[:, channel], expected)
    views_BVCTHW = clip_BCTHW.unsqueeze(1)
    assert torch.equal(normalise(views_BVCTHW, mean, std).squeeze(1), out_BCTHW)
