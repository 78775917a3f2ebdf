import json
import shutil

import pytest
import torch

from vast.dataset_format import classes_digest, read_manifest, write_manifest
from vast.errors import UserError
from vast.train.checkpoint import CARD, STATE, read_card, read_weights
from vast.train.job import Place
from vast.train.loop import Run


def train(config, recorder, own_checkpoint=None):
    run = Run(config, Place(), recorder, recorder)
    return run, run.fit(own_checkpoint)


def assert_same_weights(one, other):
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name


def test_resumed_equals_uninterrupted_bit_for_bit(tiny_config, recorder):
    config = tiny_config(checkpoint={"every_steps": 2})
    whole_log, rest_log = recorder("whole"), recorder("rest")
    whole, outcome = train(config, whole_log)
    # step 2 is in the middle of an epoch
    rest, again = train(config, rest_log, whole_log.folder / "step-2")
    assert rest_log.messages == ["resumed at step 2 from this run's last checkpoint"]
    assert_same_weights(whole, rest)
    assert outcome.score.to_json() == again.score.to_json()
    for step in (3, 4, 5, 6):
        assert whole_log.figures[step]["train/loss"] == rest_log.figures[step]["train/loss"]
    assert whole_log.saved_steps == [2, 3, 4, 6]


def test_a_moving_average_is_what_is_scored_saved_and_continued(tiny_config, recorder):
    optim = {**tiny_config().model_dump()["optim"], "ema_decay": 0.8}
    config = tiny_config(optim=optim, checkpoint={"every_steps": 2})
    whole_log, rest_log, plain_log = recorder("whole"), recorder("rest"), recorder("plain")
    whole, outcome = train(config, whole_log)
    rest, again = train(config, rest_log, whole_log.folder / "step-2")
    plain, _ = train(tiny_config(), plain_log)
    assert_same_weights(whole, rest)
    assert_same_weights(whole, plain)  # averaging does not touch the training
    average = whole.state.published.state_dict()
    assert all(torch.equal(w, rest.state.published.state_dict()[name]) for name, w in average.items())
    assert not torch.equal(average["head.weight"], whole.model.state_dict()["head.weight"])
    assert torch.equal(average["head.weight"], read_weights(whole_log.folder / "step-6")["head.weight"])
    assert outcome.score.to_json() == again.score.to_json()


def test_the_average_is_updated_once_a_step_with_the_decay_of_that_step(tiny_config, recorder):
    log = recorder()
    optim = {**tiny_config().model_dump()["optim"], "ema_decay": 0.15, "max_micro_batch": 4}
    config = tiny_config(optim=optim, checkpoint={"every_steps": 1})
    wanted = Run(config, Place(), log, log).model.head.weight.detach()
    train(config, log)
    for step in range(6):
        folder = log.folder / f"step-{step + 1}"
        raw = torch.load(folder / STATE, weights_only=True)["weights"]["head.weight"]
        decay = min(0.15, (1 + step) / (10 + step))  # 1/10, then the full one
        wanted = decay * wanted + (1 - decay) * raw
        torch.testing.assert_close(read_weights(folder)["head.weight"], wanted, rtol=0, atol=1e-6)


def test_weights_to_start_from_start_the_average_too(tiny_config, recorder):
    log = recorder()
    first, _ = train(tiny_config(), log)
    optim = {**tiny_config().model_dump()["optim"], "ema_decay": 0.9}
    run = Run(tiny_config(optim=optim, init_from=str(log.folder / "step-6")), Place(), log, log)
    run.start(None)
    assert torch.equal(run.state.published.head.weight, first.model.head.weight)


def test_a_checkpoint_with_and_one_without_average_do_not_mix(tiny_config, recorder):
    log = recorder()
    train(tiny_config(), log)
    optim = {**tiny_config().model_dump()["optim"], "ema_decay": 0.9}
    with pytest.raises(UserError, match=r"only one of them has a moving average of the weights \(optim\.ema_decay\)"):
        Run(tiny_config(optim=optim), Place(), log, log).start(log.folder / "step-3")


@pytest.mark.parametrize(("log_every", "saved_at"), [(1, 2), (50, 3)])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_as_if_nothing_had_happened(
    tiny_config, recorder, log_every, saved_at
):
    """Where nothing is logged the word is heard one step late, since no step waits for the one before."""
    whole_log, cut_log, rest_log = recorder("whole"), recorder("cut", stop_in_step=2), recorder("rest")
    config = tiny_config(log_every_steps=log_every, checkpoint={"every_epochs": 9}, eval={"every_epochs": 9})
    whole, outcome = train(config, whole_log)
    _, cut = train(config, cut_log)
    assert (cut.interrupted, cut.step, cut.score) == (True, saved_at, None)
    assert cut_log.saved_steps == [saved_at]
    assert cut_log.figures[saved_at]["train/loss"] > 0  # what was not logged yet
    rest, again = train(config, rest_log, cut_log.folder / f"step-{saved_at}")
    assert not again.interrupted
    assert_same_weights(whole, rest)
    assert outcome.score.to_json() == again.score.to_json()


def test_a_stop_in_the_last_step_comes_too_late_to_matter(tiny_config, recorder):
    _, outcome = train(tiny_config(), recorder(stop_in_step=6))
    assert (outcome.interrupted, outcome.step) == (False, 6)
    assert outcome.score is not None


def test_figures_are_averaged_over_the_steps_between_logs(tiny_config, recorder):
    every_log, third_log = recorder("every"), recorder("third")
    train(tiny_config(), every_log)
    train(tiny_config(log_every_steps=4), third_log)
    loss = {step: figures["train/loss"] for step, figures in every_log.figures.items() if "train/loss" in figures}
    assert third_log.figures[4]["train/loss"] == pytest.approx(sum(loss[step] for step in (1, 2, 3, 4)) / 4)
    assert third_log.figures[6]["train/loss"] == pytest.approx((loss[5] + loss[6]) / 2)
    assert every_log.steps == third_log.steps == [1, 2, 3, 4, 5, 6]  # each step is told, once


def test_a_checkpoint_may_be_written_while_training_goes_on(tiny_config, recorder):
    at_once, late = recorder("at_once"), recorder("late", late=True)
    config = tiny_config(checkpoint={"every_steps": 2}, optim={**tiny_config().optim.model_dump(), "ema_decay": 0.5})
    train(config, at_once)
    train(config, late)
    late.write_all()
    for step in (2, 3, 4, 6):
        for path in (at_once.folder / f"step-{step}").iterdir():
            assert path.read_bytes() == (late.folder / f"step-{step}" / path.name).read_bytes(), path


def test_the_figures_of_the_last_evaluation_survive_a_resume(tiny_config, recorder):
    log, rest_log = recorder("log"), recorder("rest")
    config = tiny_config(checkpoint={"every_steps": 4})
    train(config, log)
    train(config, rest_log, log.folder / "step-4")  # the evaluation was after step 3
    assert read_card(rest_log.folder / "step-6") == read_card(log.folder / "step-6")
    run = Run(config, Place(), log, log)
    run.start(log.folder / "step-4")
    assert run.eval_figures == read_card(log.folder / "step-3").figures != {}


def test_an_observer_can_end_the_run_and_the_state_is_saved(tiny_config, recorder):
    log = recorder(stop_after_epoch=1)
    _, outcome = train(tiny_config(), log)
    assert outcome.step == 3
    assert log.saved_steps == [3]


def test_start_precedence(tiny_config, recorder):
    """Own checkpoint, then resume_from, then init_from, then scratch."""
    first_log = recorder("first")
    first, _ = train(tiny_config(), first_log)
    own, other = first_log.folder / "step-3", str(first_log.folder / "step-6")

    def message(own_checkpoint=None, **changes):
        run = Run(tiny_config(**changes), Place(), first_log, first_log)
        return run.start(own_checkpoint), run

    everything = {"resume_from": other, "init_from": other}
    assert message(own, **everything)[0].startswith("resumed at step 3 from this run's")
    assert message(**everything)[0] == f"resumed at step 6 from {other}"
    text, run = message(init_from=other)
    assert text.startswith(f"weights of vast_micro from {other}: ")
    assert run.state.step == 0
    assert_same_weights(first, run)
    assert message()[0] == "from scratch"


def test_the_head_is_made_anew_when_the_classes_differ_though_their_number_does_not(tiny_config, recorder):
    log = recorder()
    first, _ = train(tiny_config(), log)
    folder = log.folder / "step-6"
    card = json.loads((folder / CARD).read_text())
    card["classes"] = card["classes"][::-1]
    (folder / CARD).write_text(json.dumps(card))
    run = Run(tiny_config(init_from=str(folder)), Place(), log, log)
    text = run.start(None)
    assert "2 reinitialised (head.weight, head.bias)" in text
    assert not torch.equal(run.model.state_dict()["head.weight"], first.model.state_dict()["head.weight"])


def test_a_checkpoint_of_other_shards_is_refused(tiny_config, recorder):
    log = recorder()
    train(tiny_config(), log)
    folder = log.folder / "step-3"
    card = json.loads((folder / CARD).read_text())
    card["dataset_digest"] = "sha256:0"
    (folder / CARD).write_text(json.dumps(card))
    run = Run(tiny_config(), Place(), log, log)
    with pytest.raises(UserError, match=r"data\.url: .*the checkpoint was made on sha256:0"):
        run.start(folder)


def test_a_checkpoint_of_another_model_is_refused(tiny_config, recorder):
    log = recorder()
    train(tiny_config(), log)
    run = Run(tiny_config(model={"name": "vast_micro", "output_projection": False}), Place(), log, log)
    with pytest.raises(UserError, match="does not fit this run's model"):
        run.state.load(log.folder / "step-3")


def test_an_evaluation_set_of_other_classes_is_refused_with_the_first_difference(tiny_config, ssv2_shards, tmp_path):
    shutil.copytree(ssv2_shards, tmp_path / "other")
    manifest = read_manifest(ssv2_shards)
    classes = [*manifest.classes[:1], "something else", *manifest.classes[2:]]
    write_manifest(
        str(tmp_path / "other"),
        manifest.model_copy(update={"classes": classes, "classes_digest": classes_digest(classes)}),
    )
    data = {**tiny_config().model_dump()["data"], "eval_url": str(tmp_path / "other")}
    with pytest.raises(
        UserError, match=r"data\.eval_url: .*label id 1 is 'something else' there and '.+' in the training"
    ):
        Run(tiny_config(data=data), Place(), None, None)
