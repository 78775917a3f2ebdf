"""What the store knows of a campaign: the only memory that a search has, so that any process can go on with it.

campaign.json                 what is searched, and the MLflow run of the campaign; written once, before any trial
spent.json                    wall-clock seconds of all sessions so far
best_recipe.yaml              the best trial's settings as a recipe of their own; of the last session that ended well
told.json                     its pictures and its summary are in MLflow; absent while trials may go on
trials/0003/trial.json        what was drawn for a trial; written before it starts, so no point is drawn twice
trials/0003/progress.json     its reports, exploits and MLflow run; written by the trial before anyone acts on them
trials/0003/ended.json        how it ended; absent while it may go on
trials/0003/history/          what it logged, as of any run (pipelines.training.history)
trials/0003/step-*/           its checkpoints, as those of any run
trials/0003/model/            its published model, once finished

Objects are replaced as a whole, so a reader sees one state or the next, never half of one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pipelines.tracking import RunRef
from vast.errors import ObjectMissing
from vast.storage import Store, join_url, open_store

CAMPAIGN, SPENT, TOLD, BEST_RECIPE = "campaign.json", "spent.json", "told.json", "best_recipe.yaml"
TRIAL, PROGRESS, ENDED = "trial.json", "progress.json", "ended.json"

State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class EvalReport:
    """One evaluation of a trial."""

    epoch: int
    """Epochs done."""
    step: int
    """Updates done."""
    figures: dict[str, float]
    """As the evaluation logs them: eval/top1, ..."""
    time_s: float
    """When, in seconds since 1970."""
    checkpoint: str = ""
    """URL of the trial's state at this step; empty where none was kept."""


@dataclass(frozen=True)
class Exploit:
    """Where population-based training had a trial go on from another's state, with settings changed."""

    source: str
    """Id of the trial whose state was taken."""
    epoch: int
    """Epochs that this state had behind it."""
    step: int
    """Updates that it had behind it."""
    changes: dict[str, Any]
    """The settings from then on."""
    time_s: float
    checkpoint: str
    """URL of that state."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial."""

    id: str
    """Its number in the campaign, four digits or more."""
    drawn: dict[str, Any]
    """Dotted path -> value, as first drawn."""
    reports: list[EvalReport] = field(default_factory=list)
    """In the order of time."""
    exploits: list[Exploit] = field(default_factory=list)
    """In the order of time; population-based training alone has any."""
    steps_trained: int = 0
    """Updates made, whose state was kept; those taken over from another trial are the other's."""
    checkpoint: str = ""
    """URL of the newest state; empty before there is one."""
    checkpoint_step: int = 0
    """Updates behind that state."""
    tracking: RunRef | None = None
    """Its MLflow run; None before it first started."""
    state: State = "waiting"
    error: str = ""
    """Of a failed trial."""

    @property
    def changes(self) -> dict[str, Any]:
        """Dotted path -> value, as they are now."""
        return self.exploits[-1].changes if self.exploits else self.drawn

    def value(self, metric: str) -> float | None:
        """The last figure of that name, or None."""
        values = [report.figures[metric] for report in self.reports if metric in report.figures]
        return values[-1] if values else None

    @property
    def settings(self) -> str:
        """The settings now, in words."""
        rounded = {path: f"{v:.3g}" if isinstance(v, float) else str(v) for path, v in self.changes.items()}
        return ", ".join(f"{path}={text}" for path, text in rounded.items())


@dataclass(frozen=True)
class CampaignRecord:
    """A campaign as it stands."""

    url: str
    name: str
    search: dict[str, Any]
    """The `search:` section, resolved (see pipelines.search.config.SearchConfig)."""
    config: dict[str, Any]
    """The config that trials change, as JSON (see vast.train.config.TrainConfig)."""
    steps_per_trial: int
    """Updates of a trial that runs to the end."""
    tracking: RunRef
    """The MLflow run of the campaign."""
    trials: list[TrialRecord] = field(default_factory=list)
    """In the order of their numbers."""
    spent_s: float = 0.0
    """Wall-clock seconds of all sessions."""

    @property
    def metric(self) -> str:
        """Name of the figure that decides."""
        return str(self.search["metric"])

    @property
    def maximise(self) -> bool:
        """Whether more of it is better."""
        return bool(self.search["mode"] == "max")

    def ranked(self) -> list[TrialRecord]:
        """Trials that were evaluated, best first."""
        scored = [(trial.value(self.metric), trial) for trial in self.trials]
        known = [(value, trial) for value, trial in scored if value is not None]
        known.sort(key=lambda pair: -pair[0] if self.maximise else pair[0])  # stable: the earlier trial wins a draw
        return [trial for _, trial in known]

    @property
    def steps_trained(self) -> int:
        """Updates made by all trials."""
        return sum(trial.steps_trained for trial in self.trials)

    @property
    def steps_to_the_end(self) -> int:
        """Updates that the same trials would have made had each run to the end."""
        return self.steps_per_trial * len(self.trials)


def read_campaign(url: str) -> CampaignRecord:
    """The campaign in the folder `url`.

    Raises:
        ObjectMissing: there is none.
    """
    store = open_store(url)
    plain = json.loads(store.get_bytes(CAMPAIGN))
    ids = sorted({key.split("/")[1] for key in store.list("trials/") if key.endswith(f"/{TRIAL}")})
    spent = read_json(store, SPENT)
    return CampaignRecord(
        url,
        plain["name"],
        plain["search"],
        plain["config"],
        plain["steps_per_trial"],
        RunRef(**plain["tracking"]),
        [read_trial(url, trial_id) for trial_id in ids],
        spent["seconds"] if spent else 0.0,
    )


def trial_url(campaign_url: str, trial_id: str) -> str:
    """The folder of a trial."""
    return join_url(campaign_url, f"trials/{trial_id}")


def read_trial(campaign_url: str, trial_id: str) -> TrialRecord:
    """One trial as the store knows it.

    Raises:
        ObjectMissing: there is none.
    """
    store = open_store(trial_url(campaign_url, trial_id))
    trial = TrialRecord(trial_id, json.loads(store.get_bytes(TRIAL))["drawn"])
    if progress := read_json(store, PROGRESS):
        trial = replace(
            trial,
            state="running",
            reports=[EvalReport(**report) for report in progress["reports"]],
            exploits=[Exploit(**exploit) for exploit in progress["exploits"]],
            steps_trained=progress["steps_trained"],
            checkpoint=progress["checkpoint"],
            checkpoint_step=progress["checkpoint_step"],
            tracking=RunRef(**progress["tracking"]) if progress["tracking"] else None,
        )
    if ended := read_json(store, ENDED):
        trial = replace(trial, state=ended["state"], error=ended["error"])
    return trial


def write_progress(campaign_url: str, trial: TrialRecord) -> None:
    """Replace what the store knows of a trial's progress."""
    plain = asdict(trial)
    kept = ("reports", "exploits", "steps_trained", "checkpoint", "checkpoint_step", "tracking")
    write_json(open_store(trial_url(campaign_url, trial.id)), PROGRESS, {key: plain[key] for key in kept})


def read_json(store: Store, key: str) -> Any:
    """An object's content, or None where there is no such object."""
    try:
        return json.loads(store.get_bytes(key))
    except ObjectMissing:
        return None


def write_json(store: Store, key: str, plain: Mapping[str, Any]) -> None:
    """Write a small object, readable for people too."""
    store.put_bytes(key, (json.dumps(plain, indent=1) + "\n").encode())
