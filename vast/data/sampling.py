"""Which frames make a clip.

Every function returns `num_frames` indices in 0..num_video_frames-1 that never go down. A video that is too short
repeats frames in a fixed manner: uniform sampling takes some frames several times, dense sampling stays on the last.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vast.errors import UserError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Views:
    """The test crops of one video: temporal clips times spatial crops, in this order."""

    temporal: int
    spatial: int

    def __len__(self) -> int:
        return self.temporal * self.spatial

    def __str__(self) -> str:
        return f"{self.temporal}x{self.spatial}"


def views(protocol: str) -> Views:
    """Parse a protocol such as 4x3: temporal clips x spatial crops.

    Raises:
        UserError: The text has another form, or asks for other than 1 or 3 spatial crops.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,2})x([13])", protocol)
    if match is None:
        raise UserError(
            f"protocol: got {protocol!r}, must be <temporal clips>x<spatial crops> with 1 or 3 crops, as in 4x3"
        )
    return Views(int(match[1]), int(match[2]))


def uniform_train(num_video_frames: int, num_frames: int, rng: np.random.Generator) -> Indices:
    """Draw one frame of each of `num_frames` equal segments, as TSN does."""
    edges = np.arange(num_frames + 1) * num_video_frames // num_frames
    return edges[:-1] + rng.integers(0, np.maximum(np.diff(edges), 1))


def uniform_test(num_video_frames: int, num_frames: int, view: int = 0, num_views: int = 1) -> Indices:
    """Take one frame of each of `num_frames` equal segments; the views lie evenly within a segment.

    One view takes the middles. Several interleave, so they are different clips, unlike SlowFast's on SSv2.
    """
    # Segment k has length n/T; view v stands at (2v + 1) / 2V of it.
    position = np.arange(num_frames) * (2 * num_views) + 2 * view + 1
    return position * num_video_frames // (2 * num_views * num_frames)


def dense_train(num_video_frames: int, num_frames: int, frame_stride: float, rng: np.random.Generator) -> Indices:
    """Draw one window of frames, `frame_stride` source frames apart, rounded down where that is no whole number."""
    start = int(rng.integers(_num_starts(num_video_frames, num_frames, frame_stride)))
    return _window(start, num_video_frames, num_frames, frame_stride)


def dense_test(
    num_video_frames: int, num_frames: int, frame_stride: float, view: int = 0, num_views: int = 1
) -> Indices:
    """Take the window of one temporal view: the middles of `num_views` equal parts of all starts, one view: the middle.

    The same starts as mmaction2's SampleFrames in test mode; projects that begin at frame 0 differ.
    """
    start = _num_starts(num_video_frames, num_frames, frame_stride) * (2 * view + 1) // (2 * num_views)
    return _window(start, num_video_frames, num_frames, frame_stride)


def _num_starts(num_video_frames: int, num_frames: int, frame_stride: float) -> int:
    return max(num_video_frames - int((num_frames - 1) * frame_stride), 1)


def _window(start: int, num_video_frames: int, num_frames: int, frame_stride: float) -> Indices:
    offsets = (np.arange(num_frames) * frame_stride).astype(np.int64)
    return np.minimum(start + offsets, num_video_frames - 1)
