"""Scoring a model on a split: each sample exactly once over all ranks, none replaced."""

import time
from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from vast.data.augment import normalise
from vast.data.reader import EvalBatch
from vast.train.metrics import Predictions

_LET_GO_S = 0.1
MAX_CLIPS = 32  # in one forward pass: a 10x3 protocol must not need thirty times the memory of training


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Iterable[EvalBatch],
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Predictions:
    """Run this rank's share of a split and gather everyone's; every rank returns the whole.

    Fusion over views is the mean of softmax. A collective: all ranks must call it together.
    """
    was_training = model.training
    model.eval()
    rows: list[tuple[int, int, np.ndarray]] = []
    unreadable: list[tuple[int, str]] = []
    for batch in batches:
        unreadable.extend(batch.failed)
        if len(batch.sample_B) == 0:
            continue
        B, V = batch.clip_BVCTHW.shape[:2]
        parts = []
        for clip_NCTHW in torch.split(batch.clip_BVCTHW.flatten(0, 1), MAX_CLIPS):
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                logits_NK = model(normalise(clip_NCTHW.to(device), mean, std))
            parts.append(logits_NK.float().softmax(dim=-1))
        probs_BK = torch.cat(parts).reshape(B, V, -1).mean(dim=1).cpu().numpy()
        rows.extend(zip(batch.sample_B.tolist(), batch.label_B.tolist(), probs_BK, strict=True))
    model.train(was_training)
    return _gather(rows, unreadable)


def _gather(rows: list[tuple[int, int, np.ndarray]], unreadable: list[tuple[int, str]]) -> Predictions:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        parts: list[tuple[list[tuple[int, int, np.ndarray]], list[tuple[int, str]]]]
        parts = [([], [])] * dist.get_world_size()
        dist.all_gather_object(parts, (rows, unreadable))
        # gloo's threads take the GIL to let go of the tensors just gathered. A process group freed meanwhile waits for
        # those threads with the GIL in hand, for ever (torch 2.13), so they get a moment without it.
        time.sleep(_LET_GO_S)
        rows = [row for part, _ in parts for row in part]
        unreadable = [failure for _, part in parts for failure in part]
    rows.sort(key=lambda row: row[0])
    return Predictions(
        sample_N=np.array([row[0] for row in rows], dtype=np.int64),
        label_N=np.array([row[1] for row in rows], dtype=np.int64),
        probs_NK=np.stack([row[2] for row in rows]) if rows else np.zeros((0, 0), dtype=np.float32),
        unreadable=sorted(unreadable),
    )
