"""One shard: encode its records one after the other, put the tar, and report what became of each record."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocessing.images import ImageSettings, encode_image
from preprocessing.plan import ShardPlan
from preprocessing.records import Failure, Record
from preprocessing.scratch import shard_folder
from preprocessing.sources import SourceError, local_file
from preprocessing.transcode import Clip, ClipError, TranscodeSettings, transcode
from vast.dataset_format import UNLABELLED, SampleRow, ShardInfo
from vast.shard_writer import ShardWriter
from vast.storage import Store, open_store

REPORTS = "unfinished-"
"""Common beginning of the keys of all reports."""

Settings = TranscodeSettings | ImageSettings


@dataclass(frozen=True)
class ShardJob:
    """What the shards of one build have in common; small, as every task gets a copy."""

    url: str
    """The data set's prefix."""
    classes: tuple[str, ...]
    settings: Settings
    scratch: Path | None = None
    """Folder for temporary files on every node; the system's when None."""


@dataclass(frozen=True)
class ShardReport:
    """What writing a shard has shown."""

    split: str
    info: ShardInfo
    version: str
    """The store's name for the very object that was written; another one under the same key is not ours."""
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
            version=content["version"],
            rows=tuple(SampleRow(**row) for row in content["rows"]),
            failures=tuple(Failure(**failure) for failure in content["failures"]),
        )


def report_key(plan: ShardPlan) -> str:
    """Return where a shard's report lies until the data set is complete; it marks the shard as done.

    The name holds the digest of what goes into the shard, so a report never answers for other records or settings.
    """
    return f"{REPORTS}{plan.digest.removeprefix('sha256:')[:24]}-{plan.name}.json"


def read_report(store: Store, plan: ShardPlan) -> ShardReport:
    """Read a shard's report.

    Raises:
        ObjectMissing: The shard has not been written yet.
    """
    return ShardReport.from_json(store.get_bytes(report_key(plan)))


def write_shard(plan: ShardPlan, job: ShardJob, on_record: Callable[[bool], None] | None = None) -> ShardReport:
    """Encode a shard's records and put the tar, complete or not at all; then put its report, which marks it as done.

    A record that cannot be encoded is a failure in the report and stops nothing. The bytes depend on the plan, the
    settings and the raw files alone.

    Args:
        plan: The shard.
        job: Where to and how.
        on_record: Called after each record, with whether it became a sample.

    Raises:
        StoreError: The store does not take the shard.
        UserError: There is no room for temporary files.
    """
    store = open_store(job.url)
    rows: list[SampleRow] = []
    failures: list[Failure] = []
    # Encoded clips are smaller than raw ones as a rule; small raw ones may grow.
    needed_bytes = 2 * sum(record.file.size_bytes for record in plan.records)
    with shard_folder(job.scratch, needed_bytes) as folder:
        path = folder / plan.name
        with ShardWriter(path) as writer:
            for record in plan.records:
                try:
                    rows.append(_add(writer, plan.name, record, job, folder))
                except (SourceError, ClipError) as error:
                    failures.append(_failure(record, error))
                if on_record is not None:
                    on_record(bool(rows) and rows[-1].key == record.key)
            info = writer.finish()
        written = store.put_file(plan.name, path)
    report = ShardReport(plan.split, info, written.version, tuple(rows), tuple(failures))
    store.put_bytes(report_key(plan), report.to_json())
    return report


def _failure(record: Record, error: SourceError | ClipError) -> Failure:
    stage = error.stage if isinstance(error, ClipError) else "read"
    place = (record.key, record.split, record.source_id, record.source_name)
    return Failure(*place, stage, error.reason, error.detail)


def _add(writer: ShardWriter, shard: str, record: Record, job: ShardJob, folder: Path) -> SampleRow:
    with local_file(record.file, folder) as path:
        suffix, media, measured, source = _encode(path, record, job.settings, folder)
    meta: dict[str, Any] = {
        **measured,
        "split": record.split,
        "label": record.label,
        "class": None if record.label == UNLABELLED else job.classes[record.label],
        "source_id": record.source_id,
        "source_name": record.source_name,
        "source": source,
        "start_s": record.start_s,
        "end_s": record.end_s,
        "replaced": record.replaced,
    }
    place = writer.add(record.key, media, suffix, meta)
    return SampleRow(
        key=record.key,
        shard=shard,
        offset=place.offset,
        size_bytes=place.size_bytes,
        label=record.label,
        source_id=record.source_id,
        sha256=place.sha256,
        **measured,
    )


def _encode(
    path: str, record: Record, settings: Settings, folder: Path
) -> tuple[str, bytes, dict[str, Any], dict[str, Any]]:
    """Return the media's suffix and bytes, what decoding it has shown, and what was found in the raw file."""
    if isinstance(settings, ImageSettings):
        picture = encode_image(path, settings)
        still = {"duration_s": 0.0, "video_fps": 0.0, "width": picture.width, "height": picture.height, "num_frames": 1}
        return "jpg", picture.media, still, asdict(picture.source)
    clip = transcode(path, settings, span=_span(record), scratch=folder)
    return "mp4", clip.media, _measured(clip), asdict(clip.source)


def _span(record: Record) -> tuple[int, int] | None:
    return None if record.start_s is None or record.end_s is None else (record.start_s, record.end_s)


def _measured(clip: Clip) -> dict[str, Any]:
    return {
        "duration_s": clip.duration_s,
        "video_fps": clip.video_fps,
        "width": clip.width,
        "height": clip.height,
        "num_frames": clip.num_frames,
    }
