"""Which views of a video are scored, and at which scale: named protocols as data, and any TxS besides.

Projects write the factors in either order and resize differently before cropping, and both move the score. So a
protocol here always says all of it: temporal clips x spatial crops, the short side, the crop, and that scores are means
of softmax over the views. Where one dense clip lies differs too: here in the middle of the video, X-ViT's at frame 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vast.data.config import DataConfig
from vast.data.sampling import Views, views
from vast.errors import UserError

FUSION = "mean of softmax over the views"
# Sides are given for models that were trained on crops of this side, and scaled for others.
REFERENCE_CROP = 224


@dataclass(frozen=True)
class NamedProtocol:
    """What projects report under one name; sides in pixels, for a model of `REFERENCE_CROP`."""

    views: Views
    short_side: int
    """To this the short side is resized; equal to `crop`, the crops span it."""
    crop: int
    sampling: Literal["dense", "uniform"]
    """How the models reported with it draw their frames."""
    used_by: str
    """Who reports with these clips and crops. Sides and fusion are theirs too unless a project departs from its family:
    X3D tests on larger crops than it trains on, TokShift takes the mean of logits."""


# In the SlowFast family three crops span the short side, and one crop is the centre of a short side of 256.
NAMED: Mapping[str, NamedProtocol] = {
    "k400-1x1": NamedProtocol(Views(1, 1), 256, 224, "dense", "no published score; a quick look while training"),
    "k400-1x3": NamedProtocol(Views(1, 3), 224, 224, "dense", "TimeSformer, X-ViT"),
    "k400-4x1": NamedProtocol(Views(4, 1), 256, 224, "dense", "UniFormer, MorphMLP"),
    "k400-4x3": NamedProtocol(Views(4, 3), 224, 224, "dense", "Video-Swin"),
    "k400-5x1": NamedProtocol(Views(5, 1), 256, 224, "dense", "MViT"),
    "k400-5x3": NamedProtocol(Views(5, 3), 224, 224, "dense", "VideoMAE"),
    "k400-10x1": NamedProtocol(Views(10, 1), 256, 224, "dense", "X3D, SlowFast"),
    "k400-10x3": NamedProtocol(Views(10, 3), 224, 224, "dense", "X3D, SlowFast, TokShift"),
    "ssv2-1x1": NamedProtocol(Views(1, 1), 256, 224, "uniform", "no published score; a quick look while training"),
    "ssv2-1x3": NamedProtocol(Views(1, 3), 224, 224, "uniform", "MViTv2, Video-Swin, UniFormer, TimeSformer, MorphMLP"),
    "ssv2-2x3": NamedProtocol(Views(2, 3), 224, 224, "uniform", "VideoMAE, X-ViT"),
    "ssv2-2x3-fullres": NamedProtocol(Views(2, 3), 256, 256, "uniform", "TSM"),
}


@dataclass(frozen=True)
class EvalProtocol:
    """A protocol for one model: everything about a view but the frames that a clip takes."""

    name: str
    """As it was asked for."""
    views: Views
    short_side: int
    """To this the short side is resized, pixels."""
    crop_size: int
    """Side of the square crops, pixels."""
    scale_from: str
    """Who decided the sides, for people."""

    def applied_to(self, config: DataConfig) -> DataConfig:
        """Return the config with this protocol's sides."""
        return config.model_copy(update={"eval_short_side": self.short_side, "crop_size": self.crop_size})

    def batch_videos(self, most_videos: int, most_clips: int) -> int:
        """Return how many videos make a batch whose views are at most `most_clips` clips, but at least one video."""
        return max(1, min(most_videos, most_clips // len(self.views)))

    def __str__(self) -> str:
        clips = f"{self.views.temporal} temporal clip{'s' * (self.views.temporal > 1)}"
        crops = f"{self.views.spatial} spatial crop{'s' * (self.views.spatial > 1)}"
        return (
            f"{clips} x {crops} = {len(self.views)} view{'s' * (len(self.views) > 1)}; "
            f"short side {self.short_side}, crop {self.crop_size} ({self.scale_from}); {FUSION}"
        )


def resolve_protocol(text: str, config: DataConfig) -> EvalProtocol:
    """Return the protocol `text` for a model that was trained with `config`.

    A named one brings its sides; a bare TxS, such as 4x3, takes the recipe's `crop_size` and `eval_short_side`.

    Raises:
        UserError: There is no such protocol, or the models reported with it draw their frames otherwise.
    """
    named = NAMED.get(text)
    if named is None:
        return EvalProtocol(
            text, _bare(text), config.eval_short_side, config.crop_size, "sides of the recipe: data.eval_short_side"
        )
    if named.sampling != config.sampling:
        raise UserError(
            f"protocol: {text} is for models with data.sampling={named.sampling}, this one has {config.sampling}: its "
            f"score would not be what others report under that name; use {named.views} for the same number of views"
        )
    return EvalProtocol(text, named.views, *_sides(named, config.crop_size), f"as {text}")


def check_protocol(text: str) -> None:
    """Raise UserError where `resolve_protocol` would for any model."""
    if text not in NAMED:
        _bare(text)


def _bare(text: str) -> Views:
    try:
        return views(text)
    except UserError as error:
        raise UserError(f"{error}, or one of: {', '.join(NAMED)}") from error


def _sides(named: NamedProtocol, crop_size: int) -> tuple[int, int]:
    short_side, crop = (round(side * crop_size / REFERENCE_CROP) for side in (named.short_side, named.crop))
    return short_side, crop
