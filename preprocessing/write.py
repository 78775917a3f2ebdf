"""One shard: encode its records one after the other, put the tar, and report what became of each record."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocessing.plan import ShardPlan
from preprocessing.records import Failure, Record
from preprocessing.transcode import Clip, ClipError, TranscodeSettings, transcode
from vast.dataset_format import UNLABELLED, SampleRow, ShardInfo, ShardWriter
from vast.storage import open_store

REPORTS = "unfinished-"
"""Common beginning of the keys of all reports."""


@dataclass(frozen=True)
class ShardReport:
    """What writing a shard has shown."""

    split: str
    info: ShardInfo
    rows: tuple[SampleRow, ...]
    failures: tuple[Failure, ...]

    def to_json(self) -> bytes:
        """Return the report as one JSON object."""
        content = {**asdict(self), "info": self.info.model_dump()}
        return json.dumps(content, sort_keys=True, ensure_ascii=False).encode()

    @staticmethod
    def from_json(data: bytes) -> "ShardReport":
        """Read what `to_json` wrote."""
        content = json.loads(data)
        return ShardReport(
            split=content["split"],
            info=ShardInfo.model_validate(content["info"]),
            rows=tuple(SampleRow(**row) for row in content["rows"]),
            failures=tuple(Failure(**failure) for failure in content["failures"]),
        )


def report_key(plan_digest: str, shard: str) -> str:
    """Return where a shard's report lies until the data set is complete; it marks the shard as done."""
    return f"{REPORTS}{plan_digest.removeprefix('sha256:')[:16]}-{shard}.json"


def write_shard(
    plan: ShardPlan, url: str, plan_digest: str, classes: Sequence[str], settings: TranscodeSettings
) -> ShardReport:
    """Encode a shard's records and put the tar, complete or not at all; then put its report, which marks it as done.

    A video that cannot be encoded is a failure in the report and stops nothing. The bytes depend on the arguments and
    the videos alone.

    Raises:
        StoreError: The store does not take the shard.
    """
    store = open_store(url)
    rows: list[SampleRow] = []
    failures: list[Failure] = []
    with tempfile.TemporaryDirectory(prefix="vast-shard-") as folder:
        path = Path(folder, plan.name)
        with ShardWriter(path) as writer:
            for record in plan.records:
                try:
                    clip = transcode(record.path, settings, max_duration_s=_longest_s(record))
                except ClipError as error:
                    place = (record.key, record.split, record.source_id, record.source_name)
                    failures.append(Failure(*place, error.reason, error.detail))
                else:
                    rows.append(_add(writer, plan.name, record, clip, classes))
            info = writer.finish()
        store.put_file(plan.name, path)
    report = ShardReport(plan.split, info, tuple(rows), tuple(failures))
    store.put_bytes(report_key(plan_digest, plan.name), report.to_json())
    return report


def _add(writer: ShardWriter, shard: str, record: Record, clip: Clip, classes: Sequence[str]) -> SampleRow:
    measured = {
        "duration_s": clip.duration_s,
        "video_fps": clip.video_fps,
        "width": clip.width,
        "height": clip.height,
        "num_frames": clip.num_frames,
    }
    meta: dict[str, Any] = {
        **measured,
        "split": record.split,
        "label": record.label,
        "class": None if record.label == UNLABELLED else classes[record.label],
        "source_id": record.source_id,
        "source_name": record.source_name,
        "start_s": record.start_s,
        "end_s": record.end_s,
    }
    place = writer.add(record.key, clip.media, "mp4", meta)
    return SampleRow(
        key=record.key,
        shard=shard,
        offset=place.offset,
        size_bytes=place.size_bytes,
        label=record.label,
        source_id=record.source_id,
        duration_s=clip.duration_s,
        video_fps=clip.video_fps,
        width=clip.width,
        height=clip.height,
        num_frames=clip.num_frames,
        sha256=place.sha256,
    )


def _longest_s(record: Record) -> float | None:
    """Return the longest length of a trimmed clip; copies cut at key frames run over by some seconds."""
    if record.start_s is None or record.end_s is None:
        return None
    return 1.5 * (record.end_s - record.start_s) + 5
