import pickle

import pytest
import torch

from vast.errors import UserError
from vast.models.variants import create_model
from vast.train.checkpoint import CARD, STATE, ModelCard, TrainState, fetch, load_model, save_model
from vast.train.config import TrainConfig


@pytest.fixture
def saved(tmp_path):
    config = TrainConfig.model_validate({"name": "x", "model": {"name": "vast_micro"}, "data": {"url": "somewhere"}})
    card = ModelCard(config.model_dump(mode="json"), ["a", "b", "c"], "sha256:1", step=7, figures={"eval/top1": 50.0})
    torch.manual_seed(1)
    model = create_model("vast_micro", 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 3, 2, 32, 32)).sum().backward()
    optimizer.step()
    state = TrainState(model, optimizer, step=7)
    folder = tmp_path / "step-7"
    state.save(folder, card)
    return folder, state, card


def test_round_trip(saved):
    folder, state, _ = saved
    model = create_model("vast_micro", 3)
    again = TrainState(model, torch.optim.AdamW(model.parameters()))
    again.load(folder)
    assert again.step == 7
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), model.parameters(), strict=True))
    moments = again.optimizer.state_dict()["state"]
    for key, value in state.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value[name], moments[key][name]) for name in value)


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
