"""The driver's side of a training run: connect to Ray, create the MLflow run, fit, keep the outcome."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from pipelines import plots, tracking
from pipelines.config import absolute
from pipelines.stopping import StopSignals
from pipelines.terminal import Terminal
from pipelines.tracking import RunRef
from pipelines.training.history import History, read_history
from pipelines.training.ranks import Ranks, nodes_of_cluster, one_for_each_gpu, possible_ranks, scaling_for
from pipelines.training.training_run import NOTE, finished_note, open_run
from vast.errors import ObjectMissing, UserError
from vast.storage import join_url, open_store
from vast.train.checkpoint import ModelCard
from vast.train.config import TrainConfig
from vast.train.metrics import Score

RESULT = "result.json"
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_ARENA_MAX": "1"}
"""glibc in the ranks keeps freed activations instead of faulting fresh pages in: measured 10 % of a CPU step. One
arena: Ray Train runs the loop in a thread, and a thread's own arena gives memory back whatever the settings: 5 to 9 %.
"""

START_ATTEMPTS = 3
"""A raylet gives its agent 15 s to start, and then dies. On a busy machine Python's imports alone can take that long;
the next time they are quicker."""


@dataclass(frozen=True)
class Finished:
    """A run that reached its last step."""

    run_url: str
    tracking: RunRef
    step: int
    score: Score
    card: ModelCard

    @property
    def model_url(self) -> str:
        """Where the published model lies."""
        return join_url(self.run_url, "model")


def connect(address: str | None) -> None:
    """Join the cluster at `address` (or RAY_ADDRESS), or start Ray on this machine, once per process.

    Raises:
        UserError: nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # also how often a report is collected
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {}
    if address == "local":
        local = {"include_dashboard": False, "object_store_memory": 256 * 2**20}
        # Ray Train's clean-up actor asks the dashboard whether the run still lives; with none it searches for 40 s and
        # holds the end of a run up by 12 s (measured). An address that refuses at once spares that; what it would
        # clean up ends with this process anyway.
        os.environ.setdefault("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
    _listen_on_loopback(address == "local")
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(address, log_to_driver=False, logging_config=ray.LoggingConfig(log_level="ERROR"), **local)
            return
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--address: no Ray cluster to use at {address!r}: {error}") from error
        except Exception as error:  # Ray's own word for it is a plain Exception; what it had started ends with us
            if "timed out during startup" not in str(error) or attempt == START_ATTEMPTS:
                raise


def _listen_on_loopback(alone: bool) -> None:
    """Let a Ray of this process's own listen on 127.0.0.1 alone; left to itself it listens on every interface.

    `ray.init` has no argument for that: it replaces 127.0.0.1 by the machine's outer address. This is its switch for
    desktop systems, read from RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER when Ray is imported, which may have been long ago.
    """
    from ray._private import ray_constants

    asked = os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "1").lower() not in ("0", "false")
    ray_constants.ENABLE_RAY_CLUSTER = asked and not alone


def train(
    config: TrainConfig, terminal: Terminal, *, ranks: Ranks, output: str, kind: str, address: str | None = None
) -> Finished:
    """Run or resume the run that `config` names; one that has finished is answered at once, without Ray.

    Args:
        config: what to compute.
        terminal: where the story goes.
        ranks: how many training processes.
        output: store under which runs live.
        kind: what the run is for, as a tag in MLflow.
        address: see `connect`.

    Raises:
        UserError: a mistake found before or by the ranks.
        Interrupted: SIGINT or SIGTERM came; everything up to the last whole step is saved.
        RunFailed: it failed again and again; its checkpoints are kept.
    """
    run_url = join_url(absolute(output), config.run_name())
    done = read_result(run_url)
    if done is not None:
        terminal.say(f"  already finished at step {done.step}: {run_url}")
        left = tracking.flush(done.tracking)
        if left.left:
            terminal.warn(
                f"{left.left} still to be sent to {left.run.tracking_uri}, by `vast track flush`: {left.trouble}"
            )
        return done
    if ranks.most:
        possible_ranks(config, ranks)  # before Ray is started
    connect(address)
    import ray

    run = open_run(config, run_url, kind, num_nodes=len(ray.nodes()))
    with tracking.ending(run, terminal.warn), StopSignals() as signals:
        value = _fit(config, terminal, signals, ranks=ranks, output=absolute(output), run=run, address=address)
        finished = Finished(run_url, run, value["step"], Score.from_json(value["score"]), ModelCard(**value["card"]))
        if value["undelivered"] and not tracking.flush(run).before:  # else what waits is here, and `ending` tells
            terminal.warn(
                f"{value['undelivered']} figures did not reach {run.tracking_uri}; they wait on the disk of rank 0's "
                "machine, where `vast track flush` sends them"
            )
        _keep(finished, config, kind, terminal)
    return finished


def read_result(run_url: str) -> Finished | None:
    """The outcome of a run that has finished, or None."""
    try:
        plain = json.loads(open_store(run_url).get_bytes(RESULT))
    except ObjectMissing:
        return None
    return Finished(
        run_url, RunRef(**plain["tracking"]), plain["step"], Score.from_json(plain["score"]), ModelCard(**plain["card"])
    )


def _fit(
    config: TrainConfig,
    terminal: Terminal,
    signals: StopSignals,
    *,
    ranks: Ranks,
    output: str,
    run: RunRef,
    address: str | None,
) -> dict[str, Any]:
    """Train to the end, whatever fails on the way; returns what rank 0 returned."""
    import ray

    from pipelines.training.fit import Fit, session_lives
    from pipelines.training.supervise import supervise

    # of the cluster as it is now: a node that is lost later is waited for
    nodes = nodes_of_cluster()
    possible = possible_ranks(config, ranks if ranks.most else one_for_each_gpu(nodes))
    scaling = scaling_for(Ranks(possible[0], possible[-1]), nodes, config.data.num_readers)
    fit = Fit(config, output, run, scaling, terminal, signals)
    terminal.say(f"  {config.run_name()}")

    def attempt() -> dict[str, Any]:
        if not session_lives():
            ray.shutdown()
            connect(address)
        return fit()

    return supervise(attempt, progress=lambda: fit.stored, warn=terminal.warn, sleep=signals.sleep)


def _keep(finished: Finished, config: TrainConfig, kind: str, terminal: Terminal) -> None:
    """Write the outcome beside the checkpoints and into MLflow."""
    history = read_history(finished.run_url)
    with run_files(finished.score, finished.card, config, history) as folder:
        store = open_store(finished.run_url)
        _copy_model(finished, folder / "model")
        problem = tracking.log_files(finished.tracking, folder)
        if problem:
            terminal.warn(problem)
        for path in sorted(folder.iterdir()):
            if path.is_file():  # the model is there already
                store.put_file(path.name, path)
    note = finished_note(config, kind, finished.model_url, finished.score, history)
    tracking.set_tags(finished.tracking, {NOTE: note})
    tracking.model_is_ready(finished.tracking)
    plain = {
        "tracking": asdict(finished.tracking),
        "step": finished.step,
        "score": finished.score.to_json(),
        "card": asdict(finished.card),
    }
    store.put_bytes(RESULT, json.dumps(plain, indent=1).encode())  # last: its presence means finished


def _copy_model(finished: Finished, folder: Path) -> None:
    folder.mkdir()
    published = open_store(finished.model_url)
    for name in published.list():
        published.get_file(name, folder / name)


@contextmanager
def run_files(result: Score, card: ModelCard, config: TrainConfig, history: History) -> Iterator[Path]:
    """A scratch folder with what a person wants to see of a run: its recipe and pictures."""
    with TemporaryDirectory(prefix="vast-run-") as scratch:
        folder = Path(scratch)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        title = f"{config.name}: top-1 {result.top1:.1f} % ({config.eval.protocol}), {result.samples} samples"
        plots.confusion_matrix(folder / "confusion_matrix.png", result.confusion_KK, card.classes, title)
        plots.most_confused(folder / "most_confused.png", result.confusion_KK, card.classes, title)
        samples_K = result.confusion_KK.sum(axis=1)
        top1_K = 100.0 * np.diag(result.confusion_KK) / np.maximum(samples_K, 1)
        plots.per_class_accuracy(folder / "per_class_accuracy.png", top1_K, samples_K, card.classes, title)
        plots.learning_curves(folder / "learning_curves.png", history, title)
        plots.where_time_goes(folder / "where_time_goes.png", history, f"{config.name}: where a step's time goes")
        yield folder
