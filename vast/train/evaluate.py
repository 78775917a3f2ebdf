"""Scoring a model on a split: each sample exactly once over all ranks, none replaced."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from vast.data.augment import normalise
from vast.data.reader import EvalBatch
from vast.train.metrics import TOP, Predictions

_LET_GO_S = 0.1
MAX_CLIPS = 32  # in one forward pass: a 10x3 protocol must not need thirty times the memory of training


@dataclass(frozen=True)
class ScoredBatch:
    """Mean softmax over the views of B videos and K classes, and the samples that could not be read."""

    sample_B: NDArray[np.int64]
    label_B: NDArray[np.int64]
    probs_BK: NDArray[np.float32]
    failed: list[tuple[int, str]]

    def predictions(self) -> Predictions:
        """Rank the classes; the probabilities are dropped."""
        return Predictions.of(self.sample_B, self.label_B, self.probs_BK, self.failed)


@torch.no_grad()
def score_batches(
    model: nn.Module,
    batches: Iterable[EvalBatch],
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Iterator[ScoredBatch]:
    """Score batch after batch with a model in evaluation mode. Fusion over views is the mean of softmax."""
    for batch in batches:
        B, V = batch.clip_BVCTHW.shape[:2]
        parts = []
        for clip_NCTHW in torch.split(batch.clip_BVCTHW.flatten(0, 1), MAX_CLIPS) if B else ():
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                logits_NK = model(normalise(clip_NCTHW.to(device), mean, std))
            parts.append(logits_NK.float().softmax(dim=-1))
        probs_BK = torch.cat(parts).reshape(B, V, -1).mean(dim=1).cpu().numpy() if B else np.zeros((0, 0), "float32")
        yield ScoredBatch(batch.sample_B.numpy(), batch.label_B.numpy(), probs_BK, batch.failed)


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

    A collective: all ranks must call it together. What travels is 84 bytes a sample, whatever the number of classes.
    """
    was_training = model.training
    model.eval()
    scored = score_batches(model, batches, mean=mean, std=std, device=device, autocast=autocast)
    own = Predictions.joined([batch.predictions() for batch in scored])
    model.train(was_training)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _gathered(own, device)
    return own


def _gathered(own: Predictions, device: torch.device) -> Predictions:
    numbers_NC = np.column_stack([own.sample_N, own.label_N, own.rank_N, own.top_NJ])
    failures = json.dumps(own.unreadable).encode() + b"\n"
    numbers_NC = _rows_of_all_ranks(torch.from_numpy(numbers_NC), device)
    prob_NJ = _rows_of_all_ranks(torch.from_numpy(own.prob_NJ), device)
    text = _rows_of_all_ranks(torch.frombuffer(bytearray(failures), dtype=torch.uint8), device).tobytes()
    # gloo's threads take the GIL to let go of the tensors just gathered. A process group freed meanwhile waits for
    # those threads with the GIL in hand, for ever (torch 2.13), so they get a moment without it.
    time.sleep(_LET_GO_S)
    unreadable = [(sample, why) for line in text.splitlines() for sample, why in json.loads(line)]
    sample_N, label_N, rank_N = (numbers_NC[:, column] for column in range(3))
    return Predictions.joined([Predictions(sample_N, label_N, rank_N, numbers_NC[:, -TOP:], prob_NJ, unreadable)])


def _rows_of_all_ranks(own_N: Tensor, device: torch.device) -> NDArray[Any]:
    """Return the rows of all ranks, rank after rank.

    A sum of tables that are zero outside the own rows: exact, without padding, and unlike the gathering of objects it
    neither pickles nor holds a copy for each rank.
    """
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    count_R = torch.zeros(num_ranks, dtype=torch.int64, device=device)
    count_R[rank] = len(own_N)
    dist.all_reduce(count_R)
    start = int(count_R[:rank].sum())
    all_M = torch.zeros((int(count_R.sum()), *own_N.shape[1:]), dtype=own_N.dtype, device=device)
    all_M[start : start + len(own_N)] = own_N.to(device)
    dist.all_reduce(all_M)
    found: NDArray[Any] = all_M.cpu().numpy()
    return found
