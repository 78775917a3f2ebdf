"""What MLflow knows of a run, read for a report: the only module of the report that speaks to MLflow."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from pipelines.report.figures import Figures
from pipelines.tracking import RunRef
from pipelines.tracking.runs import tracking_uri
from vast.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Tracked:
    """A run as MLflow shows it."""

    ref: RunRef
    name: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    start_s: float
    """Seconds since 1970."""
    end_s: float | None
    """None while it runs."""
    params: dict[str, str]
    tags: dict[str, str]
    environment: dict[str, Any]
    """As pipelines.tracking.environment writes it; empty where it was not kept or cannot be fetched."""


def tracked_run(ref: RunRef) -> Tracked:
    """The run.

    Raises:
        UserError: MLflow does not answer, refuses, or has no such run.
    """
    from mlflow import MlflowClient

    client = MlflowClient(ref.tracking_uri)
    run = _ask(ref, lambda: client.get_run(ref.run_id))
    end_ms = run.info.end_time
    return Tracked(
        ref,
        run.info.run_name or ref.run_id,
        run.info.status,
        run.info.start_time / 1e3,
        end_ms / 1e3 if end_ms else None,
        dict(run.data.params),
        dict(run.data.tags),
        _environment(client, ref),
    )


def _environment(client: Any, ref: RunRef) -> dict[str, Any]:
    with TemporaryDirectory(prefix="vast-report-") as scratch, contextlib.suppress(Exception):
        path = client.download_artifacts(ref.run_id, "environment/environment.json", scratch)
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    return {}  # files may lie where this machine does not reach; the report goes on without


def tracked_figures(ref: RunRef) -> Figures:
    """The history of every figure, of runs whose folder does not have it.

    Raises:
        UserError: MLflow does not answer, refuses, or has no such run.
    """
    from mlflow import MlflowClient

    def read() -> Figures:
        client = MlflowClient(ref.tracking_uri)
        series: dict[str, list[tuple[int, float]]] = {}
        for name in client.get_run(ref.run_id).data.metrics:
            points = sorted(client.get_metric_history(ref.run_id, name), key=lambda point: point.timestamp)
            by_step = {point.step: point.value for point in points}  # the last value of a step is the one that holds
            series[name] = sorted(by_step.items())
        return Figures(series)

    return _ask(ref, read)


def evaluations_of(ref: RunRef) -> list[str]:
    """URLs of the results of `vast evaluate` on the run's model, the newest first.

    Raises:
        UserError: MLflow does not answer, refuses, or has no such run.
    """
    from mlflow import MlflowClient

    def read() -> list[str]:
        client = MlflowClient(ref.tracking_uri)
        experiment = client.get_run(ref.run_id).info.experiment_id
        found = client.search_runs(
            [experiment], f"tags.`training.run_id` = '{ref.run_id}'", order_by=["attributes.start_time DESC"]
        )
        return [run.data.tags["results.url"] for run in found if "results.url" in run.data.tags]

    return _ask(ref, read)


def _ask(ref: RunRef, question: Callable[[], T]) -> T:
    from mlflow.exceptions import MlflowException

    path = Path(ref.tracking_uri.removeprefix("sqlite:///"))
    if ref.tracking_uri.startswith("sqlite:///") and not path.is_file():  # MLflow would make a new one
        raise UserError(f"MLflow: there is no tracking database at {ref.tracking_uri} any more")
    if not ref.tracking_uri.startswith("sqlite:///") and ref.tracking_uri != tracking_uri():
        # whoever made the folder chose that address, and MLflow would send it this person's password
        raise UserError(
            f"MLflow: the run says it is in {ref.tracking_uri}, which is not asked; set MLFLOW_TRACKING_URI to it "
            "if you know that server"
        )
    try:
        return question()
    except MlflowException as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"MLflow: run {ref.run_id} cannot be read from {ref.tracking_uri}: {first}") from error
