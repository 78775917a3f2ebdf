"""What a model costs: parameters, multiply-adds of a forward pass, and memory kept for the backward pass.

All of it is counted by running the model on tensors without data, so it needs neither the memory nor the time of a run.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
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


def count_kept_bytes(model: nn.Module, clip_shape: tuple[int, ...]) -> int:
    """Bytes that a training forward pass of a clip of shape [B, C, T, H, W] keeps for the backward pass.

    These activations are what grows with the batch. Each storage that autograd saves is counted once, parameters not at
    all; gradients, optimizer and scratch memory come on top. The numbers are those of the operations that run on a CPU,
    in the type of the parameters (float32; autocast to half precision keeps about half). The fused GPU kernels keep the
    same. A model that recomputes its blocks hides from this count what it keeps. `model` is not touched.
    """
    shadow = copy.deepcopy(model).to("meta").train()
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor  # the graph holds it, so that no other storage gets its address

    with FakeTensorMode(allow_non_fake_inputs=True):
        shadow.to_empty(device="cpu")
        with saved_tensors_hooks(note, lambda tensor: tensor):
            logits = shadow(torch.empty(clip_shape))
        for parameter in shadow.parameters():
            kept.pop(parameter.untyped_storage()._cdata, None)
        del logits
    return sum(kept.values())
