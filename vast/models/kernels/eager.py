"""The operator of torch's own calls with a hand-written backward: every switch, any device.

Forward 8 memory passes (shift 2, mean 1, convolution 2, product and sum 3), backward 14. Autograd through the same
formula takes 44 to 57 in all, most of it to add up full-size tensors of zeros.

Dimensions: B clips · T frames (1 where a clip is pooled whole) · H rows · W columns · C channels.
"""

from __future__ import annotations

from torch import Tensor

from vast.models.depthwise import conv_grads, conv_in_place
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
    """See `Kernels`; carries the gradient of u but for the part that comes through the mean."""
    wide = wide_type(v_BTHWC)
    groups = mixing.groups(v_BTHWC.shape[1])
    alpha_BTHWC = _tokens(alpha_BTC, grad_BTHWC)
    d_BTHWC = d_kernel = d_bias = None
    if kernel is not None:  # first, because it needs the caches most
        source_BTHWC = v_BTHWC if kept_BTHWC is None else kept_BTHWC
        d_BTHWC, d_kernel, d_bias = conv_grads(source_BTHWC, grad_BTHWC, kernel.to(v_BTHWC.dtype))
    if kept_BTHWC is None and mixing.scale_pool == "clip":
        from_s_BTHWC = copy_unshifted(grad_BTHWC, groups, mixing.border)
        d_BTHWC = _plus(d_BTHWC, from_s_BTHWC, alpha_BTHWC)
        product_BTHWC = from_s_BTHWC.mul_(v_BTHWC)  # <grad, Shift(v)> = <Unshift(grad), v>
    elif kept_BTHWC is None:  # each frame has its alpha, and the shift moves tokens between frames
        from_s_BTHWC = copy_unshifted(grad_BTHWC * alpha_BTHWC, groups, mixing.border)
        d_BTHWC = from_s_BTHWC if d_BTHWC is None else d_BTHWC.add_(from_s_BTHWC)
        product_BTHWC = copy_shifted(v_BTHWC, groups, mixing.border).mul_(grad_BTHWC)
    else:
        d_BTHWC = _plus(d_BTHWC, grad_BTHWC, alpha_BTHWC)
        product_BTHWC = grad_BTHWC * kept_BTHWC
    d_alpha_BTC = _rows(product_BTHWC.sum(mixing.pool_axes, dtype=wide))
    if d_kernel is None or d_bias is None:
        return d_alpha_BTC, None, None, d_BTHWC
    return d_alpha_BTC, d_kernel.to(wide), d_bias.to(wide), d_BTHWC


def value_grad(
    grad_BTHWC: Tensor,
    carried_BTHWC: Tensor | None,
    alpha_BTC: Tensor,
    d_mean_BTC: Tensor,
    kernel: Tensor | None,
    mixing: Mixing,
) -> Tensor:
    """See `Kernels`."""
    if carried_BTHWC is None:
        raise ValueError("the eager path carries the gradient of u")
    d_BTHWC = carried_BTHWC.add_(_tokens(d_mean_BTC, grad_BTHWC))
    if mixing.affine_input == "v":
        return d_BTHWC
    return copy_unshifted(d_BTHWC, mixing.groups(grad_BTHWC.shape[1]), mixing.border)


def _plus(sum_BTHWC: Tensor | None, x_BTHWC: Tensor, alpha_BTHWC: Tensor) -> Tensor:
    return x_BTHWC * alpha_BTHWC if sum_BTHWC is None else sum_BTHWC.addcmul_(x_BTHWC, alpha_BTHWC)


def _rows(x_BTC: Tensor) -> Tensor:
    return x_BTC if x_BTC.ndim == 3 else x_BTC.unsqueeze(1)


def _tokens(x_BTC: Tensor, like_BTHWC: Tensor) -> Tensor:
    return x_BTC.to(like_BTHWC.dtype).unsqueeze(2).unsqueeze(2)
