"""What a run was made with, as files: software, hardware, and how the code differed from its commit.

No environment variables, no host names, no paths: these files are shown to whoever may read the run.
"""

import csv
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from pipelines.tracking.source import git_patch

SHOWN = ("vast-video", "torch", "ray", "mlflow", "numpy", "webdataset", "decord")


def write_environment(folder: Path, num_nodes: int = 1) -> None:
    """Write environment.json, packages.txt and, from a changed checkout, git.diff into a folder."""
    (folder / "environment.json").write_text(json.dumps(environment(num_nodes), indent=1) + "\n", encoding="utf-8")
    (folder / "packages.txt").write_text("".join(f"{line}\n" for line in installed_packages()), encoding="utf-8")
    if patch := git_patch():
        (folder / "git.diff").write_text(patch, encoding="utf-8")


def environment(num_nodes: int) -> dict[str, Any]:
    """Software and hardware of this process's machine."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in SHOWN},
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "nodes": num_nodes,
        "gpus": _gpus(),
    }


def installed_packages() -> list[str]:
    """Every installed distribution as `name==version`, for a constraints file."""
    return sorted({f"{one.name}=={one.version}" for one in distributions() if one.name}, key=str.lower)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each GPU of this machine; empty without NVIDIA's tool."""
    fields = ("name", "memory.total", "driver_version")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]
