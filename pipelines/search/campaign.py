"""`vast search`: a Ray Tune campaign over dotted paths, stopped early by ASHA, its trials children of one MLflow run.

Trials are plain Tune functions that run the same loop as `vast pretrain` on one rank: measured, a nested Train run per
trial costs about ten times the start-up, and its early stopping hangs without a dashboard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from pipelines import tracking
from pipelines.config import Tree, absolute, explain, merge, nested, parse_overrides, read_recipe, validate
from pipelines.terminal import Terminal
from pipelines.tracking import MlflowTracker, RunRef
from vast.errors import UserError
from vast.train.config import Section, TrainConfig
from vast.train.metrics import Score


class SearchConfig(Section):
    """The `search:` section of a recipe."""

    metric: str = "eval/top1"
    """Figure that decides; one of those an evaluation logs."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of it is better."""
    num_trials: int = Field(8, ge=1)
    """Points drawn from the space."""
    grace_epochs: int = Field(1, ge=1)
    """Epochs that every trial gets before ASHA may stop it."""
    reduction_factor: int = Field(2, ge=2)
    """ASHA keeps one in this many at each rung."""
    cpus_per_trial: int = Field(1, ge=1)
    """CPUs reserved for a trial."""
    gpus_per_trial: float = Field(0, ge=0)
    """GPUs reserved for a trial; a fraction shares one."""
    space: dict[str, dict[str, list[Any]]] = Field(min_length=1)
    """Dotted path -> {choice: [...]}, {uniform: [low, high]} or {loguniform: [low, high]}."""

    @field_validator("space")
    @classmethod
    def _known_distributions(cls, space: dict[str, dict[str, list[Any]]]) -> dict[str, dict[str, list[Any]]]:
        for path, spec in space.items():
            kind, values = next(iter(spec.items())) if len(spec) == 1 else ("", [])
            if kind not in ("choice", "uniform", "loguniform"):
                raise ValueError(f"{path}: expected one of choice, uniform, loguniform, found {sorted(spec)}")
            if kind == "choice" and not values:
                raise ValueError(f"{path}: choice needs at least one value")
            if kind != "choice":
                _check_range(path, kind, values)
        return space


def _check_range(path: str, kind: str, values: list[Any]) -> None:
    if len(values) != 2 or not all(isinstance(value, int | float) for value in values) or not values[0] < values[1]:
        raise ValueError(f"{path}: {kind} needs [low, high] as numbers (1.0e-4, not 1e-4), found {values}")
    if kind == "loguniform" and values[0] <= 0:
        raise ValueError(f"{path}: loguniform needs a low end above 0, found {values[0]}")


@dataclass(frozen=True)
class Trial:
    """One finished trial."""

    name: str
    changes: dict[str, Any]
    value: float
    epochs: int

    @property
    def settings(self) -> str:
        """What was sampled, in words."""
        rounded = {path: f"{v:.3g}" if isinstance(v, float) else str(v) for path, v in self.changes.items()}
        return ", ".join(f"{path}={text}" for path, text in rounded.items())


@dataclass(frozen=True)
class Campaign:
    """A finished search; trials are best first."""

    tracking: RunRef
    metric: str
    trials: list[Trial]


def resolve_search(recipe: str, overrides: Sequence[str]) -> tuple[TrainConfig, SearchConfig]:
    """The config that trials change and the search section; every problem in one UserError."""
    tree = merge(read_recipe(recipe), parse_overrides(overrides))
    section = tree.pop("search", None)
    if not isinstance(section, dict):
        raise UserError(f"recipe {recipe}: it has no `search:` section (see `vast recipes`)")
    base = validate(tree, f"recipe {recipe}")
    try:
        search = SearchConfig.model_validate(section)
    except ValidationError as error:
        problems = [explain(detail, SearchConfig, "search.") for detail in error.errors()]
        raise UserError(f"recipe {recipe}:\n  " + "\n  ".join(problems)) from error
    known = base.flat()
    unknown = [path for path in search.space if path not in known]
    if unknown:
        raise UserError(f"recipe {recipe}: search.space: no such setting: {', '.join(unknown)}")
    return base, search


def run_search(recipe: str, overrides: Sequence[str], terminal: Terminal, *, output: str) -> Campaign:
    """Run a campaign on the connected cluster.

    Raises:
        UserError: a mistake in the recipe, or a cluster too small for one trial.
    """
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    base, search = resolve_search(recipe, overrides)
    resources = ray.cluster_resources()
    concurrent = int(resources.get("CPU", 1)) // search.cpus_per_trial
    if search.gpus_per_trial:
        concurrent = min(concurrent, int(resources.get("GPU", 0) / search.gpus_per_trial))
    if concurrent < 1:
        raise UserError(
            f"search: a trial wants {search.cpus_per_trial} CPUs and {search.gpus_per_trial} GPUs; the cluster has "
            f"{int(resources.get('CPU', 0))} and {int(resources.get('GPU', 0))}"
        )
    params = {**base.flat(), **{f"search.{key}": value for key, value in search.model_dump().items()}}
    run = tracking.create_run(
        tracking.tracking_uri(), f"{base.name}-search", params=params, tags={"run.kind": "search"}
    )
    with tracking.ending(run):
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, tree=base.model_dump(mode="json"), metric=search.metric, parent=run),
                {"CPU": search.cpus_per_trial, "GPU": search.gpus_per_trial},
            ),
            param_space={path: _distribution(spec) for path, spec in search.space.items()},
            tune_config=tune.TuneConfig(
                metric=search.metric,
                mode=search.mode,
                num_samples=search.num_trials,
                search_alg=BasicVariantGenerator(max_concurrent=concurrent, random_state=base.seed),
                scheduler=ASHAScheduler(
                    time_attr="epoch",
                    max_t=base.optim.epochs,
                    grace_period=min(search.grace_epochs, base.optim.epochs),
                    reduction_factor=search.reduction_factor,
                ),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(name=f"search-{run.run_id[:8]}", storage_path=absolute(output), verbose=0),
        )
        terminal.say(f"  {search.num_trials} trials, {concurrent} at a time, up to {base.optim.epochs} epochs each")
        results = tuner.fit()
        campaign = _collect(results, search, run, base.optim.epochs)
        best = campaign.trials[0]
        tracking.log_figures(run, {f"best/{search.metric}": best.value})
    return campaign


def _distribution(spec: dict[str, list[Any]]) -> Any:
    from ray import tune

    kind, values = next(iter(spec.items()))
    makers: dict[str, Callable[[], Any]] = {
        "choice": lambda: tune.choice(values),
        "uniform": lambda: tune.uniform(*values),
        "loguniform": lambda: tune.loguniform(*values),
    }
    return makers[kind]()


def _collect(results: Any, search: SearchConfig, parent: RunRef, max_epochs: int) -> Campaign:
    trials, failed = [], []
    for result in results:
        metrics = result.metrics or {}
        if search.metric not in metrics:
            failed.append(str(result.error or "ended before its first evaluation"))
            continue
        child = RunRef(parent.tracking_uri, metrics["mlflow_run_id"])
        _end_child(child, stopped_early=metrics["epoch"] < max_epochs)
        trials.append(Trial(metrics["trial_id"], result.config, metrics[search.metric], metrics["epoch"]))
    if not trials:
        raise UserError(f"search: no trial reached an evaluation; the first said: {failed[0] if failed else 'nothing'}")
    trials.sort(key=lambda trial: trial.value, reverse=search.mode == "max")
    return Campaign(parent, search.metric, trials)


def _end_child(child: RunRef, *, stopped_early: bool) -> None:
    # ASHA ends a trial by ending its process, which therefore cannot close its own MLflow run.
    from mlflow import MlflowClient

    client = MlflowClient(child.tracking_uri)
    client.set_tag(child.run_id, "stopped_early", str(stopped_early).lower())
    client.set_terminated(child.run_id, "FINISHED")


class TrialObserver:
    """Reports evaluations to Tune; keeps no checkpoints."""

    def __init__(self, tracker: MlflowTracker) -> None:
        self.tracker = tracker

    def started(self, message: str, step: int, total_steps: int) -> None:
        """Nothing to tell."""

    def stepped(self, step: int, total_steps: int, figures: dict[str, float]) -> None:
        """Nothing to tell."""

    def saved(self, step: int, figures: dict[str, float], write: Callable[[Path], None]) -> None:
        """Trials are short: the winner is trained again, so nothing is kept."""

    def evaluated(self, epoch: int, step: int, result: Score) -> bool:
        """Report; Tune may end this process inside the call, so what was logged is sent first."""
        from ray import tune

        self.tracker.flush()
        tune.report({**result.figures(), "epoch": epoch, "step": step, "mlflow_run_id": self.tracker.run.run_id})
        return False

    def noted(self, text: str) -> None:
        """Nobody watches a trial; its figures count what was noted."""

    def wants_stop(self) -> bool:
        """Never: Tune ends a trial inside `evaluated`."""
        return False


def run_trial(sampled: dict[str, Any], *, tree: Tree, metric: str, parent: RunRef) -> None:
    """One trial, in a process of its own."""
    import torch
    from ray import tune

    from vast.train.job import Place
    from vast.train.loop import Run

    for path, value in sampled.items():
        tree = merge(tree, nested(path, value))
    config = TrainConfig.model_validate(tree)
    torch.set_num_threads(1)
    run = tracking.create_run(
        parent.tracking_uri,
        f"trial-{tune.get_context().get_trial_id()}",
        params=config.flat(),
        tags={"run.kind": "trial", "search.metric": metric},
        parent=parent.run_id,
    )
    tracker = MlflowTracker(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    Run(config, Place(device=device), tracker, TrialObserver(tracker)).fit()
    tracker.close()


def trial_rows(campaign: Campaign) -> list[list[str]]:
    """A table row a trial."""
    return [[trial.name, f"{trial.value:.1f}", str(trial.epochs), trial.settings] for trial in campaign.trials]
