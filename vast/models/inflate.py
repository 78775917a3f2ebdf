"""Start one model from the weights of another: same kind, another class count, or an image model (inflation).

Inflation needs no change to linear layers: the temporal shift groups are channels that the image model leaves in
place (see `shift`). Only a 3x3x3 bias gets a new axis; its kernel starts as the image kernel in the middle frame and
zeros beside it, so that a clip of equal frames starts out with the image model's features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vast.errors import UserError
from vast.models.vast import Vast

_HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class LoadReport:
    """What became of each name. `missing` parameters keep their fresh values; `unexpected` weights are not used."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reinitialised: tuple[str, ...]
    """Parameters of the head, made fresh because the class counts differ."""

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} loaded"]
        for label in ("missing", "unexpected", "reinitialised"):
            names = getattr(self, label)
            if names:
                shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
                parts.append(f"{len(names)} {label} ({shown})")
        return "; ".join(parts)


def load_weights(model: Vast, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Copy weights into `model` by name; a head of another class count is made fresh instead.

    Raises:
        UserError: when a shape differs anywhere else, or when no name matches; the model is then left as it was.
    """
    own = model.state_dict()
    head_differs = any(
        name in own and name in state_dict and state_dict[name].shape != own[name].shape for name in _HEAD
    )
    reinitialised = _HEAD if head_differs else ()
    loaded = tuple(name for name in own if name in state_dict and name not in reinitialised)
    wrong = [
        f"{name}: found {list(state_dict[name].shape)}, expected {list(own[name].shape)}"
        for name in loaded
        if state_dict[name].shape != own[name].shape
    ]
    if wrong:
        shown = "\n  ".join(wrong[:5] + ([f"and {len(wrong) - 5} more"] if len(wrong) > 5 else []))
        raise UserError(
            f"the weights do not fit {model.config.name}; use weights of the same size and switches:\n  {shown}"
        )
    if not loaded:
        found = ", ".join(list(state_dict)[:3]) or "nothing"
        raise UserError(
            f"no name in the weights matches {model.config.name}; found {found}, expected {next(iter(own))}"
        )
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(state_dict[name])
    if head_differs:
        model.reset_classifier(model.num_classes)
    return LoadReport(
        loaded=loaded,
        missing=tuple(name for name in own if name not in state_dict),
        unexpected=tuple(name for name in state_dict if name not in own),
        reinitialised=reinitialised,
    )


def inflate(ast_state_dict: Mapping[str, Tensor], vast_model: Vast) -> LoadReport:
    """Start a video model from the weights of the image model of its size.

    Raises:
        UserError: as `load_weights`.
    """
    own = vast_model.state_dict()
    inflated: dict[str, Tensor] = {}
    for name, weight in ast_state_dict.items():
        if name in own and weight.ndim == 4 and own[name].ndim == 5:
            kernel = weight.new_zeros(*weight.shape[:2], 3, *weight.shape[2:])
            kernel[:, :, 1] = weight
            inflated[name] = kernel
        else:
            inflated[name] = weight
    return load_weights(vast_model, inflated)
