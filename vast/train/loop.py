"""The training loop: load, step, log, evaluate, save. What saving and logging mean is the caller's business."""

import math
import tempfile
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from vast.data.dataset import ShardDataset
from vast.data.loader import EvalLoader, TrainLoader
from vast.data.order import steps_per_epoch
from vast.data.protocols import resolve_protocol
from vast.data.reader import TrainBatch
from vast.dataset_format import Manifest, class_difference, read_manifest
from vast.errors import UserError
from vast.models.inflate import start_from
from vast.models.variants import create_model
from vast.train.checkpoint import ModelCard, TrainState, fetch, read_card, read_weights
from vast.train.config import TrainConfig
from vast.train.ema import Ema
from vast.train.evaluate import MAX_CLIPS, predict
from vast.train.faults import samples_at_fault
from vast.train.job import Observer, Outcome, Place
from vast.train.metrics import Score, score
from vast.train.optim import build_optimizer
from vast.train.stall import Stopwatch
from vast.train.step import AUTOCAST, Stepper, Taken
from vast.train.tracker import Tracker
from vast.train.window import Window

_MIN_LOSS_SCALE = 1.0  # an fp16 gradient that overflows at this scale is no matter of the scale any more


class Run:
    """One training run on one rank."""

    def __init__(self, config: TrainConfig, place: Place, tracker: Tracker, observer: Observer) -> None:
        self.config, self.place, self.tracker, self.observer = config, place, tracker, observer
        # data
        self.manifest = read_manifest(config.data.url)
        self.eval_manifest = read_manifest(config.data.resolved_eval_url)
        check_same_classes(self.manifest, self.eval_manifest, config.data.eval_url)
        self.train_set = ShardDataset(config.data.url, config.data.train_split)
        self.eval_set = ShardDataset(config.data.resolved_eval_url, config.data.eval_split)
        self.steps_per_epoch = steps_per_epoch(len(self.train_set), config.optim.global_batch, config.data.repeats)
        self.total_steps = self.steps_per_epoch * config.optim.epochs
        # model
        torch.manual_seed(config.seed)
        self.model = create_model(config.model, num_classes=len(self.manifest.classes)).to(place.device)
        self.state = TrainState(
            self.model,
            build_optimizer(self.model, config.optim),
            ema=Ema(self.model, config.optim.ema_decay) if config.optim.ema_decay else None,
            scaler=torch.amp.GradScaler(place.device.type, enabled=config.optim.precision == "fp16"),
        )
        # what is known of the run so far
        self.in_flight: deque[Taken] = deque()
        self.window = Window(config.optim.global_batch, place.num_ranks)
        self.stopwatch = Stopwatch(place.device)
        self.eval_figures: dict[str, float] = {}
        self.noted_samples: set[int] = set()
        self.stop_asked = False

    def start(self, own_checkpoint: Path | None) -> str:
        """Take the first of the four ways to start that applies; the order is important."""
        # 1) this run's own last checkpoint
        if own_checkpoint is not None:
            self._load(own_checkpoint)
            return f"resumed at step {self.state.step} from this run's last checkpoint"
        with tempfile.TemporaryDirectory(prefix="vast-start-") as scratch:
            folder = Path(scratch)
            # 2) another run's checkpoint, continued exactly
            if self.config.resume_from:
                fetch(self.config.resume_from, folder, with_state=True)
                self._load(folder)
                return f"resumed at step {self.state.step} from {self.config.resume_from}"
            # 3) weights alone
            if self.config.init_from:
                return self._init_from(self.config.init_from, folder)
        # 4) scratch
        return "from scratch"

    def _init_from(self, url: str, folder: Path) -> str:
        card = fetch(url, folder)
        # a head of as many other classes would load, and mean other classes
        same_classes = card.classes == self.manifest.classes
        report = start_from(self.model, read_weights(folder), card.config["model"], same_classes)
        if self.state.ema is not None:
            self.state.ema.restart(self.model)
        return f"weights of {card.config['model']['name']} from {url}: {report}"

    def _load(self, folder: Path) -> None:
        card = read_card(folder)
        if card.dataset_digest != self.manifest.digest:
            raise UserError(
                f"data.url: the data set at {self.config.data.url} is {self.manifest.digest}, but the checkpoint "
                f"was made on {card.dataset_digest}; start a new run (another `name`) or point data.url at those shards"
            )
        self.state.load(folder)
        self.eval_figures = dict(card.figures)

    def fit(self, own_checkpoint: Path | None = None) -> Outcome:
        """Train to the last step and return the last evaluation, or stop early where the observer says so.

        Raises:
            UserError: a setting does not fit the data or the ranks, or too much went wrong (see `faults`).
        """
        config = self.config
        message = self.start(own_checkpoint)
        self.observer.started(message, self.state.step, self.total_steps)
        result: Score | None = None
        self.window.take(self.stopwatch.take())  # starting up is no part of a step
        for step, micro_batches in self._batches():
            self.stopwatch.mark("wait")
            self.in_flight.append(self.stepper(step, micro_batches, self.observer.wants_stop()))
            self.state.step = done = step + 1
            epoch, within = divmod(done, self.steps_per_epoch)
            epoch_done, last = within == 0, done == self.total_steps
            log = last or done % config.log_every_steps == 0
            evaluate = epoch_done and (last or epoch % config.eval.every_epochs == 0)
            save = last or (epoch_done and epoch % config.checkpoint.every_epochs == 0) or self._save_step(done)
            self._settle(leave=0 if log or evaluate or save else 1)
            if self.stop_asked and not last:
                return self._interrupted(result)
            if log:
                self._log(done)
            if not evaluate and not save:
                continue
            self.window.pause()
            stop = False
            if evaluate:
                result = self.evaluate()
                self.eval_figures = result.figures()
                if self.place.rank == 0:
                    self.tracker.log(done, self.eval_figures)
                stop = self.observer.evaluated(epoch, done, result)
            if save or stop:
                self._save()
            if stop:
                break
            self.window.resume()
            self.stopwatch.restart()
        result = result or self.evaluate()
        self.eval_figures = result.figures()
        return Outcome(self.state.step, result, self._card())

    def _interrupted(self, result: Score | None) -> Outcome:
        """Save and end, without the time that an evaluation would take."""
        self._settle(leave=0)
        self._log(self.state.step)
        self._save()
        return Outcome(self.state.step, result, self._card(), interrupted=True)

    def _settle(self, leave: int) -> None:
        """Learn how the steps that the device was given came out, all but the last `leave`, which it may be at work on.

        Everything that ranks decide by a step's figures is decided here, from numbers that all of them share.
        """
        while len(self.in_flight) > leave:
            taken = self.in_flight.popleft()
            figures = taken.figures()
            self._count_faults(taken, figures)
            self.stop_asked |= figures["stop"] > 0
            self.window.add(figures)
            shown = {"train/loss": figures["loss"], "train/grad_norm": figures["grad_norm"], "optim/lr": taken.lr}
            self.observer.stepped(taken.step + 1, self.total_steps, {**shown, **self.window.pace()})
            self.last_lr = taken.lr

    def _count_faults(self, taken: Taken, figures: dict[str, float]) -> None:
        """Count what went wrong in a step, and raise where it is too much; on all ranks alike."""
        config, faults, scaler = self.config, self.state.faults, self.state.scaler
        batch = config.optim.global_batch
        if math.isfinite(figures["grad_norm"]):
            faults.finite()
        elif scaler.is_enabled() and math.isfinite(figures["loss"]) and scaler.get_scale() >= _MIN_LOSS_SCALE:
            faults.overflow += 1
        else:
            samples = samples_at_fault(taken.batches, taken.losses, global_batch=batch, num_ranks=self.place.num_ranks)
            faults.not_finite(taken.step, samples, config.optim.max_nonfinite, self._key)
        for micro_batch in taken.batches:
            for sample, why in micro_batch.skipped:
                if sample not in self.noted_samples:
                    self.noted_samples.add(sample)
                    self.observer.noted(f"step {taken.step}: sample {self._key(sample)} is skipped: {why}")
        samples_so_far = batch // config.data.repeats * max(taken.step + 1, self.steps_per_epoch)
        faults.skip(int(figures["skipped"]), config.data.max_skipped, samples_so_far)

    def _key(self, sample: int) -> str:
        """The name of a sample of the training split."""
        return self.train_set.index.rows([sample])[0].key

    def _log(self, done: int) -> None:
        """Send the means since the last log; every rank takes them, rank 0 sends."""
        faults = self.state.faults
        figures = self.window.take(self.stopwatch.take())
        figures |= {
            "optim/lr": self.last_lr,
            "train/nonfinite": float(faults.nonfinite),
            "data/skipped": float(faults.skipped),
        }
        if self.state.scaler.is_enabled():
            figures |= {"train/overflow": float(faults.overflow), "optim/loss_scale": self.state.scaler.get_scale()}
        if self.place.rank == 0:
            self.tracker.log(done, figures)

    def evaluate(self) -> Score:
        """Score the evaluation split with the recipe's protocol; a collective."""
        protocol = resolve_protocol(self.config.eval.protocol, self.config.data)
        loader = EvalLoader(
            self.eval_set,
            self.config.data,
            self.config.eval.protocol,
            rank=self.place.rank,
            num_ranks=self.place.num_ranks,
            batch_size=protocol.batch_videos(self.config.eval.batch_videos, MAX_CLIPS),
        )
        predictions = predict(
            self.state.published,
            loader,
            mean=self.config.data.mean,
            std=self.config.data.std,
            device=self.place.device,
            autocast=AUTOCAST[self.config.optim.precision],
        )
        split = self.eval_manifest.splits[self.config.data.eval_split]
        return score(predictions, self.eval_set.index.column("label"), len(self.manifest.classes), split.records)

    def _batches(self) -> Iterator[tuple[int, list[TrainBatch]]]:
        config, place = self.config, self.place
        loader = TrainLoader(
            self.train_set,
            config.data,
            seed=config.seed,
            global_batch=config.optim.global_batch,
            max_micro_batch=config.optim.max_micro_batch,
            rank=place.rank,
            num_ranks=place.num_ranks,
            start_step=self.state.step,
            stop_step=self.total_steps,
        )
        # Here, because DDP sends the weights to all ranks when it is made, so they must be in place.
        self.stepper = Stepper(
            config,
            place,
            self.state,
            steps_per_epoch=self.steps_per_epoch,
            micro_batch=loader.micro_batch,
            accumulation=loader.accumulation,
            stopwatch=self.stopwatch,
        )
        self.stopwatch.restart()
        return iter(loader)

    def _save_step(self, done: int) -> bool:
        every = self.config.checkpoint.every_steps
        return every > 0 and done % every == 0

    def _save(self) -> None:
        card = self._card()
        # Only rank 0 writes, so only rank 0 takes the memory of a copy.
        write = partial(self.state.snapshot().save, card=card) if self.place.rank == 0 else _only_rank_0_writes
        self.observer.saved(self.state.step, dict(self.eval_figures), write)

    def _card(self) -> ModelCard:
        return ModelCard(
            config=self.config.model_dump(mode="json"),
            classes=list(self.manifest.classes),
            dataset_digest=self.manifest.digest,
            step=self.state.step,
            figures=dict(self.eval_figures),
        )


def _only_rank_0_writes(folder: Path) -> None:
    raise RuntimeError(f"every rank has the same state; rank 0 alone writes it to {folder}")


def check_same_classes(train: Manifest, evaluation: Manifest, eval_url: str) -> None:
    """Refuse an evaluation set whose label ids mean other classes than the training set's."""
    if difference := class_difference(train.classes, evaluation.classes, "in the training set"):
        raise UserError(f"data.eval_url: the class list of {eval_url} is not the training set's: {difference}")
