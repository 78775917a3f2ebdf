"""From a prepared clip to probabilities, by the very views and arithmetic of an evaluation.

Dimensions: B videos · V views · C channels · T frames · H rows · W columns · K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.predict.prepare import Prepared, prepare
from vast.data.protocols import EvalProtocol, resolve_protocol
from vast.data.reader import EvalBatch, decode_views
from vast.models.vast import Vast
from vast.train.checkpoint import ModelCard
from vast.train.evaluate import score_batches
from vast.train.step import AUTOCAST


@dataclass(frozen=True)
class Guess:
    """One class and how likely the model holds it to be."""

    class_id: int
    name: str
    probability: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"class": self.name, "id": self.class_id, "probability": self.probability}


class Predictor:
    """A model that answers for videos."""

    def __init__(self, model: Vast, card: ModelCard, protocol: str = "", device: torch.device | None = None) -> None:
        """Set the model up.

        Args:
            model: in evaluation mode.
            card: its own.
            protocol: views of a video; empty: the recipe's.
            device: where it computes; a GPU if there is one.

        Raises:
            UserError: no such protocol, or not for this model.
        """
        config = card.train_config()
        self.classes = card.classes
        self.protocol: EvalProtocol = resolve_protocol(protocol or config.eval.protocol, config.data)
        self.data = self.protocol.applied_to(config.data)
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.autocast = AUTOCAST[config.optim.precision]

    def prepare(self, data: bytes) -> Prepared:
        """The clip in a video file's bytes.

        Raises:
            DecodeError: they are no video, or a damaged one.
        """
        return prepare(data, self.data.eval_short_side)

    def views(self, clip: Prepared) -> Tensor:
        """The views of a clip as clip_VCTHW, uint8.

        Raises:
            DecodeError: it cannot be decoded.
        """
        data, views = self.data, self.protocol.views
        clip_VTHWC = torch.empty((len(views), data.num_frames, data.crop_size, data.crop_size, 3), dtype=torch.uint8)
        decode_views(clip.media, clip.num_frames, clip.video_fps, data, views)(clip_VTHWC)
        return clip_VTHWC.permute(0, 4, 1, 2, 3)

    def probabilities(self, clip: Prepared) -> NDArray[np.float32]:
        """probs_K of a clip: the mean of softmax over its views.

        Raises:
            DecodeError: it cannot be decoded.
        """
        none = torch.full((1,), -1)
        batch = EvalBatch(torch.zeros(1, dtype=torch.int64), self.views(clip)[None], none, [])
        (scored,) = score_batches(
            self.model, [batch], mean=self.data.mean, std=self.data.std, device=self.device, autocast=self.autocast
        )
        probs_K: NDArray[np.float32] = scored.probs_BK[0]
        return probs_K

    def best(self, probs_K: NDArray[np.float32], most: int) -> list[Guess]:
        """The `most` likely classes, best first; equals in the order of their ids, as an evaluation has them."""
        order: Sequence[int] = np.argsort(-probs_K, kind="stable")[:most].tolist()
        return [Guess(k, self.classes[k], float(probs_K[k])) for k in order]
