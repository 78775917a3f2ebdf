"""Start one model from the weights of another: same kind, another class count, or an image model (inflation).

Inflation needs no change to linear layers: the temporal shift groups are channels that the image model leaves in
place (see `shift`). Only a 3x3x3 bias gets a new axis; its kernel starts as the image kernel in the middle frame and
zeros beside it, so that a clip of equal frames starts out with the image model's features.

That holds to rounding for every size and switch, except where the temporal shift brings in zeros from beyond the clip
(model.shift_border=zero): the difference spreads from both ends by one frame a block, and with it to all frames through
a scale pooled over the clip. It holds for the mixers pooling and conv3d; not for attention and tsm, which tell frames
apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vast.errors import UserError
from vast.models.variants import SIZES, ModelConfig
from vast.models.vast import Vast

_HEAD = ("head.weight", "head.bias")
# These say how a model is trained or how large it is, not what its weights compute.
_FREE = ("name", "drop_path", "head_dropout", "recompute")


@dataclass(frozen=True)
class LoadReport:
    """What became of each name. `missing` parameters keep their fresh values; `unexpected` weights are not used."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reinitialised: tuple[str, ...]
    """Parameters of the head, made fresh because the classes differ."""
    inflated: tuple[str, ...] = ()
    """Those of `loaded` that were given an axis of time."""

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} loaded"]
        for label in ("inflated", "missing", "unexpected", "reinitialised"):
            names = getattr(self, label)
            if names:
                shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
                parts.append(f"{len(names)} {label} ({shown})")
        return "; ".join(parts)


def start_from(model: Vast, state_dict: Mapping[str, Tensor], donor: Mapping[str, Any], same_classes: bool) -> str:
    """Start `model` from the weights of a trained one, inflated where an image model starts a video model.

    Args:
        model: a fresh model.
        state_dict: the donor's weights.
        donor: the donor's `ModelConfig` as a mapping; it may come from another version of this program.
        same_classes: whether the donor's classes are those of `model`; otherwise the head is made fresh.

    Returns:
        What was loaded, and the switches in which the two differ, for people.

    Raises:
        UserError: when the donor is of another size or is a video model for an image model, and as `load_weights`.
    """
    name, config = str(donor.get("name")), model.config
    if SIZES.get(name) != config.size:
        size = config.name.partition("_")[2]
        raise UserError(
            f"init_from: the weights are those of {name}, but model.name is {config.name}: give weights of "
            f"{'' if config.is_image_model else f'ast_{size} or '}{config.name}, or set model.name to a size of {name}"
        )
    if config.is_image_model and not name.startswith("ast_"):
        raise UserError(
            f"init_from: the weights are those of {name}, a model of clips, but {config.name} takes single frames; "
            f"give weights of {config.name}"
        )
    report = inflate(state_dict, model, same_classes=same_classes)
    ours = config.model_dump(mode="json")
    differing = [
        f"model.{field}={ours[field]} where {name} had {donor[field]}"
        for field in ModelConfig.model_fields
        if field not in _FREE and field in donor and donor[field] != ours[field]
    ]
    return "; ".join([str(report), *differing])


def load_weights(model: Vast, state_dict: Mapping[str, Tensor], *, same_classes: bool = True) -> LoadReport:
    """Copy weights into `model` by name; a head of other classes, or another number of them, is made fresh instead.

    No parameter is replaced, so an optimizer that holds them goes on holding them.

    Raises:
        UserError: when a shape differs anywhere else, or when no name matches; the model is then left as it was.
    """
    own = model.state_dict()
    head = tuple(name for name in _HEAD if name in own and name in state_dict)
    is_fresh = not same_classes or any(state_dict[name].shape != own[name].shape for name in head)
    reinitialised = head if is_fresh else ()
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
    if reinitialised:
        model.init_classifier()
    return LoadReport(
        loaded=loaded,
        missing=tuple(name for name in own if name not in state_dict),
        unexpected=tuple(name for name in state_dict if name not in own),
        reinitialised=reinitialised,
    )


def inflate(ast_state_dict: Mapping[str, Tensor], vast_model: Vast, *, same_classes: bool = True) -> LoadReport:
    """Start a video model from the weights of the image model of its size; weights of a video model load as they are.

    Raises:
        UserError: as `load_weights`.
    """
    own = vast_model.state_dict()
    weights = dict(ast_state_dict)
    inflated = tuple(
        name for name, weight in weights.items() if weight.ndim == 4 and name in own and own[name].ndim == 5
    )
    for name in inflated:
        weights[name] = torch.nn.functional.pad(weights[name].unsqueeze(2), (0, 0, 0, 0, 1, 1))
    return replace(load_weights(vast_model, weights, same_classes=same_classes), inflated=inflated)
