"""What one machine has, looked at from inside: by `vast check` itself, or by a task of Ray's on each node."""

import contextlib
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipelines.preflight.stores import StoreFacts, try_reading, try_writing
from vast.errors import StoreError, UserError
from vast.train.config import TrainConfig

PACKAGES = ("vast-video", "torch", "ray", "numpy", "decord")
DECODED_SAMPLES = 24
DECODE_LIMIT_S = 10.0


@dataclass(frozen=True)
class Wanted:
    """What a machine is to look at."""

    config: TrainConfig
    output: str
    """Store of checkpoints; empty: none is named."""
    shard: str
    """A shard of the training set, to be read; empty where there is no data set."""
    decode: bool
    """Whether to measure decoding."""


@dataclass(frozen=True)
class MachineFacts:
    """What a machine has; picklable."""

    address: str
    versions: dict[str, str]
    """Of Python and of PACKAGES."""
    cpus: int
    memory_bytes: int
    shm_bytes: int
    """Free in /dev/shm."""
    scratch: tuple[str, int]
    """Folder for temporary files, and bytes free there."""
    cache: tuple[str, int] = ("", 0)
    """The recipe's node cache, and bytes free there or held by it already."""
    cache_error: str = ""
    gpus: list[str] = field(default_factory=list)
    """Names of the GPUs that torch sees."""
    gpu_bytes: int = 0
    """Memory of the smallest of them."""
    data: StoreFacts | None = None
    output: StoreFacts | None = None
    decode_clips_per_s: float = 0.0
    """Clips that one core of this machine reads, decodes and cuts; 0 where it was not measured."""
    decode_error: str = ""


def look(wanted: Wanted, address: str) -> MachineFacts:
    """Look at this machine; never raises for what it finds."""
    import torch

    data, gpus = wanted.config.data, range(torch.cuda.device_count())
    cache, cache_error = _cache(data.cache_dir)
    rate, decode_error = _decode_rate(wanted.config) if wanted.decode else (0.0, "")
    return MachineFacts(
        address=address,
        versions=versions_here(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        shm_bytes=_free("/dev/shm"),
        scratch=(tempfile.gettempdir(), _free(tempfile.gettempdir())),
        cache=cache,
        cache_error=cache_error,
        gpus=[torch.cuda.get_device_name(n) for n in gpus],
        gpu_bytes=min((torch.cuda.get_device_properties(n).total_memory for n in gpus), default=0),
        data=try_reading(data.url, wanted.shard) if wanted.shard else None,
        output=try_writing(wanted.output) if wanted.output else None,
        decode_clips_per_s=rate,
        decode_error=decode_error,
    )


def versions_here() -> dict[str, str]:
    """What this process runs on."""
    return {"Python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _free(folder: str) -> int:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free
    return 0


def _cache(folder: str) -> tuple[tuple[str, int], str]:
    """The cache's folder and the bytes that it can have, and why not."""
    if not folder:
        return ("", 0), ""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        held = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        return (folder, shutil.disk_usage(folder).free + held), ""
    except OSError as error:
        return (folder, 0), f"{error.strerror or error}"


def _decode_rate(config: TrainConfig) -> tuple[float, str]:
    """Clips a second of one core, on samples of the training set: read, decoded and cut as training does."""
    from vast.data.dataset import ShardDataset
    from vast.data.loader import TrainLoader

    data = config.data.model_copy(update={"num_readers": 0, "cache_dir": "", "store_patience_s": 20.0})
    try:
        dataset = ShardDataset(data.url, data.train_split)
        batch = data.clips_together
        loader = TrainLoader(
            dataset, data, seed=config.seed, global_batch=batch, stop_step=max(2, DECODED_SAMPLES // batch)
        )
        steps = iter(loader)
        next(steps)  # opening shards and decoder is no part of the speed
        begun, clips = time.perf_counter(), 0
        for _ in steps:
            clips += batch
            if time.perf_counter() - begun > DECODE_LIMIT_S:
                break
        return clips / data.repeats / (time.perf_counter() - begun), ""
    except (UserError, StoreError, StopIteration, OSError) as error:
        return 0.0, (str(error).splitlines() or [type(error).__name__])[0]
