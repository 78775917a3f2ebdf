"""The shift: groups of channels move by one token along an axis of the token grid. It has no parameters.

Channels are laid out in a fixed order, G channels a direction, and checkpoints depend on it:

    [0, G) H+   [G, 2G) H-   [2G, 3G) W+   [3G, 4G) W-   [4G, 5G) T+   [5G, 6G) T-   [6G, C) stay

"H+" means that a token receives the value of the row before it: out[h] = in[h - 1]. An image model (or a single frame)
leaves the two temporal groups where they are. So a video model takes its temporal groups from channels that the image
model of the same size does not move, and inherits the meaning of all the others.

Dimensions: B clips · T frames · H rows · W columns · C channels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from vast.errors import UserError

Border = Literal["zero", "replicate"]


class ShiftGroup(NamedTuple):
    """Channels [start, stop) that move by `offset` (+1 or -1) along `axis` of x_BTHWC."""

    start: int
    stop: int
    axis: int
    offset: int


T_AXIS, _H_AXIS, _W_AXIS = 1, 2, 3
_DIRECTIONS = ((_H_AXIS, 1), (_H_AXIS, -1), (_W_AXIS, 1), (_W_AXIS, -1), (T_AXIS, 1), (T_AXIS, -1))
_VECTOR_CHANNELS = 8  # a group of whole 16-byte vectors in bfloat16


def group_width(num_channels: int, fraction: float) -> int:
    """Channels that move in one direction: the fraction rounded down, to a multiple of 8 where it is at least 8."""
    width = int(num_channels * fraction + 1e-9)  # 1e-9: a fraction such as 1/6 of 96 must give 16
    return width - width % _VECTOR_CHANNELS if width >= _VECTOR_CHANNELS else width


def shift_groups(num_channels: int, fraction: float, temporal: bool) -> tuple[ShiftGroup, ...]:
    """The groups that move, in channel order: four in space and, if `temporal`, two in time.

    Raises:
        UserError: when the groups together are wider than the channels.
    """
    width = group_width(num_channels, fraction)
    directions = _DIRECTIONS if temporal else _DIRECTIONS[:4]
    if width * len(directions) > num_channels:
        raise UserError(
            f"model.shift_fraction={fraction} moves {len(directions)} groups of {width} channels, but the stage has "
            f"only {num_channels}; use at most 1/{len(directions)}"
        )
    return regular_groups(width, len(directions))


@lru_cache
def regular_groups(width: int, num_directions: int) -> tuple[ShiftGroup, ...]:
    """Groups of so many channels in the first directions of the fixed order."""
    return tuple(
        ShiftGroup(i * width, (i + 1) * width, axis, step)
        for i, (axis, step) in enumerate(_DIRECTIONS[:num_directions])
        if width
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
        groups: from `shift_groups`: adjacent, starting at channel 0.
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
    widths = [*(g.stop - g.start for g in groups), x_BTHWC.shape[-1] - groups[-1].stop]
    *moving, rest = torch.split(x_BTHWC, widths, dim=-1)
    moved = []
    for piece, (_, _, axis, offset) in zip(moving, groups, strict=True):
        last = piece.shape[axis] - 1
        edge = piece.narrow(axis, 0 if offset > 0 else last, 1)
        edge = edge if border == "replicate" else torch.zeros_like(edge)
        body = piece.narrow(axis, max(-offset, 0), last)
        moved.append(torch.cat((edge, body) if offset > 0 else (body, edge), axis))
    return torch.cat([*moved, rest], dim=-1)


def copy_shifted(x_BTHWC: Tensor, groups: tuple[ShiftGroup, ...], border: Border) -> Tensor:
    """The shift itself, unseen by autograd, by one slice copy a group: 2 memory passes, the floor."""
    if not groups:
        return x_BTHWC.clone()
    out_BTHWC = x_BTHWC.new_empty(x_BTHWC.shape)
    pieces, moved = _split(x_BTHWC, groups), _split(out_BTHWC, groups)
    torch._foreach_copy_(_receivers(moved, groups), _senders(pieces, groups))
    if border == "zero":
        torch._foreach_zero_(_planes(moved, groups, "entry"))
    else:
        torch._foreach_copy_(_planes(moved, groups, "entry"), _planes(pieces, groups, "entry"))
    return out_BTHWC


def copy_unshifted(grad_BTHWC: Tensor, groups: tuple[ShiftGroup, ...], border: Border) -> Tensor:
    """The transpose of `copy_shifted`: from the gradient of its output to that of its input."""
    if not groups:
        return grad_BTHWC.clone()
    out_BTHWC = grad_BTHWC.new_empty(grad_BTHWC.shape)
    pieces, moved = _split(out_BTHWC, groups), _split(grad_BTHWC, groups)
    torch._foreach_copy_(_senders(pieces, groups), _receivers(moved, groups))
    torch._foreach_zero_(_planes(pieces, groups, "exit"))
    if border == "replicate":  # the outermost plane was also copied onto itself
        torch._foreach_add_(_planes(pieces, groups, "entry"), _planes(moved, groups, "entry"))
    return out_BTHWC


# One split, and one call for all copies: for small clips the calls cost as much as the bytes.


def _split(x_BTHWC: Tensor, groups: tuple[ShiftGroup, ...]) -> tuple[Tensor, ...]:
    """The groups' channels, and as the last piece those that stay."""
    rest = x_BTHWC.shape[-1] - groups[-1].stop
    return x_BTHWC.split_with_sizes([*(stop - start for start, stop, _, _ in groups), rest], -1)


def _senders(pieces: tuple[Tensor, ...], groups: tuple[ShiftGroup, ...]) -> list[Tensor]:
    """Tokens that give their value to a neighbour; and the piece that stays."""
    shape, parts = pieces[0].shape, zip(pieces, groups, strict=False)
    return [*(x.narrow(axis, 0 if step > 0 else 1, shape[axis] - 1) for x, (_, _, axis, step) in parts), pieces[-1]]


def _receivers(pieces: tuple[Tensor, ...], groups: tuple[ShiftGroup, ...]) -> list[Tensor]:
    """The neighbours that take those values, in the same order."""
    shape, parts = pieces[0].shape, zip(pieces, groups, strict=False)
    return [*(x.narrow(axis, 1 if step > 0 else 0, shape[axis] - 1) for x, (_, _, axis, step) in parts), pieces[-1]]


def _planes(
    pieces: tuple[Tensor, ...], groups: tuple[ShiftGroup, ...], which: Literal["entry", "exit"]
) -> list[Tensor]:
    """The border plane of each group that nothing inside moves into, or the one that is pushed out."""
    shape, low = pieces[0].shape, 1 if which == "entry" else -1
    parts = zip(pieces, groups, strict=False)
    return [x.select(axis, 0 if step == low else shape[axis] - 1) for x, (_, _, axis, step) in parts]


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
