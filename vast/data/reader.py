"""What a reader does: requests in, batches of clips out.

A request carries the index rows of its samples, so a reader needs neither the index nor any state, and any reader
answers any request alike. Errors come back as values: an exception that crosses a process becomes another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vast.data.augment import crop_resize, jittered_box, random_resized_box, view_box
from vast.data.config import DataConfig
from vast.data.dataset import SampleSource
from vast.data.decode import decode_frames
from vast.data.order import sample_rng
from vast.data.sampling import Views, dense_test, dense_train, uniform_test, uniform_train
from vast.dataset_format import SampleRow
from vast.errors import DecodeError, StoreError, UserError

_FLIP_SHARE = 0.5


@dataclass(frozen=True)
class Request:
    """Samples that make one batch."""

    what: str
    """The request, for people."""
    samples: Sequence[tuple[int, SampleRow]]
    """Number of each sample in the split, and its row of the index."""
    step: int = 0
    """Step that the batch belongs to; training only."""
    epoch: int = 0
    """Epoch that the batch belongs to; training only."""


@dataclass(frozen=True)
class TrainBatch:
    """One micro-batch of augmented clips.

    B clips of C = 3 channels, T frames, H rows and W columns.
    """

    step: int
    epoch: int
    sample_B: Tensor
    """Number of each sample in the split, int64."""
    clip_BCTHW: Tensor
    """uint8 RGB; augment.normalise makes floats of it on the device."""
    label_B: Tensor
    """Label ids, int64; a mirrored clip has its mirrored label."""


@dataclass(frozen=True)
class EvalBatch:
    """The views of some videos; a video that cannot be read is named, and never replaced.

    B videos of V views, temporal view by temporal view, each with its spatial crops in order.
    """

    sample_B: Tensor
    """Number of each sample in the split, int64; without the failed ones."""
    clip_BVCTHW: Tensor
    """uint8 RGB."""
    label_B: Tensor
    """Label ids, int64; -1 where there is none."""
    failed: list[tuple[int, str]]
    """Number of each sample that could not be read or decoded, and why."""


class TrainReader:
    """Answers requests with augmented micro-batches. All randomness comes from (seed, epoch, sample)."""

    def __init__(self, source: SampleSource, config: DataConfig, seed: int, flip: NDArray[np.int64] | None) -> None:
        self._source = source
        self._config = config
        self._seed = seed
        self._flip = flip

    def __getitem__(self, request: Request) -> TrainBatch | Exception:
        config = self._config
        size = config.crop_size
        clip_BCTHW = torch.empty((len(request.samples), 3, config.num_frames, size, size), dtype=torch.uint8)
        labels = []
        try:
            for b, (sample, row) in enumerate(request.samples):
                rng = sample_rng(self._seed, request.epoch, sample)
                frames_TCHW, label = self._augmented(row, rng)
                clip_BCTHW[b] = frames_TCHW.transpose(0, 1)
                labels.append(label)
        except (DecodeError, StoreError, UserError) as error:
            return error
        sample_B = torch.tensor([sample for sample, _ in request.samples])
        return TrainBatch(request.step, request.epoch, sample_B, clip_BCTHW, torch.tensor(labels))

    def _augmented(self, row: SampleRow, rng: np.random.Generator) -> tuple[Tensor, int]:
        config = self._config
        if config.sampling == "uniform":
            indices = uniform_train(row.num_frames, config.num_frames, rng)
        else:
            indices = dense_train(row.num_frames, config.num_frames, config.frame_stride, rng)
        frames_TCHW = _decoded(self._source, row, indices)
        height, width = frames_TCHW.shape[-2:]
        if config.train_crop == "resized":
            box = random_resized_box(height, width, config.crop_area, config.crop_aspect, rng)
        else:
            box = jittered_box(height, width, config.crop_size, config.train_short_side, rng)
        frames_TCHW = crop_resize(frames_TCHW, box, config.crop_size)
        if self._flip is None or rng.random() >= _FLIP_SHARE:
            return frames_TCHW, row.label
        return frames_TCHW.flip(-1), int(self._flip[row.label])


class EvalReader:
    """Answers requests with all views of each video."""

    def __init__(self, source: SampleSource, config: DataConfig, views: Views) -> None:
        self._source = source
        self._config = config
        self._views = views

    def __getitem__(self, request: Request) -> EvalBatch | Exception:
        clips, samples, labels, failed = [], [], [], []
        try:
            for sample, row in request.samples:
                try:
                    clips.append(self._all_views(row))
                except (DecodeError, StoreError) as error:
                    failed.append((sample, str(error)))
                    continue
                samples.append(sample)
                labels.append(row.label)
        except UserError as error:
            return error
        size = self._config.crop_size
        empty = torch.empty((0, len(self._views), 3, self._config.num_frames, size, size), dtype=torch.uint8)
        clip_BVCTHW = torch.stack(clips) if clips else empty
        return EvalBatch(
            torch.tensor(samples, dtype=torch.int64), clip_BVCTHW, torch.tensor(labels, dtype=torch.int64), failed
        )

    def _all_views(self, row: SampleRow) -> Tensor:
        config, views = self._config, self._views
        # All temporal views in one go: the decoder passes over the video once.
        indices = [self._indices(row.num_frames, view) for view in range(views.temporal)]
        frames_TCHW = _decoded(self._source, row, np.concatenate(indices))
        height, width = frames_TCHW.shape[-2:]
        size = config.crop_size
        clip_VCTHW = torch.empty((len(views), 3, config.num_frames, size, size), dtype=torch.uint8)
        for temporal, part_TCHW in enumerate(torch.split(frames_TCHW, config.num_frames)):
            for spatial in range(views.spatial):
                box = view_box(height, width, size, config.eval_short_side, spatial, views.spatial)
                clip_VCTHW[temporal * views.spatial + spatial] = crop_resize(part_TCHW, box, size).transpose(0, 1)
        return clip_VCTHW

    def _indices(self, num_video_frames: int, view: int) -> NDArray[np.int64]:
        config, num_views = self._config, self._views.temporal
        if config.sampling == "uniform":
            return uniform_test(num_video_frames, config.num_frames, view, num_views)
        return dense_test(num_video_frames, config.num_frames, config.frame_stride, view, num_views)


def _decoded(source: SampleSource, row: SampleRow, indices: NDArray[np.int64]) -> Tensor:
    data = source.read(row)
    try:
        return decode_frames(data, indices)
    except DecodeError as error:
        raise DecodeError(f"{source.describe(row)}: {error}") from error
