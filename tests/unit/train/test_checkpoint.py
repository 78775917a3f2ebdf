import pickle
from dataclasses import replace

import pytest
import torch

from vast.errors import UserError
from vast.models.variants import create_model
from vast.train.checkpoint import CARD, STATE, ModelCard, TrainState, fetch, load_model, read_card, save_model
from vast.train.config import OptimConfig, TrainConfig
from vast.train.optim import build_optimizer


@pytest.fixture
def saved(tmp_path):
    config = TrainConfig.model_validate({"name": "x", "model": {"name": "vast_micro"}, "data": {"url": "somewhere"}})
    card = ModelCard(config.model_dump(mode="json"), ["a", "b", "c"], "sha256:1", step=7, figures={"eval/top1": 50.0})
    torch.manual_seed(1)
    model = create_model("vast_micro", 3)
    optimizer = build_optimizer(model, OptimConfig())
    model(torch.randn(1, 3, 2, 32, 32)).sum().backward()
    optimizer.step()
    state = TrainState(model, optimizer, step=7)
    folder = tmp_path / "step-7"
    state.save(folder, card)
    return folder, state, card


def test_round_trip(saved):
    folder, state, _ = saved
    model = create_model("vast_micro", 3)
    again = TrainState(model, build_optimizer(model, OptimConfig()))
    again.load(folder)
    assert again.step == 7
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), model.parameters(), strict=True))
    moments = again.optimizer.state_dict()["state"]
    for key, value in state.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value[name], moments[key][name]) for name in value)


def test_equal_states_make_equal_files(saved, tmp_path):
    folder, state, card = saved
    state.save(tmp_path / "again", card)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_snapshot_stays_as_it_was_while_training_goes_on(saved, tmp_path):
    folder, state, card = saved
    snapshot = state.snapshot()
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(1.0)
        for moments in state.optimizer.state.values():
            moments["exp_avg"].add_(1.0)
    state.step, state.faults.nonfinite = 9, 3
    snapshot.save(tmp_path / "later", card)
    assert all(path.read_bytes() == (tmp_path / "later" / path.name).read_bytes() for path in folder.iterdir())


def test_a_checkpoint_is_complete_or_as_it_was(saved, tmp_path, monkeypatch):
    folder, state, card = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    for place in (folder, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            state.save(place, replace(card, step=8))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "new").exists()
    monkeypatch.undo()
    state.save(folder, replace(card, step=8))  # over what is there
    assert read_card(folder).step == 8


def test_options_come_from_the_config_and_not_from_the_checkpoint(saved):
    folder, _, _ = saved
    model = create_model("vast_micro", 3)
    again = TrainState(model, build_optimizer(model, OptimConfig(weight_decay=0.5, momentum=0.8)))
    again.load(folder)
    group = again.optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"][0]) == (0.5, 0.8)


def test_a_checkpoint_of_another_optimizer_is_refused(saved):
    folder, _, _ = saved
    model = create_model("vast_micro", 3)
    with pytest.raises(UserError, match="it was made with AdamW, not SGD"):
        TrainState(model, build_optimizer(model, OptimConfig(name="sgd"))).load(folder)


@pytest.mark.parametrize("depth", ["", "model"])
def test_a_model_is_found_in_a_checkpoint_and_in_a_runs_folder(saved, tmp_path, depth):
    _, state, card = saved
    save_model(tmp_path / "published" / depth, state.model, card)
    model, found = load_model(str(tmp_path / "published"))
    assert found == card
    assert not model.training
    clip_BCTHW = torch.randn(2, 3, 2, 32, 32)
    assert torch.equal(model(clip_BCTHW), state.model.eval()(clip_BCTHW))


def test_no_model_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"no model at .*model\.json"):
        load_model(str(tmp_path))


def test_a_published_model_cannot_be_resumed(saved, tmp_path):
    _, state, card = saved
    save_model(tmp_path / "published", state.model, card)
    with pytest.raises(UserError, match=STATE):
        fetch(str(tmp_path / "published"), tmp_path, with_state=True)


def test_a_checkpoint_cannot_run_code(saved, tmp_path):
    folder, state, _ = saved

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("pwned").touch, ())

    (folder / STATE).write_bytes(pickle.dumps({"step": Evil()}, protocol=2))
    with pytest.raises(UserError, match="does not fit"):
        state.load(folder)
    torch.save({"step": 1, "optimizer": Evil()}, folder / STATE)
    with pytest.raises(UserError, match="does not fit"):
        state.load(folder)
    assert not (tmp_path / "pwned").exists()


def test_the_card_is_readable_json(saved):
    folder, _, card = saved
    assert '"dataset_digest": "sha256:1"' in (folder / CARD).read_text()
    assert card.train_config().model.name == "vast_micro"
