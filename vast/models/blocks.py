"""The pre-norm block around a token mixer, and its parts.

    x = x + DWConv(x)  (position encoding, if switched on);   x = x + mixer(LN(x));   x = x + MLP(LN(x))

Dimensions: B clips · T frames · H rows · W columns · C channels · D residual branches, two a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vast.models.embed import LAYER_NORM_EPS, PositionEncoding
from vast.models.mixers import make_mixer
from vast.models.variants import ModelConfig


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on the last axis."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Each token by itself."""
        y_BTHWC: Tensor = self.fc2(self.act(self.fc1(x_BTHWC)))
        return y_BTHWC


class Keep(NamedTuple):
    """What drop path and dropout leave of a batch, where the caller draws it: 0 if dropped, else 1 / (1 - rate).

    A training loop that draws these from the clips' places in the global batch makes the same update on any number of
    ranks. Either may be none where its rate is 0.
    """

    branch_DB: Tensor | None
    """A factor for each residual branch of each clip, from the first block to the last."""
    head_BC: Tensor | None
    """A factor for each channel before the classifier."""


class Branch(nn.Module):
    """The end of a residual branch: an optional learned factor per channel, then drop path.

    Drop path (stochastic depth, arXiv 1603.09382) zeroes the branch of a whole sample with the given probability
    while training, and divides the others by the probability of being kept, so that the mean stays. Who gives no
    factors gets draws of torch's own generator.
    """

    def __init__(self, dim: int, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale is not None else None

    def forward(self, x_BTHWC: Tensor, keep_B: Tensor | None = None) -> Tensor:
        """The branch as it is to be added to the residual stream."""
        if self.gamma is not None:
            x_BTHWC = x_BTHWC * self.gamma
        if self.training and self.drop_path > 0.0:
            if keep_B is None:
                share = 1.0 - self.drop_path
                keep_B = x_BTHWC.new_empty(x_BTHWC.shape[0]).bernoulli_(share) / share
            x_BTHWC = x_BTHWC * keep_B.to(x_BTHWC.dtype).view(-1, 1, 1, 1, 1)
        return x_BTHWC


class Block(nn.Module):
    """One residual unit: position encoding, mixer, MLP; keeps the shape x_BTHWC. `index` is its number in the stage."""

    def __init__(self, dim: int, mlp_ratio: int, drop_path: float, config: ModelConfig, index: int = 0) -> None:
        super().__init__()
        self.position = PositionEncoding(dim) if config.position_encoding else nn.Identity()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mixer = make_mixer(dim, config, index)
        self.branch1 = Branch(dim, config.layer_scale, drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, dim * mlp_ratio)
        self.branch2 = Branch(dim, config.layer_scale, drop_path)

    def forward(self, x_BTHWC: Tensor, keep_DB: Tensor | None = None) -> Tensor:
        """Tokens in, tokens of the same shape out; `keep_DB` has the factors of the block's two branches."""
        keep1_B, keep2_B = (None, None) if keep_DB is None else keep_DB.unbind()
        x_BTHWC = self.position(x_BTHWC)
        x_BTHWC = x_BTHWC + self.branch1(self.mixer(self.norm1(x_BTHWC)), keep1_B)
        x_BTHWC = x_BTHWC + self.branch2(self.mlp(self.norm2(x_BTHWC)), keep2_B)
        return x_BTHWC
