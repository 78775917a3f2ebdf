import hashlib
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest

from preprocessing.class_lists import class_list
from preprocessing.export_lists import ListFormat, export_list
from preprocessing.lists import read_list
from vast.dataset_format import (
    UNLABELLED,
    Manifest,
    SampleRow,
    SplitInfo,
    classes_digest,
    dataset_digest,
    write_manifest,
)
from vast.errors import StoreError, UserError
from vast.sample_index import write_index
from vast.shard_writer import ShardWriter
from vast.storage import open_store

CLASSES = ["Putting something, something and something", "air drumming", 'it\'s a "class"']
SAMPLES = {"x_-a_000001": 1, "x_b": 0, "x_c": 1, "x_d": 2, "x_e": 0}


def dataset(folder: Path, splits: dict[str, dict[str, int]], media: str = "video", classes: list[str] = CLASSES) -> str:
    """A data set whose clips are a few bytes that tell split and key."""
    url = str(folder / "shards")
    (folder / "shards").mkdir(parents=True)
    infos = {}
    for split, samples in splits.items():
        rows = []
        shards = []
        for number, part in enumerate((list(samples)[:2], list(samples)[2:])):
            name = f"{split}-{number:06d}.tar"
            with ShardWriter(folder / "shards" / name) as writer:
                for key in part:
                    place = writer.add(key, content(split, key), "jpg" if media == "image" else "mp4")
                    where = (key, name, place.offset, place.size_bytes, samples[key])
                    rows.append(SampleRow(*where, key, 1.0, 25.0, 64, 48, 25, place.sha256))
                shards.append(writer.finish())
        infos[split] = SplitInfo(
            records=len(rows),
            samples=len(rows),
            failures=0,
            size_bytes=sum(shard.size_bytes for shard in shards),
            index_sha256=write_index(url, split, rows),
            shards=shards,
        )
    fields = {
        "name": "x",
        "media": media,
        "classes": classes,
        "classes_digest": classes_digest(classes),
        "splits": infos,
        "annotations": {},
        "transcode": {},
        "software": {},
        "plan_digest": "sha256:0",
        "digest": dataset_digest(infos),
    }
    write_manifest(url, Manifest.model_validate(fields))
    return url


def content(split: str, key: str) -> bytes:
    return f"{split} {key} ".encode() * 50


@pytest.mark.parametrize("format", get_args(ListFormat))
def test_what_is_exported_is_read_back_with_the_same_labels(tmp_path: Path, format: ListFormat) -> None:
    url = dataset(tmp_path, {"train": SAMPLES})
    done = export_list(url, "train", format=format, extract=tmp_path / "clips of mine")
    assert done.path.parent == tmp_path / "clips of mine"
    assert (done.num_samples, done.num_extracted) == (5, 5)
    assert done.extracted_bytes == sum(len(content("train", key)) for key in SAMPLES)
    for key in SAMPLES:
        assert (tmp_path / "clips of mine" / f"{key}.mp4").read_bytes() == content("train", key)
    found = read_list(
        {"train": done.path}, tmp_path / "clips of mine", name="y", format=format, classes_file=done.classes_path
    )
    assert {record.file.stem: record.label for record in found.records} == SAMPLES
    assert (list(found.classes), found.failures, found.unlisted) == (CLASSES, (), ())
    # The other way to name the list: by its folder.
    assert len(read_list(tmp_path / "clips of mine", tmp_path, name="y", classes_file=done.classes_path).records) == 5


def test_the_lines_are_those_of_each_toolbox(tmp_path: Path) -> None:
    url = dataset(tmp_path, {"train": {"x_b": 2, "x_-a": 0}, "test": {"x_t": UNLABELLED}})
    lines = {}
    for format in get_args(ListFormat):
        done = export_list(url, "train", format=format, out=tmp_path / format / "list")
        assert (done.num_extracted, done.extracted_bytes) == (0, 0)
        lines[format] = done.path.read_bytes()
    table = pq.read_table(tmp_path / "video2dataset" / "list").to_pylist()
    assert table == [
        {"path": "x_b.mp4", "label": CLASSES[2], "label_id": 2},
        {"path": "x_-a.mp4", "label": CLASSES[0], "label_id": 0},
    ]
    assert {lines[format] for format in ("mmaction2", "slowfast", "videomae")} == {b"x_b.mp4 2\nx_-a.mp4 0\n"}
    assert {lines[format] for format in ("uniformer", "xvit")} == {b"x_b.mp4,2\nx_-a.mp4,0\n"}
    assert (tmp_path / "xvit" / "classes.txt").read_text().splitlines() == CLASSES


def test_unlabelled_splits_go_where_they_can_be_read(tmp_path: Path) -> None:
    url = dataset(tmp_path, {"test": {"x_t": UNLABELLED}})
    assert export_list(url, "test", format="slowfast", out=tmp_path / "1").path.read_text() == "x_t.mp4\n"
    path = export_list(url, "test", format="video2dataset", out=tmp_path / "2").path
    assert pq.read_table(path).to_pylist() == [{"path": "x_t.mp4", "label": None, "label_id": None}]
    for format in ("uniformer", "videomae"):
        with pytest.raises(
            UserError, match=rf"test has samples without a label, which {format} cannot read.*mmaction2"
        ):
            export_list(url, "test", format=format, out=tmp_path / "3")
    assert not (tmp_path / "3").exists()


def test_names_follow_the_split_and_paths_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = dataset(tmp_path, {"val": {"x_b": 0}})
    monkeypatch.chdir(tmp_path)
    assert export_list(url, "val").path == Path("val.txt")
    assert export_list(url, "val", format="slowfast").path == Path("val.csv")
    assert export_list(url, "val", format="video2dataset").path == Path("val.parquet")
    done = export_list(url, "val", out=tmp_path / "lists/v.txt", extract=tmp_path / "clips")
    assert done.path.read_text() == "../clips/x_b.mp4 0\n"
    done = export_list(url, "val", out=tmp_path / "clips/v.txt", extract=tmp_path / "clips/down")
    assert done.path.read_text() == "down/x_b.mp4 0\n"
    for format, name in (("mmaction2", "a b"), ("uniformer", "a,b")):
        with pytest.raises(UserError, match=f"'{name}' would stand in each line"):
            export_list(url, "val", format=format, out=tmp_path / "v.txt", extract=tmp_path / name)
        assert not (tmp_path / name).exists()
    assert export_list(url, "val", format="uniformer", out=tmp_path / "v", extract=tmp_path / "a b").num_extracted == 1


def test_pictures_are_jpg(tmp_path: Path) -> None:
    url = dataset(tmp_path, {"val": {"x_b": 0}}, media="image")
    done = export_list(url, "val", extract=tmp_path / "pictures")
    assert done.path.read_text() == "x_b.jpg 0\n"
    assert (tmp_path / "pictures" / "x_b.jpg").read_bytes() == content("val", "x_b")


def test_an_interrupted_export_goes_on_and_touches_nothing_that_is_there(tmp_path: Path) -> None:
    url = dataset(tmp_path, {"train": SAMPLES})
    seen = []

    def interrupt() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_list(url, "train", extract=tmp_path / "clips", on_clip=interrupt)
    assert not (tmp_path / "clips" / "train.txt").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "clips").glob("*.mp4")}
    assert len(before) >= 2
    done = export_list(url, "train", extract=tmp_path / "clips")
    assert done.num_extracted == len(SAMPLES) - len(before)
    assert all((tmp_path / "clips" / name).stat().st_mtime_ns == time for name, time in before.items())
    assert not list((tmp_path / "clips").glob(".*"))


def test_clips_of_another_split_are_not_overwritten(tmp_path: Path) -> None:
    url = dataset(tmp_path, {"train": {"x_b": 0}, "val": {"x_b": 1}})
    export_list(url, "train", extract=tmp_path / "clips")
    with pytest.raises(UserError, match="another clip; extract each data set and split to its own folder"):
        export_list(url, "val", extract=tmp_path / "clips")
    assert (tmp_path / "clips" / "x_b.mp4").read_bytes() == content("train", "x_b")
    assert not (tmp_path / "clips" / "val.txt").exists()
    other = dataset(tmp_path / "other", {"test": {"y": 0}}, classes=["one", "two"])
    with pytest.raises(UserError, match=r"classes\.txt is there and holds other classes"):
        export_list(other, "test", extract=tmp_path / "clips")


def test_damaged_shards_are_found_out(tmp_path: Path) -> None:
    url = dataset(tmp_path, {"train": {"x_b": 0}})
    store = open_store(url)
    raw = store.get_bytes("train-000000.tar")
    store.put_bytes("train-000000.tar", raw.replace(content("train", "x_b"), content("TRAIN", "x_b")))
    with pytest.raises(
        StoreError,
        match=f"sample x_b in train-000000.tar has sha256 {hashlib.sha256(content('TRAIN', 'x_b')).hexdigest()[:12]}",
    ):
        export_list(url, "train", extract=tmp_path / "clips")
    assert not list((tmp_path / "clips").glob("*.mp4"))


def test_what_cannot_be_done_says_so(tmp_path: Path) -> None:
    url = dataset(tmp_path, {"train": {"x_b": 0}})
    with pytest.raises(UserError, match="--format: 'coco'; expected one of mmaction2, slowfast"):
        export_list(url, "train", format="coco")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no split 'val'"):
        export_list(url, "val", out=tmp_path / "v")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        export_list(url, "train", extract=tmp_path / "file" / "clips")


def test_a_published_order_survives_the_round_trip(tmp_path: Path) -> None:
    names = list(class_list("kinetics400").names)
    url = dataset(tmp_path, {"val": {"k_a": 399, "k_b": 17}}, classes=names)
    done = export_list(url, "val", format="videomae", extract=tmp_path / "clips")
    found = read_list({"val": done.path}, tmp_path / "clips", name="k", classes_file=done.classes_path)
    assert ([record.label for record in found.records], list(found.classes)) == ([399, 17], names)
