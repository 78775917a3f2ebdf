"""The scale's small network, pooled means to alpha, and its hand-written backward.

Dimensions: B clips · T frames (1 where a clip is pooled whole) · C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vast.models.kernels.mixing import AffineWeights


class Scale(NamedTuple):
    """What the network computed, in the type of the means."""

    alpha_BTC: Tensor
    before: Tensor
    """The hidden layer before GELU, rows of B times T; empty without a scale, where alpha is 1."""
    hidden: Tensor


def scale_of(pooled_BTC: Tensor, weights: AffineWeights) -> Scale:
    """Linear, GELU, linear, sigmoid; in the type of the means, whatever the type of the weights."""
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = weights[:4]
    if fc1_weight is None or fc1_bias is None or fc2_weight is None or fc2_bias is None:
        return Scale(torch.ones_like(pooled_BTC), pooled_BTC.new_empty(0), pooled_BTC.new_empty(0))
    wide = pooled_BTC.dtype
    # two axes: with three, torch's linear takes twice as long over so little
    before = F.linear(pooled_BTC.flatten(0, -2), fc1_weight.to(wide), fc1_bias.to(wide))
    hidden = F.gelu(before)
    alpha = torch.sigmoid(F.linear(hidden, fc2_weight.to(wide), fc2_bias.to(wide)))
    return Scale(alpha.view(pooled_BTC.shape), before, hidden)


def scale_grads(
    pooled_BTC: Tensor, scale: Scale, d_alpha_BTC: Tensor, weights: AffineWeights
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient of the means, and of the four weights in their order, from that of alpha."""
    if weights.fc1_weight is None or weights.fc2_weight is None:
        return torch.zeros_like(pooled_BTC), [None] * 4
    wide = pooled_BTC.dtype
    d_out = torch.ops.aten.sigmoid_backward.default(d_alpha_BTC, scale.alpha_BTC).flatten(0, 1)
    d_before = torch.ops.aten.gelu_backward.default(d_out @ weights.fc2_weight.to(wide), scale.before)
    d_pooled_BTC = (d_before @ weights.fc1_weight.to(wide)).view(pooled_BTC.shape)
    d_fc1 = d_before.T @ pooled_BTC.flatten(0, 1)
    return d_pooled_BTC, [d_fc1, d_before.sum(0), d_out.T @ scale.hidden, d_out.sum(0)]
