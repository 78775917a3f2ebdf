"""Everything that is known of a training run, gathered from its folder, its data set and MLflow.

Whatever cannot be read is named in `gaps`, so that the page can say so, and never keeps the rest from being told.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.find_model import place_of_model
from pipelines.report.evaluation import EvaluationFacts, read_evaluation
from pipelines.report.figures import Figures, kept_figures
from pipelines.report.tracked import Tracked, evaluations_of, tracked_figures, tracked_run
from pipelines.tracking import RunRef
from pipelines.training.launch import Finished, read_result
from pipelines.training.training_run import RUN
from vast.dataset_format import Manifest, read_manifest
from vast.errors import ObjectMissing, StoreError, UserError
from vast.models.cost import count_macs, count_params
from vast.models.variants import create_model
from vast.storage import join_url, open_store
from vast.train.checkpoint import CARD, ModelCard
from vast.train.config import TrainConfig

T = TypeVar("T")
_LONGEST_LINEAGE = 8


@dataclass(frozen=True)
class Ancestor:
    """A model whose weights were started from."""

    url: str
    card: ModelCard | None
    """None where it cannot be read any more."""


@dataclass(frozen=True)
class Cost:
    """What the model needs."""

    params: int
    macs: int
    """Multiply-adds of one view."""


@dataclass
class RunFacts:
    """A run as it stands."""

    url: str
    tracking: RunRef | None
    finished: Finished | None
    """None while it has not reached its last step."""
    card: ModelCard | None
    """Of the published model, else of the newest checkpoint."""
    config: TrainConfig | None
    manifest: Manifest | None = None
    eval_manifest: Manifest | None = None
    tracked: Tracked | None = None
    figures: Figures = field(default_factory=Figures)
    evaluations: list[EvaluationFacts] = field(default_factory=list)
    """Of `vast evaluate`, the newest first."""
    lineage: list[Ancestor] = field(default_factory=list)
    """What it started from, then what that started from, ..."""
    cost: Cost | None = None
    gaps: list[str] = field(default_factory=list)
    """What could not be read, and why."""

    def trying(self, what: str, read: Callable[[], T]) -> T | None:
        """What `read` returns; a failure becomes a gap."""
        try:
            return read()
        except (UserError, StoreError) as error:
            self.gaps.append(f"{what}: {error}")
            return None


def gather(url: str) -> RunFacts:
    """Read what there is of the run in the folder `url`."""
    store = open_store(url)
    finished = read_result(url)
    card = _newest_card(url)
    facts = RunFacts(url, None, finished, card, None)
    try:
        facts.tracking = RunRef(**json.loads(store.get_bytes(RUN)))
    except ObjectMissing:
        facts.tracking = finished.tracking if finished else None
    if card is not None:
        try:
            facts.config = card.train_config()
        except ValidationError as error:
            facts.gaps.append(f"settings: written by another version of this program ({error.error_count()} unknown)")
    ref = facts.tracking
    kept = facts.trying("curves", partial(kept_figures, url))
    if kept is not None:
        facts.figures = kept
    if ref is not None:
        facts.tracked = facts.trying("times, environment and evaluations", partial(tracked_run, ref))
    if ref is not None and facts.tracked is not None:
        if kept is None:
            facts.figures = facts.trying("curves", partial(tracked_figures, ref)) or Figures()
        urls = facts.trying("evaluations", partial(evaluations_of, ref)) or []
        for place in dict.fromkeys(urls):
            if found := facts.trying("evaluation", partial(read_evaluation, place)):
                facts.evaluations.append(found)
    if config := facts.config:
        _gather_data(facts, config)
        facts.lineage = lineage(config.init_from or config.resume_from)
    return facts


def _gather_data(facts: RunFacts, config: TrainConfig) -> None:
    facts.manifest = facts.trying("data set", partial(read_manifest, config.data.url))
    facts.eval_manifest = facts.manifest
    if config.data.eval_url:
        facts.eval_manifest = facts.trying("evaluation data set", partial(read_manifest, config.data.eval_url))
    if facts.card is not None:
        facts.cost = facts.trying("model", partial(model_cost, config, len(facts.card.classes)))


def model_cost(config: TrainConfig, num_classes: int) -> Cost:
    """What the config's model needs for one view."""
    model = create_model(config.model, num_classes=num_classes)
    side = config.data.crop_size
    return Cost(count_params(model), count_macs(model, (1, 3, config.data.num_frames, side, side)))


def _newest_card(url: str) -> ModelCard | None:
    place = place_of_model(url)
    store = open_store(url)
    if place is None:
        cards = [key for key in store.list("step-") if key.endswith(f"/{CARD}")]
        place = join_url(url, max(cards).removesuffix(f"/{CARD}")) if cards else None
    return _read_card(place) if place else None


def _read_card(place: str) -> ModelCard:
    return ModelCard(**json.loads(open_store(place).get_bytes(CARD)))


def lineage(url: str) -> list[Ancestor]:
    """What weights at `url` were started from, the nearest first."""
    found: list[Ancestor] = []
    while url and len(found) < _LONGEST_LINEAGE and url not in (known.url for known in found):
        card: ModelCard | None = None
        try:
            place = place_of_model(url)
            card = _read_card(place) if place else None
        except (UserError, StoreError, ValueError, TypeError):
            pass  # moved or removed since: the page says that it cannot be read
        found.append(Ancestor(url, card))
        url = (card.config.get("init_from") or card.config.get("resume_from") or "") if card else ""
    return found


def default_settings(model: type[BaseModel] = TrainConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of every setting that has a default."""
    found: dict[str, Any] = {}
    for name, field_info in model.model_fields.items():
        kind = field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= default_settings(kind, f"{prefix}{name}.")
        elif not field_info.is_required():
            default = field_info.get_default(call_default_factory=True)
            found[prefix + name] = list(default) if isinstance(default, tuple) else default
    return found
