"""What the data path can be told."""

from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pixels = Annotated[int, Field(ge=1, le=4096)]
UnitInterval = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=10)]
Channel = Annotated[float, Field(ge=-1, le=2)]
Deviation = Annotated[float, Field(gt=0, le=2)]
Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]
Concentration = Annotated[float, Field(ge=0, le=100)]
RandAugmentOp = Literal[
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
]


def _unordered(config: BaseModel, *names: str) -> list[str]:
    pairs = {name: getattr(config, name) for name in names}
    return [
        f"{name}: {low} is above {high}; write the smaller one first"
        for name, (low, high) in pairs.items()
        if low > high
    ]


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))


class AugmentConfig(BaseModel):
    """What happens to a training clip after crop and flip, on the model's device; by default nothing.

    All frames of a clip get the same operations with the same strengths.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rand_num_layers: int = Field(default=0, ge=0, le=16)
    """RandAugment: operations drawn for each clip, with replacement; 0: none. timm's n in rand-m7-n4-mstd0.5-inc1."""
    rand_magnitude: float = Field(default=7.0, ge=0, le=10)
    """RandAugment: mean strength of its operations, 0 (weak) to 10; timm's m."""
    rand_magnitude_std: float = Field(default=0.5, ge=0, le=10)
    """RandAugment: standard deviation of the strength, which then is cut off at 0 and 10; timm's mstd."""
    rand_prob: Probability = 0.5
    """RandAugment: probability that an operation that was drawn is carried out."""
    rand_ops: tuple[RandAugmentOp, ...] = Field(default=get_args(RandAugmentOp), min_length=1)
    """RandAugment: operations to draw from; one that stands twice is drawn twice as often. Default: timm's 15 "inc"."""

    color_jitter_prob: Probability = 1.0
    """Probability that a clip's colours are jittered, by the next four fields in random order."""
    brightness: Strength = 0.0
    """Colour jitter: brightness is multiplied by a uniform draw from 1 - this to 1 + this; 0: unchanged."""
    contrast: Strength = 0.0
    """Colour jitter: the distance from each frame's mean grey is multiplied likewise; 0: unchanged."""
    saturation: Strength = 0.0
    """Colour jitter: the distance from each pixel's grey is multiplied likewise; 0: unchanged."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Colour jitter: largest turn of the hue in either direction, as a share of the colour circle; 0: unchanged."""
    grayscale_prob: Probability = 0.0
    """Probability that a clip becomes grey."""

    erase_prob: Probability = 0.0
    """Random erasing: probability that boxes of a clip are filled, the same boxes in all its frames."""
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"
    """Random erasing, of normalised values: pixel: normal noise; rand: one normal colour a box; const: the mean, 0."""
    erase_count: int = Field(default=1, ge=1, le=16)
    """Random erasing: boxes in an erased clip, which share the area between them."""
    erase_area: tuple[UnitInterval, UnitInterval] = (0.02, 1 / 3)
    """Random erasing: smallest and largest share of the frame's area."""
    erase_aspect: tuple[Ratio, Ratio] = (0.3, 1 / 0.3)
    """Random erasing: narrowest and widest shape of a box, height / width."""

    mixup_alpha: Concentration = 0.0
    """Mixup: both parameters of the Beta distribution of a pair's share; 0: no mixup. Usual: 0.8."""
    cutmix_alpha: Concentration = 0.0
    """Cutmix: the same for the share of the area that stays; 0: no cutmix. Usual: 1."""
    mix_prob: Probability = 1.0
    """Probability that a pair of clips is mixed at all, where mixup or cutmix is on."""
    switch_prob: Probability = 0.5
    """Probability of cutmix rather than mixup for a pair, where both are on."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        _raise(_unordered(self, "erase_area", "erase_aspect"))
        return self

    @property
    def mixes(self) -> bool:
        """Whether clips are mixed in pairs; micro-batches must be even then."""
        return self.mix_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


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
    """Frames between two clip frames, at the rate `target_fps`; only dense uses it."""
    target_fps: float = Field(default=0.0, ge=0, le=1000, allow_inf_nan=False)
    """Rate at which `frame_stride` counts, as in SlowFast, where it is 30: clips of all videos last equally long; 0:
    each video's own rate. Only dense uses it."""

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

    augment: AugmentConfig = AugmentConfig()
    """Augmentation on the model's device."""
    repeats: int = Field(default=1, ge=1, le=64)
    """Clips drawn from each sample of a step, which is decoded once; an epoch has as many times more steps."""
    chunk_samples: int = Field(default=1, ge=1, le=65536)
    """Neighbours in a shard that stay together when an epoch is shuffled, to be read at once from a slow store."""

    max_skipped: float = Field(default=0.01, ge=0, le=1)
    """Share of the samples so far (at least of an epoch's) that may be skipped, as they cannot be decoded, before the
    run fails."""

    num_readers: int = Field(default=2, ge=0, le=256)
    """Reader processes of each rank; 0 decodes in the training process."""
    reader_timeout_s: float = Field(default=60.0, gt=0, le=86400, allow_inf_nan=False)
    """Seconds that a reader may take over one sample before it counts as hung; waiting for the store is not counted.
    Without readers nothing can be interrupted."""
    store_patience_s: float = Field(default=300.0, ge=0, le=86400, allow_inf_nan=False)
    """Seconds for which a store that does not answer is asked again before the run fails."""
    cache_dir: str = ""
    """Folder on this node's disk that keeps samples once read, shared by all its processes; empty: no cache."""
    cache_gb: float = Field(default=50.0, gt=0, le=1e6, allow_inf_nan=False)
    """Most that the folder may hold, in 1e9 bytes; the samples used longest ago make room."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        problems = _unordered(self, "crop_area", "crop_aspect", "train_short_side")
        # A crop side above the short side would need pixels that are not there.
        if self.train_crop == "jittered" and self.train_short_side[0] < self.crop_size:
            problems.append(f"train_short_side: {self.train_short_side[0]} is below crop_size {self.crop_size}")
        if self.eval_short_side < self.crop_size:
            problems.append(f"eval_short_side: {self.eval_short_side} is below crop_size {self.crop_size}")
        _raise(problems)
        return self

    def source_stride(self, video_fps: float) -> float:
        """Return how many frames of a video of this rate lie between two frames of a dense clip."""
        return self.frame_stride * video_fps / self.target_fps if self.target_fps else float(self.frame_stride)

    @property
    def clips_together(self) -> int:
        """Neighbours in a global batch that no rank and no micro-batch may part: copies of two samples, or a pair."""
        return 2 * self.repeats if self.repeats > 1 else 2 if self.augment.mixes else 1

    @property
    def resolved_eval_url(self) -> str:
        """Where evaluation reads from."""
        return self.eval_url or self.url
