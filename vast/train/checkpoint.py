"""What is saved: a folder with the weights, a card that says how to use them, and the state to continue from.

model.safetensors   the weights to use (the moving average, where there is one); cannot carry code
model.json          ModelCard: config, classes, data-set digest, step, figures
train_state.pt      step, optimizer, loss scale, fault counts, and the weights themselves where model.safetensors holds
                    their average; loaded with weights_only=True, and absent where only the model was published

Equal states make equal files, byte for byte.
"""

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from vast.errors import ObjectMissing, UserError
from vast.models.variants import ModelConfig, create_model
from vast.models.vast import Vast
from vast.storage import join_url, open_store
from vast.train.config import TrainConfig
from vast.train.ema import Ema
from vast.train.faults import Faults

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

    Not saved, because each is a pure function of what is: the learning rate, the place in the data and everything
    random (of the seed, the step and a clip's place), and the options of the optimizer (of the config).
    """

    model: Vast
    optimizer: torch.optim.Optimizer
    step: int = 0
    ema: Ema | None = None
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    """Scale of the loss; does nothing except in fp16."""
    faults: Faults = field(default_factory=Faults)

    @property
    def published(self) -> Vast:
        """The model to score and to use: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.model

    def snapshot(self) -> "Snapshot":
        """A copy in this process's memory, which training on does not change; waits for the device.

        It takes 4 bytes for each weight and moment of the optimizer, so 12 for a parameter under AdamW, and 4 more
        with a moving average: 0.4 GB for 25 million parameters at most.
        """
        state = {
            "step": self.step,
            "optimizer": type(self.optimizer).__name__,
            "moments": _copied(self.optimizer.state_dict()["state"]),
            "scaler": dict(self.scaler.state_dict()),
            "faults": self.faults.to_plain(),
            "weights": None if self.ema is None else _copied(self.model.state_dict()),
        }
        return Snapshot(_copied(self.published.state_dict()), state)

    def save(self, folder: Path, card: ModelCard) -> None:
        """Write the three files of a checkpoint into `folder`; see `Snapshot.save`."""
        self.snapshot().save(folder, card)

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint in `folder`.

        Raises:
            UserError: it is of another kind of run, or not a checkpoint at all.
        """
        try:
            state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
            if state["optimizer"] != type(self.optimizer).__name__:
                raise ValueError(f"it was made with {state['optimizer']}, not {type(self.optimizer).__name__}")
            if (state["weights"] is None) != (self.ema is None):
                raise ValueError("only one of them has a moving average of the weights (optim.ema_decay)")
            self.published.load_state_dict(read_weights(folder))
            if state["weights"] is not None:
                self.model.load_state_dict(state["weights"])
            # The options are this config's, whatever they were: a changed setting must not be undone in silence.
            options = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state["moments"], "param_groups": options})
            self.scaler.load_state_dict(state["scaler"])
            self.faults.restore(state["faults"])
            self.step = int(state["step"])
        except (RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise UserError(f"checkpoint at {folder} does not fit this run's model or optimizer: {error}") from error


@dataclass(frozen=True)
class Snapshot:
    """A state as it was at one step."""

    weights: dict[str, Tensor]
    """The weights to use, by name."""
    state: dict[str, Any]
    """What else continuing needs."""

    def save(self, folder: Path, card: ModelCard) -> None:
        """Write the three files of a checkpoint as `folder`, which a kill leaves complete or absent."""
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write_model(partial, self.weights, card)
            torch.save(self.state, partial / STATE)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _copied(tree: Any) -> Any:
    """Dictionaries of tensors with each tensor copied to this process's memory."""
    if isinstance(tree, Mapping):
        return {key: _copied(value) for key, value in tree.items()}
    return tree.detach().to("cpu", copy=True).contiguous() if isinstance(tree, Tensor) else tree


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights, in hexadecimal; it does not depend on the device."""
    return hashlib.sha256(save(_copied(model.state_dict()))).hexdigest()


def save_model(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write weights and card into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_model(folder, _copied(model.state_dict()), card)


def _write_model(folder: Path, weights: dict[str, Tensor], card: ModelCard) -> None:
    save_file(weights, folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(asdict(card), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the model in `folder`, by parameter name.

    Raises:
        UserError: it is no safetensors file; nothing in it is ever run.
    """
    try:
        weights: dict[str, Tensor] = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(
            f"{WEIGHTS} is not a safetensors file, which holds weights and nothing else: {error}"
        ) from error
    return weights


def read_card(folder: Path) -> ModelCard:
    """The card of the model in `folder`.

    Raises:
        UserError: it is not one.
    """
    try:
        return ModelCard(**json.loads((folder / CARD).read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise UserError(f"{CARD} is not the card of a model: {error}") from error


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
