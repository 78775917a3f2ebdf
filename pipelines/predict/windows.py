"""A long video as windows of equal length, each looked at as a clip of its own; memory holds one of them."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.predict.inputs import Video
from pipelines.predict.predictor import Predictor
from pipelines.predict.prepare import declared_seconds, prepare_part
from preprocessing.verdict import Part
from vast.errors import DecodeError

_SLACK_S = 0.05
"""Headers round: a window that begins so little before the end has nothing in it."""


@dataclass(frozen=True)
class Window:
    """One window and what was seen in it."""

    start_s: float
    end_s: float
    probs_K: NDArray[np.float32] | None
    """None where it cannot be read."""
    error: str = ""

    def span(self) -> dict[str, Any]:
        """Where it lies, as plain values."""
        return {"start_s": round(self.start_s, 3), "end_s": round(self.end_s, 3)}


def starts(duration_s: float, window_s: float, hop_s: float) -> list[float]:
    """Where the windows of a video begin, in seconds; the last one ends with the video, so none of it is left out."""
    if duration_s <= window_s + _SLACK_S:
        return [0.0]
    last = duration_s - window_s
    found = [i * hop_s for i in range(int((last + 1e-9) // hop_s) + 1)]
    return found if last - found[-1] < _SLACK_S else [*found, last]


def windows(predictor: Predictor, video: Video, window_s: float, hop_s: float) -> Iterator[Window]:
    """Look at the windows of a video one after the other; one that is damaged is told and passed over.

    Raises:
        DecodeError: the video cannot be read at all, or does not say how long it is.
        StoreError: its bytes cannot be fetched.
    """
    with tempfile.TemporaryDirectory(prefix="vast-predict-") as scratch:
        path = Path(scratch) / "video"
        video.fetch(path)
        duration_s = declared_seconds(path)
        if duration_s is None:
            raise DecodeError("its header does not say how long it is, so it cannot be cut into windows")
        for start_s in starts(duration_s, window_s, hop_s):
            end_s = min(start_s + window_s, duration_s)
            part = Part(start_s=start_s, length_s=end_s - start_s) if duration_s > window_s else Part()
            try:
                clip = prepare_part(path, predictor.data.eval_short_side, part)
                yield Window(start_s, end_s, predictor.probabilities(clip))
            except DecodeError as error:
                yield Window(start_s, end_s, None, str(error))
