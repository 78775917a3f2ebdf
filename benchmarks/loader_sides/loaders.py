"""Loaders that take turns: ours, and the pipelines of three other projects over the same mp4 bytes.

The others get the same decoding and the same crop as ours, by the same functions, in as many processes of torch's
DataLoader, and deliver the same micro-batches. What differs is how bytes are found and how clips travel.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from loader_sides.clips import Clips
from torch import Tensor

from vast.data.config import DataConfig
from vast.data.crop import crop_resize, random_resized_box
from vast.data.dataset import ShardDataset
from vast.data.decode import decode_frames
from vast.data.loader import TrainLoader
from vast.data.sampling import dense_train

# Each turn begins with so much that is not counted: processes that waited for their turn have batches in store.
WARM_S = 1.0


class Side:
    """A loader in its turns: it goes on where it was interrupted.

    Args:
        batches: Endless, each a tensor of clips.
    """

    def __init__(self, batches: Iterator[Tensor]) -> None:
        others = set(_processes())
        self._batches = batches
        next(self._batches)
        self._workers = [process for process in _processes() if process not in others]

    def turn(self, seconds: float) -> tuple[float, float]:
        """Load for so long; return clips a second and CPU seconds a clip, this process included."""
        self._load(WARM_S)
        cpu_s = self._cpu_s()
        clips, wall_s = self._load(seconds)
        return clips / wall_s, (self._cpu_s() - cpu_s) / clips

    def load_clips(self, num_clips: int) -> None:
        """Load so many clips."""
        while num_clips > 0:
            num_clips -= len(next(self._batches))

    def worker_mb(self) -> float:
        """Return the most memory that one of its processes has for itself, without what it shares."""
        return max(_private_mb(worker.pid) for worker in self._workers)

    def close(self) -> None:
        """End its processes."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def _load(self, seconds: float) -> tuple[int, float]:
        begun, clips = time.perf_counter(), 0
        while (wall_s := time.perf_counter() - begun) < seconds:
            clips += len(next(self._batches))
        return clips, wall_s

    def _cpu_s(self) -> float:
        return time.process_time() + sum(sum(worker.cpu_times()[:2]) for worker in self._workers)


class Ours:
    """Batches of TrainLoader, which reads where `config.url` says."""

    def __init__(self, config: DataConfig, batch: int) -> None:
        dataset = ShardDataset(config.url, "train")
        self._steps = iter(TrainLoader(dataset, config, seed=0, global_batch=batch, stop_step=10**9))
        self._seconds: Counter[str] = Counter()
        self._num_clips = 0

    def __iter__(self) -> "Ours":
        return self

    def __next__(self) -> Tensor:
        _, (batch,) = next(self._steps)
        if batch.skipped:
            raise RuntimeError(f"a sample was skipped: {batch.skipped[0]}")
        self._seconds.update(batch.times)
        self._num_clips += len(batch.clip_BCTHW)
        return batch.clip_BCTHW

    def close(self) -> None:
        """End the readers."""
        self._steps.close()

    def ms_per_clip(self) -> dict[str, float]:
        """Return how long readers waited for the store, decoded and cropped."""
        return {name: round(1e3 * seconds / self._num_clips, 2) for name, seconds in sorted(self._seconds.items())}


def webdataset(clips: Clips, config: DataConfig, batch: int, folder: Path) -> Iterator[Tensor]:
    """Yield batches of webdataset over the same shards."""
    import webdataset as wds

    urls = sorted(str(path) for path in Path(clips.url).glob("*.tar"))
    dataset = (
        wds.WebDataset(urls, resampled=True, shardshuffle=False, nodesplitter=None, empty_check=False)
        .to_tuple("mp4")
        .map(_Decode(clips, config))
        .batched(batch, collation_fn=_stack)
    )
    yield from wds.WebLoader(dataset, batch_size=None, num_workers=config.num_readers)


def mosaicml_streaming(clips: Clips, config: DataConfig, batch: int, folder: Path) -> Iterator[Tensor]:
    """Yield batches of mosaicml-streaming over its own format, made here."""
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

    with MDSWriter(out=str(folder), columns={"mp4": "bytes"}) as writer:
        for i in range(clips.num_samples):
            writer.write({"mp4": clips.encoded[i % len(clips.encoded)]})
    decode = _DecodeField(clips, config)

    class Decoding(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Any:
            return decode(super().__getitem__(at))

    dataset = Decoding(local=str(folder), shuffle=True, batch_size=batch, epoch_size=10**6)
    yield from StreamingDataLoader(dataset, batch_size=batch, num_workers=config.num_readers, collate_fn=_stack)


def litdata(clips: Clips, config: DataConfig, batch: int, folder: Path) -> Iterator[Tensor]:
    """Yield batches of litdata over its own format, made here."""
    import litdata as ld

    with contextlib.redirect_stdout(None):
        ld.optimize(
            fn=_Held(clips),
            inputs=list(range(clips.num_samples)),
            output_dir=str(folder),
            chunk_bytes="64MB",
            num_workers=1,
        )
    dataset = ld.StreamingDataset(str(folder), shuffle=True, drop_last=True, transform=_DecodeField(clips, config))
    loader = ld.StreamingDataLoader(
        dataset, batch_size=batch, num_workers=config.num_readers, collate_fn=_stack, persistent_workers=True
    )
    while True:
        yield from loader


PEERS: dict[str, Callable[[Clips, DataConfig, int, Path], Iterator[Tensor]]] = {
    "webdataset": webdataset,
    "mosaicml-streaming": mosaicml_streaming,
    "litdata": litdata,
}


class _Held:
    """The sample of a number, as litdata wants it; it may be pickled."""

    def __init__(self, clips: Clips) -> None:
        self._encoded = clips.encoded

    def __call__(self, i: int) -> dict[str, bytes]:
        return {"mp4": self._encoded[i % len(self._encoded)]}


class _Decode:
    """Bytes to a cropped clip; it may be pickled."""

    def __init__(self, clips: Clips, config: DataConfig) -> None:
        self._num_video_frames = clips.num_frames
        self._config = config
        self._rng = np.random.default_rng()

    def __call__(self, sample: tuple[bytes]) -> Tensor:
        config = self._config
        indices = dense_train(self._num_video_frames, config.num_frames, config.frame_stride, self._rng)
        frames_TCHW = decode_frames(sample[0], indices)
        height, width = frames_TCHW.shape[-2:]
        box = random_resized_box(height, width, config.crop_area, config.crop_aspect, self._rng)
        clip_THWC = torch.empty(len(indices), config.crop_size, config.crop_size, 3, dtype=torch.uint8)
        crop_resize(frames_TCHW, box, clip_THWC)
        return clip_THWC.flip(2) if self._rng.random() < 0.5 else clip_THWC


class _DecodeField(_Decode):
    """The same for samples with fields."""

    def __call__(self, sample: Any) -> Tensor:
        return super().__call__((sample["mp4"],))


def _stack(clips: list[Tensor]) -> Tensor:
    # Into shared memory at once where this is a worker, as torch's own collation does.
    if torch.utils.data.get_worker_info() is None:
        return torch.stack(clips)
    num_elements = sum(clip.numel() for clip in clips)
    storage = clips[0]._typed_storage()._new_shared(num_elements, device=clips[0].device)
    out = clips[0].new(storage).resize_(len(clips), *clips[0].shape)
    return torch.stack(clips, out=out)


def _processes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _private_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1e3
