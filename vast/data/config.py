"""What the data path can be told."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pixels = Annotated[int, Field(ge=1, le=4096)]
UnitInterval = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=10)]
Channel = Annotated[float, Field(ge=-1, le=2)]
Deviation = Annotated[float, Field(gt=0, le=2)]


class DataConfig(BaseModel):
    """Which data set, and how a clip is cut out of a sample."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: str = Field(min_length=1)
    """Prefix of the training data set: s3://bucket/prefix or a local folder."""
    eval_url: str = ""
    """Prefix of the evaluation data set; empty: the training data set's."""
    train_split: str = Field(default="train", min_length=1)
    """Split that is trained on."""
    eval_split: str = Field(default="val", min_length=1)
    """Split that is evaluated."""
    allow_leaks: bool = False
    """Train although source videos of the training split are in the evaluation split too."""

    num_frames: int = Field(default=16, ge=1, le=1024)
    """Frames of a clip."""
    sampling: Literal["uniform", "dense"] = "dense"
    """uniform: one frame of each equal segment of the video (SSv2); dense: one window, frames `frame_stride` apart."""
    frame_stride: int = Field(default=4, ge=1, le=256)
    """Source frames between two clip frames, at the data set's own rate, so not a fixed time; only dense uses it."""

    crop_size: Pixels = 224
    """Side of the square clip that the model sees, pixels."""
    train_crop: Literal["resized", "jittered"] = "resized"
    """resized: a box of random area and shape; jittered: a random square after scaling the short side randomly."""
    crop_area: tuple[UnitInterval, UnitInterval] = (0.08, 1.0)
    """Smallest and largest share of the frame's area in a resized crop."""
    crop_aspect: tuple[Ratio, Ratio] = (0.75, 4 / 3)
    """Narrowest and widest shape of a resized crop, width / height in source pixels."""
    train_short_side: tuple[Pixels, Pixels] = (256, 320)
    """Smallest and largest short side before a jittered crop, pixels."""
    eval_short_side: Pixels = 256
    """Short side before the crops of an evaluation, pixels; equal to `crop_size`, a crop spans the short side."""
    flip: Literal["none", "plain", "label_aware"] = "label_aware"
    """Horizontal flip of every second clip; label_aware also swaps classes that name left and right."""

    mean: tuple[Channel, Channel, Channel] = (0.485, 0.456, 0.406)
    """Mean of red, green, blue, of values in 0..1; the default is ImageNet's, as image weights start the model."""
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green, blue, of values in 0..1."""

    num_readers: int = Field(default=2, ge=0, le=256)
    """Reader processes of each rank; 0 decodes in the training process."""
    reader_timeout_s: float = Field(default=300.0, gt=0, le=86400, allow_inf_nan=False)
    """Seconds to wait for a reader's batch before it counts as hung; without readers nothing can be interrupted."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        problems = []
        for name in ("crop_area", "crop_aspect", "train_short_side"):
            low, high = getattr(self, name)
            if low > high:
                problems.append(f"{name}: {low} is above {high}; write the smaller one first")
        # A crop side above the short side would need pixels that are not there.
        if self.train_crop == "jittered" and self.train_short_side[0] < self.crop_size:
            problems.append(f"train_short_side: {self.train_short_side[0]} is below crop_size {self.crop_size}")
        if self.eval_short_side < self.crop_size:
            problems.append(f"eval_short_side: {self.eval_short_side} is below crop_size {self.crop_size}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def resolved_eval_url(self) -> str:
        """Where evaluation reads from."""
        return self.eval_url or self.url
