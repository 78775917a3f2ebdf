"""Any video as the clip that the model was trained on the like of: what `vast shard` would have packed.

Raw files are turned upright, brought to a constant rate and scaled by the same encoder, in a process with limits, so a
phone's portrait recording is seen as the data set's clips were. A clip that came out of shards is taken as it is, bit
for bit; so predictions agree with `vast evaluate`.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from preprocessing.probe import open_video, probe
from preprocessing.proof import measure
from preprocessing.transcode import PROFILES, Clip, ClipError, transcode
from preprocessing.verdict import Part
from vast.errors import DecodeError

ENCODED_S = 300.0
"""Longest part of a video that is looked at as one clip; longer ones are for windows."""


@dataclass(frozen=True)
class Prepared:
    """A clip that every decoder agrees on."""

    media: bytes
    num_frames: int
    video_fps: float
    duration_s: float


def prepare(data: bytes, short_side: int) -> Prepared:
    """The clip in the bytes of a video file; its short side is brought to `short_side`, or 256 if that is more.

    Raises:
        DecodeError: the bytes are no video, or a damaged one; the message says what is wrong.
    """
    measured = measure(data)
    if measured is not None:
        return Prepared(data, measured.num_frames, measured.video_fps, measured.duration_s)
    with tempfile.TemporaryDirectory(prefix="vast-predict-") as scratch:
        path = Path(scratch) / "video"
        path.write_bytes(data)
        return prepare_part(path, short_side, Part(length_s=ENCODED_S))


def prepare_part(path: Path, short_side: int, part: Part) -> Prepared:
    """The clip that a part of a video file makes.

    Raises:
        DecodeError: it is no video, or a damaged one.
    """
    settings = PROFILES["s256"]
    # frames are scaled down once more for the model; never up before that
    settings = settings.model_copy(update={"short_side": max(settings.short_side, short_side + short_side % 2)})
    try:
        clip: Clip = transcode(path, settings, part=part)
    except ClipError as error:
        raise DecodeError(str(error)) from error
    return Prepared(clip.media, clip.num_frames, clip.video_fps, clip.duration_s)


def declared_seconds(path: Path) -> float | None:
    """How long a video file says it is; None where it does not say.

    Raises:
        DecodeError: it is no video.
    """
    try:
        with open_video(str(path)) as descriptor:
            return probe(descriptor).declared_s
    except ClipError as error:
        raise DecodeError(str(error)) from error
