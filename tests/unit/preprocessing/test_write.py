import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from preprocessing.plan import ShardPlan
from preprocessing.records import Record
from preprocessing.transcode import TranscodeSettings
from preprocessing.write import ShardReport, write_shard


def test_a_shard_holds_its_samples_in_order_and_the_report_the_rest(
    tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    videos = tmp_path / "videos"
    for number in (0, 1):
        make_clip(videos / f"{number}.mp4", num_frames=6 + number)
    (videos / "2.mp4").write_bytes(b"not a video")
    make_clip(videos / "3.mp4", num_frames=36, fps=1)
    records = [
        Record("x_1", "train", "1", -1, str(videos / "1.mp4"), "1.mp4"),
        Record("x_2", "train", "2", 0, str(videos / "2.mp4"), "2.mp4"),
        Record("x_3", "train", "3", 0, str(videos / "3.mp4"), "3.mp4", 10, 20),
        Record("x_0", "train", "0", 1, str(videos / "0.mp4"), "0.mp4", 10, 20),
    ]
    plan = ShardPlan("train", "train-000004.tar", tuple(records))
    out = tmp_path / "out"
    report = write_shard(plan, str(out), "sha256:abc", ["a", "b"], TranscodeSettings(short_side=32))

    assert [(failure.key, failure.reason) for failure in report.failures] == [
        ("x_2", "unreadable"),
        ("x_3", "not trimmed"),
    ]
    assert report.info.samples == 2
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

    (saved,) = out.glob("unfinished-*.json")
    assert ShardReport.from_json(saved.read_bytes()) == report
