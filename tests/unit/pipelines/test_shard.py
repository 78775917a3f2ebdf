from pathlib import Path

import pytest

from pipelines.shard import ShardRequest, read_annotations
from vast.errors import UserError


def test_lists_with_two_numbers_a_line_are_read_in_the_format_and_for_the_splits_asked_for(tmp_path: Path) -> None:
    for name in ("videos/a.mp4", "videos/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "train.txt").write_text("a.mp4 300 1\n")
    (tmp_path / "val.txt").write_text("b.mp4 250 0\n")
    place = {"kind": "folder", "videos": tmp_path / "videos", "out": str(tmp_path / "out"), "annotations": tmp_path}
    with pytest.raises(UserError, match="two numbers, 300 1"):
        read_annotations(ShardRequest(**place))
    found = read_annotations(ShardRequest(**place, list_format="slowfast"))
    assert {(record.split, record.label) for record in found.records} == {("train", 1), ("val", 0)}
    found = read_annotations(ShardRequest(**place, list_format="slowfast", splits=("val",)))
    assert [(record.split, record.label) for record in found.records] == [("val", 0)]


def test_splits_of_class_folders_are_those_asked_for(tmp_path: Path) -> None:
    for name in ("train/archery/a.mp4", "train/bowling/b.mp4", "val/bowling/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    request = ShardRequest("folder", tmp_path, str(tmp_path.with_name("out")), name="x", splits=("val",))
    assert [(record.split, record.label) for record in read_annotations(request).records] == [("val", 1)]
