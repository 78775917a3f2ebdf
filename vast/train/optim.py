"""The optimizer's parameter groups and the learning-rate schedule, a pure function of the step."""

import math
from typing import Any

import torch

from vast.models.vast import Vast
from vast.train.config import OptimConfig


def build_optimizer(model: Vast, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or Nesterov SGD over groups of equal weight decay and learning-rate scale.

    Biases, norms, layer scales and position encodings are not decayed, as in every transformer recipe since BERT. The
    fused implementations are taken everywhere: they alone can skip an update by a flag on the device.
    """
    scales = lr_scales(model, config.layer_decay)
    not_decayed = model.no_weight_decay()
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if name in not_decayed else config.weight_decay
            empty = {"params": [], "weight_decay": decay, "lr_scale": scales[name]}
            groups.setdefault((decay, scales[name]), empty)["params"].append(parameter)
    if config.name == "adamw":
        betas = (config.momentum, config.beta2)
        return torch.optim.AdamW(list(groups.values()), lr=config.lr, betas=betas, fused=True)
    nesterov = config.momentum > 0
    optimizer = torch.optim.SGD(
        list(groups.values()), lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True
    )
    if nesterov:
        # A first step that is skipped would leave the momentum it has just made without a value (torch 2.13).
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def lr_scales(model: Vast, layer_decay: float) -> dict[str, float]:
    """Factor on the learning rate of each parameter: layer_decay to the power of the blocks between it and the head.

    That is layer_decay ** (num_blocks - i) for block i, counted from 0, and 1 for the last norm and the classifier, as
    in BEiT (arXiv 2106.08254).
    """
    layer_of = model.layer_of_parameter()
    num_blocks = sum(model.config.size.depths)
    return {name: layer_decay ** (num_blocks - layer) for name, layer in layer_of.items()}


def learning_rate(step: int, config: OptimConfig, steps_per_epoch: int) -> float:
    """Learning rate of 0-based `step`: linear warm-up to the peak, then half a cosine to the floor."""
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - 1 - warmup)
    floor = config.lr * config.min_lr_ratio
    return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate, times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
