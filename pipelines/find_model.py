"""What a person may write for MODEL, and the model that it means.

a URL or folder       of a checkpoint, of a published model, or of a run, whose model is in `model/`
an MLflow run id      of the training run, or of an evaluation of its model; also as runs:/ID
models:/NAME@ALIAS    of a registered model, or models:/NAME/VERSION
"""

import re
from dataclasses import dataclass

from pipelines import tracking
from pipelines.config import absolute
from pipelines.tracking import RunRef
from pipelines.training.training_run import read_run
from vast.errors import StoreError, UserError
from vast.storage import join_url, open_store
from vast.train.checkpoint import CARD

_REGISTERED = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/([0-9]+))")


@dataclass(frozen=True)
class FoundModel:
    """Where a model lies, and the run that made it."""

    url: str
    """The folder that holds model.json."""
    training_run: RunRef | None
    """None where nothing tells."""


def find_model(text: str) -> FoundModel:
    """Return the model that `text` means.

    Raises:
        UserError: There is none, with what was looked for, and where.
    """
    if text.startswith("models:/"):
        return _registered(text)
    if run_id := tracking.run_id_of(text):
        return _of_run(RunRef(tracking.tracking_uri(), run_id))
    url = absolute(text)
    place = place_of_model(url)
    if place is None:
        raise UserError(_nothing_at(url))
    return FoundModel(place, _training_run(place))


def place_of_model(url: str) -> str | None:
    """Return the folder of the model at `url`: that one, or `model/` in it; None where neither holds one."""
    places = (url, join_url(url, "model"))
    return next((place for place in places if open_store(place).exists(CARD)), None)


def _registered(text: str) -> FoundModel:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking.tracking_uri()
    match = _REGISTERED.fullmatch(text)
    if match is None:
        raise UserError(
            f"MODEL: {text}: expected models:/NAME@ALIAS, as models:/ssv2@champion, or models:/NAME/VERSION"
        )
    name, alias, number = match.groups()
    client = MlflowClient(uri, registry_uri=uri)
    try:
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        raise UserError(f"MODEL: {text}: not in the registry at {uri}: {error.message}") from error
    url = version.tags.get("model.url", "")
    if not url or not open_store(url).exists(CARD):
        raise UserError(
            f"MODEL: {text}: version {version.version} was made of {url or 'unknown weights'}, which are gone"
        )
    return FoundModel(url, _training_run(url))


def _of_run(run: RunRef) -> FoundModel:
    tags = tracking.tags(run)
    if tags is None:
        raise UserError(
            f"MODEL: the tracking store at {run.tracking_uri} has no run {run.run_id}; set MLFLOW_TRACKING_URI to the "
            "one that has, or give the URL of the run's folder"
        )
    if url := tags.get("model.url"):  # an evaluation names the model itself
        return FoundModel(url, _training_run(url))
    url = tags.get("run.url", "")
    if not url:
        kind = tags.get("run.kind", "unknown")
        raise UserError(f"MODEL: run {run.run_id} is of kind {kind} and made no model; give a training run's id")
    place = join_url(url, "model")
    if not open_store(place).exists(CARD):
        raise UserError(f"{_nothing_at(url)} (run {run.run_id} keeps its model there)")
    return FoundModel(place, read_run(url) or run)


def _training_run(model_url: str) -> RunRef | None:
    return read_run(model_url.rpartition("/")[0])


def _nothing_at(url: str) -> str:
    store = open_store(url)
    message = f"MODEL: no model at {store.url}: neither {CARD} nor model/{CARD} is there"
    try:
        checkpoints = [key.removesuffix(f"/{CARD}") for key in store.list("step-") if key.endswith(f"/{CARD}")]
    except StoreError:
        checkpoints = []
    if not checkpoints:
        return f"{message}; give the URL of a checkpoint, a run's folder, or an MLflow run id"
    return f"{message}, so the run has not finished; its last checkpoint is {join_url(store.url, checkpoints[-1])}"
