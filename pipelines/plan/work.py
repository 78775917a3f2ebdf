"""What a run has to do, counted from its recipe: no machine comes into it."""

from dataclasses import dataclass

import torch

from vast.data.order import split_global_batch, steps_per_epoch
from vast.models.cost import count_kept_bytes, count_macs, count_params
from vast.models.variants import create_model
from vast.train.config import TrainConfig

FORWARD_AND_BACKWARD = 3
"""Work of a training step, in forward passes: the backward pass has two products for each one of the forward pass."""
FLOPS_PER_MAC = 2
ASSUMED_FLOPS = 60e12
"""What a GPU is assumed to keep up while it trains in bf16, in floating-point operations a second; not measured."""
_NUM_CLASSES = 1000  # the head is under a thousandth of the work
_HALF = {"bf16": 0.5, "fp16": 0.5, "fp32": 1.0}


@dataclass(frozen=True)
class Work:
    """A training run, as work; its evaluations, mostly forward passes of a small split, are left out."""

    macs: int
    """Multiply-adds of the forward pass of one clip."""
    samples: int
    """Samples of the training split."""
    repeats: int
    """Clips of each sample in an epoch."""
    epochs: int
    global_batch: int
    """Clips of a step over all ranks."""
    max_micro_batch: int
    """Most clips in one pass of a rank."""
    clips_together: int
    """Neighbours in a batch that stay on one rank."""
    parameters: int
    """Learned values."""
    kept_bytes_per_clip: int
    """Activations of one clip that wait for the backward pass, in the run's precision."""
    state_bytes: int
    """Weights, gradients, optimizer state and averages of one rank."""

    @property
    def clips(self) -> int:
        """Clips trained on in all epochs."""
        return self.steps * self.global_batch

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.epochs * steps_per_epoch(self.samples, self.global_batch, self.repeats)

    @property
    def flops_per_clip(self) -> float:
        """Floating-point operations of the forward and backward pass of one clip."""
        return float(self.macs * FORWARD_AND_BACKWARD * FLOPS_PER_MAC)

    @property
    def gradient_bytes(self) -> int:
        """What the ranks sum up each step: gradients in fp32."""
        return 4 * self.parameters

    def split(self, ranks: int) -> tuple[int, int]:
        """Clips of a pass, and passes of a step, on each of so many ranks.

        Raises:
            UserError: they cannot share the global batch equally.
        """
        return split_global_batch(self.global_batch, ranks, self.max_micro_batch, self.clips_together)

    def memory_bytes(self, ranks: int) -> int:
        """State and activations of one rank; the device's context, libraries and scratch memory come on top."""
        return self.state_bytes + self.split(ranks)[0] * self.kept_bytes_per_clip

    @property
    def gpu_hours(self) -> float:
        """Hours of one GPU at the assumed speed, for `samples * repeats` clips an epoch."""
        return self.flops_per_clip * self.samples * self.repeats * self.epochs / ASSUMED_FLOPS / 3600

    def cost_in_words(self) -> str:
        """The cost in one line, as it stands in the heads of the recipes."""
        clips = f" x {self.repeats} clips" if self.repeats > 1 else ""
        samples = f"{self.samples:,}".replace(",", " ")
        hours = f"{self.gpu_hours:.0f}" if self.gpu_hours >= 10 else f"{self.gpu_hours:.1f}"
        return (
            f"{self.macs / 1e9:.1f} GMACs a clip x {samples} samples{clips} x {self.epochs} epochs, forward and "
            f"backward: {hours} GPU-hours at an assumed {ASSUMED_FLOPS / 1e12:.0f} TFLOP/s, not measured"
        )


def work_of(config: TrainConfig, samples: int) -> Work:
    """What training costs on a split of so many samples; runs on tensors without data."""
    optim, side = config.optim, config.data.crop_size
    with torch.device("meta"):
        model = create_model(config.model, _NUM_CLASSES)
    shape = (1, 3, config.data.num_frames, side, side)
    parameters = count_params(model)
    # fp32 weights and gradients; AdamW keeps two moments, SGD one; a moving average is one more copy
    copies = 2 + (2 if optim.name == "adamw" else 1) + (1 if optim.ema_decay else 0)
    return Work(
        macs=count_macs(model, shape),
        samples=samples,
        repeats=config.data.repeats,
        epochs=optim.epochs,
        global_batch=optim.global_batch,
        max_micro_batch=optim.max_micro_batch,
        clips_together=config.data.clips_together,
        parameters=parameters,
        kept_bytes_per_clip=round(_HALF[optim.precision] * count_kept_bytes(model, shape)),
        state_bytes=4 * copies * parameters,
    )
