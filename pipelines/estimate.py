"""What a recipe costs, computed: multiply-adds of its clips, and GPU-hours at an assumed speed."""

from dataclasses import dataclass

import torch

from vast.models.cost import count_macs
from vast.models.variants import create_model
from vast.train.config import TrainConfig

FORWARD_AND_BACKWARD = 3
"""Work of a training step, in forward passes: the backward pass has two products for each one of the forward pass."""
FLOPS_PER_MAC = 2
ASSUMED_FLOPS = 60e12
"""What a GPU is assumed to keep up while it trains in bf16, in floating-point operations a second; not measured."""


@dataclass(frozen=True)
class Estimate:
    """The cost of a training run; its evaluations, mostly forward passes of a small split, are left out."""

    macs: int
    """Multiply-adds of the forward pass of one clip."""
    samples: int
    """Samples of the training split."""
    repeats: int
    """Clips of each sample in an epoch."""
    epochs: int

    @property
    def gpu_hours(self) -> float:
        """Hours of one GPU at the assumed speed."""
        clips = self.samples * self.repeats * self.epochs
        return self.macs * clips * FORWARD_AND_BACKWARD * FLOPS_PER_MAC / ASSUMED_FLOPS / 3600

    def __str__(self) -> str:
        clips = f" x {self.repeats} clips" if self.repeats > 1 else ""
        samples = f"{self.samples:,}".replace(",", " ")
        return (
            f"{self.macs / 1e9:.1f} GMACs a clip x {samples} samples{clips} x {self.epochs} epochs, forward and "
            f"backward: {self.hours_text()} GPU-hours at an assumed {ASSUMED_FLOPS / 1e12:.0f} TFLOP/s, not measured"
        )

    def hours_text(self) -> str:
        """The hours of one GPU, rounded as the assumption deserves."""
        return f"{self.gpu_hours:.0f}" if self.gpu_hours >= 10 else f"{self.gpu_hours:.1f}"


def estimate(config: TrainConfig, samples: int) -> Estimate:
    """Return what training costs on a split of so many samples; runs on torch's meta device."""
    with torch.device("meta"):
        model = create_model(config.model, num_classes=1000)  # the head is under a thousandth of the work
    side = config.data.crop_size
    macs = count_macs(model, (1, 3, config.data.num_frames, side, side))
    return Estimate(macs, samples, config.data.repeats, config.optim.epochs)
