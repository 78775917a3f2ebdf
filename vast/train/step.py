"""One optimizer step on one rank: from its micro-batches to new weights, without waiting for the device.

Dimensions: B clips · C channels · T frames · H rows · W columns · K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vast.data.augment import apply_augment
from vast.data.mix import mix
from vast.data.reader import TrainBatch
from vast.models.vast import Vast
from vast.train.checkpoint import TrainState
from vast.train.config import TrainConfig
from vast.train.drop import Dropper
from vast.train.job import Place
from vast.train.loss import weighted_losses
from vast.train.optim import learning_rate, set_learning_rate
from vast.train.stall import Stopwatch

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
READER_PARTS = ("store", "decode", "crop")


class Pending:
    """A step's figures on their way from the other ranks and the device."""

    def __init__(self, figures: Tensor, sum_: dist.Work | None, norm: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._sum = sum_
        self._parts = (figures, norm.reshape(1))
        if figures.is_cuda:
            if sum_ is not None:
                sum_.wait()  # the stream waits, this process does not
            numbers = torch.cat(self._parts)
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it so
            self._arrived.record()

    def values(self) -> list[float]:
        """The numbers; waits until they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
            return cast(list[float], self._host.tolist())
        if self._sum is not None:
            self._sum.wait()
        return cast(list[float], torch.cat(self._parts).tolist())


@dataclass(frozen=True)
class Taken:
    """A step that the device has been told to take; its figures are those of the global batch."""

    step: int
    lr: float
    batches: Sequence[TrainBatch]
    """This rank's micro-batches, without their clips."""
    losses: Sequence[Tensor]
    """loss_B of each micro-batch, on the device."""
    pending: Pending

    def figures(self) -> dict[str, float]:
        """loss, grad_norm, skipped samples, ranks that ask to stop, and a reader's seconds; waits for the device."""
        return dict(zip(("loss", "skipped", "stop", *READER_PARTS, "grad_norm"), self.pending.values(), strict=True))


class Stepper:
    """Takes steps: forward and backward passes of all micro-batches, one sum over the ranks, one update.

    A step whose gradient is not finite leaves weights and optimizer as they are. That is decided on the device from
    the norm of the summed gradient, which is the same on all ranks, so it costs neither a message nor a wait.

    Args:
        config: what to compute.
        place: this rank.
        state: what is updated; its weights must be in place, as they are sent to all ranks here.
        micro_batch: clips of a micro-batch.
        accumulation: micro-batches of a step.
        stopwatch: told where the time goes.
    """

    def __init__(
        self,
        config: TrainConfig,
        place: Place,
        state: TrainState,
        *,
        steps_per_epoch: int,
        micro_batch: int,
        accumulation: int,
        stopwatch: Stopwatch,
    ) -> None:
        self.config, self.place, self.state, self.stopwatch = config, place, state, stopwatch
        self.steps_per_epoch = steps_per_epoch
        self.model: Vast = state.model
        self.dropper = Dropper(self.model, config.seed)
        self.autocast = AUTOCAST[config.optim.precision]
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        if config.optim.compile:
            # Block by block: equal blocks share the compiled code, and gradients still leave as they become ready.
            for block in self.model.blocks():
                block.compile()
        self.network: nn.Module = self.model
        if place.num_ranks > 1:
            self.network = DistributedDataParallel(
                self.model,
                gradient_as_bucket_view=True,
                # With micro-batches that are not summed over ranks, torch 2.13 fails an internal assertion
                # (pytorch issue 143580); compiled code counts its gradients differently (issue 93672).
                static_graph=accumulation == 1 and not config.optim.compile,
            )
            self._rehearse(micro_batch)
            stopwatch.mark_last_gradient(self.model.first_layer())

    def _rehearse(self, micro_batch: int) -> None:
        """Let DDP see two backward passes, which are thrown away.

        After the first one (the second, where the graph is static) it sorts gradients into other buckets, and the order
        in which more than two ranks are summed up depends on a gradient's place in its bucket: without a rehearsal the
        first step after a resume differed in the last bit from that of a run that was not interrupted.
        """
        data = self.config.data
        clip_BCTHW = torch.zeros(
            (micro_batch, 3, data.num_frames, data.crop_size, data.crop_size), device=self.place.device
        )
        keep = self.dropper.draw(0, torch.arange(micro_batch), self.place.device)
        for _ in range(2):
            with torch.autocast(self.place.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                logits_BK = self.network(clip_BCTHW, keep)
            logits_BK.sum().backward()

    def __call__(self, step: int, micro_batches: Sequence[TrainBatch], wants_stop: bool) -> Taken:
        """Take `step` (0-based)."""
        state, config = self.state, self.config
        lr = learning_rate(step, config.optim, self.steps_per_epoch)
        set_learning_rate(state.optimizer, lr)
        state.optimizer.zero_grad(set_to_none=True)
        losses = []
        for number, batch in enumerate(micro_batches, start=1):
            last = number == len(micro_batches)
            if isinstance(self.network, DistributedDataParallel):
                self.network.require_backward_grad_sync = last  # what DDP.no_sync() sets
            losses.append(self._backward(step, batch))
            self.stopwatch.mark("all_reduce" if last and self.place.num_ranks > 1 else "compute")
        norm = self._update(step)
        pending = Pending(*self._figures(micro_batches, losses, wants_stop), norm)
        self.stopwatch.mark("compute")
        without_clips = [replace(batch, clip_BCTHW=batch.clip_BCTHW.new_empty(0)) for batch in micro_batches]
        return Taken(step, lr, without_clips, losses, pending)

    def _backward(self, step: int, batch: TrainBatch) -> Tensor:
        """Add the gradient of one micro-batch; loss_B."""
        device = self.place.device
        clip_BCTHW, label_B, weight_B = (
            part.to(device, non_blocking=True) for part in (batch.clip_BCTHW, batch.label_B, batch.weight_B)
        )
        self.stopwatch.mark("to_device")
        data, config = self.config.data, self.config.optim
        clip_BCTHW, target_BK = mix(
            apply_augment(clip_BCTHW, batch.augment, data.mean, data.std),
            label_B,
            batch.weight_B,
            batch.position_B,
            num_classes=self.model.num_classes,
            config=data.augment,
            seed=self.config.seed,
            step=step,
            label_smoothing=config.label_smoothing,
        )
        keep = self.dropper.draw(step, batch.position_B, device)
        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            logits_BK = self.network(clip_BCTHW, keep)
        loss_B = weighted_losses(logits_BK, target_BK, weight_B)
        # Over the global batch; and DDP takes the mean over the ranks, where the sum is meant.
        loss = loss_B.sum() * (self.place.num_ranks / config.global_batch)
        self.state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss_B.detach()

    def _update(self, step: int) -> Tensor:
        """Clip and update, or skip; the gradient's norm before clipping."""
        state = self.state
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip_norm or float("inf"))
        # The fused optimizers do nothing where found_inf is 1, as they do for a GradScaler.
        optimizer: Any = state.optimizer
        optimizer.grad_scale, optimizer.found_inf = None, (~norm.isfinite()).to(torch.float32)
        optimizer.step()
        state.scaler.update()
        if state.ema is not None:
            state.ema.update(self.model, step)
        return norm

    def _figures(
        self, micro_batches: Sequence[TrainBatch], losses: Sequence[Tensor], wants_stop: bool
    ) -> tuple[Tensor, dist.Work | None]:
        """What ranks tell each other after each step, in one message that is on its way while the next step begins."""
        loss = torch.stack([loss_B.sum() for loss_B in losses]).sum() / self.config.optim.global_batch
        skipped = sum(len(batch.skipped) for batch in micro_batches)
        seconds = [sum(batch.times.get(part, 0.0) for batch in micro_batches) for part in READER_PARTS]
        told = torch.tensor([skipped, wants_stop, *seconds], dtype=torch.float32)
        figures = torch.cat([loss.reshape(1), told.to(loss.device, non_blocking=True)])
        return figures, dist.all_reduce(figures, async_op=True) if self.place.num_ranks > 1 else None
