"""The operator of torch's own calls with a hand-written backward: every switch, any device.

Forward 8 memory passes (shift 2, mean 1, convolution 2, product and sum 3), backward 15. Autograd through the same
formula takes 44 to 57 in all, most of it to add up full-size tensors of zeros.

Dimensions: B clips · T frames · H rows · W columns · C channels · R rows of means, one a clip or one a frame.
"""

from __future__ import annotations

from torch import Tensor

from vast.models.depthwise import conv_in_place, conv_weight_grads, flipped
from vast.models.kernels.mixing import Mixing, wide_type
from vast.models.shift import copy_shifted, copy_unshifted


def pool(v_BTHWC: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor | None]:
    """See `Kernels`; keeps the shifted tokens where scale and bias see them."""
    kept_BTHWC = None
    if mixing.affine_input == "s":
        kept_BTHWC = copy_shifted(v_BTHWC, mixing.groups(v_BTHWC.shape[1]), mixing.border)
    source_BTHWC = v_BTHWC if kept_BTHWC is None else kept_BTHWC
    pooled = source_BTHWC.mean(mixing.pool_axes, dtype=wide_type(v_BTHWC))
    return pooled if pooled.ndim == 2 else pooled.flatten(0, 1), kept_BTHWC


def mix(
    v_BTHWC: Tensor,
    kept_BTHWC: Tensor | None,
    alpha_RC: Tensor,
    kernel: Tensor | None,
    kernel_bias: Tensor | None,
    mixing: Mixing,
) -> Tensor:
    """See `Kernels`."""
    alpha_BTHWC = _beside(alpha_RC, v_BTHWC)
    s_BTHWC = kept_BTHWC
    if s_BTHWC is None:
        s_BTHWC = copy_shifted(v_BTHWC, mixing.groups(v_BTHWC.shape[1]), mixing.border)
    if kernel is None:
        return s_BTHWC * alpha_BTHWC if kept_BTHWC is not None else s_BTHWC.mul_(alpha_BTHWC)
    bias = None if kernel_bias is None else kernel_bias.to(v_BTHWC.dtype)
    source_BTHWC = v_BTHWC if kept_BTHWC is None else kept_BTHWC
    return conv_in_place(source_BTHWC, kernel.to(v_BTHWC.dtype), bias).addcmul_(s_BTHWC, alpha_BTHWC)


def weight_grads(
    v_BTHWC: Tensor,
    kept_BTHWC: Tensor | None,
    grad_BTHWC: Tensor,
    alpha_RC: Tensor,
    kernel: Tensor | None,
    mixing: Mixing,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """See `Kernels`; carries the gradient of z unshifted where `value_grad` needs it too."""
    d_kernel = d_bias = carried_BTHWC = None
    if kernel is not None:  # first, because it needs the caches most
        source_BTHWC = v_BTHWC if kept_BTHWC is None else kept_BTHWC
        d_kernel, d_bias = conv_weight_grads(source_BTHWC, grad_BTHWC, kernel.to(v_BTHWC.dtype))
    if kept_BTHWC is not None:
        product_BTHWC = grad_BTHWC * kept_BTHWC
    elif mixing.scale_pool == "clip":
        carried_BTHWC = copy_unshifted(grad_BTHWC, mixing.groups(v_BTHWC.shape[1]), mixing.border)
        product_BTHWC = carried_BTHWC * v_BTHWC  # <grad, Shift(v)> = <Unshift(grad), v>
    else:  # each frame has its alpha, and the shift moves tokens between frames
        product_BTHWC = copy_shifted(v_BTHWC, mixing.groups(v_BTHWC.shape[1]), mixing.border).mul_(grad_BTHWC)
    d_alpha = product_BTHWC.sum(mixing.pool_axes, dtype=wide_type(v_BTHWC))
    return d_alpha if d_alpha.ndim == 2 else d_alpha.flatten(0, 1), d_kernel, d_bias, carried_BTHWC


def value_grad(
    grad_BTHWC: Tensor,
    carried_BTHWC: Tensor | None,
    alpha_RC: Tensor,
    d_mean_RC: Tensor,
    kernel: Tensor | None,
    mixing: Mixing,
) -> Tensor:
    """See `Kernels`; one sum after the other, while they are in the caches."""
    alpha_BTHWC = _beside(alpha_RC, grad_BTHWC)
    from_s_BTHWC = grad_BTHWC if mixing.affine_input == "s" else carried_BTHWC
    if from_s_BTHWC is None:
        alpha_grad_BTHWC = grad_BTHWC * alpha_BTHWC
        d_BTHWC = copy_unshifted(alpha_grad_BTHWC, mixing.groups(grad_BTHWC.shape[1]), mixing.border)
        if kernel is not None:
            d_BTHWC.add_(_conv_back(grad_BTHWC, kernel))
    elif kernel is None:
        d_BTHWC = from_s_BTHWC * alpha_BTHWC
    else:
        d_BTHWC = _conv_back(grad_BTHWC, kernel).addcmul_(from_s_BTHWC, alpha_BTHWC)
    d_BTHWC.add_(_beside(d_mean_RC, grad_BTHWC))
    if mixing.affine_input == "v":
        return d_BTHWC
    return copy_unshifted(d_BTHWC, mixing.groups(grad_BTHWC.shape[1]), mixing.border)


def _conv_back(grad_BTHWC: Tensor, kernel: Tensor) -> Tensor:
    """From the convolution's output to its input, by a forward one: 0.7 to 0.8 of the time of torch's own on a CPU."""
    return conv_in_place(grad_BTHWC, flipped(kernel.to(grad_BTHWC.dtype), kernel.ndim - 2), None)


def _beside(x_RC: Tensor, like_BTHWC: Tensor) -> Tensor:
    """Rows as they are multiplied with tokens and added to them."""
    return x_RC.to(like_BTHWC.dtype).view(like_BTHWC.shape[0], -1, 1, 1, like_BTHWC.shape[-1])
