"""What every implementation of the Affine-Shift operator takes and gives.

    s = Shift(v);   z = alpha * s + DWConv(u);   alpha = sigmoid(MLP(mean of u));   u = v or s

An implementation (`Kernels`) does the four steps that touch tokens. Everything else is small, a row a clip or frame,
and is done once for all of them in `operator`: the MLP of the scale, its backward, and the sums over clips.

Dimensions: B clips · T frames · H rows · W columns · C channels · R rows of means, one a clip or one a frame.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

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


class Kernels(Protocol):
    """The four steps that touch tokens. Means and the gradient of alpha are in the tokens' `wide_type`.

    `kept` is what `pool` made and later steps can use: the shifted tokens, or none.
    """

    def pool(self, v_BTHWC: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor | None]:
        """pooled_RC, the mean of u; and what to keep."""

    def mix(
        self,
        v_BTHWC: Tensor,
        kept_BTHWC: Tensor | None,
        alpha_RC: Tensor,
        kernel: Tensor | None,
        kernel_bias: Tensor | None,
        mixing: Mixing,
    ) -> Tensor:
        """z_BTHWC."""

    def weight_grads(
        self,
        v_BTHWC: Tensor,
        kept_BTHWC: Tensor | None,
        grad_BTHWC: Tensor,
        alpha_RC: Tensor,
        kernel: Tensor | None,
        mixing: Mixing,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """d_alpha_RC, d_kernel and d_bias from the gradient of z; and a tensor for `value_grad`.

        Where `kept` is given, `v` may be `kept` itself.
        """

    def value_grad(
        self,
        grad_BTHWC: Tensor,
        carried_BTHWC: Tensor | None,
        alpha_RC: Tensor,
        d_mean_RC: Tensor,
        kernel: Tensor | None,
        mixing: Mixing,
    ) -> Tensor:
        """Gradient of v; `d_mean` is that of the mean, already divided by the number of tokens in it."""
