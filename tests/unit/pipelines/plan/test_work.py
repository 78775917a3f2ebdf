from dataclasses import replace

import pytest

from pipelines.plan.work import work_of
from pipelines.recipe_table import shipped_config
from vast.models.variants import create_model

CONFIG = shipped_config("demo_finetune_ssv2")


def test_a_cost_is_multiply_adds_times_two_times_three():
    # 10 GMACs x 2 x 3 = 60 GFLOP a clip; at 60 TFLOP/s a GPU trains on 1000 clips a second
    one = replace(work_of(CONFIG, 640), macs=10_000_000_000, samples=36_000, repeats=2, epochs=50)
    assert one.gpu_hours == pytest.approx(1.0)
    assert one.cost_in_words() == (
        "10.0 GMACs a clip x 36 000 samples x 2 clips x 50 epochs, forward and backward: "
        "1.0 GPU-hours at an assumed 60 TFLOP/s, not measured"
    )


def test_state_is_weights_gradients_moments_and_average():
    parameters = sum(p.numel() for p in create_model(CONFIG.model, 1000).parameters())

    def state(**changes):
        return work_of(CONFIG.model_copy(update={"optim": CONFIG.optim.model_copy(update=changes)}), 640).state_bytes

    assert state(name="adamw", ema_decay=0.0) == 4 * 4 * parameters
    assert state(name="sgd", ema_decay=0.0) == 4 * 3 * parameters
    assert state(name="adamw", ema_decay=0.99) == 4 * 5 * parameters


def test_half_precision_keeps_half_of_the_activations():
    half = CONFIG.model_copy(update={"optim": CONFIG.optim.model_copy(update={"precision": "bf16"})})
    whole = work_of(CONFIG, 640).kept_bytes_per_clip
    assert work_of(half, 640).kept_bytes_per_clip == pytest.approx(whole / 2, abs=1)


def test_steps_are_those_of_the_run():
    work = work_of(CONFIG, 650)
    assert work.steps == CONFIG.optim.epochs * (650 // CONFIG.optim.global_batch)
    assert work.clips == work.steps * CONFIG.optim.global_batch
