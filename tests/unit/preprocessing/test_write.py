import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from preprocessing.plan import ShardPlan
from preprocessing.records import Record
from preprocessing.sources import VideoFile
from preprocessing.transcode import TranscodeSettings
from preprocessing.write import ShardJob, read_report, write_shard
from vast.dataset_format import UNLABELLED
from vast.storage import ObjectStat, open_store


def test_a_shard_holds_its_samples_in_order_and_the_report_the_rest(
    tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    videos = tmp_path / "videos"
    for number in (0, 1):
        make_clip(videos / f"{number}.mp4", num_frames=6 + number)
    (videos / "2.mp4").write_bytes(b"not a video")
    make_clip(videos / "3.mp4", num_frames=36, fps=1)
    spans = {"1": (None, None), "2": (None, None), "3": (40, 50), "0": (10, 20)}
    records = []
    for number, (start_s, end_s) in spans.items():
        path = videos / f"{number}.mp4"
        label = {"1": UNLABELLED, "0": 1}.get(number, 0)
        file = VideoFile(str(videos), path.name, path.stat().st_size)
        records.append(Record(f"x_{number}", "train", number, label, file, start_s, end_s))
    plan = ShardPlan("train", "train-000004.tar", tuple(records), "sha256:abc")
    out = tmp_path / "out"
    seen: list[bool] = []
    job = ShardJob(str(out), ("a", "b"), TranscodeSettings(short_side=32), tmp_path / "scratch")
    report = write_shard(plan, job, seen.append)

    assert seen == [True, False, False, True]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert [(failure.key, failure.stage, failure.reason) for failure in report.failures] == [
        ("x_2", "transcode", "unreadable"),
        ("x_3", "transcode", "not trimmed"),
    ]
    assert report.info.samples == 2
    assert open_store(str(out)).stat("train-000004.tar") == ObjectStat(report.info.size_bytes, report.version)
    with tarfile.open(out / "train-000004.tar") as tar:
        assert tar.getnames() == ["x_1.mp4", "x_1.json", "x_0.mp4", "x_0.json"]
        first, second = (json.load(tar.extractfile(name)) for name in ("x_1.json", "x_0.json"))  # type: ignore[arg-type]
    assert (first["label"], first["class"], first["start_s"]) == (-1, None, None)
    assert (second["label"], second["class"], second["start_s"], second["num_frames"]) == (1, "b", 10, 6)
    assert str(tmp_path) not in json.dumps(second)
    data = (out / "train-000004.tar").read_bytes()
    for row in report.rows:
        assert data[row.offset + 4 : row.offset + 8] == b"ftyp"
        assert row.shard == "train-000004.tar"

    assert read_report(open_store(str(out)), plan) == report
