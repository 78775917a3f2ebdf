"""`vast evaluate`: score a trained model on a split with a named protocol, every record accounted for."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from pipelines import plots, tracking
from pipelines.config import absolute
from pipelines.evaluation.checks import LeakCheck, check_data, check_leaks
from pipelines.evaluation.parts import PART, EvalJob, join_parts, part_key, read_predictions
from pipelines.evaluation.ranks import OnSamples, score_here, score_on_ray
from pipelines.evaluation.report import EVALUATION, PREDICTIONS, Report
from pipelines.find_model import FoundModel, find_model
from pipelines.terminal import Terminal
from pipelines.tracking import RunRef
from pipelines.training.launch import connect
from pipelines.training.ranks import Ranks, nodes_of_cluster, scaling_for
from vast import __version__
from vast.data.protocols import FUSION, EvalProtocol, resolve_protocol
from vast.dataset_format import Manifest, read_manifest
from vast.errors import ObjectMissing, StoreError, UserError
from vast.models.vast import Vast
from vast.sample_index import read_index
from vast.storage import Store, join_url, open_store
from vast.train.checkpoint import ModelCard, load_model, weights_digest
from vast.train.config import TrainConfig
from vast.train.evaluate import MAX_CLIPS
from vast.train.metrics import check_labelled
from vast.train.step import AUTOCAST

# Written first: what this folder is the evaluation of, and its MLflow run.
REQUEST = "request.json"


@dataclass(frozen=True)
class EvaluateRequest:
    """What is asked for."""

    model: str
    data: str
    split: str = ""
    """Empty: the recipe's eval_split."""
    protocol: str = ""
    """Empty: the recipe's."""
    ranks: int = 0
    """0: one a GPU, or one."""
    address: str | None = None
    """Ray cluster; see `pipelines.training.launch.connect`."""
    out: str = ""
    """Folder or URL of the results; empty: under `evaluations`, named after what is evaluated."""
    allow_leaks: bool = False
    save_probabilities: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What came of it."""

    report: Report
    out: str
    tracking: RunRef
    content: dict[str, Any]
    """What `evaluation.json` holds."""


@dataclass(frozen=True)
class _Subject:
    """What is scored, on what, and how; fixed before anything is computed."""

    found: FoundModel
    model: Vast
    card: ModelCard
    config: TrainConfig
    manifest: Manifest
    label_of_sample_M: NDArray[np.int32]
    protocol: EvalProtocol
    job: EvalJob

    def identity(self) -> dict[str, Any]:
        """Everything that the predictions depend on."""
        data = self.protocol.applied_to(self.config.data)
        return {
            "weights_sha256": weights_digest(self.model),
            "dataset": self.manifest.digest,
            "split": self.job.split,
            "temporal_clips": self.protocol.views.temporal,
            "spatial_crops": self.protocol.views.spatial,
            "short_side": data.eval_short_side,
            "crop_size": data.crop_size,
            "num_frames": data.num_frames,
            "sampling": data.sampling,
            "frame_stride": data.frame_stride if data.sampling == "dense" else None,
            "mean": list(data.mean),
            "std": list(data.std),
            "fusion": FUSION,
            "precision": self.config.optim.precision,
            "batch_videos": self.job.batch_videos,
            "save_probabilities": self.job.save_probabilities,
        }


def evaluate(request: EvaluateRequest, terminal: Terminal) -> Evaluation:
    """Score the model, write the results and record them in MLflow.

    An interrupted evaluation continues with the parts that are missing, on any number of ranks; a finished one is read
    back.

    Raises:
        UserError: No model, no data set, a split that is not there, classes that are not the model's, videos that it
            was trained on, or results of another evaluation at `out`.
    """
    subject = _subject(request)
    leaks = check_leaks(subject.card, subject.job.data_url, subject.job.split)
    _tell_leaks(leaks, request.allow_leaks, terminal)
    identity = subject.identity()
    store = open_store(absolute(request.out) or _default_out(subject, identity))
    terminal.say(
        f"{subject.config.name} on {subject.job.split} of {subject.manifest.name}, {subject.protocol.name}: "
        f"{subject.protocol}"
    )
    run = _known_run(store, identity)
    if run is not None and store.exists(EVALUATION):
        terminal.say(f"  already evaluated: {store.url}")
        tracking.flush(run)  # what of it still waits on this machine
        return _read_back(subject, store, run)
    run = _begin(store, identity, subject, run)
    with tracking.ending(run, terminal.warn):
        begun = time.monotonic()
        where = _score(subject.job, subject.model, request, store, terminal)
        told = {"on": where, "seconds": round(time.monotonic() - begun, 1), "leaks": asdict(leaks)}
        return _finish(subject, identity, told, store, run, terminal)


def _subject(request: EvaluateRequest) -> _Subject:
    found = find_model(request.model)
    try:
        model, card = load_model(found.url)
        config = card.train_config()
    except ValidationError as error:
        where = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        raise UserError(
            f"MODEL: {found.url} was made by another version of this program: its {where} mean nothing"
        ) from error
    url = absolute(request.data)
    manifest = read_manifest(url)
    split = request.split or config.data.eval_split
    check_data(card, manifest, url, split)
    label_of_sample_M = read_index(url, split).column("label")
    check_labelled(label_of_sample_M)
    protocol = resolve_protocol(request.protocol or config.eval.protocol, config.data)
    job = EvalJob(
        data_url=url,
        split=split,
        num_samples=manifest.splits[split].samples,
        config=config.data,
        protocol=protocol.name,
        batch_videos=protocol.batch_videos(config.eval.batch_videos, MAX_CLIPS),
        autocast=AUTOCAST[config.optim.precision],
        save_probabilities=request.save_probabilities,
    )
    return _Subject(found, model, card, config, manifest, label_of_sample_M, protocol, job)


def _tell_leaks(found: LeakCheck, allowed: bool, terminal: Terminal) -> None:
    if found.leaks and not allowed:
        raise UserError(
            f"--split: {'; '.join(found.leaks)}. A score on videos that were trained on means nothing: give another "
            "split, or --allow-leaks to score all the same"
        )
    for leak in found.leaks:
        terminal.warn(f"allowed leak: {leak}")
    for gap in found.unchecked:
        terminal.warn(f"not checked for videos that were trained on: {gap}")


def _default_out(subject: _Subject, identity: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{subject.config.name}-{subject.job.split}-{subject.protocol.name}-{digest}"
    return absolute(join_url("evaluations", name))


def _known_run(store: Store, identity: dict[str, Any]) -> RunRef | None:
    """Return the MLflow run of the evaluation that was begun here, or None.

    Raises:
        UserError: It is another evaluation.
    """
    try:
        request = json.loads(store.get_bytes(REQUEST))
    except ObjectMissing:
        return None
    known = request["identity"]
    differing = [
        f"{name} {known.get(name)}, not {value}" for name, value in identity.items() if known.get(name) != value
    ]
    if differing:
        raise UserError(f"--out: {store.url} holds another evaluation, with {'; '.join(differing)}: give another place")
    return RunRef(**request["tracking"])


def _begin(store: Store, identity: dict[str, Any], subject: _Subject, known: RunRef | None) -> RunRef:
    """Return the MLflow run to record in: the one of the interrupted evaluation, or a new one."""
    if known is not None and known.tracking_uri == tracking.tracking_uri() and tracking.reopen(known):
        return known
    run = _tracking_run(subject, identity, store.url)
    store.put_bytes(REQUEST, json.dumps({"identity": identity, "tracking": asdict(run)}, indent=1).encode())
    return run


def _tracking_run(subject: _Subject, identity: dict[str, Any], results_url: str) -> RunRef:
    uri, job, training = tracking.tracking_uri(), subject.job, subject.found.training_run
    tags = {
        "dataset.digest": subject.manifest.digest,
        "dataset.url": job.data_url,
        "model.url": subject.found.url,
        "results.url": results_url,
        "run.kind": "evaluate",
    }
    parent = ""
    if training is not None:
        tags |= {"training.run_id": training.run_id, "training.tracking_uri": training.tracking_uri}
        if training.tracking_uri == uri and tracking.tags(training) is not None:
            parent = training.run_id
    params = {"model": subject.found.url, "data": job.data_url, "eval.protocol": subject.protocol.name, **identity}
    name = f"evaluate-{subject.config.name}-{subject.protocol.name}"
    run = tracking.create_run(uri, name, params=params, tags=tags, parent=parent)
    counts = {"samples": job.num_samples, "records": subject.manifest.splits[job.split].records}
    dataset = f"{subject.manifest.name}/{job.split}"
    tracking.log_dataset(run, dataset, job.data_url, subject.manifest.digest, "evaluation", counts)
    if parent and training is not None:
        tracking.log_model_input(run, training)
        tracking.set_tags(training, {f"evaluated_by.{run.run_id}": name})
    return run


def _score(job: EvalJob, model: Vast, request: EvaluateRequest, store: Store, terminal: Terminal) -> str:
    """Score the parts that are missing, and say where that was done."""
    there = set(store.list(PART))
    missing = [number for number in range(len(job.parts)) if part_key(number) not in there]
    done = job.num_samples - sum(len(job.parts[number]) for number in missing)
    if not missing:
        return "nowhere: all parts were there"
    if done:
        terminal.say(f"  continuing: {done} of {job.num_samples} samples are scored already")
    with terminal.progress(job.split, job.num_samples) as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.set(done, job.num_samples)

        where, parts = _ranks(job, model, missing, request, advance, terminal)
        terminal.say(f"  {job.num_samples - done} samples in {len(missing)} parts on {where}")
        advance(0)
        for number, table in parts:
            store.put_bytes(part_key(number), table)
    return where


def _ranks(
    job: EvalJob, model: Vast, missing: list[int], request: EvaluateRequest, advance: OnSamples, terminal: Terminal
) -> tuple[str, Iterator[tuple[int, bytes]]]:
    address = request.address or os.environ.get("RAY_ADDRESS")
    if not address and max(request.ranks, torch.cuda.device_count()) <= 1:
        return "1 rank in this process", score_here(job, model, missing, advance)
    connect(address)

    scaling = scaling_for(Ranks.of(request.ranks), nodes_of_cluster(), job.config.num_readers)
    parts = score_on_ray(job, model, missing, advance, terminal.warn, scaling)
    return f"{scaling['num_workers']} rank(s) of Ray", parts


def _finish(
    subject: _Subject, identity: dict[str, Any], told: dict[str, Any], store: Store, run: RunRef, terminal: Terminal
) -> Evaluation:
    """Put the parts together, write the results, `evaluation.json` last, and record them in MLflow."""
    job = subject.job
    with TemporaryDirectory(prefix="vast-evaluation-") as scratch:
        folder = Path(scratch)
        parts = (store.get_bytes(part_key(number)) for number in range(len(job.parts)))
        join_parts(parts, folder / PREDICTIONS, job.num_samples)
        report = _report(subject, folder / PREDICTIONS)
        content = _content(subject, identity, told, report, run)
        (folder / EVALUATION).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        result = report.score
        report.write(
            folder, f"{subject.config.name}: top-1 {result.top1:.1f} % ({job.protocol}), {result.samples} samples"
        )
        _picture_mistakes(subject, folder, terminal)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == EVALUATION):
            store.put_file(path.name, path)
        for number in range(len(job.parts)):
            store.delete(part_key(number))
        if job.save_probabilities:
            (folder / PREDICTIONS).unlink()  # of any size; the tag says where it is
        tracking.log_figures(run, result.figures(), subject.card.step)
        problem = tracking.log_files(run, folder)
    if problem:
        terminal.warn(problem)
    return Evaluation(report, store.url, run, content)


def _report(subject: _Subject, predictions: Path) -> Report:
    manifest = subject.manifest
    records = manifest.splits[subject.job.split].records
    return Report.of(read_predictions(predictions), subject.label_of_sample_M, manifest.classes, records)


def _picture_mistakes(subject: _Subject, folder: Path, terminal: Terminal) -> None:
    job, title = subject.job, f"Worst mistakes of {subject.config.name} on {subject.job.split}"
    predictions, names = read_predictions(folder / PREDICTIONS), subject.manifest.classes
    try:
        plots.worst_mistakes(folder / "worst_mistakes.png", job.data_url, job.split, predictions, names, title)
    except StoreError as error:  # the figures are there; they are not lost for a picture
        terminal.warn(f"worst_mistakes.png was not drawn: {error}")


def _content(
    subject: _Subject, identity: dict[str, Any], told: dict[str, Any], report: Report, run: RunRef
) -> dict[str, Any]:
    result, training = report.score, subject.found.training_run
    return {
        "model": {"url": subject.found.url, "name": subject.config.name, "step": subject.card.step},
        "training_run": asdict(training) if training else None,
        "dataset": {"url": subject.job.data_url, "name": subject.manifest.name},
        "protocol": {"name": subject.protocol.name, "in_words": str(subject.protocol)},
        "top1": result.top1,
        "top5": result.top5,
        "mean_class": result.mean_class,
        "records": result.records,
        "samples": result.samples,
        "unreadable": result.unreadable,
        "nonfinite": result.nonfinite,
        "denominator": result.denominator(),
        "most_confused": [asdict(pair) for pair in report.confusions[:20]],
        "identity": identity,
        **told,
        "software": {"vast": __version__, "torch": torch.__version__},
        "tracking": asdict(run),
    }


def _read_back(subject: _Subject, store: Store, run: RunRef) -> Evaluation:
    with TemporaryDirectory(prefix="vast-evaluation-") as scratch:
        path = Path(scratch) / PREDICTIONS
        store.get_file(PREDICTIONS, path)
        report = _report(subject, path)
    return Evaluation(report, store.url, run, json.loads(store.get_bytes(EVALUATION)))
