"""The Affine-Shift mixer: what stands in the place of attention.

    v = x W_v;   s = Shift(v);   y = (alpha * s + beta) W_o

alpha is a scale per clip (or frame) and channel, beta a bias per token and channel; both depend on the data. Value
projection, shift by one position, then scale and bias is the paper's order (arXiv 2208.11108). The formulas of alpha
and beta, and whether they see v or s, are our choice:

    alpha = sigmoid(MLP(mean of u over the tokens)), MLP: C -> C/4 -> C with GELU;   beta = DWConv(u);   u = v or s.

Dimensions: B clips · T frames · H rows · W columns · C channels.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vast.models.depthwise import DepthwiseConv
from vast.models.shift import shift, shift_groups
from vast.models.variants import ModelConfig

_BOTTLENECK = 4


class ChannelScale(nn.Module):
    """The scale alpha of tokens x_BTHWC: [B, 1, 1, 1, C], or [B, T, 1, 1, C] when each frame is pooled by itself.

    Mean, MLP and sigmoid run in float32 under autocast and with half-precision weights: the mean of a clip adds up
    thousands of tokens. The result is rounded once, to the type of the tokens that it scales.
    """

    def __init__(self, dim: int, per_frame: bool) -> None:
        super().__init__()
        self.pool_axes = (2, 3) if per_frame else (1, 2, 3)
        self.fc1 = nn.Linear(dim, dim // _BOTTLENECK)
        self.fc2 = nn.Linear(dim // _BOTTLENECK, dim)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """The scale of each channel, in the type of the tokens."""
        wide = torch.promote_types(x_BTHWC.dtype, torch.float32)
        pooled_BTHWC = x_BTHWC.mean(self.pool_axes, keepdim=True, dtype=wide)
        device = x_BTHWC.device.type  # "meta", on which costs are counted, knows no autocast
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            hidden = F.gelu(F.linear(pooled_BTHWC, self.fc1.weight.to(wide), self.fc1.bias.to(wide)))
            alpha_BTHWC = torch.sigmoid(F.linear(hidden, self.fc2.weight.to(wide), self.fc2.bias.to(wide)))
        return alpha_BTHWC.to(x_BTHWC.dtype)


class AffineShift(nn.Module):
    """Shift, scale and bias of projected tokens, with the switches of `ModelConfig`; keeps the shape x_BTHWC."""

    def __init__(self, dim: int, config: ModelConfig) -> None:
        super().__init__()
        temporal = config.temporal_shift and not config.is_image_model
        self.groups = shift_groups(dim, config.shift_fraction, temporal)
        self.border = config.shift_border
        self.affine_input = config.affine_input
        self.value = nn.Linear(dim, dim)
        self.scale = ChannelScale(dim, per_frame=config.scale_pool == "frame") if config.scale else None
        self.bias = DepthwiseConv(dim, temporal=config.bias_kernel == "3x3x3") if config.bias else None
        self.output = nn.Linear(dim, dim) if config.output_projection else None

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Mix normed tokens; the caller adds the residual."""
        v_BTHWC: Tensor = self.value(x_BTHWC)
        s_BTHWC = shift(v_BTHWC, self.groups, self.border)
        source_BTHWC = v_BTHWC if self.affine_input == "v" else s_BTHWC
        y_BTHWC = s_BTHWC
        if self.scale is not None and self.bias is not None:
            # One pass over memory instead of two for the product and the sum.
            y_BTHWC = torch.addcmul(self.bias(source_BTHWC), self.scale(source_BTHWC), s_BTHWC)
        elif self.scale is not None:
            y_BTHWC = self.scale(source_BTHWC) * s_BTHWC
        elif self.bias is not None:
            y_BTHWC = s_BTHWC + self.bias(source_BTHWC)
        if self.output is not None:
            y_BTHWC = self.output(y_BTHWC)
        return y_BTHWC
