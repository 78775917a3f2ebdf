"""The MLflow runs of a campaign: one for itself, and one for each trial as its child, none of them twice."""

import contextlib

from pipelines import tracking
from pipelines.search.config import SearchConfig, trial_config
from pipelines.search.record import CampaignRecord, TrialRecord, trial_url
from pipelines.tracking import RunRef
from pipelines.training_run import log_splits
from vast.dataset_format import read_manifest
from vast.errors import UserError
from vast.train.config import TrainConfig


def create_campaign_run(url: str, base: TrainConfig, search: SearchConfig) -> RunRef:
    """The run of the campaign at `url`.

    Raises:
        UserError: the tracking server cannot be reached or refuses.
    """
    params = {**base.flat(), **{f"search.{key}": value for key, value in search.model_dump(mode="json").items()}}
    manifest = read_manifest(base.data.url)
    tags = {"run.kind": "search", "run.url": url, "dataset.digest": manifest.digest, "dataset.url": base.data.url}
    name = url.rpartition("/")[2]
    run = tracking.create_run(tracking.tracking_uri(), name, params=params, tags=tags, once_by="run.url")
    log_splits(run, base, manifest)
    return run


def create_trial_run(campaign: CampaignRecord, trial: str, config: TrainConfig) -> RunRef:
    """The run of a trial.

    Raises:
        UserError: the tracking server cannot be reached or refuses.
    """
    parent = campaign.tracking
    tags = {
        "run.kind": "trial",
        "run.url": trial_url(campaign.url, trial),
        "search.metric": campaign.metric,
        "trial": trial,
    }
    return tracking.create_run(
        parent.tracking_uri,
        f"trial-{trial}",
        params=config.flat(),
        tags=tags,
        parent=parent.run_id,
        once_by="run.url",
    )


def end_trial_run(campaign: CampaignRecord, trial: TrialRecord) -> None:
    """Close the run of a trial, which was ended from outside and cannot do so itself.

    Where the server was away when the trial began, there is none: then it is made of what the record has.
    """
    run = trial.tracking
    if run is None and trial.drawn:
        with contextlib.suppress(UserError):
            config = trial_config(TrainConfig.model_validate(campaign.config), trial.changes, campaign.name)
            run = create_trial_run(campaign, trial.id, config)
            for report in trial.reports:
                tracking.log_figures(run, report.figures, report.step)
    if run is not None:
        status = {"failed": "FAILED", "running": "KILLED"}.get(trial.state, "FINISHED")
        tracking.end_run(run, status, {"stopped_early": str(trial.state == "stopped").lower()})
