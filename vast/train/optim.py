"""The optimizer's parameter groups and the learning-rate schedule, a pure function of the step."""

import math

import torch
from torch import nn

from vast.train.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig, no_decay: set[str]) -> torch.optim.Optimizer:
    """AdamW or Nesterov SGD with weight decay on matrices only.

    Biases, norms, layer scales and the names in `no_decay` are not decayed, as every transformer recipe since BERT.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name in no_decay else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, config.beta2))


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
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
