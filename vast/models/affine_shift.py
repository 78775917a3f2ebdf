"""The Affine-Shift mixer: what stands in the place of attention.

    v = x W_v;   s = Shift(v);   y = (alpha * s + beta) W_o

alpha is a scale per clip (or frame) and channel, beta a bias per token and channel; both depend on the data. Value
projection, shift by one position, then scale and bias is the paper's order (arXiv 2208.11108). The formulas of alpha
and beta, and whether they see v or s, are our choice:

    alpha = sigmoid(MLP(mean of u over the tokens)), MLP: C -> C/4 -> C with GELU;   beta = DWConv(u);   u = v or s.

With u = v and as far as alpha is constant, the 3x3 kernel of beta can do all that a shift in space does (take the token
itself away, add its neighbour); along time it sees nothing, so there only the shift mixes.

`affine_shift` is the whole of it between the two projections. Its plain form is below; the faster ones are in
`kernels`, and `kernels.operator.choose_path` says which one runs where.

Dimensions: B clips · T frames · H rows · W columns · C channels · R rows of means, one a clip or one a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vast.models.depthwise import DepthwiseConv, depthwise_conv
from vast.models.kernels.mixing import AffineWeights, Mixing, wide_type
from vast.models.kernels.operator import Path, choose_path, mix_tokens
from vast.models.kernels.scale import scale_of
from vast.models.shift import plain_shift, shift, shift_groups
from vast.models.variants import ModelConfig

_BOTTLENECK = 4
_FIRST_LOGIT = 3.0  # of the scale: alpha starts near 0.95
_FIRST_TAP_STD = 0.02  # of the bias's kernel: beta starts near 0


def affine_shift(v_BTHWC: Tensor, weights: AffineWeights, mixing: Mixing, path: Path | None = None) -> Tensor:
    """The whole mixing operator, alpha * Shift(v) + DWConv(u); the shape stays.

    Means, the MLP of the scale and alpha are computed in float32 at least (they sum up thousands of tokens), the rest
    in the type of v, under autocast too. Differentiable once; the plain path any number of times.

    Args:
        v_BTHWC: projected tokens.
        weights: learned values; without those of the scale alpha is 1, without a kernel there is no bias.
        mixing: the switches.
        path: an implementation instead of `choose_path`'s, for tests, measurements and second derivatives.
    """
    path = path or choose_path(v_BTHWC, weights, mixing)
    if weights.fc1_weight is None and weights.kernel is None:
        move = plain_shift if path == "plain" else shift
        return move(v_BTHWC, mixing.groups(v_BTHWC.shape[1]), mixing.border)
    if path == "plain":
        return plain_affine_shift(v_BTHWC, weights, mixing)
    return mix_tokens(v_BTHWC, weights, mixing, path)


def plain_affine_shift(v_BTHWC: Tensor, weights: AffineWeights, mixing: Mixing) -> Tensor:
    """The formula in torch's own operations: can be exported, counted and differentiated twice."""
    s_BTHWC = plain_shift(v_BTHWC, mixing.groups(v_BTHWC.shape[1]), mixing.border)
    u_BTHWC = v_BTHWC if mixing.affine_input == "v" else s_BTHWC
    z_BTHWC = s_BTHWC
    if weights.fc1_weight is not None:
        z_BTHWC = plain_scale(u_BTHWC, weights, mixing) * s_BTHWC
    if weights.kernel is not None:
        bias = None if weights.kernel_bias is None else weights.kernel_bias.to(v_BTHWC.dtype)
        z_BTHWC = z_BTHWC + depthwise_conv(u_BTHWC, weights.kernel.to(v_BTHWC.dtype), bias)
    return z_BTHWC


def plain_scale(u_BTHWC: Tensor, weights: AffineWeights, mixing: Mixing) -> Tensor:
    """alpha_BTHWC of the tokens it is computed from, rounded once, to their type."""
    pooled_BTHWC = u_BTHWC.mean(mixing.pool_axes, keepdim=True, dtype=wide_type(u_BTHWC))
    pooled_RC = pooled_BTHWC.flatten(0, -2)
    device = u_BTHWC.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            alpha_RC = scale_of(pooled_RC, weights).alpha_RC
    else:  # without a context where there is no need: exporters stumble over it
        alpha_RC = scale_of(pooled_RC, weights).alpha_RC
    return alpha_RC.view(pooled_BTHWC.shape).to(u_BTHWC.dtype)


class ChannelScale(nn.Module):
    """The learned values of the scale: two linear layers around a bottleneck. `affine_shift` runs them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // _BOTTLENECK)
        self.fc2 = nn.Linear(dim // _BOTTLENECK, dim)


class AffineShift(nn.Module):
    """Value projection, shift, scale and bias, output projection, with the switches of `ModelConfig`."""

    def __init__(self, dim: int, config: ModelConfig) -> None:
        super().__init__()
        groups = shift_groups(dim, config.shift_fraction, config.shift_axes)
        self.mixing = Mixing(
            group_width=groups[0].stop - groups[0].start if groups else 0,
            axes=config.shift_axes if groups else "",
            border=config.shift_border,
            affine_input=config.affine_input,
            scale_pool=config.scale_pool,
        )
        self.value = nn.Linear(dim, dim)
        self.scale = ChannelScale(dim) if config.scale else None
        temporal = config.bias_kernel == "3x3x3" and not config.is_image_model  # inflation adds the axis
        self.bias = DepthwiseConv(dim, temporal) if config.bias else None
        self.output = nn.Linear(dim, dim) if config.output_projection else None

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Mix normed tokens; the caller adds the residual."""
        y_BTHWC = affine_shift(self.value(x_BTHWC), self.weights(), self.mixing)
        return y_BTHWC if self.output is None else self.output(y_BTHWC)

    def start_as_shift(self) -> None:
        """Give scale and bias first values with which the block is nearly the shift alone.

        With sigmoid(0) = 0.5 and a kernel of deviation 1/sqrt(fan in) it starts out as half a shift among random
        convolutions, and motion is learned late. Measured at 300 equal steps on clips that only motion tells apart
        (`benchmarks/ablation.py`): 74 to 86 % with those and 99.3 to 100 % with these on generated clips (3 seeds),
        38 to 51 % (2 seeds) and 66 to 84 % (3 seeds) on filmed ones.
        """
        if self.scale is not None:
            nn.init.constant_(self.scale.fc2.bias, _FIRST_LOGIT)
        if self.bias is not None:
            nn.init.trunc_normal_(self.bias.weight, std=_FIRST_TAP_STD)

    def weights(self) -> AffineWeights:
        """What `affine_shift` takes; none for what is switched off."""
        scale, bias = self.scale, self.bias
        return AffineWeights(
            *((None,) * 4 if scale is None else (scale.fc1.weight, scale.fc1.bias, scale.fc2.weight, scale.fc2.bias)),
            *((None,) * 2 if bias is None else (bias.weight, bias.bias)),
        )
