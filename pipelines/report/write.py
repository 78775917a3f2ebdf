"""From what a person names to the page about it."""

import datetime
from pathlib import Path

from pipelines import tracking
from pipelines.config import absolute
from pipelines.evaluation.report import EVALUATION
from pipelines.report.campaign_page import campaign_lede, campaign_sections
from pipelines.report.evaluation import evaluation_sections, read_evaluation
from pipelines.report.page import Html, document
from pipelines.report.run_facts import gather
from pipelines.report.run_page import run_lede, run_name, run_sections
from pipelines.report.words import percent
from pipelines.search.record import CAMPAIGN, TRIAL, read_campaign
from pipelines.tracking import RunRef
from pipelines.training.launch import RESULT
from pipelines.training.training_run import RUN
from vast import __version__
from vast.errors import UserError
from vast.storage import open_store

# Tags under which runs of every kind say where their folder is.
_FOLDER_TAGS = ("campaign.url", "results.url", "run.url")


def write_report(what: str, out: Path) -> str:
    """Write the page about a run, an evaluation or a campaign, and return what kind of thing it was.

    Args:
        what: URL of its folder, or the id of its MLflow run.
        out: The page; a folder that does not exist is made, an older page is replaced.

    Raises:
        UserError: There is no such thing, or the page cannot be written there.
    """
    url = _folder(what)
    kind, page = _page(url)
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; give the name of the page, as {out / 'report.html'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}; give another place") from error
    return kind


def _folder(what: str) -> str:
    run_id = tracking.run_id_of(what)
    if not run_id:
        return absolute(what)
    ref = RunRef(tracking.tracking_uri(), run_id)
    tags = tracking.tags(ref)
    if tags is None:
        raise UserError(
            f"RUN: the tracking store at {ref.tracking_uri} has no run {ref.run_id}; set MLFLOW_TRACKING_URI to the "
            "one that has, or give the URL of its folder"
        )
    url = next((tags[name] for name in _FOLDER_TAGS if tags.get(name)), "")
    if not url:
        kind = tags.get("run.kind", "unknown")
        raise UserError(
            f"RUN: run {ref.run_id} is of kind {kind} and has no folder to report on; give a training run, an "
            "evaluation or a campaign"
        )
    return url


def _page(url: str) -> tuple[str, Html]:
    store = open_store(url)
    footer = f"Made by vast {__version__} on {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC from {store.url}"
    if store.exists(CAMPAIGN):
        record = read_campaign(url)
        return "campaign", document("Campaign", record.name, campaign_lede(record), campaign_sections(record), footer)
    if store.exists(EVALUATION):
        found = read_evaluation(url)
        content = found.content
        lede = (
            f"{content['model']['name']} at step {content['model']['step']} on {found.content['identity']['split']} of "
            f"{content['dataset']['name']}: {percent(content['top1'])} top-1, {content['denominator']}."
        )
        title = f"{content['model']['name']}, {content['protocol']['name']}"
        return "evaluation", document("Evaluation", title, lede, evaluation_sections(found), footer)
    if store.exists(RUN) or store.exists(RESULT):
        run = gather(url)
        return "run", document("Training run", run_name(run), run_lede(run), run_sections(run), footer)
    if store.exists(TRIAL):
        raise UserError(f"RUN: {store.url} is one trial; give the folder of its campaign, two levels up")
    raise UserError(
        f"RUN: nothing to report on at {store.url}: no {CAMPAIGN} of a campaign, {EVALUATION}, or "
        f"{RUN}; give the folder of one, or the id of its MLflow run"
    )
