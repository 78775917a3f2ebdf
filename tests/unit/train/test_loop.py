import json

import pytest
import torch

from vast.errors import UserError
from vast.train.checkpoint import CARD, TrainState
from vast.train.loop import Place, Run


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


def test_accumulation_does_not_change_what_a_step_sees(tiny_config, recorder):
    # without drop path, whose draws depend on the micro-batch, the sums differ by rounding alone
    model = {"name": "vast_micro", "drop_path": 0.0}
    one_log, two_log = recorder("one"), recorder("two")
    optim = {"epochs": 1, "global_batch": 8}
    train(tiny_config(model=model, optim={**optim, "max_micro_batch": 8}), one_log)
    train(tiny_config(model=model, optim={**optim, "max_micro_batch": 2}), two_log)
    assert one_log.figures[1]["train/loss"] == pytest.approx(two_log.figures[1]["train/loss"], rel=1e-5)
    assert one_log.figures[3]["train/loss"] == pytest.approx(two_log.figures[3]["train/loss"], rel=1e-3)


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
    assert text.startswith(f"weights from {other}: ")
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
    assert "missing (head." in text
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
        TrainState(run.model, run.optimizer).load(log.folder / "step-3")
