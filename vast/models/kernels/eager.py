"""The operator of torch's own calls with a hand-written backward: every switch, any device.

Forward 8 memory passes (shift 2, mean 1, convolution 2, product and sum 3), backward 15. Autograd through the same
formula takes 44 to 57 in all, most of it to add up full-size tensors of zeros.

Dimensions: B clips · T frames · H rows · W columns · C channels · R rows of means, one a clip or one a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vast.models.depthwise import conv_in_place, conv_weight_grad, conv_weight_grads, flipped
from vast.models.kernels.mixing import AffineWeights, Mixing, wide_type
from vast.models.kernels.scale import Scale, scale_grads, scale_of
from vast.models.shift import copy_shifted, copy_unshifted

_ONE_PASS_MIN_VALUES = 1 << 17
"""Values of a clip from which its sums in a call of their own took less time when measured."""


def forward(v_BTHWC: Tensor, weights: AffineWeights, mixing: Mixing) -> tuple[Tensor, Tensor, Tensor, Scale]:
    """See `Kernels`; keeps u."""
    dtype = v_BTHWC.dtype
    s_BTHWC = copy_shifted(v_BTHWC, mixing.groups(v_BTHWC.shape[1]), mixing.border)
    u_BTHWC = v_BTHWC if mixing.affine_input == "v" else s_BTHWC
    pooled_RC = mean_of_rows(u_BTHWC, mixing)
    scale = scale_of(pooled_RC, weights)
    alpha_BTHWC = _beside(scale.alpha_RC, v_BTHWC)
    if weights.kernel is None:
        return s_BTHWC * alpha_BTHWC, u_BTHWC, pooled_RC, scale
    bias = None if weights.kernel_bias is None else weights.kernel_bias.to(dtype)
    z_BTHWC = conv_in_place(u_BTHWC, weights.kernel.to(dtype), bias).addcmul_(s_BTHWC, alpha_BTHWC)
    return z_BTHWC, u_BTHWC, pooled_RC, scale


def backward(
    grad_BTHWC: Tensor, u_BTHWC: Tensor, pooled_RC: Tensor, scale: Scale, weights: AffineWeights, mixing: Mixing
) -> tuple[Tensor, list[Tensor | None]]:
    """See `Kernels`; one sum after the other, while they are in the caches."""
    groups = mixing.groups(grad_BTHWC.shape[1])
    alpha_BTHWC = _beside(scale.alpha_RC, grad_BTHWC)
    d_BTHWC = d_kernel = d_bias = from_s_BTHWC = None
    # Where the gradient of alpha is found in one pass over grad, that of the bias, its sum, costs nothing.
    sums_grad = mixing.affine_input == "s" and _one_pass_sums(grad_BTHWC, mixing)
    if weights.kernel is not None:  # first, because it needs the caches most
        kernel = weights.kernel.to(grad_BTHWC.dtype)
        if sums_grad:
            d_kernel = conv_weight_grad(u_BTHWC, grad_BTHWC, kernel)
        else:
            d_kernel, d_bias = conv_weight_grads(u_BTHWC, grad_BTHWC, kernel)
        # A forward convolution: on a CPU 0.7 to 0.8 of the time of torch's own backward to the input. Its result is
        # taken from the allocator before the products below, whose memory the last shift then finds in the caches.
        d_BTHWC = conv_in_place(grad_BTHWC, flipped(kernel, kernel.ndim - 2), None)
    if mixing.affine_input == "s":
        from_s_BTHWC = grad_BTHWC
        if sums_grad:
            d_alpha_RC, d_bias = _dots_and_sum(grad_BTHWC, u_BTHWC)
        else:
            d_alpha_RC = _dot_of_rows(grad_BTHWC, u_BTHWC, mixing)
    elif mixing.scale_pool == "clip":
        from_s_BTHWC = copy_unshifted(grad_BTHWC, groups, mixing.border)
        d_alpha_RC = _dot_of_rows(from_s_BTHWC, u_BTHWC, mixing)  # <grad, Shift(v)> = <Unshift(grad), v>
    else:  # each frame has its alpha, and the shift moves tokens between frames
        d_alpha_RC = _dot_of_rows(grad_BTHWC, copy_shifted(u_BTHWC, groups, mixing.border), mixing)
    d_mean_RC, d_scale = scale_grads(pooled_RC, scale, d_alpha_RC, weights, grad_BTHWC.numel() // pooled_RC.numel())
    if from_s_BTHWC is None:
        moved_BTHWC = copy_unshifted(grad_BTHWC * alpha_BTHWC, groups, mixing.border)
        d_BTHWC = moved_BTHWC if d_BTHWC is None else d_BTHWC.add_(moved_BTHWC)
    elif d_BTHWC is None:
        d_BTHWC = from_s_BTHWC * alpha_BTHWC
    else:
        d_BTHWC.addcmul_(from_s_BTHWC, alpha_BTHWC)
    d_BTHWC.add_(_beside(d_mean_RC, grad_BTHWC))
    if mixing.affine_input == "s":
        d_BTHWC = copy_unshifted(d_BTHWC, groups, mixing.border)
    return d_BTHWC, [*d_scale, d_kernel, d_bias]


def mean_of_rows(u_BTHWC: Tensor, mixing: Mixing) -> Tensor:
    """Mean over the tokens of each clip or frame."""
    means = u_BTHWC.mean(mixing.pool_axes, dtype=wide_type(u_BTHWC))
    return means if means.ndim == 2 else means.flatten(0, 1)


def _dot_of_rows(x_BTHWC: Tensor, y_BTHWC: Tensor, mixing: Mixing) -> Tensor:
    """Sums of x * y over the tokens of each clip or frame; on a CPU no product is rounded to half precision."""
    if _one_pass_sums(x_BTHWC, mixing):
        return _dots_and_sum(x_BTHWC, y_BTHWC)[0]
    wide = wide_type(x_BTHWC)
    if x_BTHWC.device.type == "cpu":
        x_BTHWC = x_BTHWC.to(wide)
    sums = (x_BTHWC * y_BTHWC).sum(mixing.pool_axes, dtype=wide)
    return sums if sums.ndim == 2 else sums.flatten(0, 1)


def _one_pass_sums(x_BTHWC: Tensor, mixing: Mixing) -> bool:
    """Whether `_dots_and_sum` pays: in half precision on a CPU, where clips are pooled whole and not tiny."""
    is_half = x_BTHWC.element_size() == 2 and x_BTHWC.device.type == "cpu"
    return is_half and mixing.scale_pool == "clip" and x_BTHWC.numel() >= x_BTHWC.shape[0] * _ONE_PASS_MIN_VALUES


def _dots_and_sum(x_BTHWC: Tensor, y_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
    """For each clip the sum of x * y over its tokens; and the sum of x over all, in float32.

    The gradients of a batch norm's weight and bias at mean 0 and variance 1: one pass of its own, which takes 0.5 to
    0.7 of the time of a product and its sum.
    """
    zeros_C, ones_C = (full(x_BTHWC.shape[-1], dtype=torch.float32) for full in (torch.zeros, torch.ones))
    grads = [
        torch.ops.aten.native_batch_norm_backward.default(
            *(_as_image(x), _as_image(y), ones_C, None, None, zeros_C, ones_C, True, 0.0, [False, True, True])
        )
        for x, y in zip(x_BTHWC.unbind(), y_BTHWC.unbind(), strict=True)
    ]
    return torch.stack([dots_C for _, dots_C, _ in grads]), torch.stack([sum_C for *_, sum_C in grads]).sum(0)


def _as_image(x_THWC: Tensor) -> Tensor:
    return x_THWC.flatten(0, 2).T.unsqueeze(0).unsqueeze(2)  # one row of tokens; without a copy channels_last


def _beside(x_RC: Tensor, like_BTHWC: Tensor) -> Tensor:
    """Rows as they are multiplied with tokens and added to them."""
    return x_RC.to(like_BTHWC.dtype).view(like_BTHWC.shape[0], -1, 1, 1, like_BTHWC.shape[-1])
