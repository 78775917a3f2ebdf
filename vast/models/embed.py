"""Patch embedding (also the step between stages) and the conditional position encoding.

Non-overlapping patches with a LayerNorm after each, and x + DWConv(x) as position, follow EdgeViT
(saic-fi/edgevit, arXiv 2205.03436). Neither looks beyond its frame: only the mixer connects frames.

Dimensions: B clips · T frames · H rows · W columns · C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from vast.models.depthwise import DepthwiseConv

LAYER_NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Each patch of patch_size x patch_size tokens (or pixels) of a frame becomes one token, then LayerNorm.

    A linear layer on rearranged tokens is the same function as a strided convolution. Its weight is
    [dim, patch_size * patch_size * in_dim], the columns in the order (row, column, channel).
    """

    def __init__(self, in_dim: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(patch_size * patch_size * in_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Tokens of H / patch_size rows and W / patch_size columns."""
        B, T, H, W, C = x_BTHWC.shape
        p = self.patch_size
        patches = x_BTHWC.reshape(B, T, H // p, p, W // p, p, C).transpose(3, 4).flatten(4)
        embedded_BTHWC: Tensor = self.norm(self.proj(patches))
        return embedded_BTHWC


class PositionEncoding(nn.Module):
    """x + DWConv3x3(x) within each frame: the zero padding at the border tells a token where it is."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = DepthwiseConv(dim)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Tokens with their position added."""
        encoding_BTHWC: Tensor = self.conv(x_BTHWC)
        return x_BTHWC + encoding_BTHWC
