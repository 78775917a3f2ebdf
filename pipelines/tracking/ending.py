"""What the driver writes of a run: tags, files, its end, that it goes on. Without the server, it waits on disk."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipelines.tracking.delivery import Flushed, flush
from pipelines.tracking.runs import RunRef, reason, unusable
from pipelines.tracking.spool import Spool


def set_tags(run: RunRef, tags: Mapping[str, str]) -> None:
    """Set tags of a run, or keep them on disk until the server takes them."""
    Spool(run).add_tags(tags)
    flush(run)


def log_files(run: RunRef, folder: Path, artifact_path: str = "") -> str | None:
    """Upload a folder to the run's artifacts; what the server does not take waits on disk, and a message says so."""
    from mlflow import MlflowClient

    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    left = {(Path(artifact_path) / name).as_posix(): path for name, path in files.items()}
    try:
        client = MlflowClient(run.tracking_uri)
        for name, path in list(left.items()):
            parent = Path(name).parent.as_posix()
            client.log_artifact(run.run_id, str(path), None if parent == "." else parent)
            del left[name]
    except Exception as error:
        Spool(run).add_files(left)
        return (
            f"{len(left)} files did not reach MLflow and wait on disk; `vast track flush` sends them: {reason(error)}"
        )
    return None


def end_run(run: RunRef, status: str, tags: Mapping[str, str] | None = None) -> Flushed:
    """End a run, with last tags; what the server does not take waits on disk."""
    spool = Spool(run)
    if tags:
        spool.add_tags(tags)
    spool.add_end(status, int(time.time() * 1000))
    return flush(run)


def reopen(run: RunRef) -> bool:
    """Set an existing run to RUNNING again; False when the server does not know it.

    That it had ended is taken back, also where that still waits on disk. A server that does not answer does not
    keep a known run from going on: its figures wait on disk.

    Raises:
        UserError: the server refuses this user.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    Spool(run).drop_ends()
    try:
        MlflowClient(run.tracking_uri).update_run(run.run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            raise unusable(run.tracking_uri, error) from error
        return bool(error.error_code != "RESOURCE_DOES_NOT_EXIST")
    return True


@contextlib.contextmanager
def ending(run: RunRef, tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """End the run in the state the block leaves it: FINISHED, KILLED by the keyboard, or FAILED.

    `tell` hears what of the run then still waits on this machine's disk.
    """
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
        with contextlib.suppress(OSError):  # the work is done; its bookkeeping must not undo it
            done = end_run(run, status)
            if done.left and tell is not None:
                tell(
                    f"{done.left} did not reach {run.tracking_uri} ({done.trouble}); it waits on disk, and "
                    "`vast track flush` sends it"
                )
