"""The loss: cross entropy against soft targets, each clip with its weight, over the whole global batch.

Dimensions: B clips · K classes.
"""

import torch.nn.functional as F
from torch import Tensor


def weighted_losses(logits_BK: Tensor, target_BK: Tensor, weight_B: Tensor) -> Tensor:
    """loss_B, float32: weight times cross entropy of each clip.

    The loss of a step is the sum of these over all its clips on all ranks, divided by the global batch, whatever the
    weights are: so it depends neither on how clips are spread over ranks and micro-batches, nor on which were skipped.
    """
    return F.cross_entropy(logits_BK.float(), target_BK, reduction="none") * weight_B
