"""decord alone: processes that decode the frames of clips they hold in memory, and do nothing else."""

import io
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import decord
import numpy as np

from vast.data.config import DataConfig
from vast.data.order import sample_rng
from vast.data.sampling import dense_train


class BareDecord:
    """So many processes, which decode when told to.

    Args:
        encoded: The clips; sample i holds number `i % len(encoded)`.
        num_frames: Frames of each clip.
        config: How the frames of a sample are drawn: as in the loader, from the same numbers.
        num_processes: Of decoders.
    """

    def __init__(self, encoded: Sequence[bytes], num_frames: int, config: DataConfig, num_processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        self._processes = []
        for number in range(num_processes):
            ours, theirs = context.Pipe()
            arguments = (theirs, list(encoded), num_frames, config, number, num_processes)
            process = context.Process(target=_decode, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def turn(self, seconds: float) -> tuple[float, float]:
        """Decode for so long; return clips a second and CPU seconds a clip."""
        for pipe in self._pipes:
            pipe.send(seconds)
        done = [pipe.recv() for pipe in self._pipes]
        return sum(clips / wall_s for clips, wall_s, _ in done), sum(cpu for *_, cpu in done) / sum(n for n, *_ in done)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _decode(pipe: Connection, encoded: list[bytes], num_frames: int, config: DataConfig, first: int, step: int) -> None:
    sample = first
    pipe.send("ready")
    while True:
        seconds = pipe.recv()
        begun, begun_cpu, clips = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begun < seconds:
            rng = sample_rng(0, 0, sample)
            indices = dense_train(num_frames, config.num_frames, config.frame_stride, rng)
            data = io.BytesIO(encoded[sample % len(encoded)])
            frames_THWC = decord.VideoReader(data, ctx=decord.cpu(0), num_threads=1).get_batch(indices).asnumpy()
            if frames_THWC.dtype != np.uint8 or len(frames_THWC) != config.num_frames:
                raise RuntimeError("decord gave something else")
            sample += step
            clips += 1
        pipe.send((clips, time.perf_counter() - begun, time.process_time() - begun_cpu))
