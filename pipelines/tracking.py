"""MLflow: the driver creates and ends runs; ranks send figures from a background thread that never delays a step.

Measured on MLflow 3.17: with its defaults one `log_metric` against a dead server blocks for 246 s, and its own async
mode loses the points. So figures go through a bounded queue of ours; what cannot be delivered is handed back.
"""

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.spool import Point, Spool
from pipelines.terminal import Terminal
from vast.errors import UserError

# Before mlflow is imported anywhere: fail fast, and keep it from talking.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}.items():
    os.environ.setdefault(_name, _value)

QUEUE_SIZE = 10_000
SPOOL_RETRY_S = 5.0  # a server that hangs costs the sender ten seconds a try
PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True)
class RunRef:
    """Address of one MLflow run; small and picklable, so that ranks can log to what the driver created."""

    tracking_uri: str
    run_id: str


def tracking_uri(home: Path | None = None) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in `home` (the current folder)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(home or Path.cwd()).resolve() / 'mlflow.db'}"


def create_run(
    uri: str,
    name: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent: str = "",
) -> RunRef:
    """Create a run, as a child of `parent` if given.

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
        all_tags = {**source_tags(), **tags, **({PARENT_TAG: parent} if parent else {})}
        run = client.create_run(experiment_id, run_name=name, tags=all_tags)
        entries = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(entries), 100):  # the server's limit for one batch
            client.log_batch(run.info.run_id, params=entries[start : start + 100])
    except MlflowException as error:
        raise _unusable(uri, error) from error
    return RunRef(uri, run.info.run_id)


def log_dataset(run: RunRef, name: str, url: str, digest: str, context: str) -> None:
    """Link a data set to a run; MLflow shows name and digest beside it."""
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput, InputTag

    short = digest.removeprefix("sha256:")[:36]  # MLflow's limit; the whole digest is in the tags
    source = json.dumps({"url": url})
    entry = Dataset(name=name, digest=short, source_type="vast", source=source)
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


def source_tags() -> dict[str, str]:
    """Git commit of this code, and whether it was changed, when it runs from a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        dirty = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {"mlflow.source.git.commit": "unknown"}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(dirty)).lower()}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


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


def reopen(run: RunRef) -> bool:
    """Set an existing run to RUNNING again; False when the server does not know it.

    A server that does not answer does not keep a known run from going on: its figures wait on disk.

    Raises:
        UserError: the server refuses this user.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient(run.tracking_uri).update_run(run.run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            raise _unusable(run.tracking_uri, error) from error
        return bool(error.error_code != "RESOURCE_DOES_NOT_EXIST")
    return True


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
        raise _unusable(run.tracking_uri, error) from error


def _unusable(uri: str, error: Exception) -> UserError:
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


class MlflowTracker:
    """Tracker that hands figures to a thread; what cannot be delivered waits in the run's spool on this machine."""

    def __init__(self, run: RunRef, flush_every_s: float = 1.0) -> None:
        self.run, self.flush_every_s = run, flush_every_s
        self.queue: queue.Queue[Point | None] = queue.Queue(QUEUE_SIZE)
        self.spool = Spool(run.run_id)
        self.dropped = 0
        self.sending = True  # until what an earlier process left behind is sent
        self.thread = threading.Thread(target=self._send, name="mlflow-sender", daemon=True)
        self.thread.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Queue figures; non-finite ones are also flagged, since MLflow stores infinity as a huge number."""
        now_ms = int(time.time() * 1000)
        for name, value in figures.items():
            points = [(name, float(value), now_ms, step)]
            if not math.isfinite(value):
                points.append((f"{name}_nonfinite", 1.0, now_ms, step))
            for point in points:
                try:
                    self.queue.put_nowait(point)
                except queue.Full:
                    self.dropped += 1

    def flush(self, timeout_s: float = 10.0) -> None:
        """Wait until what was logged so far is sent, at most this long."""
        deadline = time.monotonic() + timeout_s
        while (self.queue.qsize() or self.sending) and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self, timeout_s: float = 30.0) -> list[Point]:
        """Send what is left; returns the points that the server did not take and that wait in the spool."""
        with contextlib.suppress(queue.Full):
            self.queue.put(None, timeout=timeout_s)
        self.thread.join(timeout_s)
        return self.spool.points()

    def _send(self) -> None:
        from mlflow import MlflowClient  # seconds to import: here, not in the training thread

        client = MlflowClient(self.run.tracking_uri)
        waiting = self.spool.points()
        spooled = len(waiting)  # so many of the first are on disk already
        next_try_s = 0.0
        closing = False
        while not closing:
            deadline = time.monotonic() + self.flush_every_s
            while not closing and (left := deadline - time.monotonic()) > 0:
                try:
                    point = self.queue.get(timeout=left)
                except queue.Empty:
                    break
                self.sending = True
                closing = point is None
                if point is not None:
                    waiting.append(point)
            if closing or time.monotonic() >= next_try_s:
                undelivered = _deliver(client, self.run, waiting)
                spooled = max(0, spooled - (len(waiting) - len(undelivered)))
                waiting = undelivered
                next_try_s = time.monotonic() + SPOOL_RETRY_S if waiting else 0.0
            self.spool.add(waiting[spooled:])
            spooled = len(waiting)
            if not waiting:
                self.spool.clear()
            self.sending = bool(waiting)


def _deliver(client: Any, run: RunRef, points: list[Point]) -> list[Point]:
    """Send points; returns those that the server did not take."""
    from mlflow.entities import Metric

    while points:
        batch = [Metric(name, value, when, step) for name, value, when, step in points[:500]]
        try:
            client.log_batch(run.run_id, metrics=batch)
        except Exception:  # whatever the server, the network or the database says, training goes on
            return points
        points = points[500:]
    return points


def send_spool(run: RunRef) -> int:
    """Send what waits on this machine for a run; returns how many points still do."""
    from mlflow import MlflowClient

    spool = Spool(run.run_id)
    if not (waiting := spool.points()):
        return 0
    left = _deliver(MlflowClient(run.tracking_uri), run, waiting)
    if not left:
        spool.clear()
    return len(left)


def log_files(run: RunRef, folder: Path, artifact_path: str = "") -> str | None:
    """Upload a folder to the run's artifacts; what went wrong, or None. The files stay where they are either way."""
    from mlflow import MlflowClient

    try:
        MlflowClient(run.tracking_uri).log_artifacts(run.run_id, str(folder), artifact_path or None)
    except Exception as error:
        return f"artifacts were not stored in MLflow: {error}"
    return None


def serve_ui(store: str, port: int, terminal: Terminal) -> None:
    """Become MLflow's server over `store`, on loopback; for a tracking server, say where its own UI is."""
    uri = store or tracking_uri()
    if uri.startswith(("http://", "https://")):
        terminal.say(f"the tracking server has its own UI: {uri}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UserError(f"--store: no tracking database at {uri}; train something first, or name another store")
    terminal.say(f"MLflow UI over {uri}")
    terminal.say(f"open http://127.0.0.1:{port} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # a third of the memory
    os.execv(sys.executable, command)  # no process of ours between a person's signals and the server


def log_figures(run: RunRef, figures: Mapping[str, float], step: int = 0) -> None:
    """Record final figures from the driver, through the same sender."""
    tracker = MlflowTracker(run, flush_every_s=0.05)
    tracker.log(step, figures)
    tracker.close()
