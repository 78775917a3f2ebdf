"""`vast evaluate`: score a trained model on a split with a named protocol, every record accounted for."""

import os
from collections.abc import Iterator

import torch

from pipelines import tracking
from pipelines.launch import run_files
from pipelines.terminal import Bar, Terminal
from vast.data.dataset import ShardDataset
from vast.data.loader import EvalLoader
from vast.data.reader import EvalBatch
from vast.dataset_format import read_manifest
from vast.errors import UserError
from vast.train.checkpoint import load_model
from vast.train.config import EvalConfig
from vast.train.evaluate import predict
from vast.train.metrics import Score, score


def evaluate(model_url: str, data_url: str, terminal: Terminal, *, protocol: str = "", split: str = "") -> Score:
    """Score the model and record an MLflow run with the figures and the confusion matrix.

    Raises:
        UserError: no model, no data set, a split that is not there, or a class list that is not the model's.
    """
    model, card = load_model(model_url)
    config = card.train_config()
    if protocol:
        config = config.model_copy(
            update={"eval": EvalConfig(protocol=protocol, batch_videos=config.eval.batch_videos)}
        )
    split = split or config.data.eval_split
    manifest = read_manifest(data_url)
    if manifest.classes != card.classes:
        raise UserError(
            f"--data: the class list of {data_url} ({len(manifest.classes)} classes) is not the model's "
            f"({len(card.classes)} classes); label ids would mean other things"
        )
    if split not in manifest.splits:
        raise UserError(f"--split: no split {split!r} in {data_url}; it has {', '.join(manifest.splits)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    dataset = ShardDataset(data_url, split)
    loader = EvalLoader(
        dataset, config.data, config.eval.protocol, rank=0, num_ranks=1, batch_size=config.eval.batch_videos
    )
    tags = {"dataset.digest": manifest.digest, "dataset.url": data_url, "model.url": model_url, "run.kind": "evaluate"}
    params = {"model": model_url, "data": data_url, "split": split, "eval.protocol": config.eval.protocol}
    run = tracking.create_run(tracking.tracking_uri(), f"evaluate-{config.name}", params=params, tags=tags)
    with tracking.ending(run):
        with terminal.progress(f"{split}, {config.eval.protocol}", len(dataset)) as bar:
            batches = _counted(loader, bar, len(dataset))
            predictions = predict(model.to(device), batches, mean=config.data.mean, std=config.data.std, device=device)
        result = score(
            predictions, dataset.index.column("label"), len(manifest.classes), manifest.splits[split].records
        )
        tracking.log_figures(run, result.figures(), card.step)
        with run_files(result, card, config) as folder:
            problem = tracking.log_files(run, folder)
    if problem:
        terminal.warn(problem)
    for index, message in predictions.unreadable:
        terminal.warn(f"unreadable, counted wrong: {dataset.index.row(index).key}: {message}")
    return result


def _counted(loader: EvalLoader, bar: Bar, total: int) -> Iterator[EvalBatch]:
    done = 0
    for batch in loader:
        yield batch
        done += len(batch.sample_B) + len(batch.failed)
        bar.set(done, total)
