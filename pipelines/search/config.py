"""The `search:` section of a recipe, checked together with the config that its trials change."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines.config import Tree, explain, merge, nested, parse_overrides, read_recipe, validate
from pipelines.search.rules import Asha, MedianStopping, NeverStop, PopulationRule, StoppingRule
from pipelines.search.space import Point, Space, grid, parse_distribution
from vast.errors import UserError
from vast.train.config import Section, TrainConfig

METRICS = ("eval/top1", "eval/top5", "eval/mean_class")
_NOT_SEARCHED = ("name", "optim.epochs", "eval.", "checkpoint.", "resume_from", "log_every_steps")
# What may change between two steps of one run without its state or its schedule losing their meaning.
_PERTURBABLE = (
    "optim.lr",
    "optim.weight_decay",
    "optim.momentum",
    "optim.beta2",
    "optim.min_lr_ratio",
    "optim.clip_norm",
    "optim.label_smoothing",
    "model.drop_path",
    "model.head_dropout",
    "data.augment.",
)


class SearchConfig(Section):
    """The `search:` section of a recipe."""

    metric: Literal["eval/top1", "eval/top5", "eval/mean_class"] = "eval/top1"
    """Figure that decides; one of those an evaluation logs."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of it is better."""
    algorithm: Literal["random", "grid", "tpe"] = "random"
    """How points are drawn; tpe is Optuna's, which learns from the trials so far."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "asha"
    """Which trials go on: all, successive halving, median stopping, or population-based training."""
    num_trials: int | None = Field(None, ge=1)
    """Trials of the campaign, the recipe's own settings being the first; by default 8, or every point of a grid."""
    max_steps: int | None = Field(None, ge=1)
    """Updates that all trials may make together; none: no limit."""
    max_hours: float | None = Field(None, gt=0)
    """Wall-clock hours of all sessions together; none: no limit."""
    grace_epochs: int = Field(1, ge=1)
    """Epochs that every trial gets before asha or median may stop it."""
    reduction_factor: int = Field(2, ge=2)
    """asha keeps one in this many at each rung; rungs lie this factor apart."""
    perturb_epochs: int = Field(1, ge=1)
    """pbt: epochs between the boundaries at which trials take over from others."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """pbt: so large a part takes over from as large a part at the other end."""
    resample_probability: float = Field(0.25, ge=0, le=1)
    """pbt: probability that a setting is drawn anew; else it is moved to a neighbouring value."""
    perturb_factors: tuple[float, float] = (0.8, 1.25)
    """pbt: what a number is multiplied with, one or the other, to be moved."""
    ranks_per_trial: int = Field(1, ge=1)
    """Training processes of a trial, on one node or several."""
    cpus_per_rank: int = Field(1, ge=1)
    """CPUs reserved for each; readers (data.num_readers) need their own."""
    gpus_per_rank: float = Field(0, ge=0)
    """GPUs reserved for each; a fraction shares one between trials of one rank."""
    max_failures: int = Field(3, ge=0)
    """Times that a trial is started again after its process, its node or the store was lost."""
    space: dict[str, dict[str, Any]] = Field(min_length=1)
    """Dotted path -> one of choice: [...], uniform or loguniform: [low, high], quniform or qloguniform: [low, high,
    step], randint: [low, high] (both included); and `when: {path: value or list}` for a setting that matters only
    there."""

    @field_validator("space")
    @classmethod
    def _space_is_well_formed(cls, space: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        problems = []
        for path, plain in space.items():
            try:
                distribution = parse_distribution(path, plain)
            except ValueError as error:
                problems.append(str(error))
                continue
            later = list(space)[list(space).index(path) :]
            problems += [
                f"{path}: its condition speaks of {other}, which must come before it in the space"
                for other in distribution.when
                if other in later
            ]
        if problems:
            raise ValueError("; ".join(problems))
        return space

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        problems = []
        if self.scheduler == "pbt":
            if self.algorithm != "random":
                problems.append(f"search.algorithm: {self.algorithm} with scheduler pbt, which begins at random points")
            wrong = [path for path in self.space if not path.startswith(_PERTURBABLE)]
            if wrong:
                problems.append(
                    f"search.space: {', '.join(wrong)} cannot change in the middle of a run, as scheduler pbt does; "
                    f"possible: {', '.join(_PERTURBABLE)}"
                )
            if self.num_trials is not None and self.num_trials < 2:
                problems.append("search.num_trials: a population (scheduler pbt) needs at least 2")
        if self.gpus_per_rank % 1 and self.ranks_per_trial > 1:
            problems.append("search.gpus_per_rank: a part of a GPU is for trials of one rank")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @cached_property
    def distributions(self) -> Space:
        """The space, parsed."""
        return {path: parse_distribution(path, plain) for path, plain in self.space.items()}

    def rule(self, max_epochs: int) -> StoppingRule:
        """The stopping rule, with nothing known yet."""
        if self.scheduler == "asha":
            return Asha(max_epochs, self.grace_epochs, self.reduction_factor)
        return MedianStopping(self.grace_epochs) if self.scheduler == "median" else NeverStop()

    def population(self, base: TrainConfig) -> PopulationRule:
        """The rule of population-based training."""
        return PopulationRule(
            self.distributions,
            base.flat(),
            base.seed,
            self.quantile,
            self.resample_probability,
            self.perturb_factors,
        )

    def size(self, base: TrainConfig) -> int:
        """Trials of the campaign."""
        if self.algorithm == "grid":
            points = len(grid(self.distributions, base.flat()))
            return min(points, self.num_trials or points)
        return self.num_trials or 8

    def identity(self, base: TrainConfig) -> str:
        """Eight hex digits of what is searched; budgets and resources are not part of it: more of them continue."""
        free = {"max_steps", "max_hours", "ranks_per_trial", "cpus_per_rank", "gpus_per_rank", "max_failures"}
        if self.scheduler != "pbt":  # which depends on the whole population
            free.add("num_trials")
        searched = self.model_dump(mode="json", exclude=free)
        text = json.dumps([base.model_dump(mode="json"), searched], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def resolve_search(recipe: str, overrides: Sequence[str]) -> tuple[TrainConfig, SearchConfig]:
    """The config that trials change and the search section; every problem in one UserError."""
    tree = merge(read_recipe(recipe), parse_overrides(overrides))
    section = tree.pop("search", None)
    if not isinstance(section, dict):
        raise UserError(f"recipe {recipe}: it has no `search:` section (see `vast recipes`)")
    base = validate(tree, f"recipe {recipe}")
    try:
        search = SearchConfig.model_validate(section)
        problems = _misfits(base, search)
    except ValidationError as error:
        problems = [explain(detail, SearchConfig, "search.") for detail in error.errors()]
    if problems:
        raise UserError(f"recipe {recipe}:\n  " + "\n  ".join(problems))
    return base, search


def _misfits(base: TrainConfig, search: SearchConfig) -> list[str]:
    """What does not go together of the config and the search."""
    known = base.flat()
    space = search.distributions
    unknown = [path for path in space if path not in known]
    unknown += [path for each in space.values() for path in each.when if path not in known]
    if unknown:
        return [f"search.space: no such setting: {', '.join(dict.fromkeys(unknown))}"]
    problems = [
        f"search.space: {path} cannot be searched: it names or measures a trial"
        for path in space
        if path.startswith(_NOT_SEARCHED)
    ]
    for path, distribution in space.items():
        for value in distribution.ends:
            try:
                trial_config(base, {path: value}, "trial")
            except ValidationError as error:
                problems += [f"search.space: {explain(detail, TrainConfig)}" for detail in error.errors()]
    if search.algorithm == "grid":
        try:
            grid(space, known)
        except ValueError as error:
            problems.append(f"search.space: {error}")
    if search.scheduler == "pbt":
        if search.perturb_epochs % base.eval.every_epochs:
            problems.append(
                f"search.perturb_epochs: {search.perturb_epochs}, must be a multiple of eval.every_epochs "
                f"({base.eval.every_epochs}), since trials are compared where they take over"
            )
        if search.perturb_epochs >= base.optim.epochs:
            problems.append(
                f"search.perturb_epochs: {search.perturb_epochs}, but a trial has optim.epochs={base.optim.epochs}, so "
                "none would ever take over from another"
            )
    return problems


def trial_config(base: TrainConfig, changes: Point | Mapping[str, Any], name: str) -> TrainConfig:
    """The config of a trial.

    Raises:
        ValidationError: the changed settings do not go together.
    """
    tree: Tree = base.model_dump(mode="json")
    for path, value in changes.items():
        tree = merge(tree, nested(path, value))
    tree["name"] = name
    # what decides about a trial can be gone back to
    tree["checkpoint"]["every_epochs"] = base.eval.every_epochs
    return TrainConfig.model_validate(tree)
