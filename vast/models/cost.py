"""What a model costs: parameters, and multiply-adds of a forward pass."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_params(model: nn.Module) -> int:
    """Number of learned values."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, clip_shape: tuple[int, ...]) -> int:
    """Multiply-adds of products and convolutions in one forward pass of a clip of shape [B, C, T, H, W].

    The literature calls this number FLOPs. Element-wise work (norms, GELU, the product with the scale: together under
    1 %) is not counted. Runs on torch's meta device: no memory, no arithmetic, and `model` is not touched.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(clip_shape, device="meta"))
    return int(counter.get_total_flops()) // 2
