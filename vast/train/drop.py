"""What drop path and dropout drop, drawn from (seed, step, place in the global batch) and from nothing else.

Thus a step drops the same on any number of ranks, in any micro-batches, and again when it is repeated.

Dimensions: B clips · D residual branches · C channels before the classifier.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vast.models.blocks import Keep
from vast.models.vast import Vast

# One key a purpose, apart from those of vast.data.order: streams that share a seed must not share numbers.
_DROP_STREAM = 101
_WORD = 2.0**-64


class Dropper:
    """Draws the factors of a model's drop path and dropout."""

    def __init__(self, model: Vast, seed: int) -> None:
        self._seed = seed
        self._branch_rate_D = np.array(model.branch_rates())
        self._head_rate_C = np.full(model.config.size.dims[-1], model.config.head_dropout)

    def draw(self, step: int, position_B: Tensor, device: torch.device) -> Keep | None:
        """The factors of some clips of a step by their places in the global batch; None where nothing is dropped."""
        branches, head = self._branch_rate_D.any(), self._head_rate_C.any()
        if not branches and not head:
            return None
        rates = np.concatenate([self._branch_rate_D, self._head_rate_C if head else []])
        key = np.random.SeedSequence(self._seed, spawn_key=(_DROP_STREAM, step)).generate_state(2, np.uint64)
        # Each place has counters of its own under the step's key, so that places are drawn alike in any company.
        words = [
            np.random.Philox(key=key, counter=[0, place, 0, 0]).random_raw(len(rates)) for place in position_B.tolist()
        ]
        factors = torch.from_numpy(_factors(np.stack(words) * _WORD, rates)).to(device, non_blocking=True)
        num_branches = len(self._branch_rate_D)
        return Keep(
            branch_DB=factors[:, :num_branches].T.contiguous() if branches else None,
            head_BC=factors[:, num_branches:] if head else None,
        )


def _factors(uniform: NDArray[Any], rates: NDArray[Any]) -> NDArray[np.float32]:
    """0 with the probability of `rates`, else 1 / (1 - rate)."""
    factors: NDArray[np.float32] = np.where(uniform < rates, 0.0, 1.0 / (1.0 - rates)).astype(np.float32)
    return factors
