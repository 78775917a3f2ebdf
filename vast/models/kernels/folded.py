"""The operator with the scale folded into the depth-wise kernel, one convolution a clip: the fastest on a CPU.

alpha * s is itself a depth-wise convolution of u with one tap: at the centre where u = s; where u = v, at the neighbour
that the channel's group comes from. That tap is added to the learned kernel, so that product, sum and shift in space
cost nothing. The gradient of alpha is the gradient of that tap, summed within the clip. A 3x3 kernel has no tap in
other frames, so there the temporal groups of v are added by themselves.

Forward 6 memory passes, backward 7 (u = v, 3x3), against 8 and 15 of `eager`. Valid for zero borders and clips
pooled whole, since each clip has one kernel; worth it where a clip outweighs the call of a convolution.

Dimensions: B clips · T frames · H rows · W columns · C channels · R rows of means, here one a clip · N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vast.models.depthwise import conv_in_place, conv_weight_grads, flipped
from vast.models.kernels.eager import mean_of_rows
from vast.models.kernels.mixing import AffineWeights, Mixing, wide_type
from vast.models.kernels.scale import Scale, scale_grads, scale_of
from vast.models.shift import T_AXIS, ShiftGroup, copy_shifted, copy_unshifted, moves, views

_SLICE_MIN_CHANNELS = 32
"""Width of a group from which slices in half precision are added as fast as a convolution over frames."""


def forward(v_BTHWC: Tensor, weights: AffineWeights, mixing: Mixing) -> tuple[Tensor, Tensor, Tensor, Scale]:
    """See `Kernels`; keeps u."""
    kernel, bias = weights.kernel, weights.kernel_bias
    if kernel is None or bias is None:
        raise ValueError("the folded path needs a depth-wise kernel")
    u_BTHWC = v_BTHWC
    if mixing.affine_input == "s":
        u_BTHWC = copy_shifted(v_BTHWC, mixing.groups(v_BTHWC.shape[1]), mixing.border)
    pooled_RC = mean_of_rows(u_BTHWC, mixing)
    scale = scale_of(pooled_RC, weights)
    kernels = _clip_kernels(kernel, scale.alpha_RC, mixing, v_BTHWC).unbind()
    z_BTHWC = _conv_each_clip(u_BTHWC, kernels, [bias.to(v_BTHWC.dtype)] * len(kernels))
    _add_groups_beside(z_BTHWC, v_BTHWC, scale.alpha_RC, _groups_beside(kernel, mixing, v_BTHWC), backward=False)
    return z_BTHWC, u_BTHWC, pooled_RC, scale


def backward(
    grad_BTHWC: Tensor, u_BTHWC: Tensor, pooled_RC: Tensor, scale: Scale, weights: AffineWeights, mixing: Mixing
) -> tuple[Tensor, list[Tensor | None]]:
    """See `Kernels`; the gradient of the mean enters as the bias of the convolution."""
    kernel, alpha_RC = weights.kernel, scale.alpha_RC
    if kernel is None:
        raise ValueError("the folded path needs a depth-wise kernel")
    d_alpha_RC, d_kernel, d_bias = _weight_grads(grad_BTHWC, u_BTHWC, kernel, mixing)
    d_mean_RC, d_scale = scale_grads(pooled_RC, scale, d_alpha_RC, weights, grad_BTHWC.numel() // pooled_RC.numel())
    kernels = flipped(_clip_kernels(kernel, alpha_RC, mixing, grad_BTHWC), kernel.ndim - 2).unbind()
    d_BTHWC = _conv_each_clip(grad_BTHWC, kernels, d_mean_RC.to(grad_BTHWC.dtype).unbind())
    if mixing.affine_input == "s":
        d_BTHWC = copy_unshifted(d_BTHWC, mixing.groups(grad_BTHWC.shape[1]), mixing.border)
    else:
        groups = _groups_beside(kernel, mixing, grad_BTHWC)
        _add_groups_beside(d_BTHWC, grad_BTHWC, alpha_RC, groups, backward=True)
    return d_BTHWC, [*d_scale, d_kernel, d_bias]


def _weight_grads(grad_BTHWC: Tensor, u_BTHWC: Tensor, kernel: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of alpha, kernel and bias: one convolution's for each clip."""
    wide = wide_type(u_BTHWC)
    like = kernel.to(u_BTHWC.dtype)
    clips = zip(torch.split(u_BTHWC, 1), torch.split(grad_BTHWC, 1), strict=True)
    grads = [conv_weight_grads(u, grad, like) for u, grad in clips]
    d_kernels = torch.stack([d_kernel for d_kernel, _ in grads]).to(wide)
    d_bias = torch.stack([d_bias for _, d_bias in grads]).sum(0, dtype=wide)
    taps = _scale_taps(kernel.shape, mixing, u_BTHWC.shape[1], wide)
    d_alpha_RC = (d_kernels * taps).flatten(2).sum(2)
    _add_alpha_grads_beside(d_alpha_RC, u_BTHWC, grad_BTHWC, _groups_beside(kernel, mixing, u_BTHWC))
    return d_alpha_RC, d_kernels.sum(0), d_bias


def _conv_each_clip(x_BTHWC: Tensor, kernels: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Convolve each clip with its own kernel and bias."""
    if len(kernels) == 1:
        return conv_in_place(x_BTHWC, kernels[0], biases[0]).contiguous()
    out_BTHWC = torch.empty_like(x_BTHWC)
    clips = zip(torch.split(out_BTHWC, 1), torch.split(x_BTHWC, 1), kernels, biases, strict=True)
    for out, clip, kernel, bias in clips:
        out.copy_(conv_in_place(clip, kernel, bias))  # while it is in the caches
    return out_BTHWC


def _clip_kernels(kernel: Tensor, alpha_RC: Tensor, mixing: Mixing, like_BTHWC: Tensor) -> Tensor:
    """For each clip the learned kernel with the clip's scale added to one tap of each channel."""
    taps = _scale_taps(kernel.shape, mixing, like_BTHWC.shape[1], alpha_RC.dtype)
    alpha = alpha_RC.view(*alpha_RC.shape, *[1] * (kernel.ndim - 1))
    return torch.addcmul(kernel.to(alpha_RC.dtype), alpha, taps).to(like_BTHWC.dtype)


def _scale_taps(shape: torch.Size, mixing: Mixing, num_frames: int, dtype: torch.dtype) -> Tensor:
    """A kernel of ones and zeros, whose convolution of u is s (without the groups that the kernel cannot reach)."""
    return torch.from_numpy(_numpy_taps(shape, mixing, num_frames)).to(dtype)


@lru_cache(maxsize=64)
def _numpy_taps(shape: tuple[int, ...], mixing: Mixing, num_frames: int) -> npt.NDArray[np.float32]:
    taps = np.zeros(shape, dtype=np.float32)  # no tensor: one made under torch's fake mode must not be kept
    flat = taps.reshape(shape[0], -1)
    centre = flat.shape[1] // 2
    flat[:, centre] = 1
    if mixing.affine_input == "s":
        return taps
    for start, stop, axis, offset in mixing.groups(num_frames):
        flat[start:stop] = 0
        if axis != T_AXIS or len(shape) == 5:
            flat[start:stop, centre - offset * 3 ** (3 - axis)] = 1  # taps lie in the order (frame, row, column)
    return taps


def _groups_beside(kernel: Tensor, mixing: Mixing, like_BTHWC: Tensor) -> tuple[ShiftGroup, ...]:
    """Groups of v that come from another frame, which a 3x3 kernel does not reach."""
    if kernel.ndim == 5 or mixing.affine_input == "s":
        return ()
    return tuple(group for group in mixing.groups(like_BTHWC.shape[1]) if group.axis == T_AXIS)


def _add_groups_beside(
    out_BTHWC: Tensor, x_BTHWC: Tensor, alpha_RC: Tensor, groups: tuple[ShiftGroup, ...], backward: bool
) -> None:
    """Add alpha times the groups of the neighbouring frames, taken from where they go in the backward pass."""
    if groups and _too_narrow_to_slice(groups[0], x_BTHWC):
        kernels = alpha_RC[..., None, None] * _frame_taps(x_BTHWC.shape[-1], groups, alpha_RC.dtype)
        kernels = (kernels.flip(2) if backward else kernels).to(x_BTHWC.dtype)
        for b, kernel in enumerate(kernels):
            image = _frames_as_rows(x_BTHWC[b])
            moved = F.conv2d(image, kernel.unsqueeze(1), padding=(1, 0), groups=len(kernel))
            out_BTHWC[b] += moved.permute(0, 2, 3, 1).reshape(x_BTHWC.shape[1:])
        return
    if groups:
        alpha_RNC = alpha_RC.to(x_BTHWC.dtype).unsqueeze(1)
        alphas = [alpha_RNC[..., group.start : group.stop] for group in groups]
        senders, receivers, _ = moves(x_BTHWC.shape, groups)
        here, there = (senders, receivers) if backward else (receivers, senders)
        torch._foreach_addcmul_(views(out_BTHWC, here), views(x_BTHWC, there), alphas)


def _add_alpha_grads_beside(
    d_alpha_RC: Tensor, v_BTHWC: Tensor, grad_BTHWC: Tensor, groups: tuple[ShiftGroup, ...]
) -> None:
    """Add the gradient of alpha in the groups of the neighbouring frames."""
    if groups and _too_narrow_to_slice(groups[0], v_BTHWC):
        num_channels = v_BTHWC.shape[-1]
        taps = _frame_taps(num_channels, groups, d_alpha_RC.dtype)
        for b, like in enumerate(taps.to(v_BTHWC.dtype).unsqueeze(1).expand(len(v_BTHWC), -1, -1, -1, -1)):
            _, d_kernel, _ = torch.ops.aten.convolution_backward.default(
                *(_frames_as_rows(grad_BTHWC[b]), _frames_as_rows(v_BTHWC[b]), like, None, [1, 1], [1, 0], [1, 1]),
                *(False, [0, 0], num_channels, [False, True, False]),
            )
            d_alpha_RC[b] += (d_kernel[:, 0] * taps).sum((1, 2))
        return
    senders, receivers, _ = moves(v_BTHWC.shape, groups)
    for group, sent, received in zip(groups, views(v_BTHWC, senders), views(grad_BTHWC, receivers), strict=True):
        d_alpha_RC[:, group.start : group.stop] += (sent * received).sum(1, dtype=d_alpha_RC.dtype)


def _too_narrow_to_slice(group: ShiftGroup, like: Tensor) -> bool:
    """Torch's half-precision arithmetic on short runs of channels is slow; a convolution over frames is not."""
    return like.element_size() == 2 and group.stop - group.start < _SLICE_MIN_CHANNELS


def _frame_taps(num_channels: int, groups: tuple[ShiftGroup, ...], dtype: torch.dtype) -> Tensor:
    """A [C, 3, 1] kernel over frames whose convolution gives the groups, and zeros elsewhere."""
    taps = torch.zeros(num_channels, 3, 1, dtype=dtype)
    for start, stop, _, offset in groups:
        taps[start:stop, 1 - offset] = 1
    return taps


def _frames_as_rows(x_THWC: Tensor) -> Tensor:
    """A clip as one picture of T rows and H * W columns, channels-last, without a copy."""
    return x_THWC.flatten(1, 2).unsqueeze(0).permute(0, 3, 1, 2)
