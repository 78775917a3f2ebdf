"""The MLflow runs of a campaign: one for itself, and one for each trial as its child, none of them twice."""

import contextlib
from pathlib import Path

from pipelines import tracking
from pipelines.search.config import SearchConfig, trial_config
from pipelines.search.record import CampaignRecord, TrialRecord, trial_url
from pipelines.tracking import RunRef
from pipelines.training.training_run import log_splits
from vast.dataset_format import read_manifest
from vast.errors import UserError
from vast.train.config import TrainConfig


def check_tracking(url: str, run: RunRef) -> None:
    """Refuse to go on with a campaign that is tracked where this person does not track.

    MLflow's client sends MLFLOW_TRACKING_PASSWORD wherever it is pointed, and the folder may be a stranger's.

    Raises:
        UserError: the campaign names another tracking server, or a database that is not there.
    """
    ours = tracking.tracking_uri()
    path = run.tracking_uri.removeprefix("sqlite:///")
    if run.tracking_uri == ours or (path != run.tracking_uri and Path(path).is_file()):
        return
    raise UserError(
        f"{url}: this campaign is tracked in {run.tracking_uri}, and MLFLOW_TRACKING_URI says {ours}; set it to the "
        "campaign's if you know that server, or search with another --output"
    )


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
    if run is not None and run.tracking_uri != campaign.tracking.tracking_uri:
        run = None  # see check_tracking
    if run is None and trial.drawn:
        with contextlib.suppress(UserError):
            config = trial_config(TrainConfig.model_validate(campaign.config), trial.changes, campaign.name)
            run = create_trial_run(campaign, trial.id, config)
            for report in trial.reports:
                tracking.log_figures(run, report.figures, report.step)
    if run is not None:
        status = {"failed": "FAILED", "running": "KILLED"}.get(trial.state, "FINISHED")
        tracking.end_run(run, status, {"stopped_early": str(trial.state == "stopped").lower()})
