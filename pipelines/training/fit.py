"""One call of Ray Train's fit(): place the ranks, show how far they are, pass a wish to stop on to them."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.worker import global_worker
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.network import GlooOnRaysInterface
from pipelines.stopping import Interrupted, StopSignals
from pipelines.terminal import Bar, Terminal
from pipelines.tracking import RunRef
from pipelines.training.elastic import EqualSharesTrainer
from pipelines.training.live_figures import restarts_gauge
from pipelines.training.preemption import SigtermIsANotice
from pipelines.training.ranks import Ranks, possible_ranks
from pipelines.training.ray_storage import storage_for
from pipelines.training.supervise import RanksMoved, SessionLost
from pipelines.training.worker import SCORE, Job, ProgressBoard, train_rank
from vast.storage import join_url
from vast.train.config import TrainConfig

_POLL_S = 0.3
_BOARD_TIMEOUT_S = 30.0


class Raylet:
    """This node's raylet, seen from a connection that is only held: its end is the raylet's end."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        node = global_worker.node
        self._connected = node is not None and self._socket.connect_ex(node.raylet_socket_name) == 0

    def lives(self) -> bool:
        """Whether it is still there."""
        try:
            return self._connected and self._socket.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:  # nothing to read: it lives and has nothing to say
            return True
        except OSError:
            return False

    def __enter__(self) -> "Raylet":
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()


def session_lives() -> bool:
    """Whether this process's connection to Ray still works."""
    with Raylet() as raylet:
        return raylet.lives()


@dataclass
class Fit:
    """A run that may take several calls of fit(); it remembers between them how far the run is."""

    config: TrainConfig
    output: str
    run: RunRef
    scaling: dict[str, Any]
    terminal: Terminal
    signals: StopSignals
    stored: int = 0
    """Step of the newest checkpoint known to be in the store."""
    starts: int = 0
    """How often the ranks have started."""

    def __call__(self) -> dict[str, Any]:
        """Train from the last checkpoint to the end; returns what rank 0 returned.

        Raises:
            Interrupted: the driver was asked to stop, and everything is saved.
            RanksMoved: ranks were told to go, and everything is saved.
            Exception: whatever Ray Train raises; see supervise.diagnose.
        """
        board = ray.remote(num_cpus=0)(ProgressBoard)
        # beside this process, as Ray Train's controller is: another node may go without taking the run with it
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        handle = board.options(scheduling_strategy=here).remote()
        try:
            value = self._run(self._trainer(handle), handle)
        finally:
            if ray.is_initialized():  # or this call would start another Ray
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(handle)
        if "interrupted" not in value:
            return value
        self.stored = max(self.stored, value["interrupted"])
        if self.signals.signum:
            self.terminal.say(f"  saved at step {value['interrupted']}")
            raise Interrupted(self.signals.signum)
        raise RanksMoved

    def _trainer(self, board: Any) -> EqualSharesTrainer:
        config, keep = self.config, self.config.checkpoint
        scaling = ScalingConfig(**self.scaling)
        return EqualSharesTrainer(
            train_rank,
            train_loop_config={
                "job": Job(config.model_dump(mode="json"), join_url(self.output, config.run_name()), self.run, board)
            },
            possible=possible_ranks(config, Ranks(scaling.min_workers, scaling.max_workers)),
            scaling_config=scaling,
            run_config=RunConfig(
                name=config.run_name(),
                **storage_for(self.output),
                failure_config=FailureConfig(max_failures=0),  # supervise.py decides
                checkpoint_config=CheckpointConfig(
                    num_to_keep=keep.keep_best or keep.keep,
                    checkpoint_score_attribute=SCORE if keep.keep_best else None,
                ),
                callbacks=[SigtermIsANotice(), GlooOnRaysInterface()],
            ),
        )

    def _run(self, trainer: EqualSharesTrainer, board: Any) -> dict[str, Any]:
        outcome: dict[str, Any] = {}

        def fit() -> None:
            try:
                outcome["result"] = trainer.fit()
            except BaseException as error:
                outcome["error"] = error

        thread = threading.Thread(target=fit, name="ray-train", daemon=True)
        thread.start()
        self._show(thread, board)
        if isinstance(outcome.get("error"), ray.exceptions.RayError):
            # The controller is lost. The CPUs and GPUs that it had reserved are given back when this job ends: Ray
            # Train's own clean-up asks the dashboard, which need not be there, and so may leave them taken for ever.
            ray.shutdown()
        if "error" in outcome:
            raise outcome["error"]
        value: dict[str, Any] = outcome["result"].return_value
        return value

    def _show(self, thread: threading.Thread, board: Any) -> None:
        """Show what the board says until the thread ends."""
        told, restarts = False, restarts_gauge(self.config.run_name())
        with Raylet() as raylet, self.terminal.progress("training", None) as bar:
            while True:
                alive = thread.is_alive()
                if self.signals.signum and not told:
                    told = True
                    self.terminal.say("  asked to stop: the ranks finish the step and save; once more ends at once")
                    board.stop.remote()
                entries = _answer(board.take.remote, raylet)
                for entry in entries:
                    self._show_entry(entry, bar)
                restarts.set(max(0, self.starts - 1))
                if not alive:
                    return
                thread.join(_POLL_S)

    def _show_entry(self, entry: dict[str, Any], bar: Bar) -> None:
        say = self.terminal.say
        if entry["kind"] == "started":
            message = f"{entry['message']} on {entry['ranks']} rank(s)"
            say(f"  {message}; {entry['total'] - entry['step']} of {entry['total']} steps to go")
            bar.set(entry["step"], entry["total"])
            self.stored = max(self.stored, entry["step"])
            self.starts += 1
        elif entry["kind"] == "stepped":
            figures = entry["figures"]
            note = f"loss {figures['train/loss']:.3f}  {figures['time/clips_per_s']:.0f} clips/s"
            bar.set(entry["step"], entry["total"], note)
        elif entry["kind"] == "stored":
            self.stored = max(self.stored, entry["step"])
        elif entry["kind"] == "noted":
            self.terminal.warn(entry["text"])
        elif entry["kind"] == "evaluated":
            say(f"  epoch {entry['epoch']:>3}  step {entry['step']:>5}  top-1 {entry['top1']:.1f} %")


def _answer(ask: Callable[[], Any], raylet: Raylet) -> list[dict[str, Any]]:
    """What the board answers; nothing where the cluster is in trouble, which fit() will say.

    Ray ends a driver, without a word, that sends something to a raylet that is gone; it does so by itself once it hears
    that the node is dead. Until then there are some seconds to leave, so no wait here is long: a board that is still
    being started answers only after a second or two, or never, when its raylet is killed meanwhile.

    Raises:
        SessionLost: the raylet is gone.
    """
    answer = None
    deadline = time.monotonic() + _BOARD_TIMEOUT_S
    while time.monotonic() < deadline:
        if not raylet.lives():
            ray.shutdown()
            raise SessionLost
        try:
            answer = answer or ask().future()
            entries: list[dict[str, Any]] = answer.result(timeout=_POLL_S)
            return entries
        except ray.exceptions.RayError:
            return []
        except TimeoutError:
            continue
    return []
