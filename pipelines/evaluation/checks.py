"""What must be so before a model is scored on a split: the same classes, the same media, and no video trained on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipelines.find_model import place_of_model
from preprocessing.leaks import find_leaks
from vast.dataset_format import Manifest, class_difference, read_manifest
from vast.errors import StoreError, UserError
from vast.models.variants import ModelConfig
from vast.storage import open_store
from vast.train.checkpoint import CARD, ModelCard


def check_data(card: ModelCard, manifest: Manifest, url: str, split: str) -> None:
    """Check that a data set has the split, and that its labels and media are what the model knows.

    Raises:
        UserError: It is not so, with the first difference.
    """
    if split not in manifest.splits:
        raise UserError(f"--split: no split {split!r} in {url}; it has {', '.join(sorted(manifest.splits))}")
    if not manifest.splits[split].samples:
        raise UserError(f"--split: {split!r} of {url} has no samples")
    if difference := class_difference(card.classes, manifest.classes, "in the model"):
        raise UserError(
            f"--data: the class list of {url} is not the model's: {difference}; label ids would mean other things"
        )
    model = ModelConfig.model_validate(card.config["model"])
    num_frames = card.train_config().data.num_frames
    if manifest.media == "image" and num_frames > 1:
        raise UserError(f"--data: {url} holds images, and {model.name} was trained on clips of {num_frames} frames")


@dataclass
class LeakCheck:
    """What comparing a split with everything that the model was trained on gave."""

    leaks: list[str] = field(default_factory=list)
    """Where videos of the split were trained on, with counts."""
    unchecked: list[str] = field(default_factory=list)
    """What could not be compared, and why."""


def check_leaks(card: ModelCard, url: str, split: str) -> LeakCheck:
    """Compare the source ids of a split with those of each training set of the model and of the weights it began from.

    A model that was fine-tuned on clean data from weights that saw the evaluated videos scores too well all the same.
    """
    found = LeakCheck()
    for trained in _trained_on(card, found):
        if open_store(trained.url).url == open_store(url).url and trained.split == split:
            found.leaks.append(f"{trained.who} was trained on this very split, {split} of {url}")
            continue
        try:
            changed = read_manifest(trained.url).digest != trained.digest
            report = find_leaks(trained.url, url, trained.split, split)
        except (UserError, StoreError) as error:
            found.unchecked.append(f"what {trained.who} was trained on, {trained.url}, cannot be read: {error}")
            continue
        if changed:
            found.unchecked.append(
                f"{trained.url} is no longer what {trained.who} was trained on ({trained.digest}); "
                "its present content was compared"
            )
        found.leaks += [f"{trained.who} was trained on {trained.url}: {leak}" for leak in report.leaks]
    return found


@dataclass(frozen=True)
class _TrainedOn:
    who: str
    url: str
    split: str
    digest: str


def _trained_on(card: ModelCard, found: LeakCheck) -> Iterator[_TrainedOn]:
    """Yield the training sets of a model and of those whose weights it began from, as far as their cards are there."""
    who, seen = "the model", set()
    while True:
        data = card.config["data"]
        yield _TrainedOn(who, data["url"], data["train_split"], card.dataset_digest)
        parent = card.config.get("resume_from") or card.config.get("init_from")
        if not parent or parent in seen:
            return
        seen.add(parent)
        who = f"{parent}, whose weights it began from,"
        try:
            place = place_of_model(parent)
            if place is None:
                found.unchecked.append(f"what {who} was trained on: no {CARD} is there")
                return
            card = ModelCard(**json.loads(open_store(place).get_bytes(CARD)))
        except (UserError, StoreError, ValueError, TypeError, KeyError) as error:
            found.unchecked.append(f"what {who} was trained on: {error}")
            return
