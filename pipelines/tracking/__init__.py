"""MLflow: the driver creates and ends runs; ranks have figures sent by a process that never delays a step.

Measured on MLflow 3.17: with its defaults one `log_metric` against a dead server blocks for 246 s, and its own async
mode loses the points. So figures go through a queue and a spool of ours, and no rank imports it.
"""

import os

from pipelines.tracking.delivery import Flushed, flush, waiting_runs
from pipelines.tracking.ending import end_run, ending, log_files, reopen, set_tags
from pipelines.tracking.environment import write_environment
from pipelines.tracking.models import announce_model, log_model_input, model_is_ready
from pipelines.tracking.runs import (
    PARENT_TAG,
    RunRef,
    create_run,
    latest_tag,
    log_dataset,
    run_id_of,
    tags,
    touch_experiment,
    tracking_uri,
)
from pipelines.tracking.sender import MlflowTracker, log_figures
from pipelines.tracking.source import source_tags
from pipelines.tracking.spool import Waiting
from pipelines.tracking.ui import serve_ui

# Each module imports mlflow where it is used, so this comes first: fail fast, and keep it from talking.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}.items():
    os.environ.setdefault(_name, _value)

__all__ = [
    "PARENT_TAG",
    "Flushed",
    "MlflowTracker",
    "RunRef",
    "Waiting",
    "announce_model",
    "create_run",
    "end_run",
    "ending",
    "flush",
    "latest_tag",
    "log_dataset",
    "log_figures",
    "log_files",
    "log_model_input",
    "model_is_ready",
    "reopen",
    "run_id_of",
    "serve_ui",
    "set_tags",
    "source_tags",
    "tags",
    "touch_experiment",
    "tracking_uri",
    "waiting_runs",
    "write_environment",
]
