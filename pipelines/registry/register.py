"""A trained model becomes a version in MLflow's registry; the alias `champion` moves to it only if it is better.

Better means: the evaluation of both on the same data set (digest), split and views, and more top-1. Weights that are
registered already are not registered again, but may become champion with a new evaluation.
"""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from pipelines import tracking
from pipelines.config import absolute
from pipelines.evaluation.report import EVALUATION
from pipelines.find_model import FoundModel, find_model
from pipelines.predict.predictor import Predictor
from pipelines.registry import served_model
from pipelines.tracking import RunRef
from vast import __version__
from vast.errors import ObjectMissing, UserError
from vast.storage import open_store
from vast.train.checkpoint import CARD, WEIGHTS, ModelCard, load_model, weights_digest

CHAMPION = "champion"
# Two evaluations with equal values of these measured the same thing.
COMPARED = ("dataset", "split", "temporal_clips", "spatial_crops", "short_side", "crop_size")


@dataclass(frozen=True)
class Registered:
    """What registering came to."""

    name: str
    version: str
    is_new: bool
    is_champion: bool
    why: str
    """Why it is champion or not, in words."""


def register(model: str, name: str, evaluation: str, protocol: str) -> Registered:
    """Register a model and decide about the champion.

    Args:
        model: what `find_model` takes.
        name: of the registered model; empty: the recipe's.
        evaluation: folder or URL of its evaluation, or the MLflow run of one; empty: the latest one tracked.
        protocol: views that the served model takes of a video; empty: the recipe's.

    Raises:
        UserError: no such model or protocol, or an evaluation of other weights.
    """
    from mlflow import MlflowClient

    found = find_model(model)
    network, card = load_model(found.url)
    digest = weights_digest(network)
    predictor = Predictor(network, card, protocol)
    result = _evaluation(evaluation, found, digest)
    uri = tracking.tracking_uri()
    client = MlflowClient(uri, registry_uri=uri)
    name = name or card.train_config().name
    version = _known_version(client, name, digest)
    is_new = version is None
    if version is None:
        with _current(uri):
            version = _log(client, found, card, predictor, name, digest)
    if result is not None:
        _note_evaluation(client, name, version, result)
    is_champion, why = _crown(client, name, version)
    return Registered(name, version, is_new, is_champion, why)


@contextlib.contextmanager
def _current(uri: str) -> Iterator[None]:
    """Make a tracking server MLflow's current one: logging a model knows no other way to be told.

    MLflow writes that into the environment too, where it would decide what later commands of this process use.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _known_version(client: Any, name: str, digest: str) -> str | None:
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("weights_sha256") == digest:
            return str(version.version)
    return None


def _evaluation(text: str, found: FoundModel, digest: str) -> dict[str, Any] | None:
    """The content of evaluation.json that speaks of these weights; None where nothing was said and nothing is known."""
    url = _latest_evaluation(found) if not text else _evaluation_url(text)
    if not url:
        return None
    try:
        content: dict[str, Any] = json.loads(open_store(absolute(url)).get_bytes(EVALUATION))
    except ObjectMissing as error:
        if not text:
            return None  # the tracked one was removed
        raise UserError(f"--evaluation: {url}: there is no {EVALUATION}; give what `vast evaluate` wrote") from error
    if content["identity"]["weights_sha256"] != digest:
        if not text:
            return None
        raise UserError(f"--evaluation: {url} is of other weights, those of {content['model']['url']}")
    return content | {"url": url}


def _evaluation_url(text: str) -> str:
    if run_id := tracking.run_id_of(text):
        tags = tracking.tags(RunRef(tracking.tracking_uri(), run_id))
        if tags is None or "results.url" not in tags:
            raise UserError(f"--evaluation: {text} is no evaluation's run in {tracking.tracking_uri()}")
        return tags["results.url"]
    return text


def _latest_evaluation(found: FoundModel) -> str:
    return tracking.latest_tag("results.url", {"run.kind": "evaluate", "model.url": found.url})


def _log(client: Any, found: FoundModel, card: ModelCard, predictor: Predictor, name: str, digest: str) -> str:
    import mlflow
    import pandas as pd

    uri = tracking.tracking_uri()
    # a run of its own: logging into the training run would open it again and move its end
    training = found.training_run
    here = training and training.tracking_uri == uri and tracking.tags(training) is not None
    parent = training.run_id if training and here else ""
    tags = {"run.kind": "register", "model.url": found.url}
    run = tracking.create_run(uri, f"register-{name}", params={"model": found.url}, tags=tags, parent=parent)
    with tempfile.TemporaryDirectory(prefix="vast-register-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        store = open_store(found.url)
        for file in (CARD, WEIGHTS):
            store.get_file(file, folder / file)
        settings = {"protocol": predictor.protocol.name}
        (folder / served_model.SERVING).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        with tracking.ending(run):
            mlflow.start_run(run_id=run.run_id)
            try:
                info = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(Path(served_model.__file__)),
                    artifacts={"model": str(folder)},
                    signature=_signature(),
                    input_example=pd.DataFrame({"video": [_example_clip()]}),
                    pip_requirements=_requirements(),
                    metadata=_metadata(card, predictor),
                )
            finally:
                mlflow.end_run()
    if not any(known.name == name for known in client.search_registered_models(f"name = '{name}'")):
        client.create_registered_model(name)
    tags = {
        "weights_sha256": digest,
        "model.url": found.url,
        "dataset.digest": card.dataset_digest,
        "protocol": predictor.protocol.name,
        "training.run_id": found.training_run.run_id if found.training_run else "",
        "step": str(card.step),
    }
    version = client.create_model_version(
        name, source=info.model_uri, run_id=run.run_id, tags=tags, model_id=info.model_id
    )
    return str(version.version)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        inputs=Schema(
            [ColSpec(DataType.binary, "video", required=False), ColSpec(DataType.string, "path", required=False)]
        ),
        outputs=Schema(
            [
                ColSpec(Array(DataType.string), "labels"),
                ColSpec(Array(DataType.double), "probabilities"),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", DataType.integer, 5)]),
    )


def _metadata(card: ModelCard, predictor: Predictor) -> dict[str, Any]:
    """What a person or program needs to know without loading the weights."""
    data = predictor.data
    return {
        "classes": card.classes,
        "preprocessing": {
            "views": str(predictor.protocol),
            "num_frames": data.num_frames,
            "sampling": data.sampling,
            "short_side": data.eval_short_side,
            "crop_size": data.crop_size,
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "recipe": card.config["name"],
        "dataset_digest": card.dataset_digest,
        "step": card.step,
    }


def _requirements() -> list[str]:
    return [f"vast-video=={__version__}", *(f"{name}=={version_of(name)}" for name in ("mlflow", "torch", "pandas"))]


def _example_clip() -> bytes:
    """A clip of a test pattern, one second, some kilobytes."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-f", "lavfi"]
    command += ["-i", "testsrc2=size=96x72:rate=12:duration=1", "-pix_fmt", "yuv420p", "-c:v", "libx264"]
    with tempfile.TemporaryDirectory(prefix="vast-example-") as scratch:
        path = Path(scratch) / "example.mp4"
        subprocess.run([*command, "-movflags", "+faststart", str(path)], check=True, capture_output=True, timeout=60)
        return path.read_bytes()


def _note_evaluation(client: Any, name: str, version: str, result: Mapping[str, Any]) -> None:
    tags = {f"evaluation.{key}": str(result["identity"][key]) for key in COMPARED}
    known = client.get_model_version(name, version).tags
    if _champion(client, name) == version and any(known.get(key, value) != value for key, value in tags.items()):
        return  # challengers go on being compared with what made it champion
    tags |= {"evaluation.top1": repr(float(result["top1"])), "evaluation.url": str(result["url"])}
    tags |= {"evaluation.protocol": result["protocol"]["name"], "evaluation.run_id": result["tracking"]["run_id"]}
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


def _champion(client: Any, name: str) -> str | None:
    """The version that has the alias, or None."""
    holder = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if holder is None else str(holder)


def _crown(client: Any, name: str, version: str) -> tuple[bool, str]:
    """Move the alias to this version if it is better; whether it is champion now, and why."""
    own = client.get_model_version(name, version).tags
    if "evaluation.top1" not in own:
        return False, "it has no evaluation yet: run `vast evaluate`, then register again"
    mine = f"top-1 {float(own['evaluation.top1']):.2f} % ({own['evaluation.protocol']})"
    holder = _champion(client, name)
    if holder is None:
        client.set_registered_model_alias(name, CHAMPION, version)
        return True, f"{mine}; there was none before"
    if holder == version:
        return True, f"{mine}; it was before"
    theirs = client.get_model_version(name, holder).tags
    differing = [key for key in COMPARED if own[f"evaluation.{key}"] != theirs.get(f"evaluation.{key}")]
    if differing:
        words = ", ".join(
            f"{key} {own[f'evaluation.{key}']} against {theirs.get(f'evaluation.{key}')}" for key in differing
        )
        return False, f"its evaluation cannot be compared with that of version {holder}: {words}"
    if float(own["evaluation.top1"]) <= float(theirs["evaluation.top1"]):
        return False, f"{mine} is not more than the {float(theirs['evaluation.top1']):.2f} % of version {holder}"
    client.set_registered_model_alias(name, CHAMPION, version)
    return True, f"{mine}, version {holder} has {float(theirs['evaluation.top1']):.2f} %"
