"""What one step does, through whole short runs: the same update however it is cut up, or none at all."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from vast.data.augment import normalise
from vast.errors import UserError
from vast.models.blocks import Block
from vast.train import step as step_module
from vast.train.job import Place
from vast.train.loop import Run

EVERYTHING = {
    "model": {"name": "vast_micro", "drop_path": 0.3, "head_dropout": 0.2},
    "eval": {"batch_videos": 8, "every_epochs": 9},
}
SGD = {"name": "sgd", "lr": 0.1, "epochs": 1, "global_batch": 8, "max_micro_batch": 8}


@pytest.fixture
def train(tiny_config, recorder):
    """Train a changed config; the run and its log."""

    def train(name="run", stop_in_step=None, late=False, own=None, **changes):
        log = recorder(name, stop_in_step=stop_in_step, late=late)
        run = Run(tiny_config(**{**EVERYTHING, **changes}), Place(), log, log)
        run.outcome = run.fit(own)
        return run, log

    return train


def with_data(tiny_config, **changes):
    return {**tiny_config().model_dump()["data"], **changes}


def weights(run):
    return torch.cat([weight.flatten() for weight in run.state.published.state_dict().values()])


def test_a_step_is_plain_gradient_descent_on_the_mean_loss_of_the_global_batch(tiny_config, recorder):
    log = recorder()
    optim = {**SGD, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.0, "warmup_epochs": 0.0, "max_micro_batch": 2}
    model = {"name": "vast_micro"}
    run = Run(tiny_config(**{**EVERYTHING, "model": model}, optim=optim), Place(), log, log)
    same = Run(run.config, Place(), log, log)
    _, micro_batches = next(iter(run._batches()))
    run.stepper(0, micro_batches, wants_stop=False)
    data = run.config.data
    clip_BCTHW = normalise(torch.cat([batch.clip_BCTHW for batch in micro_batches]), data.mean, data.std)
    label_B = torch.cat([batch.label_B for batch in micro_batches])
    cross_entropy(same.model(clip_BCTHW), label_B).backward()
    for mine, theirs in zip(run.model.parameters(), same.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mixes", [False, True])
def test_micro_batches_change_weights_by_rounding_alone(train, tiny_config, mixes):
    augment = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "erase_prob": 0.5, "rand_num_layers": 2} if mixes else {}
    data = with_data(tiny_config, augment=augment)
    optim = {**SGD, "label_smoothing": 0.1, "ema_decay": 0.9, "layer_decay": 0.9}
    whole, log = train("whole", data=data, optim=optim)
    for size in (4, 2):
        parts, parts_log = train(f"parts{size}", data=data, optim={**optim, "max_micro_batch": size})
        torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-6)
        for step in (1, 2, 3):
            assert parts_log.figures[step]["train/loss"] == pytest.approx(log.figures[step]["train/loss"], rel=1e-5)
    fresh = Run(whole.config, Place(), log, log)
    assert (weights(fresh) - weights(whole)).abs().max() > 1e-3  # 1e-6 is not because nothing moved


def test_adamw_differs_by_rounding_too_except_where_a_gradient_is_nothing_but_rounding(train):
    """AdamW divides a gradient by its own size, so a weight whose true gradient is 0 moves by what rounding left."""
    optim = {**SGD, "name": "adamw", "lr": 1e-3}
    whole, _ = train("whole", optim=optim)
    parts, _ = train("parts", optim={**optim, "max_micro_batch": 2})
    difference = (weights(parts) - weights(whole)).abs()
    assert (difference < 1e-6).float().mean() > 0.999
    assert difference.max() < 1e-3


def spoil(monkeypatch, at_step, position, value=float("nan")):
    """Make one clip of some steps impossible, after augmentation."""
    mix = step_module.mix

    def spoiled(clip_BCTHW, label_B, weight_B, position_B, **rest):
        clip_BCTHW, target_BK = mix(clip_BCTHW, label_B, weight_B, position_B, **rest)
        if at_step(rest["step"]):
            clip_BCTHW[position_B == position] = value
        return clip_BCTHW, target_BK

    monkeypatch.setattr(step_module, "mix", spoiled)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_step_that_is_not_finite_is_skipped_and_counted(train, monkeypatch, optimizer, bad_step):
    spoil(monkeypatch, lambda step: step == bad_step, position=5)
    optim = {**SGD, "name": optimizer, "lr": 1e-3, "max_micro_batch": 4}
    run, log = train(optim=optim, checkpoint={"every_steps": 1}, late=True)
    log.write_all()
    saved = [torch.load(log.folder / f"step-{n}" / "train_state.pt", weights_only=True) for n in (1, 2, 3)]
    assert weights(run).isfinite().all()
    for state in saved:
        assert all(moment.isfinite().all() for parts in state["moments"].values() for moment in parts.values())
    assert [log.figures[n]["train/nonfinite"] for n in (1, 2, 3)] == [float(n > bad_step) for n in (1, 2, 3)]
    at_fault = saved[bad_step]["faults"]["row"][bad_step]
    assert len(at_fault) == 1  # the one clip whose own loss is not finite
    if bad_step == 2:
        moments = [state["moments"] for state in saved]
        assert all(
            torch.equal(a, b)
            for i in moments[1]
            for a, b in zip(moments[1][i].values(), moments[2][i].values(), strict=True)
        )


def test_too_many_in_a_row_end_the_run_and_the_weights_are_those_before(train, recorder, monkeypatch):
    spoil(monkeypatch, lambda step: step >= 1, position=2)
    with pytest.raises(UserError) as caught:
        train(optim={**SGD, "epochs": 2, "max_nonfinite": 2})
    lines = str(caught.value).splitlines()
    assert "not finite in 3 steps in a row, and 2 are allowed" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["step 1", "step 2", "step 3"]
    assert all(len(line.split(": ")[1].split(", ")) == 1 for line in lines[1:4])  # one key each


def test_the_row_goes_on_after_a_resume(train, monkeypatch):
    spoil(monkeypatch, lambda step: step >= 1, position=2)
    optim = {**SGD, "epochs": 2, "max_nonfinite": 2}
    _, log = train("first", optim=optim, stop_in_step=3)  # sees steps 0, 1, 2
    assert log.saved_steps == [3]
    with pytest.raises(UserError, match=r"3 steps in a row[\s\S]*step 1[\s\S]*step 3"):
        train("second", optim=optim, own=log.folder / "step-3")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_and_resumes_bit_for_bit(train, precision):
    optim = {**SGD, "lr": 0.01, "epochs": 2, "precision": precision}
    exact, _ = train("exact", optim={**optim, "precision": "fp32"})
    whole, log = train("whole", optim=optim, checkpoint={"every_steps": 2})
    rest, _ = train("rest", optim=optim, checkpoint={"every_steps": 2}, own=log.folder / "step-2")
    assert torch.equal(weights(whole), weights(rest))
    assert weights(whole).dtype == torch.float32
    if precision == "bf16":
        torch.testing.assert_close(weights(whole), weights(exact), rtol=0, atol=5e-3)
    else:
        assert log.figures[6]["optim/loss_scale"] == 2.0 ** (16 - log.figures[6]["train/overflow"])
        assert log.figures[6]["train/nonfinite"] == 0


def test_fp16_lowers_the_scale_when_only_the_gradient_overflows(tiny_config, recorder):
    log = recorder()
    run = Run(tiny_config(**EVERYTHING, optim={**SGD, "precision": "fp16"}), Place(), log, log)
    run.state.scaler.load_state_dict({**run.state.scaler.state_dict(), "scale": 2.0**40})
    run.fit()
    assert log.figures[3]["train/overflow"] == 3
    assert log.figures[3]["optim/loss_scale"] == 2.0**37
    assert log.figures[3]["train/nonfinite"] == 0  # that is what the scale is for
    fresh = Run(run.config, Place(), log, log)
    assert torch.equal(weights(fresh), weights(run))
    fresh.start(log.folder / "step-3")
    assert fresh.state.scaler.get_scale() == 2.0**37  # a resumed run does not begin to search again


def test_fp16_that_no_scale_can_save_counts_as_not_finite(tiny_config, recorder, monkeypatch):
    spoil(monkeypatch, lambda step: True, position=1)
    log = recorder()
    run = Run(tiny_config(**EVERYTHING, optim={**SGD, "precision": "fp16", "max_nonfinite": 1}), Place(), log, log)
    with pytest.raises(UserError, match=r"optim\.max_nonfinite"):
        run.fit()
    assert run.state.faults.overflow == 0


@pytest.mark.slow
def test_compiled_blocks_train_alike(train, monkeypatch):
    # without the code generator, which needs a minute on two cores: capture and gradients are what we could break
    monkeypatch.setattr(Block, "compile", lambda self: torch.nn.Module.compile(self, backend="aot_eager"))
    model = {**EVERYTHING["model"], "recompute": True}
    plain, _ = train("plain", model=model, optim=SGD)
    compiled, _ = train("compiled", model=model, optim={**SGD, "compile": True})
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=0, atol=1e-6)


def test_every_second_of_a_step_has_a_part_in_order(tiny_config, recorder, monkeypatch):
    marks = []
    log = recorder()
    run = Run(tiny_config(**EVERYTHING, optim={**SGD, "max_micro_batch": 4}), Place(), log, log)
    mark = run.stopwatch.mark
    monkeypatch.setattr(run.stopwatch, "mark", lambda part: (marks.append(part), mark(part)))
    run.fit()
    one = ["wait", "to_device", "compute", "to_device", "compute", "compute"]
    assert [part for part in marks if part] == one * 3
    for figures in log.figures.values():
        if "stall/wait" in figures:
            shares = [figures[f"stall/{part}_share"] for part in ("wait", "to_device", "compute", "all_reduce")]
            assert sum(shares) == pytest.approx(1.0)
            assert figures["stall/all_reduce"] == 0.0
