"""Depth-wise 3x3 and 3x3x3 convolution of tokens that lie channels-last, without a layout copy.

The temporal kernel runs as three convolutions of frames whose results are added one frame apart: conv3d's own
depth-wise backward is slow. Weights have torch's shapes, [C, 1, 3, 3] or [C, 1, 3, 3, 3].

Dimensions: B clips · T frames · H rows · W columns · C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv(nn.Module):
    """A zero-padded 3x3 (within frames) or 3x3x3 (over neighbouring frames too) depth-wise convolution of x_BTHWC."""

    def __init__(self, dim: int, temporal: bool = False) -> None:
        super().__init__()
        self.temporal = temporal
        self.weight = nn.Parameter(torch.empty(dim, 1, *([3, 3, 3] if temporal else [3, 3])))
        self.bias = nn.Parameter(torch.empty(dim))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Convolve each channel by itself; the shape stays."""
        return depthwise_conv(x_BTHWC, self.weight, self.bias)


def depthwise_conv(x_BTHWC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel by itself, zero-padded; the shape stays."""
    if weight.ndim == 4:
        return _conv_frames(x_BTHWC, weight, bias)
    before, here, after = weight.unbind(2)
    out_BTHWC = _conv_frames(x_BTHWC, here, bias)
    if x_BTHWC.shape[1] == 1:
        return out_BTHWC + 0.0 * (before.sum() + after.sum())  # one frame has no neighbours; keep their gradient: 0
    from_before_BTHWC = F.pad(_conv_frames(x_BTHWC[:, :-1], before, None), (0, 0, 0, 0, 0, 0, 1, 0))
    from_after_BTHWC = F.pad(_conv_frames(x_BTHWC[:, 1:], after, None), (0, 0, 0, 0, 0, 0, 0, 1))
    return out_BTHWC + from_before_BTHWC + from_after_BTHWC


def conv_in_place(x_BTHWC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`depthwise_conv` for hand-written derivatives: unseen by autograd, sums in place."""
    if weight.ndim == 4:
        return _conv_frames(x_BTHWC, weight, bias)
    before, here, after = weight.unbind(2)
    out_BTHWC = _conv_frames(x_BTHWC, here, bias)
    if x_BTHWC.shape[1] > 1:
        out_BTHWC[:, 1:] += _conv_frames(x_BTHWC[:, :-1], before, None)
        out_BTHWC[:, :-1] += _conv_frames(x_BTHWC[:, 1:], after, None)
    return out_BTHWC


def conv_weight_grads(x_BTHWC: Tensor, grad_BTHWC: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias alone."""
    here, bias = _frame_grads(x_BTHWC, grad_BTHWC, weight if weight.ndim == 4 else weight[:, :, 1], [False, True, True])
    return _with_neighbours(here, x_BTHWC, grad_BTHWC, weight), bias


def conv_weight_grad(x_BTHWC: Tensor, grad_BTHWC: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the weight alone, a sixth cheaper."""
    here = _frame_weight_grad(x_BTHWC, grad_BTHWC, weight if weight.ndim == 4 else weight[:, :, 1])
    return _with_neighbours(here, x_BTHWC, grad_BTHWC, weight)


def flipped(weight: Tensor, num_axes: int) -> Tensor:
    """Kernels reversed along their last axes: these take the output's gradient to the input's, by a convolution."""
    return weight.flip(tuple(range(-num_axes, 0)))


def _conv_frames(x_BTHWC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    B, T, H, W, C = x_BTHWC.shape
    out = F.conv2d(_frames(x_BTHWC), weight, bias, padding=1, groups=C)
    return out.permute(0, 2, 3, 1).reshape(B, T, H, W, C)


def _with_neighbours(here: Tensor, x_BTHWC: Tensor, grad_BTHWC: Tensor, weight: Tensor) -> Tensor:
    """Put what neighbouring frames give beside the gradient of the kernel within frames."""
    if weight.ndim == 4:
        return here
    if x_BTHWC.shape[1] == 1:
        before = after = torch.zeros_like(here)
    else:
        before = _frame_weight_grad(x_BTHWC[:, :-1], grad_BTHWC[:, 1:], weight[:, :, 0])
        after = _frame_weight_grad(x_BTHWC[:, 1:], grad_BTHWC[:, :-1], weight[:, :, 2])
    return torch.stack((before, here, after), dim=2)


def _frame_weight_grad(x_BTHWC: Tensor, grad_BTHWC: Tensor, weight: Tensor) -> Tensor:
    return _frame_grads(x_BTHWC, grad_BTHWC, weight, [False, True, False])[0]


def _frame_grads(x_BTHWC: Tensor, grad_BTHWC: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor]:
    _, d_weight, d_bias = torch.ops.aten.convolution_backward.default(
        *(_frames(grad_BTHWC), _frames(x_BTHWC), weight, [weight.shape[0]], [1, 1], [1, 1], [1, 1]),
        *(False, [0, 0], weight.shape[0], wanted),
    )
    return d_weight, d_bias


def _frames(x_BTHWC: Tensor) -> Tensor:
    # Frames become the batch; the permuted view is what torch calls channels_last, so nothing is copied.
    return x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)
