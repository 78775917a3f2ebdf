"""What is saved: a folder with the weights, a card that says how to use them, and the state to continue from.

model.safetensors   weights; cannot carry code
model.json          ModelCard: config, classes, data-set digest, step, figures
train_state.pt      optimizer and step, loaded with weights_only=True; absent where only the model was published
"""

import json
import pickle
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vast.errors import ObjectMissing, UserError
from vast.models.variants import ModelConfig, create_model
from vast.models.vast import Vast
from vast.storage import join_url, open_store
from vast.train.config import TrainConfig

WEIGHTS = "model.safetensors"
CARD = "model.json"
STATE = "train_state.pt"


@dataclass(frozen=True)
class ModelCard:
    """What someone needs beside the weights to use or judge a model."""

    config: dict[str, Any]
    """The full training config, as JSON."""
    classes: list[str]
    """Class names in label-id order."""
    dataset_digest: str
    """Identity of the shards it was trained on."""
    step: int
    """Updates made."""
    figures: dict[str, float] = field(default_factory=dict)
    """Latest evaluation figures."""

    def train_config(self) -> TrainConfig:
        """The config, validated."""
        return TrainConfig.model_validate(self.config)


@dataclass
class TrainState:
    """Everything needed to continue a run bit for bit.

    Not saved, because each is a pure function of what is: the learning rate and the place in the data (of the step),
    and all randomness (reseeded at every step from seed, step and rank).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0

    def save(self, folder: Path, card: ModelCard) -> None:
        """Write the three files of a checkpoint into `folder`."""
        save_model(folder, self.model, card)
        torch.save({"step": self.step, "optimizer": self.optimizer.state_dict()}, folder / STATE)

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint in `folder`."""
        try:
            state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
            self.model.load_state_dict(read_weights(folder))
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise UserError(f"checkpoint at {folder} does not fit this run's model or optimizer: {error}") from error
        self.step = int(state["step"])


def save_model(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write weights and card into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(asdict(card), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the model in `folder`, by parameter name."""
    weights: dict[str, torch.Tensor] = load_file(folder / WEIGHTS)
    return weights


def read_card(folder: Path) -> ModelCard:
    """The card of the model in `folder`."""
    return ModelCard(**json.loads((folder / CARD).read_text(encoding="utf-8")))


def fetch(url: str, folder: Path, *, with_state: bool = False) -> ModelCard:
    """Copy the checkpoint or published model at `url` into `folder` and return its card.

    `url` is a folder that holds model.json, or a run's folder, whose published model is in `model/`.

    Raises:
        UserError: nothing usable there, with what was looked for.
    """
    for place in (url, join_url(url, "model")):
        store = open_store(place)
        try:
            (folder / CARD).write_bytes(store.get_bytes(CARD))
        except ObjectMissing:
            continue
        try:
            for name in [WEIGHTS, STATE] if with_state else [WEIGHTS]:
                store.get_file(name, folder / name)
        except ObjectMissing as error:
            raise UserError(f"{place} has a {CARD} but no {name}: not a checkpoint to use this way") from error
        return read_card(folder)
    raise UserError(
        f"no model at {url!r}: neither {CARD} nor model/{CARD} is there; give the URL of a checkpoint or run"
    )


def load_model(url: str) -> tuple[Vast, ModelCard]:
    """The model at `url` in evaluation mode, and its card."""
    with tempfile.TemporaryDirectory(prefix="vast-model-") as scratch:
        folder = Path(scratch)
        card = fetch(url, folder)
        model = create_model(ModelConfig.model_validate(card.config["model"]), num_classes=len(card.classes))
        model.load_state_dict(read_weights(folder))
    return model.eval(), card
