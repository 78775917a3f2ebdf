"""How a run ends on the tracking server: its files, and the state it is left in."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.tracking.runs import RunRef


def log_files(run: RunRef, folder: Path, artifact_path: str = "") -> str | None:
    """Upload a folder to the run's artifacts; what went wrong, or None. The files stay where they are either way."""
    from mlflow import MlflowClient

    try:
        MlflowClient(run.tracking_uri).log_artifacts(run.run_id, str(folder), artifact_path or None)
    except Exception as error:
        return f"artifacts were not stored in MLflow: {error}"
    return None


def end_run(run: RunRef, status: str, tags: Mapping[str, str]) -> None:
    """End a run from outside, with last tags; a server that is away costs the status, not the work."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(run.tracking_uri)
    with contextlib.suppress(MlflowException):
        for name, value in tags.items():
            client.set_tag(run.run_id, name, value)
        client.set_terminated(run.run_id, status)


@contextlib.contextmanager
def ending(run: RunRef) -> Iterator[None]:
    """End the run in the state the block leaves it: FINISHED, KILLED by the keyboard, or FAILED."""
    status = "FINISHED"
    try:
        yield
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except BaseException:
        status = "FAILED"
        raise
    finally:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):  # the work is done; its bookkeeping must not undo it
            MlflowClient(run.tracking_uri).set_terminated(run.run_id, status)
