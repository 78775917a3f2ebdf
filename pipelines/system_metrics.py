"""The load of rank 0's machine while it trains, under MLflow's names for system metrics, through our own sender.

MLflow's own monitor logs from its thread through the client that a dead server blocks for minutes. Its steps count
samples, so that a resumed run begins anew at the last one; here a step is a second since the run was created.
"""

import contextlib
import csv
import os
import subprocess
import threading
import time
from collections.abc import Mapping

import psutil

from pipelines.tracking import RunRef
from vast.train.tracker import Tracker

EVERY_S = 10.0
_GPU_FIELDS = {
    "utilization.gpu": "utilization_percentage",
    "memory.used": "memory_usage_megabytes",
    "power.draw": "power_usage_watts",
}


class SystemMetrics:
    """Samples the machine in a thread until it is closed; a reading that fails is left out."""

    def __init__(self, run: RunRef, tracker: Tracker, every_s: float = EVERY_S) -> None:
        self.run, self.tracker, self.every_s = run, tracker, every_s
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """End it."""
        self.closing.set()
        self.thread.join(self.every_s)

    def _sample(self) -> None:
        psutil.cpu_percent()  # the first call has nothing to compare with
        before = _traffic_bytes()
        while not self.closing.wait(self.every_s):
            figures = {**machine(), **gpus()}
            if before and (now := _traffic_bytes()):
                figures |= {f"network_{name}_megabytes": (now[name] - before[name]) / 1e6 for name in now}
            second = int(time.time() - self.run.created_ms / 1000)
            self.tracker.log(second, {f"system/{name}": value for name, value in figures.items()})


def machine() -> dict[str, float]:
    """CPU since the last call, memory, and the disk of the root folder."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.sep)
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": 100 * memory.used / memory.total,
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": disk.used / 1e6,
        "disk_available_megabytes": disk.free / 1e6,
    }


def gpus() -> dict[str, float]:
    """Load, memory and power of each GPU, from NVIDIA's tool; empty without it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    found: dict[str, float] = {}
    for number, row in enumerate(csv.reader(done.stdout.splitlines(), skipinitialspace=True)):
        for name, text in zip(_GPU_FIELDS.values(), row, strict=False):
            with contextlib.suppress(ValueError):  # "[N/A]" where a GPU does not tell
                value = float(text)
                # the tool counts in MiB
                found[f"gpu_{number}_{name}"] = value * 2**20 / 1e6 if name.endswith("megabytes") else value
    return found


def _traffic_bytes() -> Mapping[str, int]:
    """What went over the network since the machine started."""
    counters = psutil.net_io_counters()
    return {"receive": counters.bytes_recv, "transmit": counters.bytes_sent} if counters else {}
