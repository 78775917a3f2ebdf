"""Steps on a GPU: close to those on a CPU, without waiting for the device, and with times that add up."""

import pytest
import torch

from vast.data.reader import TrainBatch
from vast.models.variants import create_model
from vast.train.checkpoint import TrainState
from vast.train.config import TrainConfig
from vast.train.ema import Ema
from vast.train.job import Place
from vast.train.optim import build_optimizer
from vast.train.stall import PARTS, Stopwatch
from vast.train.step import Stepper

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def batches(num_clips):
    generator = torch.Generator().manual_seed(0)
    clip_BCTHW = torch.randint(0, 256, (num_clips, 3, 4, 32, 32), generator=generator, dtype=torch.uint8)
    label_B = torch.arange(num_clips) % 5
    number_B = torch.arange(num_clips)
    whole = TrainBatch(0, 0, number_B, clip_BCTHW.pin_memory(), label_B, number_B, torch.ones(num_clips))
    return [whole]


def stepper_on(device, precision="fp32"):
    config = TrainConfig.model_validate(
        {
            "name": "gpu",
            "model": {"name": "vast_micro", "drop_path": 0.2},
            "data": {"url": "none", "num_frames": 4, "crop_size": 32, "eval_short_side": 32},
            "optim": {"name": "sgd", "lr": 0.05, "warmup_epochs": 0, "global_batch": 8, "precision": precision},
        }
    )
    torch.manual_seed(0)
    model = create_model(config.model, num_classes=5).to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    state = TrainState(model, build_optimizer(model, config.optim), ema=Ema(model, 0.9), scaler=scaler)
    return Stepper(
        config,
        Place(device=device),
        state,
        steps_per_epoch=100,
        micro_batch=8,
        accumulation=1,
        stopwatch=Stopwatch(device),
    )


def weights(stepper):
    return torch.cat([p.detach().cpu().flatten() for p in stepper.model.parameters()])


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2), ("fp16", 2e-2)])
def test_three_steps_are_close_to_those_on_a_cpu(precision, tolerance):
    exact, found = stepper_on(torch.device("cpu")), stepper_on(torch.device("cuda"), precision)
    for step in range(3):
        losses = [s(step, batches(8), wants_stop=False).figures()["loss"] for s in (exact, found)]
        assert losses[1] == pytest.approx(losses[0], rel=0.1)
    torch.testing.assert_close(weights(found), weights(exact), rtol=0, atol=tolerance)


def test_a_step_does_not_wait_for_the_device():
    stepper, batch = stepper_on(torch.device("cuda")), batches(8)
    stepper(0, batch, wants_stop=False).figures()  # the first one compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        taken = stepper(1, batch, wants_stop=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert taken.figures()["loss"] > 0


def test_parts_of_a_step_are_seconds_of_the_device():
    stepper = stepper_on(torch.device("cuda"))
    for step in range(3):
        stepper.stopwatch.mark("wait")
        stepper(step, batches(8), wants_stop=False)
    seconds = stepper.stopwatch.take()
    assert set(seconds) == set(PARTS)
    assert min(seconds.values()) >= 0.0
    assert seconds["compute"] > 0.0
