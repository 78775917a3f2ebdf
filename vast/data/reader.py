"""What a reader does with one sample: the clips that a batch wants of it, written into their places in the batch.

That has two halves, decoding and cropping, so that a reader may decode the next sample while it crops this one.

A job carries the index row of its sample, so a reader needs neither the index nor any state, and any reader answers any
job alike. Where readers run, and what becomes of those that crash or hang, is the business of vast.data.readers.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vast.data.augment import AugmentBatch, AugmentParams, draw_augment
from vast.data.config import DataConfig
from vast.data.crop import Box, crop_resize, jittered_box, random_resized_box, view_box
from vast.data.decode import decode_frames
from vast.data.fetch import SampleSource
from vast.data.order import sample_rng
from vast.data.sampling import Views, dense_test, dense_train, uniform_test, uniform_train
from vast.dataset_format import SampleRow
from vast.errors import DecodeError, ObjectDamaged, ObjectMissing

_FLIP_SHARE = 0.5


@dataclass(frozen=True)
class Job:
    """One sample of a batch, decoded in one go."""

    sample: int
    """Its number in the split."""
    row: SampleRow
    """Its row of the index."""
    places: tuple[int, ...]
    """The rows of the batch that it fills; with repeated augmentation copy 0, 1 and so on."""
    epoch: int = 0
    """Epoch that the batch belongs to; training only."""


@dataclass(frozen=True)
class Request:
    """Jobs that make one batch."""

    jobs: Sequence[Job]
    num_places: int
    """Rows of the batch; each belongs to one job."""
    step: int = 0
    """Step that the batch belongs to; training only."""
    epoch: int = 0
    """Epoch that the batch belongs to; training only."""
    position: int = 0
    """Place of the batch's first row in the step's global batch; training only."""


@dataclass(frozen=True)
class Filled:
    """What a job gave besides pixels."""

    labels: tuple[int, ...] = ()
    """The label of each place."""
    augment: tuple[AugmentParams, ...] = ()
    """Parameters of the augmentation on the device for each place; training only."""
    damage: str = ""
    """Why the sample cannot be used, and its places hold nothing of worth; empty: all is well."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds spent: store (waiting for bytes), decode, crop."""


Crop: TypeAlias = Callable[[Sequence[Tensor]], Filled]
"""The second half of a job, given its places in the batch; it holds the decoded frames."""


class SampleReader(Protocol):
    """Makes the clips of one sample; it may be pickled."""

    source: SampleSource
    unusable: tuple[type[Exception], ...]
    """What is wrong with one sample alone, and ends nothing."""

    @property
    def place_shape(self) -> tuple[int, ...]:
        """Shape of one row of a batch, uint8."""

    def decode(self, job: Job, data: bytes) -> Crop:
        """Decode a sample; what is returned writes into its places.

        Raises:
            DecodeError: The bytes cannot be decoded.
        """


class Coming(Protocol):
    """Bytes that may still be on their way, as a Future is."""

    def result(self) -> bytes:
        """Wait for them; raises what went wrong."""


def decode(reader: SampleReader, job: Job, coming: Coming) -> Crop:
    """Do the first half of a job: wait for its bytes and decode; a sample that cannot be used is no error.

    Raises:
        StoreError: The sample cannot be read, which is not its own fault.
        UserError: The store refuses.
    """
    begun = time.perf_counter()
    try:
        data = coming.result()
        waited_s = time.perf_counter() - begun
        crop = reader.decode(job, data)
    except reader.unusable as error:
        damaged = Filled(damage=str(error), times={"store": time.perf_counter() - begun})
        return lambda _: damaged

    def rest(places: Sequence[Tensor]) -> Filled:
        filled = crop(places)
        return replace(filled, times={"store": waited_s, **filled.times})

    return rest


@dataclass(frozen=True)
class TrainBatch:
    """One micro-batch of cropped clips.

    B clips of C = 3 channels, T frames, H rows and W columns.
    """

    step: int
    epoch: int
    sample_B: Tensor
    """Number of each sample in the split, int64."""
    clip_BCTHW: Tensor
    """uint8 RGB, as the decoder lays it out, the channels of a pixel together; apply_augment or normalise makes floats
    of it on the device."""
    label_B: Tensor
    """Label ids, int64; a mirrored clip has its mirrored label."""
    position_B: Tensor
    """Place of each clip in the step's global batch, int64; it does not depend on the rank."""
    weight_B: Tensor
    """float32: 1, or 0 for a skipped sample, whose clip is all zeros."""
    augment: AugmentBatch | None = None
    """Parameters of the augmentation on the device, drawn for each clip."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """Number of each skipped sample, and why."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds that readers spent on this batch, added up over its samples: store, decode, crop."""


@dataclass(frozen=True)
class EvalBatch:
    """The views of some videos; a video that cannot be read is named, and never replaced.

    B videos of V views, temporal view by temporal view, each with its spatial crops in order.
    """

    sample_B: Tensor
    """Number of each sample in the split, int64; without the failed ones."""
    clip_BVCTHW: Tensor
    """uint8 RGB, laid out alike."""
    label_B: Tensor
    """Label ids, int64; -1 where there is none."""
    failed: list[tuple[int, str]]
    """Number of each sample that could not be read or decoded, and why."""


class TrainReader:
    """Draws clips for training. All that is random about one comes from (seed, epoch, sample, copy)."""

    unusable: tuple[type[Exception], ...] = (ObjectDamaged, DecodeError)

    def __init__(self, source: SampleSource, config: DataConfig, seed: int, flip: NDArray[np.int64] | None) -> None:
        self.source = source
        self._config = config
        self._seed = seed
        self._flip = flip

    @property
    def place_shape(self) -> tuple[int, ...]:
        """Of one clip: T, H, W, C."""
        return self._config.num_frames, self._config.crop_size, self._config.crop_size, 3

    def decode(self, job: Job, data: bytes) -> Crop:
        """See SampleReader; the frames that the copies share are decoded once."""
        rngs = [sample_rng(self._seed, job.epoch, job.sample, copy) for copy in range(len(job.places))]
        begun = time.perf_counter()
        with _named(self.source, job.row):
            frames_NCHW, copies = _decoded(data, [self._indices(job.row, rng) for rng in rngs])
        decode_s = time.perf_counter() - begun

        def crop(places: Sequence[Tensor]) -> Filled:
            begun = time.perf_counter()
            labels: list[int] = []
            augment: list[AugmentParams] = []
            for clip_THWC, frames_T, rng in zip(places, copies, rngs, strict=True):
                label, params = self._crop(_chosen(frames_NCHW, frames_T), clip_THWC, job.row.label, rng)
                labels.append(label)
                augment.append(params)
            times = {"decode": decode_s, "crop": time.perf_counter() - begun}
            return Filled(tuple(labels), tuple(augment), times=times)

        return crop

    def _crop(
        self, frames_TCHW: Tensor, clip_THWC: Tensor, label: int, rng: np.random.Generator
    ) -> tuple[int, AugmentParams]:
        """Write one copy into its place; returns its label and what is drawn for the device."""
        config = self._config
        box = self._box(frames_TCHW.shape[-2], frames_TCHW.shape[-1], rng)
        crop_resize(frames_TCHW, box, clip_THWC)
        if self._flip is not None and rng.random() < _FLIP_SHARE:
            clip_THWC.copy_(clip_THWC.flip(2))
            label = int(self._flip[label])
        return label, draw_augment(config.augment, config.crop_size, rng)

    def _indices(self, row: SampleRow, rng: np.random.Generator) -> NDArray[np.int64]:
        config = self._config
        if config.sampling == "uniform":
            return uniform_train(row.num_frames, config.num_frames, rng)
        return dense_train(row.num_frames, config.num_frames, config.source_stride(row.video_fps), rng)

    def _box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        config = self._config
        if config.train_crop == "resized":
            return random_resized_box(height, width, config.crop_area, config.crop_aspect, rng)
        return jittered_box(height, width, config.crop_size, config.train_short_side, rng)


class EvalReader:
    """Cuts all views of a video."""

    unusable: tuple[type[Exception], ...] = (ObjectDamaged, ObjectMissing, DecodeError)

    def __init__(self, source: SampleSource, config: DataConfig, views: Views) -> None:
        self.source = source
        self._config = config
        self._views = views

    @property
    def place_shape(self) -> tuple[int, ...]:
        """Of the views of one video: V, T, H, W, C."""
        return len(self._views), self._config.num_frames, self._config.crop_size, self._config.crop_size, 3

    def decode(self, job: Job, data: bytes) -> Crop:
        """See SampleReader; the decoder passes over the video once for all views."""
        with _named(self.source, job.row):
            cut = decode_views(data, job.row.num_frames, job.row.video_fps, self._config, self._views)
        return lambda places: Filled((job.row.label,), times=cut(places[0]))


def decode_views(
    data: bytes, num_video_frames: int, video_fps: float, config: DataConfig, views: Views
) -> Callable[[Tensor], dict[str, float]]:
    """Decode all frames that the views of a video need, each once.

    Args:
        data: The encoded clip, as shards hold them.
        num_video_frames: Frames that it has.
        video_fps: Its rate in frames a second; for dense sampling with a target rate.
        config: How clips are drawn.
        views: Which of them.

    Returns:
        What cuts the views into a clip_VTHWC, uint8, temporal view by temporal view, each with its spatial crops in
        order, and returns the seconds: decode, crop.

    Raises:
        DecodeError: The bytes cannot be decoded.
    """
    begun = time.perf_counter()
    indices = [_view_indices(num_video_frames, video_fps, config, views, view) for view in range(views.temporal)]
    frames_NCHW, clips = _decoded(data, indices)
    decode_s = time.perf_counter() - begun

    def cut(clip_VTHWC: Tensor) -> dict[str, float]:
        begun = time.perf_counter()
        height, width = frames_NCHW.shape[-2:]
        crop_NHWC = frames_NCHW.new_empty(len(frames_NCHW), config.crop_size, config.crop_size, 3)
        for spatial in range(views.spatial):
            box = view_box(height, width, config.crop_size, config.eval_short_side, spatial, views.spatial)
            # Views overlap in time: each frame is resized once.
            crop_resize(frames_NCHW, box, crop_NHWC)
            for temporal, frames_T in enumerate(clips):
                clip_VTHWC[temporal * views.spatial + spatial] = crop_NHWC[frames_T]
        return {"decode": decode_s, "crop": time.perf_counter() - begun}

    return cut


def _view_indices(
    num_video_frames: int, video_fps: float, config: DataConfig, views: Views, view: int
) -> NDArray[np.int64]:
    if config.sampling == "uniform":
        return uniform_test(num_video_frames, config.num_frames, view, views.temporal)
    return dense_test(num_video_frames, config.num_frames, config.source_stride(video_fps), view, views.temporal)


@contextlib.contextmanager
def _named(source: SampleSource, row: SampleRow) -> Iterator[None]:
    """Say of which sample a decoding error speaks."""
    try:
        yield
    except DecodeError as error:
        raise DecodeError(f"{source.describe(row)}: {error}") from error


def _decoded(data: bytes, clips: Sequence[NDArray[np.int64]]) -> tuple[Tensor, list[Tensor]]:
    """Decode the frames of several clips of one video in one pass; return them and which of them each clip takes."""
    wanted, position = np.unique(np.concatenate(clips), return_inverse=True)
    frames_NCHW = decode_frames(data, wanted)
    ends = np.cumsum([len(indices) for indices in clips])[:-1]
    return frames_NCHW, [torch.from_numpy(part) for part in np.split(position, ends)]


def _chosen(frames_NCHW: Tensor, frames_T: Tensor) -> Tensor:
    """Take some frames, without a copy where a clip takes all of them, each once."""
    if len(frames_T) == len(frames_NCHW) and bool((frames_T == torch.arange(len(frames_NCHW))).all()):
        return frames_NCHW
    return frames_NCHW.permute(0, 2, 3, 1)[frames_T].permute(0, 3, 1, 2)


def num_bytes(shape: Sequence[int]) -> int:
    """Return the size of uint8 pixels of this shape."""
    return math.prod(shape)
