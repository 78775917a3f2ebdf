"""The moving average of the weights over the steps, which often scores better than the last weights."""

import copy

import torch

from vast.models.vast import Vast


def decay_at(step: int, decay: float) -> float:
    """Decay of the average at 0-based `step`: min(decay, (1 + step) / (10 + step)), as TensorFlow's average warms up.

    The average thus reaches back over about a ninth of the steps so far, until that is the 1 / (1 - decay) steps of
    the full decay: 9 000 steps for 0.999, 90 000 for 0.9999. A constant decay would keep the first random weights.
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """A second copy of a model whose weights trail the first one's, on the same device.

    A step that is skipped counts as one whose weights did not move.
    """

    def __init__(self, model: Vast, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def restart(self, model: Vast) -> None:
        """Take the weights as they are."""
        self.model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model: Vast, step: int) -> None:
        """Set average = d * average + (1 - d) * weights, with d of 0-based `step`; buffers are copied."""
        weight = 1.0 - decay_at(step, self.decay)
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight=weight)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
