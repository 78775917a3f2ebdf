"""Runs on the tracking server: make one, link data to it, read its tags."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.tracking.source import source_tags
from vast.errors import UserError
from vast.storage import refuse_password

PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True)
class RunRef:
    """Address of one MLflow run; small and picklable, so that ranks can log to what the driver created."""

    tracking_uri: str
    run_id: str
    model_id: str = field(default="", compare=False)
    """MLflow's record of the model that the run makes; empty when it makes none."""
    created_ms: int = field(default=0, compare=False)
    """When the run was created."""


def tracking_uri(home: Path | None = None) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in `home` (the current folder).

    Raises:
        UserError: MLFLOW_TRACKING_URI has a password in it; the address is written down with every run.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(home or Path.cwd()).resolve() / 'mlflow.db'}"
    refuse_password(
        uri, "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGUSER and PGPASSWORD"
    )
    return uri


def create_run(
    uri: str,
    name: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent: str = "",
    once_by: str = "",
) -> RunRef:
    """Create a run, as a child of `parent` if given.

    Where `once_by` names a tag, a run that has it with the same value is returned instead: one that a process created
    which was killed before it could note that.

    Raises:
        UserError: the tracking server cannot be reached or refuses.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(uri)
        if parent:  # where its parent is, whatever this process's environment says
            experiment_id = client.get_run(parent).info.experiment_id
        else:
            experiment_id = _experiment(client, uri, os.environ.get("MLFLOW_EXPERIMENT_NAME", "vast"))
        if once_by:
            same = f"tags.`{once_by}` = '{tags[once_by]}'"
            if found := client.search_runs([experiment_id], same, max_results=1):
                return RunRef(uri, found[0].info.run_id)
        all_tags = {**source_tags(), **tags, **({PARENT_TAG: parent} if parent else {})}
        run = client.create_run(experiment_id, run_name=name, tags=all_tags)
        entries = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(entries), 100):  # the server's limit for one batch
            client.log_batch(run.info.run_id, params=entries[start : start + 100])
    except MlflowException as error:
        raise unusable(uri, error) from error
    return RunRef(uri, run.info.run_id, created_ms=run.info.start_time)


def log_dataset(
    run: RunRef, name: str, url: str, digest: str, context: str, counts: Mapping[str, int] | None = None
) -> None:
    """Link a data set to a run; MLflow shows name and digest beside it, and `counts` as its profile."""
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput, InputTag

    short = digest.removeprefix("sha256:")[:36]  # MLflow's limit; the whole digest is in the tags
    source = json.dumps({"url": url})
    entry = Dataset(
        name=name, digest=short, source_type="vast", source=source, profile=json.dumps(counts) if counts else None
    )
    inputs = [DatasetInput(entry, tags=[InputTag("mlflow.data.context", context)])]
    MlflowClient(run.tracking_uri).log_inputs(run.run_id, datasets=inputs)


def _experiment(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if uri.startswith("sqlite:///"):  # artifacts beside the file, not in whatever folder the process stands
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def touch_experiment(uri: str) -> str:
    """Write a tag onto the experiment that runs go into, and return its name.

    Raises:
        UserError: the tracking server cannot be reached or refuses.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vast")
    try:
        client = MlflowClient(uri)
        client.set_experiment_tag(_experiment(client, uri, name), "vast.checked", "by vast check")
    except MlflowException as error:
        raise unusable(uri, error) from error
    return name


def tags(run: RunRef) -> dict[str, str] | None:
    """The tags of a run; None when the server does not know it.

    Raises:
        UserError: the tracking server cannot be reached or refuses.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return dict(MlflowClient(run.tracking_uri).get_run(run.run_id).data.tags)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise unusable(run.tracking_uri, error) from error


def run_id_of(text: str) -> str:
    """The run's id that a text is, as runs:/ID too; empty where it is none."""
    match = re.fullmatch(r"(?:runs:/)?([0-9a-f]{32})", text)
    return match[1] if match else ""


def latest_tag(name: str, tags: Mapping[str, str]) -> str:
    """A tag of the latest finished run of this process's experiment that has all these tags; empty where none has.

    Raises:
        UserError: the tracking server cannot be reached or refuses.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri()
    words = [*(f"tags.`{key}` = '{value}'" for key, value in tags.items()), "attributes.status = 'FINISHED'"]
    try:
        client = MlflowClient(uri)
        experiment = _experiment(client, uri, os.environ.get("MLFLOW_EXPERIMENT_NAME", "vast"))
        order = ["attributes.start_time DESC"]
        found = client.search_runs([experiment], " and ".join(words), max_results=1, order_by=order)
    except MlflowException as error:
        raise unusable(uri, error) from error
    return str(found[0].data.tags.get(name, "")) if found else ""


def reason(error: Exception) -> str:
    """An error in part of a line; what requests says of a server that is away is several."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) <= 160 else f"{first[:160]}…"


def unusable(uri: str, error: Exception) -> UserError:
    """What a person reads about a server that cannot be used."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    code = getattr(error, "error_code", "")
    if code == "UNAUTHENTICATED":
        return UserError(
            f"MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD: the tracking server at {uri} "
            + (f"does not know user {user!r} with this password" if user else "lets nobody in without a password")
            + "; set both on every machine of the run"
        )
    if code == "PERMISSION_DENIED":
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vast")
        return UserError(
            f"MLFLOW_TRACKING_USERNAME: user {user!r} may not write into experiment {experiment!r} of the tracking "
            f"server at {uri}; ask its administrator, or set MLFLOW_EXPERIMENT_NAME to one that this user may write"
        )
    return UserError(
        f"MLFLOW_TRACKING_URI: the tracking server at {uri} cannot be used: {error}; start it, correct the address "
        "or unset the variable to track into a local file"
    )
