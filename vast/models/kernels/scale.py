"""The scale's small network, pooled means to alpha, and its hand-written backward.

On a CPU torch hands a contiguous tensor's GELU to oneDNN, whose call costs 20 us before the first value: a tenth of
the operator on a small clip. Transposed ones it computes itself.

Dimensions: R rows, one a clip or one a frame · C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vast.models.kernels.mixing import AffineWeights


class Scale(NamedTuple):
    """What the network computed, in the type of the means."""

    alpha_RC: Tensor
    before: Tensor
    """The hidden layer before GELU; empty without a scale, where alpha is 1."""
    hidden: Tensor


def scale_of(pooled_RC: Tensor, weights: AffineWeights) -> Scale:
    """Linear, GELU, linear, sigmoid; in the type of the means, whatever the type of the weights."""
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = weights[:4]
    if fc1_weight is None or fc1_bias is None or fc2_weight is None or fc2_bias is None:
        return Scale(torch.ones_like(pooled_RC), pooled_RC.new_empty(0), pooled_RC.new_empty(0))
    wide = pooled_RC.dtype
    before = F.linear(pooled_RC, fc1_weight.to(wide), fc1_bias.to(wide))
    hidden = F.gelu(before.T).T
    return Scale(torch.sigmoid(F.linear(hidden, fc2_weight.to(wide), fc2_bias.to(wide))), before, hidden)


def scale_grads(
    pooled_RC: Tensor, scale: Scale, d_alpha_RC: Tensor, weights: AffineWeights, num_tokens: int
) -> tuple[Tensor, list[Tensor | None]]:
    """From the gradient of alpha: each token's by way of the mean of so many, and those of the four weights."""
    if weights.fc1_weight is None or weights.fc2_weight is None:
        return torch.zeros_like(pooled_RC), [None] * 4
    wide = pooled_RC.dtype
    d_out = torch.ops.aten.sigmoid_backward.default(d_alpha_RC, scale.alpha_RC)
    d_hidden = d_out @ weights.fc2_weight.to(wide)
    d_before = torch.ops.aten.gelu_backward.default(d_hidden.T, scale.before.T).T
    d_mean_RC = (d_before @ weights.fc1_weight.to(wide)).div_(num_tokens)
    return d_mean_RC, [d_before.T @ pooled_RC, d_before.sum(0), d_out.T @ scale.hidden, d_out.sum(0)]
