"""VAST, the Video Affine-Shift Transformer, and AST, the same model on single frames.

A pyramid of stages (patch embedding, then blocks) over tokens x_BTHWC, a LayerNorm, the average over all tokens and a
linear classifier. There is no encoding of time: frames meet only in the temporal shift, in a scale pooled over the
clip, in a 3x3x3 bias, and in the final average.

Dimensions: B clips · C channels · T frames · H rows · W columns · K classes · D residual branches, two a block.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vast.errors import UserError
from vast.models.affine_shift import AffineShift
from vast.models.blocks import Block, Branch, Keep
from vast.models.depthwise import DepthwiseConv
from vast.models.embed import LAYER_NORM_EPS, PatchEmbed, PositionEncoding
from vast.models.kernels.mixing import wide_type
from vast.models.variants import ModelConfig

_IMAGE_CHANNELS = 3


def init_weights(module: nn.Module) -> None:
    """Truncated normal weights of deviation 1/sqrt(fan in) and zero biases (for `Module.apply`).

    The customary deviation of 0.02 suits widths near 768. At the widths of the small models it leaves the branches
    hundreds of times weaker than the residual stream, and motion is learned late. Measured with a micro model on five
    classes of moving textures, 160 steps of 16 clips, one seed: accuracy 0.25 and 0.43 with 0.02 at learning rates
    1e-3 and 3e-3, 0.61 and 0.96 with 1/sqrt(fan in).
    """
    if isinstance(module, nn.Linear | DepthwiseConv):
        fan_in = module.weight[0].numel()
        nn.init.trunc_normal_(module.weight, std=fan_in**-0.5)
        nn.init.zeros_(module.bias)


def _init_small(layer: nn.Linear | DepthwiseConv) -> None:
    # The classifier starts near equal probabilities. The position encoding starts near the identity: it adds to the
    # residual stream without a norm before it, so that deviations of 1/3 would multiply from block to block.
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)


class Stage(nn.Module):
    """Patch embedding, then blocks at one resolution; x_BTHWC in, H and W divided by the patch size out."""

    def __init__(self, embed: PatchEmbed, blocks: list[Block], recompute: bool) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.recompute = recompute

    def forward(self, x_BTHWC: Tensor, keep_DB: Tensor | None = None) -> Tensor:
        """Tokens of the stage before, or pixels, to tokens of this stage."""
        x_BTHWC = self.embed(x_BTHWC)
        for i, block in enumerate(self.blocks):
            keep_of_block_DB = None if keep_DB is None else keep_DB[2 * i : 2 * i + 2]
            if self.recompute and torch.is_grad_enabled():
                x_BTHWC = cast(Tensor, checkpoint(block, x_BTHWC, keep_of_block_DB, use_reentrant=False))
            else:
                x_BTHWC = block(x_BTHWC, keep_of_block_DB)
        return x_BTHWC


class Vast(nn.Module):
    """The model of a `ModelConfig`: normalised clip_BCTHW -> logits_BK.

    Any number of frames will do for a vast_* model; an ast_* model takes T = 1, or images [B, C, H, W].
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        size = config.size
        self.config = config
        num_blocks = sum(size.depths)
        rates = iter([config.drop_path * i / max(num_blocks - 1, 1) for i in range(num_blocks)])
        in_dims = (_IMAGE_CHANNELS, *size.dims[:-1])
        self.stages = nn.ModuleList(
            Stage(
                PatchEmbed(in_dim, dim, size.patch_size if i == 0 else 2),
                [Block(dim, size.mlp_ratio, next(rates), config, index) for index in range(depth)],
                config.recompute,
            )
            for i, (in_dim, dim, depth) in enumerate(zip(in_dims, size.dims, size.depths, strict=True))
        )
        self.norm = nn.LayerNorm(size.dims[-1], eps=LAYER_NORM_EPS)
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.num_classes = num_classes
        self.head: nn.Module = nn.Linear(size.dims[-1], num_classes) if num_classes > 0 else nn.Identity()
        self.apply(init_weights)
        self.init_classifier()
        for module in self.modules():
            if isinstance(module, PositionEncoding):
                _init_small(module.conv)
            if isinstance(module, AffineShift):
                module.start_as_shift()

    def forward(self, clip_BCTHW: Tensor, keep: Keep | None = None) -> Tensor:
        """logits_BK of normalised clips. `keep` replaces the draws of drop path and dropout while training."""
        if keep is None:
            return self.forward_head(self.forward_features(clip_BCTHW))
        return self.forward_head(self.forward_features(clip_BCTHW, keep.branch_DB), keep_BC=keep.head_BC)

    def forward_features(self, clip_BCTHW: Tensor, keep_DB: Tensor | None = None) -> Tensor:
        """Normed tokens x_BTHWC of the last stage.

        Raises:
            UserError: for a clip whose type, channels, frames or pixels the model cannot take.
        """
        if clip_BCTHW.ndim == 4 and self.config.is_image_model:
            clip_BCTHW = clip_BCTHW.unsqueeze(2)
        self._check(clip_BCTHW)
        x_BTHWC = clip_BCTHW.permute(0, 2, 3, 4, 1)
        depths = [2 * depth for depth in self.config.size.depths]
        keep_of_stage = [None] * len(depths) if keep_DB is None else torch.split(keep_DB, depths)
        for stage, keep_of_stage_DB in zip(self.stages, keep_of_stage, strict=True):
            x_BTHWC = stage(x_BTHWC, keep_of_stage_DB)
        normed_BTHWC: Tensor = self.norm(x_BTHWC)
        return normed_BTHWC

    def forward_head(self, x_BTHWC: Tensor, pre_logits: bool = False, keep_BC: Tensor | None = None) -> Tensor:
        """Average of all tokens, pooled_BC, and from it logits_BK unless `pre_logits`."""
        pooled_BC = x_BTHWC.mean((1, 2, 3), dtype=wide_type(x_BTHWC)).to(x_BTHWC.dtype)
        if pre_logits:
            return pooled_BC
        kept_BC = self.head_dropout(pooled_BC) if keep_BC is None else pooled_BC * keep_BC.to(pooled_BC.dtype)
        logits_BK: Tensor = self.head(kept_BC)
        return logits_BK

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one, on the same device and of the same type.

        With `num_classes` 0 the model ends in the pooled features.
        """
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            like = self.norm.weight
            self.head = nn.Linear(len(like), num_classes, device=like.device, dtype=like.dtype)
            self.init_classifier()

    def init_classifier(self) -> None:
        """Give the classifier fresh weights in place."""
        if isinstance(self.head, nn.Linear):
            _init_small(self.head)

    def first_layer(self) -> nn.Module:
        """What sees the clip first, and gets its gradient last."""
        return cast(Stage, self.stages[0]).embed

    def blocks(self) -> list[Block]:
        """All blocks, from the first stage to the last."""
        return [cast(Block, block) for stage in self.stages for block in cast(Stage, stage).blocks]

    def set_recompute(self, enabled: bool) -> None:
        """Whether blocks are recomputed in the backward pass instead of kept."""
        for stage in self.stages:
            cast(Stage, stage).recompute = enabled

    def branch_rates(self) -> list[float]:
        """Drop path's probability for each of the D residual branches, from the first block to the last."""
        return [module.drop_path for module in self.modules() if isinstance(module, Branch)]

    def layer_of_parameter(self) -> dict[str, int]:
        """For layer-wise learning rates: the number of the block, counted from 0 over all stages, by parameter name.

        The embedding of a stage belongs to its first block; the last norm and the classifier come after all blocks.
        """
        depths = self.config.size.depths
        first = [sum(depths[:stage]) for stage in range(len(depths))]

        def layer(name: str) -> int:
            part, *path = name.split(".")
            if part != "stages":
                return sum(depths)
            return first[int(path[0])] + (int(path[2]) if path[1] == "blocks" else 0)

        return {name: layer(name) for name, _ in self.named_parameters()}

    def no_weight_decay(self) -> set[str]:
        """Names of all parameters that weight decay must leave alone.

        Those are vectors (biases, norms, layer scales) and the kernels of the position encoding.
        """
        return {name for name, p in self.named_parameters() if p.ndim <= 1 or ".position." in name}

    def _check(self, clip_BCTHW: Tensor) -> None:
        name, size, shape = self.config.name, self.config.size, tuple(clip_BCTHW.shape)
        expected = "images [B, 3, H, W] or [B, 3, 1, H, W]" if self.config.is_image_model else "clips [B, 3, T, H, W]"
        if clip_BCTHW.ndim != 5 or shape[1] != _IMAGE_CHANNELS or 0 in shape:
            raise UserError(f"{name} takes {expected}, but found shape {list(shape)}")
        if not clip_BCTHW.is_floating_point():
            raise UserError(
                f"{name} takes normalised floating-point clips, but found {clip_BCTHW.dtype}; normalise first"
            )
        if self.config.is_image_model and shape[2] != 1:
            raise UserError(f"{name} takes {expected}, but found {shape[2]} frames; use {'v' + name} for clips")
        stride = size.total_stride
        if shape[3] % stride or shape[4] % stride:
            near = ", ".join(f"{axis} {_nearest(pixels, stride)}" for axis, pixels in zip("HW", shape[3:], strict=True))
            raise UserError(
                f"{name} needs height and width in multiples of {stride} pixels (patches of {size.patch_size}, then "
                f"{len(size.dims) - 1} halvings), but found {shape[3]}x{shape[4]}; the nearest crop is {near}"
            )


def _nearest(pixels: int, stride: int) -> int:
    return max(1, (pixels + stride // 2) // stride) * stride
