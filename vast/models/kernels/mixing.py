"""What every implementation of the Affine-Shift operator takes: learned values and switches.

    s = Shift(v);   z = alpha * s + DWConv(u);   alpha = sigmoid(MLP(mean of u));   u = v or s

What touches only means, a row a clip or frame, is small and the same for every implementation: see `scale`.

Dimensions: B clips · T frames · H rows · W columns · C channels · R rows of means, one a clip or one a frame.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vast.models.shift import Axes, Border, ShiftGroup, moving_groups, regular_groups


def wide_type(x: Tensor) -> torch.dtype:
    """The type for sums over many tokens: float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class AffineWeights(NamedTuple):
    """Learned values: the scale's two linear layers (none: alpha is 1) and the depth-wise kernel (none: no bias)."""

    fc1_weight: Tensor | None
    fc1_bias: Tensor | None
    fc2_weight: Tensor | None
    fc2_bias: Tensor | None
    kernel: Tensor | None
    """[C, 1, 3, 3] or [C, 1, 3, 3, 3]."""
    kernel_bias: Tensor | None


class Mixing(NamedTuple):
    """The switches of the operator. Plain values, because they are arguments of a registered torch operator."""

    group_width: int
    """Channels that move in each direction."""
    axes: Axes
    """Axes along which channels move: h(eight), w(idth) and t(ime)."""
    border: Border
    affine_input: Literal["v", "s"]
    scale_pool: Literal["clip", "frame"]

    def groups(self, num_frames: int) -> tuple[ShiftGroup, ...]:
        """The groups that move in a clip of so many frames."""
        return moving_groups(regular_groups(self.group_width, self.axes), num_frames)

    @property
    def pool_axes(self) -> tuple[int, ...]:
        """Axes of x_BTHWC that the mean runs over."""
        return (2, 3) if self.scale_pool == "frame" else (1, 2, 3)
