"""The registered model as MLflow loads it: weights as safetensors, code from this package, nothing unpickled.

MLflow runs this file when the model is loaded (models from code). One row is one video: its bytes in `video` (base64 in
a JSON request), or a file or URL in `path`; all rows of a request give the same one of these. A server reads paths only
below what VAST_SERVE_ROOTS allows (folders and s3:// prefixes, separated by commas): a client of a network service has
no business with the server's files.
"""

import json
import os
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd

from pipelines.predict.inputs import Video
from pipelines.predict.predictor import Predictor
from vast.errors import DecodeError, StoreError, UserError
from vast.train.checkpoint import load_model

ROOTS = "VAST_SERVE_ROOTS"
SERVING = "serving.json"  # beside the weights: the protocol that was registered


class ServedVideoModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Videos in, likeliest classes out."""

    def load_context(self, context: Any) -> None:
        """Read weights and card."""
        folder = Path(context.artifacts["model"])
        model, card = load_model(str(folder))
        protocol = json.loads((folder / SERVING).read_text(encoding="utf-8"))["protocol"]
        self.predictor = Predictor(model, card, protocol)

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """A row for each row: labels and probabilities, best first, and what was wrong, or null.

        Args:
            context: MLflow's.
            model_input: a table with `video` (bytes) or `path` (text).
            params: `top_k`, classes of each answer.
        """
        top_k = int((params or {}).get("top_k", 5))
        rows = []
        for row in model_input.to_dict("records"):
            try:
                clip = self.predictor.prepare(_bytes_of(row))
                guesses = self.predictor.best(self.predictor.probabilities(clip), top_k)
                error = None
            except (DecodeError, StoreError, UserError) as problem:
                guesses, error = [], str(problem)
            labels, probabilities = [guess.name for guess in guesses], [guess.probability for guess in guesses]
            rows.append({"labels": labels, "probabilities": probabilities, "error": error})
        return pd.DataFrame(rows)


def _bytes_of(row: dict[str, Any]) -> bytes:
    video, path = row.get("video"), row.get("path")
    if isinstance(video, bytes | bytearray):
        return bytes(video)
    if not isinstance(path, str) or not path:
        raise UserError("a row needs the bytes of a video in `video`, or a file or URL in `path`")
    allowed = [root.strip() for root in os.environ.get(ROOTS, "").split(",") if root.strip()]
    if "://" not in path:
        path = os.path.realpath(path)  # no way out by .. or a link
        allowed = [os.path.realpath(root) for root in allowed if "://" not in root]
    if ".." in path.split("/") or not any(path.startswith(root.rstrip("/") + "/") for root in allowed):
        raise UserError(f"path: this server reads no such place; send the bytes in `video`, or allow it with {ROOTS}")
    folder, _, name = path.rpartition("/")
    return Video(path, folder, name).read()


mlflow.models.set_model(ServedVideoModel())
