"""Shards as Ray tasks, spread over a cluster; the only file of preprocessing that knows Ray."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from preprocessing.plan import ShardPlan
from preprocessing.write import ShardJob, ShardReport, write_shard
from vast.errors import UserError

OnTally = Callable[[int, int], None]
"""Called with the records tried in shards that are being written, and how many of those failed."""

# ffmpeg takes some 250 MB for 1080p, the worker 200 MB; a node with less free memory gets fewer tasks than it has CPUs.
TASK_MEMORY_BYTES = 600 << 20
# A lost node or worker costs its shard another try; a shard that ends every worker must end the build some day.
MAX_RETRIES = 20
TALLY_EVERY_S = 1.0


def check_ray() -> None:
    """Raise when Ray has not been started.

    Raises:
        UserError: It has not.
    """
    import ray

    if not ray.is_initialized():
        raise UserError("Ray has not been started: call ray.init() first, or use num_workers=0 for this process alone")


def run_on_ray(
    shards: Sequence[ShardPlan], job: ShardJob, num_workers: int | None, on_tally: OnTally
) -> Iterator[ShardReport]:
    """Yield the shards' reports as they finish.

    Args:
        shards: What to write.
        job: Where to and how.
        num_workers: Tasks at a time, one CPU each; None for as many as the cluster has CPUs at the time.
        on_tally: See `OnTally`; about once a second.
    """
    import ray
    from ray.exceptions import RayError

    options = {"num_cpus": 1, "memory": TASK_MEMORY_BYTES, "scheduling_strategy": "SPREAD"}
    # Ray retries lost nodes; OSError is a full disk, or a store that fails for longer than storage itself waits.
    task = ray.remote(max_retries=MAX_RETRIES, retry_exceptions=[OSError], **options)(_write)
    tally = _tally_actor()
    waiting = iter(shards)
    running: dict[Any, str] = {}
    asked = None
    try:
        while True:
            capacity = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            # No more tasks than run at once: a data set of a million records must not be pickled into Ray's queue.
            for shard in itertools.islice(waiting, max(0, capacity - len(running))):
                running[task.remote(shard, job, tally)] = shard.digest
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=TALLY_EVERY_S)
            for reference in done:
                del running[reference]
                yield ray.get(reference)
            # Never waited for: a tally that is starting, or lost with its node, must not keep workers idle.
            asked = asked or tally.read.remote(set(running.values()))
            if ray.wait([asked], timeout=0)[0]:
                with contextlib.suppress(RayError):
                    # A shard that has finished since is counted by its report.
                    counts = [count for shard, count in ray.get(asked).items() if shard in running.values()]
                    tried, failed = zip((0, 0), *counts, strict=True)
                    on_tally(sum(tried), sum(failed))
                asked = None
    finally:
        for reference in running:
            ray.cancel(reference)


_tallies: dict[str, Any] = {}


def _tally_actor() -> Any:
    """Return the tally of this process's Ray session; starting one takes half a second of a CPU, so it is kept."""
    import ray

    context = ray.get_runtime_context()
    session = f"{context.get_node_id()} {context.get_job_id()}"  # jobs of a new local Ray are numbered from 1 again
    if session not in _tallies:
        _tallies.clear()  # of a Ray that has been shut down
        _tallies[session] = ray.remote(num_cpus=0, max_restarts=-1)(_Tally).remote()
    return _tallies[session]


class _Tally:
    """Actor that holds how far every running shard is; a retried shard starts again at its own count."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}

    def tell(self, shard: str, tried: int, failed: int) -> None:
        self._counts[shard] = (tried, failed)

    def read(self, shards: set[str]) -> dict[str, tuple[int, int]]:
        self._counts = {shard: counts for shard, counts in self._counts.items() if shard in shards}
        return self._counts


def _write(shard: ShardPlan, job: ShardJob, tally: Any) -> ShardReport:
    tried = failed = 0
    told = time.monotonic()

    def count(is_sample: bool) -> None:
        nonlocal tried, failed, told
        tried += 1
        failed += not is_sample
        if time.monotonic() - told >= TALLY_EVERY_S:
            told = time.monotonic()
            tally.tell.remote(shard.digest, tried, failed)

    return write_shard(shard, job, count)
