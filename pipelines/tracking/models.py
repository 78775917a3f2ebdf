"""MLflow's record of a model: which run made it, which runs read it. The weights themselves stay in the store.

The record is made when its run is, while the server certainly answers; that it is ready can wait on disk. Uploading the
weights to it would store them twice, and a registered pyfunc is another matter than lineage, so it holds tags alone.
"""

from collections.abc import Mapping
from dataclasses import replace

from pipelines.tracking.delivery import flush
from pipelines.tracking.runs import RunRef, unusable
from pipelines.tracking.spool import Spool


def announce_model(run: RunRef, name: str, tags: Mapping[str, str]) -> RunRef:
    """Record that `run` makes a model; the reference that is returned carries the record's id.

    Raises:
        UserError: the tracking server cannot be reached or refuses.
    """
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    client = MlflowClient(run.tracking_uri)
    try:
        experiment_id = client.get_run(run.run_id).info.experiment_id
        made = client.create_logged_model(experiment_id, name=name, source_run_id=run.run_id, tags=dict(tags))
        client.log_outputs(run.run_id, [LoggedModelOutput(made.model_id, 0)])
    except MlflowException as error:
        raise unusable(run.tracking_uri, error) from error
    return replace(run, model_id=made.model_id)


def model_is_ready(run: RunRef) -> None:
    """Record that the model is there, now or when the server takes it."""
    if run.model_id:
        Spool(run).add_ready_model(run.model_id)
        flush(run)


def log_model_input(run: RunRef, made_by: RunRef) -> None:
    """Record that `run` reads the model that another run made; nothing where that has no record."""
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelInput
    from mlflow.exceptions import MlflowException

    if made_by.model_id and made_by.tracking_uri == run.tracking_uri:
        try:
            MlflowClient(run.tracking_uri).log_inputs(run.run_id, models=[LoggedModelInput(made_by.model_id)])
        except MlflowException as error:
            raise unusable(run.tracking_uri, error) from error
