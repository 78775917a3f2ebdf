"""The shift: groups of channels move by one token along an axis of the token grid. It has no parameters.

Channels are laid out in a fixed order, G channels a direction, and checkpoints depend on it:

    [0, G) H+   [G, 2G) H-   [2G, 3G) W+   [3G, 4G) W-   [4G, 5G) T+   [5G, 6G) T-   [6G, C) stay

"H+" means that a token receives the value of the row before it: out[h] = in[h - 1]. An image model (or a single frame)
leaves the two temporal groups where they are. So a video model takes its temporal groups from channels that the image
model of the same size does not move, and inherits the meaning of all the others. An axis that is switched off leaves
its two groups where they are, and all other channels keep their place.

Dimensions: B clips · T frames · H rows · W columns · C channels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from vast.errors import UserError

Border = Literal["zero", "replicate"]


class ShiftGroup(NamedTuple):
    """Channels [start, stop) that move by `offset` (+1 or -1; 0: that stay) along `axis` of x_BTHWC."""

    start: int
    stop: int
    axis: int
    offset: int


Axes = Literal["", "h", "w", "t", "hw", "ht", "wt", "hwt"]
"""Axes along which channels move."""
T_AXIS, _H_AXIS, _W_AXIS = 1, 2, 3
_LETTERS = {_H_AXIS: "h", _W_AXIS: "w", T_AXIS: "t"}
_DIRECTIONS = ((_H_AXIS, 1), (_H_AXIS, -1), (_W_AXIS, 1), (_W_AXIS, -1), (T_AXIS, 1), (T_AXIS, -1))
_VECTOR_CHANNELS = 8  # a group of whole 16-byte vectors in bfloat16


def group_width(num_channels: int, fraction: float) -> int:
    """Channels that move in one direction: the fraction rounded down, to a multiple of 8 where it is at least 8."""
    width = int(num_channels * fraction + 1e-9)  # 1e-9: a fraction such as 1/6 of 96 must give 16
    return width - width % _VECTOR_CHANNELS if width >= _VECTOR_CHANNELS else width


def shift_groups(num_channels: int, fraction: float, axes: Axes) -> tuple[ShiftGroup, ...]:
    """The groups that move, in channel order: two for each of the axes.

    Raises:
        UserError: when the groups together are wider than the channels.
    """
    width = group_width(num_channels, fraction)
    num_places = 6 if "t" in axes else 4  # an axis that is switched off keeps its place
    if axes and width * num_places > num_channels:
        raise UserError(
            f"model.shift_fraction={fraction} moves {num_places} groups of {width} channels, but the stage has "
            f"only {num_channels}; use at most 1/{num_places}"
        )
    return regular_groups(width, axes)


@lru_cache
def regular_groups(width: int, axes: Axes) -> tuple[ShiftGroup, ...]:
    """Groups of so many channels, each at its place in the fixed order of directions."""
    return tuple(
        ShiftGroup(i * width, (i + 1) * width, axis, step)
        for i, (axis, step) in enumerate(_DIRECTIONS)
        if width and _LETTERS[axis] in axes
    )


@lru_cache
def moving_groups(groups: tuple[ShiftGroup, ...], num_frames: int) -> tuple[ShiftGroup, ...]:
    """The groups that move in a clip of so many frames: in a single frame the temporal ones stay.

    Zero-filled, they would lose a quarter of the channels.
    """
    return groups if num_frames > 1 else tuple(group for group in groups if group.axis != T_AXIS)


def shift(x_BTHWC: Tensor, groups: tuple[ShiftGroup, ...], border: Border = "zero") -> Tensor:
    """Move each group by one token; the other channels stay. Differentiable once.

    Args:
        x_BTHWC: tokens.
        groups: from `shift_groups`, in channel order.
        border: what moves in at the edge, zeros or a copy of the outermost token.
    """
    groups = moving_groups(groups, x_BTHWC.shape[T_AXIS])
    if not groups:
        return x_BTHWC
    if torch.compiler.is_compiling():  # in-place slice copies compile to code 50 times slower than themselves
        return plain_shift(x_BTHWC, groups, border)
    return cast(Tensor, _Shift.apply(x_BTHWC, groups, border))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def plain_shift(x_BTHWC: Tensor, groups: tuple[ShiftGroup, ...], border: Border = "zero") -> Tensor:
    """The same of torch's own operations, so that it can be exported and differentiated twice; about twice as slow."""
    groups = moving_groups(groups, x_BTHWC.shape[T_AXIS])
    if not groups:
        return x_BTHWC
    # One split: autograd adds up a full-size tensor of zeros for each piece that is cut out by itself.
    cover = _cover(groups, x_BTHWC.shape[-1])
    moved = []
    pieces = x_BTHWC.split_with_sizes([stop - start for start, stop, _, _ in cover], -1)
    for piece, (_, _, axis, offset) in zip(pieces, cover, strict=True):
        if not offset:
            moved.append(piece)
            continue
        last = piece.shape[axis] - 1
        edge = piece.narrow(axis, 0 if offset > 0 else last, 1)
        edge = edge if border == "replicate" else torch.zeros_like(edge)
        body = piece.narrow(axis, max(-offset, 0), last)
        moved.append(torch.cat((edge, body) if offset > 0 else (body, edge), axis))
    return torch.cat(moved, dim=-1)


def copy_shifted(x_BTHWC: Tensor, groups: tuple[ShiftGroup, ...], border: Border) -> Tensor:
    """The shift itself, unseen by autograd, by one slice copy a group: 2 memory passes, the floor."""
    if not groups:
        return x_BTHWC.clone()
    x_BTHWC = x_BTHWC.contiguous()
    moved = _all_moves(x_BTHWC.shape, groups, False)
    out_BTHWC = _copy_moved(x_BTHWC, moved)
    edges = views(out_BTHWC, moved.edges)
    if border == "zero":
        torch._foreach_zero_(edges)
    else:
        torch._foreach_copy_(edges, views(x_BTHWC, moved.edges))
    return out_BTHWC


def copy_unshifted(grad_BTHWC: Tensor, groups: tuple[ShiftGroup, ...], border: Border) -> Tensor:
    """The transpose of `copy_shifted`: from the gradient of its output to that of its input."""
    if not groups:
        return grad_BTHWC.clone()
    grad_BTHWC = grad_BTHWC.contiguous()
    moved = _all_moves(grad_BTHWC.shape, groups, True)
    out_BTHWC = _copy_moved(grad_BTHWC, moved)
    torch._foreach_zero_(views(out_BTHWC, moved.edges))
    if border == "replicate":  # the outermost plane was also copied onto itself
        edges = moves(grad_BTHWC.shape, groups).edges
        torch._foreach_add_(views(out_BTHWC, edges), views(grad_BTHWC, edges))
    return out_BTHWC


def _copy_moved(x_BTHWC: Tensor, moved: Moves) -> Tensor:
    out_BTHWC = torch.empty_like(x_BTHWC)
    torch._foreach_copy_(views(out_BTHWC, moved.receivers), views(x_BTHWC, moved.senders))
    return out_BTHWC


class View(NamedTuple):
    """Some elements of a contiguous tensor, as `as_strided` takes them."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Moves(NamedTuple):
    """For each group where its values come from and where they go; and for each axis where nothing goes."""

    senders: tuple[View, ...]
    receivers: tuple[View, ...]
    edges: tuple[View, ...]


@lru_cache(maxsize=256)
def moves(shape: tuple[int, ...], groups: tuple[ShiftGroup, ...]) -> Moves:
    """The views of groups in tokens x_BTHWC, with the axes before and after the moving one each made one.

    Made once a shape, since to slice small clips costs as much as to copy.
    """
    num_channels = shape[-1]
    senders, receivers = [], []
    edges: dict[int, View] = {}
    for start, stop, axis, step in groups:
        plane = math.prod(shape[axis + 1 : -1])  # tokens that share a position along the axis
        length, width = shape[axis], stop - start
        size = (math.prod(shape[:axis]), (length - abs(step)) * plane, width)
        stride = (length * plane * num_channels, num_channels, 1)
        senders.append(View(size, stride, start + max(-step, 0) * plane * num_channels))
        receivers.append(View(size, stride, start + max(step, 0) * plane * num_channels))
        if step:
            offset = start + (0 if step > 0 else length - 1) * plane * num_channels
            other = edges.get(axis, View((0,), (0,), offset))  # both edges of an axis in one view
            between = (abs(offset - other.offset), *stride)
            edges[axis] = View((other.size[0] + 1, size[0], plane, width), between, min(offset, other.offset))
    return Moves(tuple(senders), tuple(receivers), tuple(edges.values()))


def views(x_BTHWC: Tensor, places: tuple[View, ...]) -> list[Tensor]:
    """Look at places of contiguous tokens; they share their memory."""
    first = x_BTHWC.storage_offset()
    return [x_BTHWC.as_strided(size, stride, first + offset) for size, stride, offset in places]


@lru_cache(maxsize=256)
def _all_moves(shape: tuple[int, ...], groups: tuple[ShiftGroup, ...], back: bool) -> Moves:
    """The views of groups that move, there or back, and of all other channels."""
    turned = (group._replace(offset=-group.offset if back else group.offset) for group in groups)
    return moves(shape, _cover(tuple(turned), shape[-1]))


@lru_cache
def _cover(groups: tuple[ShiftGroup, ...], num_channels: int) -> tuple[ShiftGroup, ...]:
    """The groups, and between and after them those that stay, so that every channel is in one."""
    cover: list[ShiftGroup] = []
    end = ShiftGroup(num_channels, num_channels, T_AXIS, 0)
    for group in (*groups, end):
        start = cover[-1].stop if cover else 0
        if start < group.start:
            cover.append(ShiftGroup(start, group.start, T_AXIS, 0))
        if group is not end:
            cover.append(group)
    return tuple(cover)


class _Shift(torch.autograd.Function):
    """Slice copies forward and backward. Autograd through indexed slices would take 27 memory passes backward."""

    @staticmethod
    def forward(ctx: Any, x_BTHWC: Tensor, groups: tuple[ShiftGroup, ...], border: Border) -> Tensor:
        ctx.groups, ctx.border = groups, border
        return copy_shifted(x_BTHWC, groups, border)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BTHWC: Tensor) -> tuple[Tensor, None, None]:
        return copy_unshifted(grad_BTHWC, ctx.groups, ctx.border), None, None
