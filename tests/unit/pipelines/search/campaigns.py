"""Campaigns as the store knows them, made up for the tests of what is drawn and told of one."""

import math
import random
from dataclasses import asdict
from typing import Any

from pipelines.search.record import (
    CAMPAIGN,
    ENDED,
    SPENT,
    TRIAL,
    CampaignRecord,
    EvalReport,
    TrialRecord,
    read_campaign,
    trial_url,
    write_json,
    write_progress,
)
from pipelines.tracking import RunRef
from vast.storage import open_store
from vast.train.config import TrainConfig

SPACE = {
    "optim.lr": {"loguniform": [1.0e-4, 1.0e-2]},
    "optim.weight_decay": {"uniform": [0.0, 0.2]},
    "data.augment.erase": {"choice": [0.0, 0.25]},
    "model.mixer": {"choice": ["affine_shift", "attention"]},
}
SEARCH: dict[str, Any] = {
    "metric": "eval/top1",
    "mode": "max",
    "algorithm": "random",
    "scheduler": "asha",
    "num_trials": 12,
    "max_steps": None,
    "max_hours": None,
    "grace_epochs": 1,
    "reduction_factor": 2,
    "space": SPACE,
}
RUN = RunRef("sqlite:////nowhere/mlflow.db", "0" * 32)


def trials(count: int, seed: int = 0, epochs: int = 4) -> list[TrialRecord]:
    """Trials whose value depends on the learning rate alone, but for a little noise; half of them stopped early."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        drawn = {
            "optim.lr": 10 ** rng.uniform(-4, -2),
            "optim.weight_decay": rng.uniform(0, 0.2),
            "data.augment.erase": rng.choice([0.0, 0.25]),
            "model.mixer": rng.choice(["affine_shift", "attention"]),
        }
        end = 80 - 30 * (math.log10(drawn["optim.lr"]) + 3) ** 2
        stopped = number % 2 == 1
        done = 2 if stopped else epochs
        reports = [
            EvalReport(
                epoch,
                10 * epoch,
                {"eval/top1": end * epoch / epochs + rng.uniform(-1, 1), "eval/top5": 90.0},
                1.8e9 + 300 * (number // 2) * epochs + 250 * epoch + number,
            )
            for epoch in range(1, done + 1)
        ]
        found.append(
            TrialRecord(
                f"{number:04d}", drawn, reports, steps_trained=10 * done, state="stopped" if stopped else "finished"
            )
        )
    return found


def campaign(found: list[TrialRecord], url: str = "/nowhere/campaign", **search: Any) -> CampaignRecord:
    """A campaign of such trials."""
    config = TrainConfig.model_validate(
        {"name": "demo_search", "model": {"name": "vast_micro"}, "data": {"url": "/nowhere/shards"}}
    )
    return CampaignRecord(
        url, "demo_search-1a2b3c4d", {**SEARCH, **search}, config.model_dump(mode="json"), 40, RUN, found, 4000.0
    )


def stored(url: str, record: CampaignRecord) -> CampaignRecord:
    """The campaign, written into a store and read back."""
    store = open_store(url)
    plain = {"name": record.name, "search": record.search, "config": record.config}
    write_json(
        store, CAMPAIGN, {**plain, "steps_per_trial": record.steps_per_trial, "tracking": asdict(record.tracking)}
    )
    write_json(store, SPENT, {"seconds": record.spent_s})
    for trial in record.trials:
        folder = open_store(trial_url(url, trial.id))
        write_json(folder, TRIAL, {"drawn": trial.drawn})
        if trial.state != "waiting":
            write_progress(url, trial)
        if trial.state in ("finished", "stopped", "failed"):
            write_json(folder, ENDED, {"state": trial.state, "error": trial.error})
    return read_campaign(url)
