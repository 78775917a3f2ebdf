"""Frames out of encoded bytes, with decord 0.6.

Only our own shards are decoded here: closed GOP, constant rate, no edit list, upright; there decord is frame-accurate.
It can hang for ever inside its C++ code on other files, so long runs decode in reader processes, which can be killed.
"""

import io
import os
import warnings

import decord
import decord.logging
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vast.data.images import decode_image, is_jpeg
from vast.errors import DecodeError

# FFmpeg inside decord writes to stderr on its own; what matters comes back as an exception.
decord.logging.set_level(decord.logging.QUIET)

if "DECORD_EOF_RETRY_MAX" in os.environ:
    warnings.warn(
        "DECORD_EOF_RETRY_MAX is set: low values make decord fail on good clips (a third of them at 64); unset it",
        stacklevel=1,
    )

# DECORDError and DECORDLimitReachedError are Exceptions of their own family.
_FAULTS = (
    decord.DECORDError,
    decord.DECORDLimitReachedError,
    RuntimeError,
    AssertionError,
    IndexError,
    StopIteration,
)


def decode_frames(data: bytes, indices: NDArray[np.int64]) -> Tensor:
    """Decode the frames at `indices` of a video; in any order, an index may occur several times.

    Args:
        data: The encoded file: an mp4, or a JPEG, which is a video of one frame.
        indices: Frame numbers, counted from 0.

    Returns:
        frames_TCHW, uint8 RGB, in channels_last layout, which is what both the decoder and the resize work in.

    Raises:
        DecodeError: The bytes are neither, are damaged, or have fewer frames than asked for.
    """
    # T frames of C = 3 channels, H rows, W columns.
    if is_jpeg(data):
        return decode_image(data, indices)
    if data[4:8] != b"ftyp":
        # decord would say no more than this, but first print the bytes themselves to stderr.
        raise DecodeError(f"{len(data)} bytes that begin with {data[:12]!r} are no mp4 and no JPEG")
    wanted, position_T = np.unique(indices, return_inverse=True)
    try:
        # One reader for one clip: a reader that is kept reads ahead without a bound.
        reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
        num_found = len(reader)
        if wanted[-1] >= num_found:
            raise DecodeError(f"frame {wanted[-1]} was asked for, the video has frames 0..{num_found - 1}")
        # Shares decord's memory: asnumpy() would copy the frames once more.
        frames_THWC = from_dlpack(reader.get_batch(wanted).to_dlpack())
    except DecodeError:
        raise
    except _FAULTS as error:
        lines = str(error).strip().splitlines() or [""]
        raise DecodeError(f"decord cannot decode {len(data)} bytes: {type(error).__name__} {lines[0]}") from error
    if not np.array_equal(wanted, indices):
        frames_THWC = frames_THWC[torch.from_numpy(position_T)]
    return frames_THWC.permute(0, 3, 1, 2)
