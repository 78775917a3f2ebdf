"""The named sizes, the switches of the model, and the factory.

The paper (arXiv 2208.11108) gives the idea of the Affine-Shift block; its widths, depths and exact formulas are not
known to us. Every number here is therefore our choice, and everything in which the block could differ is a switch.

Nothing here imports torch before `create_model` is called, so that recipes can be checked and listed at once.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vast.errors import UserError

if TYPE_CHECKING:
    from vast.models.shift import Axes
    from vast.models.vast import Vast


@dataclass(frozen=True)
class Size:
    """Widths and depths of a pyramid; one entry a stage. Each stage after the first halves height and width."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratio: int
    patch_size: int
    """Pixels along each side of a patch of the first stage; a patch never spans frames."""
    source: str
    """Whose choice the numbers are, and which published model they are matched to. The paper's are not known to us."""

    @property
    def total_stride(self) -> int:
        """Pixels along each side of one token of the last stage; height and width must be multiples of it."""
        return self.patch_size << (len(self.dims) - 1)


_PYRAMIDS = {
    "micro": Size(
        (32, 64, 96), (1, 3, 2), 2, 4, "our choice, matched to no peer: small clips (8 frames of 64x64 pixels) on a CPU"
    ),
    "ti": Size(
        (64, 128, 320, 512),
        (2, 2, 6, 2),
        4,
        4,
        "our choice, matched to CycleMLP-B1 (15 M parameters, 2.1 GMACs an image); widths and depths of PoolFormer-S12",
    ),
    "s": Size(
        (64, 128, 320, 512),
        (3, 4, 12, 3),
        4,
        4,
        "our choice, matched to CycleMLP-B2 (27 M parameters, 3.9 GMACs an image) and, at 16 frames, to MViTv2-S "
        "(64.2 GMACs a view); widths of ti",
    ),
    "b": Size(
        (96, 192, 384, 768),
        (3, 4, 18, 3),
        4,
        4,
        "our choice, matched to AS-MLP-S (50 M parameters, 8.5 GMACs an image); Swin-T's widths, CycleMLP-B3's depths",
    ),
}
SIZES: dict[str, Size] = {f"{family}_{name}": size for family in ("ast", "vast") for name, size in _PYRAMIDS.items()}
"""AST (images) and VAST (clips) share the table, so that a VAST can start from the AST of its size."""


def _find_size(name: str) -> Size:
    if name not in SIZES:
        close = difflib.get_close_matches(name, SIZES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"model.name: there is no model {name!r}.{hint} Known models: {', '.join(SIZES)}.")
    return SIZES[name]


_SWITCHES_OF = {
    "window_size": ("window_attention",),
    "shift_fraction": ("affine_shift", "tsm"),
    **dict.fromkeys(
        (
            "temporal_shift",
            "vertical_shift",
            "horizontal_shift",
            "shift_border",
            "scale",
            "scale_pool",
            "bias",
            "bias_kernel",
            "affine_input",
        ),
        ("affine_shift",),
    ),
}
"""Fields that only some mixers read; elsewhere a value of one's own would silently do nothing."""


class ModelConfig(BaseModel):
    """A size and the switches of the Affine-Shift block. Every default is our choice, not the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Size, a key of the model table: ast_* for images, vast_* for clips."""
    mixer: Literal[
        "affine_shift", "joint_attention", "divided_attention", "window_attention", "tsm", "pooling", "conv3d"
    ] = "affine_shift"
    """What mixes tokens in each block: ours, or a peer's mixer in the same skeleton, to compare them."""
    window_size: tuple[int, int, int] = (8, 7, 7)
    """Frames, rows and columns of tokens in a window of window_attention."""
    temporal_shift: bool = True
    """Whether two channel groups move along time. Without it (and with a 1x3x3 bias) frames are an unordered bag."""
    vertical_shift: bool = True
    """Whether two channel groups move along the height."""
    horizontal_shift: bool = True
    """Whether two channel groups move along the width."""
    shift_fraction: float = Field(default=0.125, ge=0.0, le=0.25)
    """Fraction of the channels that move in each direction, rounded down to whole groups (multiples of 8 channels where
    that leaves at least 8). There are four directions in space and two in time."""
    shift_border: Literal["zero", "replicate"] = "zero"
    """What moves in at the border of the token grid: zeros, or a copy of the outermost token."""
    scale: bool = True
    """Whether the shifted values are multiplied by a data-dependent scale per channel (else by 1)."""
    scale_pool: Literal["clip", "frame"] = "clip"
    """Tokens averaged to compute the scale: the whole clip, or each frame by itself."""
    bias: bool = True
    """Whether a data-dependent bias per token and channel, a depth-wise convolution, is added (else 0)."""
    bias_kernel: Literal["1x3x3", "3x3x3"] = "1x3x3"
    """Extent of the depth-wise convolution over (frames, rows, columns)."""
    affine_input: Literal["v", "s"] = "v"
    """What scale and bias are computed from: the values before the shift (v) or after it (s)."""
    output_projection: bool = True
    """Whether a linear layer follows the scale and bias."""
    position_encoding: bool = False
    """Whether each block starts with x + DWConv3x3(x) within each frame (conditional position encoding). Without it,
    position comes from the borders alone: the zeros that shift and bias see there."""
    layer_scale: float | None = Field(default=None, gt=0.0)
    """Initial value of a learned factor per channel on both residual branches; none leaves the factor out."""
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability that a sample skips the residual branches of the last block; grows linearly from 0 at the first."""
    head_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout probability before the classifier."""
    recompute: bool = False
    """Whether blocks are recomputed in the backward pass: less activation memory for about a third more time."""

    @property
    def size(self) -> Size:
        """Widths and depths of the named size."""
        return _find_size(self.name)

    @property
    def is_image_model(self) -> bool:
        """Whether the model is an AST, which takes single frames only."""
        return self.name.startswith("ast_")

    @property
    def shift_axes(self) -> Axes:
        """Axes along which the Affine-Shift block moves channels."""
        moves = {
            "h": self.vertical_shift,
            "w": self.horizontal_shift,
            "t": self.temporal_shift and not self.is_image_model,
        }
        return cast("Axes", "".join(axis for axis, on in moves.items() if on))

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str) -> str:
        _find_size(name)
        return name

    @field_validator("window_size")
    @classmethod
    def _window_is_positive(cls, window_size: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(window_size) < 1:
            raise ValueError("each side of the window must be at least 1")
        return window_size

    @model_validator(mode="after")
    def _switches_have_an_effect(self) -> Self:
        idle = [
            f"model.{name}={getattr(self, name)}"
            for name, mixers in _SWITCHES_OF.items()
            if self.mixer not in mixers and getattr(self, name) != type(self).model_fields[name].default
        ]
        if idle:
            raise ValueError(f"no effect with model.mixer={self.mixer}, so remove it: {', '.join(idle)}")
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.mixer == "affine_shift" and "t" in self.shift_axes and self.shift_fraction > 1 / 6:
            raise ValueError(
                f"model.shift_fraction is {self.shift_fraction}, but six directions share the channels, so it must be "
                "at most 1/6 (0.1666); lower it, or set model.temporal_shift=false (then at most 0.25)"
            )
        return self


def create_model(config: ModelConfig | str, num_classes: int, **changes: Any) -> Vast:
    """Build a model with fresh weights from a configuration or the name of a size.

    Args:
        config: a configuration, or a name for the default configuration of that size.
        num_classes: width of the classifier.
        **changes: fields of `ModelConfig` that replace those of `config`.

    Raises:
        UserError: for an unknown name or an impossible setting; the message names each field.
    """
    from vast.models.vast import Vast  # here, so that the table and the configuration need no torch

    fields: dict[str, Any] = {"name": config} if isinstance(config, str) else config.model_dump()
    _find_size(fields["name"])
    try:
        resolved = ModelConfig.model_validate({**fields, **changes})
    except ValidationError as error:
        problems = [f"model.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        known = ", ".join(ModelConfig.model_fields)
        raise UserError("\n".join([*problems, f"Known fields of model: {known}."])) from None
    return Vast(resolved, num_classes)
