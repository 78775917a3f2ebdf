"""The driver's side of a training run: connect to Ray, create the MLflow run, fit, show progress, keep the outcome."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pipelines import plots, tracking
from pipelines.config import absolute
from pipelines.terminal import Bar, Terminal
from pipelines.tracking import RunRef
from vast.dataset_format import read_manifest
from vast.errors import ObjectMissing, UserError
from vast.storage import join_url, open_store
from vast.train.checkpoint import ModelCard
from vast.train.config import TrainConfig
from vast.train.metrics import Score

RESULT = "result.json"
RUN = "run.json"
MAX_FAILURES = 3  # lost ranks and nodes are replaced this often before the run gives up


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
    # glibc in the ranks keeps freed activations instead of faulting fresh pages in: measured 10 % of a CPU step
    os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")
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
    try:
        ray.init(address, log_to_driver=False, logging_config=ray.LoggingConfig(log_level="ERROR"), **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--address: no Ray cluster to use at {address!r}: {error}") from error


def train(
    config: TrainConfig, terminal: Terminal, *, ranks: int, output: str, kind: str, address: str | None = None
) -> Finished:
    """Run or resume the run that `config` names; one that has finished is answered at once, without Ray.

    Args:
        config: what to compute.
        terminal: where the story goes.
        ranks: training processes; 0 takes one per GPU of the cluster, or one.
        output: store under which runs live.
        kind: what the run is for, as a tag in MLflow.
        address: see `connect`.

    Raises:
        UserError: a mistake found before or by the ranks.
        KeyboardInterrupt: after saying how to resume.
    """
    run_url = join_url(absolute(output), config.run_name())
    done = read_result(run_url)
    if done is not None:
        terminal.say(f"  already finished at step {done.step}: {run_url}")
        return done
    connect(address)
    run = _tracking_run(config, run_url, kind)
    with tracking.ending(run):
        value = _fit(config, terminal, ranks=ranks, output=absolute(output), run_url=run_url, run=run)
        finished = Finished(run_url, run, value["step"], Score.from_json(value["score"]), ModelCard(**value["card"]))
        if value["undelivered"]:
            terminal.warn(f"{value['undelivered']} figures did not reach {run.tracking_uri}")
        _keep(finished, config, terminal)
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


def _tracking_run(config: TrainConfig, run_url: str, kind: str) -> RunRef:
    """The MLflow run of this Ray run: the one it had before it was interrupted, else a new one."""
    store = open_store(run_url)
    try:
        known = RunRef(**json.loads(store.get_bytes(RUN)))
        if known.tracking_uri == tracking.tracking_uri() and tracking.reopen(known):
            return known
    except ObjectMissing:
        pass
    manifest = read_manifest(config.data.url)
    run = tracking.create_run(
        tracking.tracking_uri(),
        config.run_name(),
        params=config.flat(),
        tags={
            "dataset.digest": manifest.digest,
            "dataset.url": config.data.url,
            "run.url": run_url,
            "run.kind": kind,
        },
    )
    tracking.log_dataset(run, manifest.name, config.data.url, manifest.digest, "training")
    store.put_bytes(RUN, json.dumps(asdict(run)).encode())
    return run


def _fit(
    config: TrainConfig, terminal: Terminal, *, ranks: int, output: str, run_url: str, run: RunRef
) -> dict[str, Any]:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipelines.worker import Job, ProgressBoard, train_rank

    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    scaling = ScalingConfig(**scaling_for(ranks, ray.cluster_resources(), config.data.num_readers))
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={"job": Job(config.model_dump(mode="json"), run_url, run, board)},
        scaling_config=scaling,
        run_config=RunConfig(
            name=config.run_name(),
            storage_path=output,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
        ),
    )
    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    terminal.say(f"  {config.run_name()} on {scaling.num_workers} rank(s)")
    thread.start()
    _show(thread, board, terminal)
    ray.kill(board)
    if "error" in outcome:
        raise outcome["error"]
    value: dict[str, Any] = outcome["result"].return_value
    if "mistake" in value:
        raise UserError(value["mistake"])
    return value


def scaling_for(ranks: int, resources: dict[str, float], num_readers: int) -> dict[str, Any]:
    """Ray Train's scaling arguments for a cluster with these resources.

    Raises:
        UserError: more ranks than the cluster can ever place.
    """
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    ranks = ranks or max(1, gpus)
    if gpus:
        wanted: dict[str, float] = {"GPU": 1, "CPU": 1 + num_readers}
        most = min(gpus, cpus // (1 + num_readers))
    else:
        wanted = {"CPU": max(1, cpus // ranks)}
        most = cpus
    if ranks > most:
        raise UserError(
            f"--ranks: {ranks} ranks with {wanted} each do not fit the cluster's {cpus} CPUs and {gpus} GPUs; "
            f"use --ranks {max(1, most)} (the global batch stays the same)"
        )
    return {"num_workers": ranks, "use_gpu": gpus > 0, "resources_per_worker": wanted}


def _show(thread: threading.Thread, board: Any, terminal: Terminal) -> None:
    """Show what the board says until the thread ends."""
    import ray

    with terminal.progress("training", None) as bar:
        while True:
            alive = thread.is_alive()
            try:
                entries = ray.get(board.take.remote(), timeout=30)
            except ray.exceptions.RayError:
                entries = []  # the cluster is in trouble; fit() will say so
            for entry in entries:
                _show_entry(entry, bar, terminal)
            if not alive:
                return
            thread.join(0.3)


def _show_entry(entry: dict[str, Any], bar: Bar, terminal: Terminal) -> None:
    if entry["kind"] == "started":
        terminal.say(f"  {entry['message']}; {entry['total'] - entry['step']} of {entry['total']} steps to go")
        bar.set(entry["step"], entry["total"])
    elif entry["kind"] == "stepped":
        figures = entry["figures"]
        note = f"loss {figures['train/loss']:.3f}  {figures['time/clips_per_s']:.0f} clips/s"
        bar.set(entry["step"], entry["total"], note)
    elif entry["kind"] == "evaluated":
        terminal.say(f"  epoch {entry['epoch']:>3}  step {entry['step']:>5}  top-1 {entry['top1']:.1f} %")


def _keep(finished: Finished, config: TrainConfig, terminal: Terminal) -> None:
    """Write the outcome beside the checkpoints and into MLflow."""
    with run_files(finished.score, finished.card, config) as folder:
        store = open_store(finished.run_url)
        _copy_model(finished, folder / "model")
        problem = tracking.log_files(finished.tracking, folder)
        if problem:
            terminal.warn(problem)
        for name in ("recipe.yaml", "confusion_matrix.png"):
            store.put_file(name, folder / name)
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
def run_files(result: Score, card: ModelCard, config: TrainConfig) -> Iterator[Path]:
    """A scratch folder with what a person wants to see of a run: recipe, picture, per-class table."""
    with TemporaryDirectory(prefix="vast-run-") as scratch:
        folder = Path(scratch)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        title = f"{config.name}: top-1 {result.top1:.1f} % ({config.eval.protocol}), {result.samples} samples"
        plots.confusion_matrix(folder / "confusion_matrix.png", result.confusion_KK, card.classes, title)
        yield folder
