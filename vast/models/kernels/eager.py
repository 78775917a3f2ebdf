"""The operator of torch's own calls with a hand-written backward: every switch, any device.

Forward 8 memory passes (shift 2, mean 1, convolution 2, product and sum 3), backward 15. Autograd through the same
formula takes 44 to 57 in all, most of it to add up full-size tensors of zeros.

Dimensions: B clips · T frames (1 where a clip is pooled whole) · H rows · W columns · C channels.
"""

from __future__ import annotations

from torch import Tensor

from vast.models.depthwise import conv_in_place, conv_weight_grads, flipped
from vast.models.kernels.mixing import Mixing, wide_type
from vast.models.shift import copy_shifted, copy_unshifted


def pool(v_BTHWC: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor | None]:
    """See `Kernels`; keeps the shifted tokens where scale and bias see them."""
    kept = None
    if mixing.affine_input == "s":
        kept = copy_shifted(v_BTHWC, mixing.groups(v_BTHWC.shape[1]), mixing.border)
    source_BTHWC = v_BTHWC if kept is None else kept
    wide = wide_type(v_BTHWC)
    return _rows(source_BTHWC.mean(mixing.pool_axes, dtype=wide)), kept


def mix(
    v_BTHWC: Tensor,
    kept_BTHWC: Tensor | None,
    alpha_BTC: Tensor,
    kernel: Tensor | None,
    kernel_bias: Tensor | None,
    mixing: Mixing,
) -> Tensor:
    """See `Kernels`."""
    alpha_BTHWC = _tokens(alpha_BTC, v_BTHWC)
    if kept_BTHWC is None:
        s_BTHWC = copy_shifted(v_BTHWC, mixing.groups(v_BTHWC.shape[1]), mixing.border)
    else:
        s_BTHWC = kept_BTHWC
    if kernel is None:
        return s_BTHWC * alpha_BTHWC if kept_BTHWC is not None else s_BTHWC.mul_(alpha_BTHWC)
    bias = None if kernel_bias is None else kernel_bias.to(v_BTHWC.dtype)
    source_BTHWC = v_BTHWC if kept_BTHWC is None else kept_BTHWC
    return conv_in_place(source_BTHWC, kernel.to(v_BTHWC.dtype), bias).addcmul_(s_BTHWC, alpha_BTHWC)


def weight_grads(
    v_BTHWC: Tensor,
    kept_BTHWC: Tensor | None,
    grad_BTHWC: Tensor,
    alpha_BTC: Tensor,
    kernel: Tensor | None,
    mixing: Mixing,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """See `Kernels`; carries the gradient of z unshifted where `value_grad` needs it too."""
    wide = wide_type(v_BTHWC)
    groups = mixing.groups(v_BTHWC.shape[1])
    d_kernel = d_bias = carried_BTHWC = None
    if kernel is not None:  # first, because it needs the caches most
        source_BTHWC = v_BTHWC if kept_BTHWC is None else kept_BTHWC
        d_kernel, d_bias = conv_weight_grads(source_BTHWC, grad_BTHWC, kernel.to(v_BTHWC.dtype))
        d_kernel, d_bias = d_kernel.to(wide), d_bias.to(wide)
    if kept_BTHWC is not None:
        product_BTHWC = grad_BTHWC * kept_BTHWC
    elif mixing.scale_pool == "clip":
        carried_BTHWC = copy_unshifted(grad_BTHWC, groups, mixing.border)
        product_BTHWC = carried_BTHWC * v_BTHWC  # <grad, Shift(v)> = <Unshift(grad), v>
    else:  # each frame has its alpha, and the shift moves tokens between frames
        product_BTHWC = copy_shifted(v_BTHWC, groups, mixing.border).mul_(grad_BTHWC)
    return _rows(product_BTHWC.sum(mixing.pool_axes, dtype=wide)), d_kernel, d_bias, carried_BTHWC


def value_grad(
    grad_BTHWC: Tensor,
    carried_BTHWC: Tensor | None,
    alpha_BTC: Tensor,
    d_mean_BTC: Tensor,
    kernel: Tensor | None,
    mixing: Mixing,
) -> Tensor:
    """See `Kernels`; one sum after the other, while they are in the caches."""
    groups = mixing.groups(grad_BTHWC.shape[1])
    alpha_BTHWC = _tokens(alpha_BTC, grad_BTHWC)
    d_BTHWC = None
    if kernel is not None:
        # A forward convolution: on a CPU 0.7 to 0.8 of the time of torch's own backward to the input.
        d_BTHWC = conv_in_place(grad_BTHWC, flipped(kernel.to(grad_BTHWC.dtype), kernel.ndim - 2), None)
    if mixing.affine_input == "s":
        d_BTHWC = _plus(d_BTHWC, grad_BTHWC, alpha_BTHWC)
    elif carried_BTHWC is not None:
        d_BTHWC = _plus(d_BTHWC, carried_BTHWC, alpha_BTHWC)
    else:
        from_s_BTHWC = copy_unshifted(grad_BTHWC * alpha_BTHWC, groups, mixing.border)
        d_BTHWC = from_s_BTHWC if d_BTHWC is None else d_BTHWC.add_(from_s_BTHWC)
    d_BTHWC.add_(_tokens(d_mean_BTC, grad_BTHWC))
    return d_BTHWC if mixing.affine_input == "v" else copy_unshifted(d_BTHWC, groups, mixing.border)


def _plus(sum_BTHWC: Tensor | None, x_BTHWC: Tensor, alpha_BTHWC: Tensor) -> Tensor:
    return x_BTHWC * alpha_BTHWC if sum_BTHWC is None else sum_BTHWC.addcmul_(x_BTHWC, alpha_BTHWC)


def _rows(x_BTC: Tensor) -> Tensor:
    return x_BTC if x_BTC.ndim == 3 else x_BTC.unsqueeze(1)


def _tokens(x_BTC: Tensor, like_BTHWC: Tensor) -> Tensor:
    return x_BTC.to(like_BTHWC.dtype).unsqueeze(2).unsqueeze(2)
