"""Runs and evaluations as training and `vast evaluate` leave them, made up for the tests of what is told of them."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipelines import tracking
from pipelines.training.launch import Finished
from tests.unit.pipelines.report.read_page import EVIL
from vast.dataset_format import read_manifest
from vast.storage import open_store
from vast.train.checkpoint import ModelCard
from vast.train.config import TrainConfig
from vast.train.metrics import Score


def make_run(folder, shards, *, classes=None, finished=True, init_from="", name="small", num_classes=8):
    """A run's folder and its MLflow run, as training leaves them."""
    config = TrainConfig.model_validate(
        {
            "name": name,
            "model": {"name": "vast_micro"},
            "data": {"url": shards, "num_frames": 4, "crop_size": 32},
            "optim": {"lr": 0.004},
            "init_from": init_from,
        }
    )
    classes = classes or [f"class {k}" for k in range(num_classes)]
    url = str(folder / config.run_name())
    manifest = read_manifest(shards)
    ref = tracking.create_run(
        tracking.tracking_uri(),
        config.run_name(),
        params=config.flat(),
        tags={"run.url": url, "run.kind": "finetune", "dataset.digest": manifest.digest},
    )
    with TemporaryDirectory() as scratch:
        tracking.write_environment(Path(scratch), num_nodes=3)
        tracking.log_files(ref, Path(scratch), "environment")
    for step in (10, 20, 30):
        stall = {"stall/wait_share": 0.25, "stall/to_device_share": 0.05, "stall/compute_share": 0.7}
        figures = {"train/loss": 3.0 / step, "optim/lr": 1e-3, "data/skipped": 2.0, "stall/wait": 0.1, **stall}
        figures |= {"stall/all_reduce_share": 0.0, "eval/top1": float(step), "eval/top5": 2.0 * step}
        tracking.log_figures(ref, figures, step)
    K = len(classes)
    confusion_KK = 3 * np.eye(K, dtype=np.int64)
    confusion_KK[0, 1] = 1
    score = Score(records=4 * K, samples=3 * K + 1, unreadable=1, top1=90.0, top5=99.0, mean_class=89.0,
                  confusion_KK=confusion_KK)  # fmt: skip
    card = ModelCard(config.model_dump(mode="json"), classes, manifest.digest, 30, {"eval/top1": 30.0})
    store = open_store(url)
    store.put_bytes("run.json", json.dumps(asdict(ref)).encode())
    place = "model" if finished else "step-00000030"
    store.put_bytes(f"{place}/model.json", json.dumps(asdict(card)).encode())
    if finished:
        done = Finished(url, ref, 30, score, card)
        plain = {"tracking": asdict(ref), "step": 30, "score": score.to_json(), "card": asdict(done.card)}
        store.put_bytes("result.json", json.dumps(plain).encode())
    return url, ref


def make_evaluation(folder, ref, url, classes):
    """An evaluation's folder without its predictions, and its MLflow run."""
    folder.mkdir()
    content = {
        "model": {"url": f"{url}/model", "name": "small", "step": 30},
        "dataset": {"url": "shards", "name": "ssv2"},
        "protocol": {"name": "4x3", "in_words": "4 clips x 3 crops"},
        "top1": 77.5, "top5": 98.0, "mean_class": 76.0,
        "denominator": "8 of 9 rows (1 not in the shards, left out); 0 unreadable counted wrong",
        "identity": {"split": "val", "dataset": "sha256:0", "temporal_clips": 4},
        "on": "1 rank in this process", "seconds": 12.5, "leaks": {"leaks": [EVIL], "unchecked": []},
        "software": {"vast": "0"}, "tracking": asdict(ref),
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(content))
    with open(folder / "per_class.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "name", "samples", "top1", "top5", "predicted", "taken_for", "taken_for_count"])
        writer.writerows([k, name, 4, 75.0 if k == 0 else 100.0, 100.0, 4, "", 0] for k, name in enumerate(classes))
    with open(folder / "confusions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["true", "predicted", "count", "share"], [classes[0], classes[1], 1, 25.0]])
    tags = {"run.kind": "evaluate", "results.url": str(folder), "training.run_id": ref.run_id}
    return tracking.create_run(tracking.tracking_uri(), "evaluate", params={}, tags=tags, parent=ref.run_id)
