"""The training loop: load, step, log, evaluate, save. What saving and logging mean is the caller's business."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from vast.data.augment import normalise
from vast.data.dataset import ShardDataset
from vast.data.loader import EvalLoader, TrainLoader
from vast.data.order import steps_per_epoch
from vast.data.reader import TrainBatch
from vast.dataset_format import Manifest, read_manifest
from vast.errors import UserError
from vast.models.inflate import load_weights
from vast.models.variants import create_model
from vast.models.vast import Vast
from vast.train.checkpoint import ModelCard, TrainState, fetch, read_card, read_weights
from vast.train.config import TrainConfig
from vast.train.evaluate import predict
from vast.train.metrics import Score, score
from vast.train.optim import build_optimizer, learning_rate, set_learning_rate
from vast.train.tracker import Tracker


@dataclass(frozen=True)
class Place:
    """Where this process stands in the job; never part of the config."""

    rank: int = 0
    num_ranks: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Observer(Protocol):
    """What the surrounding job does at the loop's three moments. Every rank calls each of them equally often."""

    def started(self, message: str, step: int, total_steps: int) -> None:
        """The run starts at `step`; `message` says from what."""

    def stepped(self, step: int, total_steps: int, figures: dict[str, float]) -> None:
        """`step` updates are done; called after each."""

    def saved(self, step: int, figures: dict[str, float], write: Callable[[Path], None]) -> None:
        """A save point: `write(folder)` writes the checkpoint; figures are those of the last evaluation."""

    def evaluated(self, epoch: int, step: int, result: Score) -> bool:
        """`epoch` epochs are done and scored; True ends the run here."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run returns."""

    step: int
    score: Score
    card: ModelCard


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
        self.steps_per_epoch = steps_per_epoch(len(self.train_set), config.optim.global_batch)
        self.total_steps = self.steps_per_epoch * config.optim.epochs
        # model
        torch.manual_seed(config.seed)
        self.model: Vast = create_model(config.model, num_classes=len(self.manifest.classes)).to(place.device)
        self.optimizer = build_optimizer(self.model, config.optim, self.model.no_weight_decay())
        self.state = TrainState(self.model, self.optimizer)
        self.autocast = torch.bfloat16 if config.optim.precision == "bf16" else None

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
        weights = read_weights(folder)
        if card.classes != self.manifest.classes:  # a head of as many classes would load, and mean other classes
            weights = {name: weight for name, weight in weights.items() if not name.startswith("head.")}
        report = load_weights(self.model, weights)
        return f"weights from {url}: {report}"

    def _load(self, folder: Path) -> None:
        card = read_card(folder)
        if card.dataset_digest != self.manifest.digest:
            raise UserError(
                f"data.url: the data set at {self.config.data.url} is {self.manifest.digest}, but the checkpoint "
                f"was made on {card.dataset_digest}; start a new run (another `name`) or point data.url at those shards"
            )
        self.state.load(folder)

    def fit(self, own_checkpoint: Path | None = None) -> Outcome:
        """Train to the last step and return the last evaluation."""
        config, place = self.config, self.place
        message = self.start(own_checkpoint)
        self.observer.started(message, self.state.step, self.total_steps)
        result: Score | None = None
        for step, micro_batches, waited_s in self._batches():
            figures = self._step(step, micro_batches)
            figures["time/data_s"] = waited_s
            self.state.step = done = step + 1
            self.observer.stepped(done, self.total_steps, figures)
            if place.rank == 0 and (done % config.log_every_steps == 0 or done == self.total_steps):
                self.tracker.log(done, figures)
            epoch, within = divmod(done, self.steps_per_epoch)
            epoch_done, last = within == 0, done == self.total_steps
            stop = False
            if epoch_done and (epoch % config.eval.every_epochs == 0 or last):
                result = self.evaluate()
                if place.rank == 0:
                    self.tracker.log(done, result.figures())
                stop = self.observer.evaluated(epoch, done, result)
            if last or stop or (epoch_done and epoch % config.checkpoint.every_epochs == 0) or self._save_step(done):
                self._save(result)
            if stop:
                break
        result = result or self.evaluate()
        return Outcome(self.state.step, result, self._card(result))

    def evaluate(self) -> Score:
        """Score the evaluation split with the recipe's protocol; a collective."""
        loader = EvalLoader(
            self.eval_set,
            self.config.data,
            self.config.eval.protocol,
            rank=self.place.rank,
            num_ranks=self.place.num_ranks,
            batch_size=self.config.eval.batch_videos,
        )
        predictions = predict(
            self.model,
            loader,
            mean=self.config.data.mean,
            std=self.config.data.std,
            device=self.place.device,
            autocast=self.autocast,
        )
        split = self.eval_manifest.splits[self.config.data.eval_split]
        return score(predictions, self.eval_set.index.column("label"), len(self.manifest.classes), split.records)

    def _batches(self) -> Iterator[tuple[int, list[TrainBatch], float]]:
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
        # DDP registers its hooks at construction, so it is made after the weights are in place.
        self.network: nn.Module = self.model
        if place.num_ranks > 1:
            self.network = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        return _timed(loader)

    def _step(self, step: int, micro_batches: list[TrainBatch]) -> dict[str, float]:
        config, place = self.config, self.place
        begun = time.perf_counter()
        torch.manual_seed(_mix(config.seed, step, place.rank))  # drop path; so no RNG state is ever saved
        lr = learning_rate(step, config.optim, self.steps_per_epoch)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=place.device)
        for number, batch in enumerate(micro_batches, start=1):
            synchronise = number == len(micro_batches)
            if isinstance(self.network, DistributedDataParallel):
                self.network.require_backward_grad_sync = synchronise  # what DDP.no_sync() sets
            clip_BCTHW = normalise(batch.clip_BCTHW.to(place.device), config.data.mean, config.data.std)
            with torch.autocast(place.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                logits_BK = self.network(clip_BCTHW)
            loss = cross_entropy(
                logits_BK.float(), batch.label_B.to(place.device), label_smoothing=config.optim.label_smoothing
            ) / len(micro_batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm or float("inf"))
        self.optimizer.step()
        if place.num_ranks > 1:
            dist.all_reduce(total)  # one number; the loss of the global batch, not of this rank's slice
        loss_value = float(total) / place.num_ranks  # a device sync
        elapsed = time.perf_counter() - begun
        return {
            "train/loss": loss_value,
            "train/grad_norm": float(norm),
            "optim/lr": lr,
            "time/step_s": elapsed,
            "time/clips_per_s": config.optim.global_batch / max(elapsed, 1e-9),
        }

    def _save_step(self, done: int) -> bool:
        every = self.config.checkpoint.every_steps
        return every > 0 and done % every == 0

    def _save(self, result: Score | None) -> None:
        figures = result.figures() if result else {}
        card = self._card(result)
        self.observer.saved(self.state.step, figures, lambda folder: self.state.save(folder, card))

    def _card(self, result: Score | None) -> ModelCard:
        return ModelCard(
            config=self.config.model_dump(mode="json"),
            classes=list(self.manifest.classes),
            dataset_digest=self.manifest.digest,
            step=self.state.step,
            figures=result.figures() if result else {},
        )


def _timed(loader: TrainLoader) -> Iterator[tuple[int, list[TrainBatch], float]]:
    """What the loader yields, and how many seconds each step's clips were waited for."""
    begun = time.perf_counter()
    for step, micro_batches in loader:
        yield step, micro_batches, time.perf_counter() - begun
        begun = time.perf_counter()


def check_same_classes(train: Manifest, evaluation: Manifest, eval_url: str) -> None:
    """Refuse an evaluation set whose label ids mean other classes than the training set's."""
    if train.classes == evaluation.classes:
        return
    pairs = zip(train.classes, evaluation.classes, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(train.classes), len(evaluation.classes)))
    raise UserError(
        f"data.eval_url: the class list at {eval_url} is not the training set's: {len(evaluation.classes)} classes "
        f"against {len(train.classes)}, first difference at label id {first}"
    )


def _mix(seed: int, step: int, rank: int) -> int:
    """One 63-bit seed out of three numbers (SplitMix64's finaliser)."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB + 1) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    return (value ^ (value >> 31)) >> 1
