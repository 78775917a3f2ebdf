"""Builds killed at random instants end as if nothing had happened, on a folder and on S3, drivers and workers alike."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("kill_build.py")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> Path:
    """Eighteen train and six val records, two of them bad, in shards of three."""
    root = tmp_path_factory.mktemp("raw")
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(24):
        split, video_id = ("val" if number >= 18 else "train"), f"-_{number:09d}"
        lines[split].append(f"jogging,{video_id},{number},{number + 10},{split},0")
        if number != 5:
            path = make_clip(root / "videos" / f"{video_id}_{number:06d}_{number + 10:06d}.mp4", num_frames=8)
            if number == 7:
                path.write_bytes(path.read_bytes()[:-300])
    for split, rows in lines.items():
        (root / f"{split}.csv").write_text("label,youtube_id,time_start,time_end,split,is_cc\n" + "\n".join(rows))
    return root


def campaign(raw: Path, url: str, *options: str) -> dict[str, Any]:
    # A token of our own, or Ray writes one into the home folder.
    environment = {**os.environ, "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(PROGRAM), str(raw), url, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-6000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.campaign
def test_drivers_killed_on_a_folder(raw: Path, tmp_path: Path) -> None:
    assert campaign(raw, str(tmp_path), "--kills", "24", "--seed", "1")["kills"] == 24


@pytest.mark.campaign
def test_drivers_killed_on_s3(raw: Path, s3_url: str) -> None:
    assert campaign(raw, s3_url, "--kills", "20", "--seed", "2")["kills"] == 20


@pytest.mark.campaign
def test_ray_workers_killed_on_s3(raw: Path, s3_url: str) -> None:
    options = ("--kills", "6", "--seed", "3", "--workers", "2", "--victims", "workers")
    assert campaign(raw, s3_url, *options)["kills"] == 6


@pytest.mark.campaign
def test_drivers_killed_with_their_ray(raw: Path, tmp_path: Path) -> None:
    assert campaign(raw, str(tmp_path), "--kills", "3", "--seed", "4", "--workers", "2")["kills"] == 3
