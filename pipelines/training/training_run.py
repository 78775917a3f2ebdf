"""What MLflow is told of a training run beside its figures: data, origin, environment, and a note in words."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines import tracking
from pipelines.tracking import RunRef
from pipelines.training.history import STEP_PARTS, History
from vast.dataset_format import Manifest, read_manifest
from vast.errors import ObjectMissing, StoreError, UserError
from vast.storage import join_url, open_store
from vast.train.config import TrainConfig
from vast.train.metrics import Score

RUN = "run.json"
"""In a run's folder: its MLflow run."""
NOTE = "mlflow.note.content"


def read_run(run_url: str) -> RunRef | None:
    """The MLflow run of the training run in a folder; None where nothing tells."""
    try:
        return RunRef(**json.loads(open_store(run_url).get_bytes(RUN)))
    except (ObjectMissing, UserError, ValueError, TypeError):
        return None


def open_run(config: TrainConfig, run_url: str, kind: str, num_nodes: int) -> RunRef:
    """The MLflow run of the training run in a folder: the one it had before it was interrupted, else a new one.

    Raises:
        UserError: a new one is needed, and the tracking server cannot be used.
    """
    uri = tracking.tracking_uri()
    known = read_run(run_url)
    if known is not None and known.tracking_uri == uri and tracking.reopen(known):
        return known
    manifest = read_manifest(config.data.url)
    source = _source(config)
    tags = {
        "dataset.digest": manifest.digest,
        "dataset.url": config.data.url,
        "run.url": run_url,
        "run.kind": kind,
        **_origin_tags(config, source, uri),
        NOTE: f"{_subject(config, manifest, kind, source)} Not finished yet.",
    }
    run = tracking.create_run(uri, config.run_name(), params=config.flat(), tags=tags)
    run = tracking.announce_model(
        run, config.name, {"model.url": join_url(run_url, "model"), "dataset.digest": manifest.digest}
    )
    log_splits(run, config, manifest)
    if source is not None and tags.get(tracking.PARENT_TAG) == source.run_id:
        tracking.log_model_input(run, source)
        tracking.set_tags(source, {f"used_by.{run.run_id}": config.run_name()})  # the way back
    with TemporaryDirectory(prefix="vast-environment-") as scratch:
        tracking.write_environment(Path(scratch), num_nodes)
        tracking.log_files(run, Path(scratch), "environment")
    open_store(run_url).put_bytes(RUN, json.dumps(asdict(run)).encode())
    return run


def _source(config: TrainConfig) -> RunRef | None:
    """The run whose weights or state this one starts from, as far as the store tells."""
    url = (config.resume_from or config.init_from).rstrip("/")
    if not url:
        return None
    try:
        return read_run(url) or read_run(url.rpartition("/")[0])  # a run's folder, or a checkpoint or model in it
    except StoreError:
        return None


def _origin_tags(config: TrainConfig, source: RunRef | None, uri: str) -> dict[str, str]:
    how, url = ("resume_from", config.resume_from) if config.resume_from else ("init_from", config.init_from)
    if not url:
        return {}
    origin = {f"{how}.url": url}
    if source is not None:
        origin |= {f"{how}.run_id": source.run_id, f"{how}.tracking_uri": source.tracking_uri}
        theirs = tracking.tags(source) if source.tracking_uri == uri else None
        if theirs is not None:
            chain = theirs.get("lineage") or f"{theirs.get('run.kind', 'train')} {source.run_id}"
            origin |= {tracking.PARENT_TAG: source.run_id, "lineage": f"{chain} > {how}"}
    return origin


def log_splits(run: RunRef, config: TrainConfig, manifest: Manifest) -> None:
    """Link training and evaluation split; MLflow keeps one context a data set, so each split is one."""
    scored = read_manifest(config.data.resolved_eval_url)
    for of, url, split, context in (
        (manifest, config.data.url, config.data.train_split, "training"),
        (scored, config.data.resolved_eval_url, config.data.eval_split, "evaluation"),
    ):
        counts = {"samples": of.splits[split].samples, "records": of.splits[split].records, "classes": len(of.classes)}
        tracking.log_dataset(run, f"{of.name}/{split}", url, of.digest, context, counts)


def finished_note(config: TrainConfig, kind: str, model_url: str, score: Score, history: History) -> str:
    """One paragraph in Markdown: what ran on what, how long, what came out, what went wrong, where the time went."""
    told = [_subject(config, read_manifest(config.data.url), kind, _source(config)), _pace(history)]
    told.append(
        f"It scores **top-1 {score.top1:.1f} %**, top-5 {score.top5:.1f} %, mean class {score.mean_class:.1f} % "
        f"({config.eval.protocol}): {score.denominator()}."
    )
    told += [_mishaps(history), _where_time_went(history), f"The model is at `{model_url}`."]
    return " ".join(part for part in told if part)


def _subject(config: TrainConfig, manifest: Manifest, kind: str, source: RunRef | None) -> str:
    samples = manifest.splits[config.data.train_split].samples
    text = (
        f"**{kind} {config.run_name()}**: {config.model.name} on {samples:,} samples of {manifest.name} "
        f"{config.data.train_split} (`{manifest.digest[:19]}`), {config.optim.epochs} epochs in steps of "
        f"{config.optim.global_batch} clips"
    )
    if url := config.resume_from or config.init_from:
        text += f", starting from `{url}`" + (f" (run {source.run_id})" if source else "")
    return f"{text}."


def _pace(history: History) -> str:
    if len(history.step_S) < 1:
        return ""
    begun_ms = min([at_ms for _, at_ms in history.starts], default=int(history.at_ms_S[0]))
    restarts = max(0, len(history.starts) - 1)
    text = f"{int(history.step_S[-1]):,} steps took {_duration((int(history.at_ms_S[-1]) - begun_ms) / 1e3)}"
    return f"{text} with {restarts} restart{'s' * (restarts != 1)} on the way." if restarts else f"{text}."


def _mishaps(history: History) -> str:
    counts = {"samples skipped": "data/skipped", "steps without a finite gradient": "train/nonfinite"}
    parts = [f"{what}: {_last(history, name):,}" for what, name in counts.items()]
    return f"{'; '.join(parts).capitalize()}."


def _last(history: History, name: str) -> int:
    value_S = history.series(name)[1]
    return int(value_S[-1]) if len(value_S) else 0


def _where_time_went(history: History) -> str:
    shares = stall_shares(history)
    parts = [f"{100 * share:.0f} % {STEP_PARTS[part]}" for part, share in shares.items() if share >= 0.005]
    return f"A step's time on rank 0: {', '.join(parts)}." if parts else ""


def stall_shares(history: History) -> Mapping[str, float]:
    """Mean share of a step's time by part, over the whole run; empty when nothing was logged."""
    seconds = {part: history.series(f"stall/{part}")[1] for part in STEP_PARTS}
    whole_s = sum(float(value_S.sum()) for value_S in seconds.values())
    return {part: float(value_S.sum()) / whole_s for part, value_S in seconds.items()} if whole_s else {}


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
