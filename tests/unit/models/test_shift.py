"""The shift against a literal loop, its backward against finite differences, and its channel order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vast.errors import UserError
from vast.models.shift import (
    ShiftGroup,
    copy_shifted,
    copy_unshifted,
    group_width,
    moving_groups,
    plain_shift,
    shift,
    shift_groups,
)

AXES = ["", "h", "w", "t", "hw", "ht", "wt", "hwt"]


def literal_shift(x: Tensor, width: int, axes: str, border: str) -> Tensor:
    """One element at a time, straight from the definition; order H+, H-, W+, W-, T+, T-, rest."""
    _, T, H, W, _ = x.shape
    out = torch.zeros_like(x)
    for b, t, h, w, c in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
        direction = c // width if width else 6
        position = [h, w, t]
        if direction < 6 and "hwt"[direction // 2] in axes and not (T == 1 and direction >= 4):
            axis, step = direction // 2, 1 - 2 * (direction % 2)
            position[axis] -= step
            if not 0 <= position[axis] < (H, W, T)[axis]:
                if border == "zero":
                    continue
                position[axis] += step
        out[b, t, h, w, c] = x[b, position[2], position[0], position[1], c]
    return out


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 2), *[st.integers(1, 4)] * 3, st.sampled_from([6, 7, 8, 13])),
    axes=st.sampled_from(AXES),
    width=st.integers(0, 1),
    border=st.sampled_from(["zero", "replicate"]),
)
def test_equals_the_literal_loop(shape, axes, width, border):
    x = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape)
    groups = shift_groups(shape[-1], width / shape[-1], axes)
    wanted = literal_shift(x, width, axes, border)
    assert torch.equal(shift(x, groups, border), wanted)
    assert torch.equal(plain_shift(x, groups, border), wanted)


@pytest.mark.parametrize("axes", ["hwt", "ht"])
@pytest.mark.parametrize("border", ["zero", "replicate"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 8), (2, 3, 2, 1, 13), (1, 2, 3, 2, 12), (1, 1, 2, 3, 7)])
def test_backward_is_the_gradient(shape, border, axes):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    groups = shift_groups(shape[-1], 1 / 6, axes)
    assert groups
    assert torch.autograd.gradcheck(lambda x: shift(x, groups, border), (x,))
    assert torch.autograd.gradgradcheck(lambda x: plain_shift(x, groups, border), (x,))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 8), (2, 3, 2, 1, 13), (1, 2, 3, 2, 12), (2, 4, 5, 3, 14)])
def test_backward_is_the_inverse_with_zeros_where_the_border_was_lost(shape):
    x = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape)
    groups = moving_groups(shift_groups(shape[-1], 1 / 6, "hwt"), shape[1])
    back = copy_unshifted(copy_shifted(x, groups, "zero"), groups, "zero")
    wanted = x.clone()
    for start, stop, axis, offset in groups:
        wanted[..., start:stop].select(axis, shape[axis] - 1 if offset > 0 else 0).zero_()
    assert torch.equal(back, wanted)


@pytest.mark.parametrize("border", ["zero", "replicate"])
def test_border_planes(border):
    x = torch.randn(2, 3, 4, 5, 12)
    y = shift(x, shift_groups(12, 1 / 6, "hwt"), border)
    for number, (axis, first) in enumerate([(2, True), (2, False), (3, True), (3, False), (1, True), (1, False)]):
        mine, theirs = (z[..., 2 * number : 2 * number + 2].movedim(axis, 0) for z in (y, x))
        entered, inner = (mine[0], mine[1:]) if first else (mine[-1], mine[:-1])
        nearest = theirs[0] if first else theirs[-1]
        assert torch.equal(entered, nearest if border == "replicate" else torch.zeros_like(nearest))
        assert torch.equal(inner, theirs[:-1] if first else theirs[1:])


def test_input_may_be_strided_and_gradient_expanded():
    base = torch.randn(2, 16, 3, 4, 5)
    x = base.permute(0, 2, 3, 4, 1).requires_grad_()
    groups = shift_groups(16, 0.125, "hwt")
    y = shift(x, groups)
    assert y.is_contiguous()
    y.sum().backward()  # sum gives an expanded gradient of stride 0
    survivors = torch.autograd.functional.vjp(lambda x: shift(x, groups), x.detach(), torch.ones_like(y))[1]
    assert torch.equal(x.grad, survivors)
    assert torch.equal(literal_shift(x.detach(), 2, "hwt", "zero"), y.detach())


def test_channel_order_is_fixed():
    assert shift_groups(64, 0.125, "hwt") == (
        ShiftGroup(0, 8, axis=2, offset=1),
        ShiftGroup(8, 16, axis=2, offset=-1),
        ShiftGroup(16, 24, axis=3, offset=1),
        ShiftGroup(24, 32, axis=3, offset=-1),
        ShiftGroup(32, 40, axis=1, offset=1),
        ShiftGroup(40, 48, axis=1, offset=-1),
    )


@pytest.mark.parametrize("axes", AXES)
def test_an_axis_that_is_switched_off_moves_no_other_group(axes):
    everything = shift_groups(64, 0.125, "hwt")
    assert shift_groups(64, 0.125, axes) == tuple(
        group for group in everything if {2: "h", 3: "w", 1: "t"}[group.axis] in axes
    )


def test_temporal_groups_are_channels_that_the_image_model_leaves_in_place():
    video, image = shift_groups(320, 0.125, "hwt"), shift_groups(320, 0.125, "hw")
    assert video[:4] == image
    assert min(group.start for group in video[4:]) == max(group.stop for group in image)


@pytest.mark.parametrize(
    ("num_channels", "fraction", "width"),
    [(64, 0.125, 8), (96, 0.125, 8), (96, 1 / 6, 16), (320, 0.125, 40), (32, 0.125, 4), (7, 0.125, 0), (512, 0.0, 0)],
)
def test_group_width_is_whole_vectors(num_channels, fraction, width):
    assert group_width(num_channels, fraction) == width


def test_nothing_moves_without_groups():
    x = torch.randn(1, 2, 3, 3, 8)
    assert shift(x, ()) is x


def test_too_wide_groups_are_refused():
    with pytest.raises(UserError, match=r"model\.shift_fraction=0\.25 .* 6 groups of 16 .* only 64"):
        shift_groups(64, 0.25, "hwt")
