"""One trial: the loop of `vast pretrain` in a process of Ray Tune; its state and story lie in the campaign's folder.

Ray Tune places the trial, starts it again when it was lost and ends it early; it keeps nothing. Whatever process runs
the trial reads its record, goes on from the newest checkpoint and leaves each evaluation in the record before the
campaign hears of it. A trial of several ranks is one such process and an actor for each further rank, in the same
placement group: measured, a nested run of Ray Train would take ten times as long to start.
"""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed
from ray import tune

from pipelines import tracking
from pipelines.network import VARIABLE, interface_of
from pipelines.search.config import SearchConfig, trial_config
from pipelines.search.record import (
    ENDED,
    TRIAL,
    CampaignRecord,
    EvalReport,
    Exploit,
    TrialRecord,
    read_campaign,
    read_trial,
    trial_url,
    write_json,
    write_progress,
)
from pipelines.search.rules import Takeover
from pipelines.search.runs import create_trial_run
from pipelines.search.space import Point, active, base_point, grid, random_point
from pipelines.tracking import MlflowTracker, RunRef
from pipelines.training.history import HistoryKeeper
from pipelines.training.live_figures import LiveFigures
from pipelines.training.ray_storage import patiently, storage_for
from pipelines.training.supervise import PEER_LOST
from pipelines.training.uploads import TornCheckpointError, get_checkpoint, put_checkpoint
from pipelines.training.worker import NoTracker, publish
from vast.errors import ObjectMissing, StoreError, UserError
from vast.storage import join_url, open_store
from vast.train.config import TrainConfig
from vast.train.job import Outcome, Place
from vast.train.loop import Run
from vast.train.metrics import Score


@dataclass(frozen=True)
class Leg:
    """What a process of a trial is to do."""

    campaign_url: str
    trial: str
    from_epoch: int
    """Epochs that the trial has behind it when the leg begins: those of the boundary at which a population met."""
    until_epoch: int
    """Epochs after which it ends."""
    takeover: Takeover | None
    """What to do at its beginning, unless the record says that it is done."""


def run_trial(given: dict[str, Any], *, legs: dict[str, Leg]) -> None:
    """What Ray Tune calls, in a process of its own; `given` names the trial, whose leg is run.

    Mistakes and failures of the training itself end the trial as failed, without a second try. What the outside world
    does (a store, a lost rank) is raised, and Ray Tune starts the trial again.
    """
    leg = legs[given["trial"]]
    try:
        _Trial(leg).run()
    except (OSError, StoreError, ConnectionError, ray.exceptions.RayError, torch.distributed.DistBackendError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and PEER_LOST.search(str(error)):
            raise
        words = f"{type(error).__name__}: {str(error).strip()[:2000]}"
        patiently(partial(write_ended, leg.campaign_url, leg.trial, "failed", words))


def write_ended(campaign_url: str, trial: str, state: str, error: str = "") -> None:
    """Record how a trial ended."""
    write_json(open_store(trial_url(campaign_url, trial)), ENDED, {"state": state, "error": error})


class _Trial:
    """Rank 0 of a trial, the only writer of its record while it runs."""

    def __init__(self, leg: Leg) -> None:
        self.leg = leg
        self.campaign = patiently(lambda: read_campaign(leg.campaign_url))
        self.search = SearchConfig.model_validate(self.campaign.search)
        self.base = TrainConfig.model_validate(self.campaign.config)
        self.record = self._drawn()

    def _drawn(self) -> TrialRecord:
        """The trial's record; what has not been drawn yet is drawn now."""
        url, trial = self.leg.campaign_url, self.leg.trial
        try:
            return patiently(lambda: read_trial(url, trial))
        except ObjectMissing:
            point = draw(self.campaign, self.search, self.base, int(trial))
            patiently(lambda: write_json(open_store(trial_url(url, trial)), TRIAL, {"drawn": point}))
            return TrialRecord(trial, point)

    def run(self) -> None:
        """Train to the end of the leg."""
        self._take_over()
        if self.leg.until_epoch < self.base.optim.epochs and self._epoch >= self.leg.until_epoch:
            return  # an earlier process came as far
        config = trial_config(self.base, self.record.changes, f"{self.campaign.name}-{self.record.id}")
        tracking_run = self._tracking_run(config)
        tracker = MlflowTracker(tracking_run) if tracking_run else None
        live = LiveFigures(config.name, tracker or NoTracker())
        self.history = HistoryKeeper(trial_url(self.leg.campaign_url, self.record.id), live)
        peers = _Peers(self.search, config, self.record.checkpoint, self.leg.until_epoch)
        observer = _Rank0(self, tracker)
        run = Run(config, peers.place, self.history, observer)
        try:
            with last_checkpoint(self.record.checkpoint) as folder:
                outcome = run.fit(folder)
        finally:
            live.close()
            if tracker is not None:
                tracker.close()
        peers.wait()
        if outcome.step >= run.total_steps:
            self._finish(run, outcome)

    def _take_over(self) -> None:
        """Go on from another trial's state, where a population's boundary says so."""
        takeover, epoch = self.leg.takeover, self.leg.from_epoch
        done = any(exploit.epoch == epoch for exploit in self.record.exploits)
        if takeover is None or done or self._epoch != epoch:
            return
        source = patiently(lambda: read_trial(self.leg.campaign_url, takeover.source))
        (state,) = [report for report in source.reports if report.epoch == epoch]
        exploit = Exploit(takeover.source, epoch, state.step, takeover.changes, time.time(), state.checkpoint)
        self.record = replace(
            self.record,
            exploits=[*self.record.exploits, exploit],
            checkpoint=state.checkpoint,
            checkpoint_step=state.step,
        )
        self._write()

    @property
    def _epoch(self) -> int:
        return self.record.reports[-1].epoch if self.record.reports else 0

    def _write(self) -> None:
        patiently(lambda: write_progress(self.leg.campaign_url, self.record))

    def _tracking_run(self, config: TrainConfig) -> RunRef | None:
        """The trial's MLflow run; None where the server is away, which is no reason not to train."""
        known = self.record.tracking
        try:
            # another server's address would come from whoever wrote the folder, and be sent this person's password
            ours = known is not None and known.tracking_uri == self.campaign.tracking.tracking_uri
            if known is not None and ours and tracking.reopen(known):
                return known
            run = create_trial_run(self.campaign, self.record.id, config)
        except UserError:
            return None
        self.record = replace(self.record, tracking=run)
        self._write()
        return run

    def keep(self, step: int, write: Callable[[Path], None], report: EvalReport | None) -> None:
        """Store the state, then say so in the record; old states that nobody can need any more are removed."""
        url = join_url(trial_url(self.leg.campaign_url, self.record.id), f"step-{step:08d}")
        with tempfile.TemporaryDirectory(prefix="vast-checkpoint-") as scratch:
            folder = Path(scratch) / "checkpoint"
            write(folder)
            patiently(lambda: self.history.write(step))
            patiently(lambda: put_checkpoint(url, folder))
        reports = self.record.reports
        if report is not None:
            reports = [*reports, replace(report, checkpoint=url)]
        made = max(0, step - self.record.checkpoint_step)
        before = self.record.checkpoint
        self.record = replace(
            self.record,
            reports=reports,
            checkpoint=url,
            checkpoint_step=step,
            steps_trained=self.record.steps_trained + made,
        )
        self._write()
        self._sweep(before)

    def _sweep(self, before: str) -> None:
        """Remove states but the newest, and in a population those of the last two boundaries, which others may take."""
        kept = {before, self.record.checkpoint}
        if self.search.scheduler == "pbt":
            every = self.search.perturb_epochs
            met = [report.checkpoint for report in self.record.reports if report.epoch % every == 0]
            kept.update(met[-2:])
        own = trial_url(self.leg.campaign_url, self.record.id)
        names = {key.split("/")[0] for key in patiently(lambda: list(open_store(own).list("step-")))}
        storage = storage_for(own)
        for name in names - {url.rpartition("/")[2] for url in kept if url.startswith(f"{own}/")}:
            storage["storage_filesystem"].delete_dir(f"{storage['storage_path']}/{name}")

    def _finish(self, run: Run, outcome: Outcome) -> None:
        publish(trial_url(self.leg.campaign_url, self.record.id), run, outcome)
        patiently(partial(write_ended, self.leg.campaign_url, self.record.id, "finished"))


def draw(campaign: CampaignRecord, search: SearchConfig, base: TrainConfig, number: int) -> Point:
    """The settings of trial `number`; those of the recipe itself are the first, but in a grid."""
    space, known = search.distributions, base.flat()
    if search.algorithm == "grid":
        return grid(space, known)[number]
    if number == 0:
        return base_point(space, known)
    if search.algorithm == "random":
        return random_point(space, known, [base.seed, number])
    from pipelines.search.tpe import tpe_point  # Optuna takes a second to import

    point = tpe_point(
        space,
        known,
        [trial for trial in campaign.trials if int(trial.id) != number],
        metric=search.metric,
        maximise=search.mode == "max",
        random_trials=min(10, max(2, search.size(base) // 3)),
        seed=base.seed * 100_003 + number,
    )
    return active(space, point, known)


@contextlib.contextmanager
def last_checkpoint(url: str) -> Iterator[Path | None]:
    """The state at `url` in a local folder; None where there is none yet.

    Raises:
        UserError: it is damaged.
    """
    if not url:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="vast-resume-") as scratch:
        folder = Path(scratch) / "checkpoint"
        folder.mkdir()
        try:
            patiently(lambda: get_checkpoint(url, folder))
        except TornCheckpointError as error:
            raise UserError(f"the trial's state is damaged: {error}") from error
        yield folder


class _Rank:
    """What every rank of a trial does at the loop's moments: end with the leg."""

    def __init__(self, until_epoch: int) -> None:
        self.until_epoch = until_epoch

    def started(self, message: str, step: int, total_steps: int) -> None:
        """Nothing to tell."""

    def stepped(self, step: int, total_steps: int, figures: dict[str, float]) -> None:
        """Nothing to tell."""

    def saved(self, step: int, figures: dict[str, float], write: Callable[[Path], None]) -> None:
        """Rank 0 keeps the state."""

    def evaluated(self, epoch: int, step: int, result: Score) -> bool:
        """Whether the leg ends here."""
        return epoch >= self.until_epoch

    def noted(self, text: str) -> None:
        """Nobody watches a trial; its figures count what was noted."""

    def wants_stop(self) -> bool:
        """Never: Ray Tune ends a trial inside `saved`."""
        return False


class _Rank0(_Rank):
    """Keeps the state and tells Ray Tune, which may end this process inside the call."""

    def __init__(self, trial: _Trial, tracker: MlflowTracker | None) -> None:
        super().__init__(trial.leg.until_epoch)
        self.trial, self.tracker = trial, tracker
        self.pending: EvalReport | None = None

    def evaluated(self, epoch: int, step: int, result: Score) -> bool:
        """Note what came out; it is reported with the state, which the loop saves next."""
        self.pending = EvalReport(epoch, step, result.figures(), time.time())
        return super().evaluated(epoch, step, result)

    def saved(self, step: int, figures: dict[str, float], write: Callable[[Path], None]) -> None:
        """Keep the state; after an evaluation, send what was logged and report."""
        report, self.pending = self.pending, None
        self.trial.keep(step, write, report)
        if report is not None:
            if self.tracker is not None:
                self.tracker.flush()
            tune.report({"trial": self.trial.record.id, "epoch": report.epoch, **report.figures})


class _Peers:
    """The other ranks of a trial, and the process group they share with this one."""

    def __init__(self, search: SearchConfig, config: TrainConfig, checkpoint: str, until_epoch: int) -> None:
        ranks = search.ranks_per_trial
        self.place = Place(0, ranks, _device())
        self.pending: list[Any] = []
        torch.set_num_threads(search.cpus_per_rank)
        if ranks == 1:
            return
        with socket.socket() as free:
            free.bind(("", 0))
            meeting = f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
        actor = ray.remote(num_cpus=search.cpus_per_rank, num_gpus=search.gpus_per_rank)(_Peer)
        self.actors = [actor.remote() for _ in range(1, ranks)]
        self.pending = [
            peer.run.remote(config, rank, ranks, meeting, checkpoint, until_epoch, search.cpus_per_rank)
            for rank, peer in enumerate(self.actors, start=1)
        ]
        _join(meeting, 0, ranks)

    def wait(self) -> None:
        """Wait for the other ranks to end.

        Raises:
            RayError: one was lost.
        """
        ray.get(self.pending)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _Peer:
    """Actor of one further rank; it ends with the process that made it."""

    def run(
        self, config: TrainConfig, rank: int, ranks: int, meeting: str, checkpoint: str, until_epoch: int, threads: int
    ) -> None:
        """Train to the end of the leg."""
        torch.set_num_threads(threads)
        _join(meeting, rank, ranks)
        with last_checkpoint(checkpoint) as folder:
            Run(config, Place(rank, ranks, _device()), NoTracker(), _Rank(until_epoch)).fit(folder)
        torch.distributed.destroy_process_group()


def _join(meeting: str, rank: int, ranks: int) -> None:
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault(VARIABLE, interface)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=ranks)


def _device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
