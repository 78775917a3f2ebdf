"""Generated data sets: published layouts, real codecs, the same bytes on any number of processes, planted faults."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import av
import pytest

from preprocessing.synth import KINETICS_SCENES, PLANTED, SSV2_SCENES, SynthSet, synth_kinetics, synth_ssv2
from vast.errors import UserError

NUM_TRAIN, NUM_VAL = 9, 5


@pytest.fixture(scope="module")
def ssv2(tmp_path_factory: pytest.TempPathFactory) -> SynthSet:
    out = tmp_path_factory.mktemp("synth") / "ssv2"
    return synth_ssv2(out, num_train=NUM_TRAIN, num_val=NUM_VAL, seed=7, num_workers=1)


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> SynthSet:
    out = tmp_path_factory.mktemp("synth") / "kinetics"
    return synth_kinetics(out, num_train=NUM_TRAIN, num_val=NUM_VAL, seed=7, num_workers=1)


def read_ssv2(made: SynthSet) -> dict[str, list[dict[str, object]]]:
    files = {"train": "train.json", "val": "validation.json"}
    return {split: json.loads((made.annotations / name).read_text()) for split, name in files.items()}


def read_kinetics(made: SynthSet) -> dict[str, list[dict[str, str]]]:
    rows = {}
    for split in ("train", "val"):
        with (made.annotations / f"{split}.csv").open(newline="") as file:
            rows[split] = list(csv.DictReader(file))
    return rows


def kinetics_path(made: SynthSet, row: dict[str, str]) -> Path:
    start, end = int(row["time_start"]), int(row["time_end"])
    return made.videos / f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"


def probe(path: Path) -> tuple[str, int, int, float, int]:
    """Codec, width, height, frames a second and decoded frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        num_frames = sum(1 for _ in container.decode(stream))
        assert stream.average_rate is not None
        context = stream.codec_context
        return context.name, context.width, context.height, float(stream.average_rate), num_frames


def is_sound(path: Path) -> bool:
    """Whether the video opens and holds the two seconds that it declares."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            num_frames = sum(1 for _ in container.decode(stream))
            assert container.duration is not None
            assert stream.average_rate is not None
            return num_frames == round(container.duration / av.time_base * stream.average_rate)
    except (av.FFmpegError, FileNotFoundError):
        return False


def test_ssv2_files_read_as_published(ssv2: SynthSet) -> None:
    labels = json.loads((ssv2.annotations / "labels.json").read_text())
    assert list(labels) == sorted(labels) == list(ssv2.classes)
    assert list(labels.values()) == [str(i) for i in range(8)]
    tables = read_ssv2(ssv2)
    assert {split: len(rows) for split, rows in tables.items()} == ssv2.records
    for row in tables["train"] + tables["val"]:
        assert set(row) == {"id", "label", "template", "placeholders"}
        template, things = str(row["template"]), row["placeholders"]
        assert template.replace("[", "").replace("]", "") in labels
        assert isinstance(things, list)
        assert template.count("[something]") == len(things) == len(set(things))
        assert all(thing in str(row["label"]) for thing in things)
    ids = [str(row["id"]) for rows in tables.values() for row in rows]
    assert len(set(ids)) == len(ids)
    assert all(1 <= int(i) <= 220_847 and str(int(i)) == i for i in ids)


def test_ssv2_classes_are_balanced(ssv2: SynthSet) -> None:
    for rows in read_ssv2(ssv2).values():
        counts = Counter(str(row["template"]) for row in rows)
        assert set(counts) == set(SSV2_SCENES)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_ssv2_videos_are_vp9_of_height_240_at_12_fps(ssv2: SynthSet) -> None:
    for split, rows in read_ssv2(ssv2).items():
        for row in rows:
            if row["id"] not in ssv2.planted[split]:
                assert probe(ssv2.videos / f"{row['id']}.webm") == ("vp9", 320, 240, 12.0, 24), row["id"]


def test_kinetics_files_read_as_published(kinetics: SynthSet) -> None:
    header = (kinetics.annotations / "train.csv").read_text().splitlines()[0]
    assert header == "label,youtube_id,time_start,time_end,split,is_cc"
    tables = read_kinetics(kinetics)
    assert {split: len(rows) for split, rows in tables.items()} == kinetics.records
    for split, rows in tables.items():
        assert {row["split"] for row in rows} == {split}
        assert {row["label"] for row in rows} == set(KINETICS_SCENES) == set(kinetics.classes)
        assert {row["is_cc"] for row in rows} <= {"0", "1"}
    ids = [row["youtube_id"] for rows in tables.values() for row in rows]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{11}", i) for i in ids)
    assert any(i.startswith("-") for i in ids)
    assert any("_" in i for i in ids)


def test_kinetics_videos_are_h264_of_the_annotated_length(kinetics: SynthSet) -> None:
    shapes = set()
    for split, rows in read_kinetics(kinetics).items():
        for row in rows:
            if row["youtube_id"] in kinetics.planted[split]:
                continue
            codec, width, height, fps, num_frames = probe(kinetics_path(kinetics, row))
            assert codec == "h264"
            assert num_frames / fps == int(row["time_end"]) - int(row["time_start"])
            shapes.add((width > height, fps))
    assert {fps for _, fps in shapes} == {25.0, 30.0}
    assert {landscape for landscape, _ in shapes} == {True, False}


def test_exactly_the_planted_videos_are_broken(ssv2: SynthSet, kinetics: SynthSet) -> None:
    found: dict[tuple[str, str], str] = {}
    for split, rows in read_ssv2(ssv2).items():
        found |= {(split, str(row["id"])): str(ssv2.videos / f"{row['id']}.webm") for row in rows}
    for split, csv_rows in read_kinetics(kinetics).items():
        found |= {(split, row["youtube_id"]): str(kinetics_path(kinetics, row)) for row in csv_rows}
    for (split, video_id), name in found.items():
        path, fault = Path(name), (ssv2.planted[split] | kinetics.planted[split]).get(video_id)
        assert is_sound(path) == (fault is None), (name, fault)
        assert path.exists() == (fault != "missing")
        if fault == "empty":
            assert path.stat().st_size == 0
        if fault == "truncated":
            assert path.stat().st_size > 0
    for made in (ssv2, kinetics):
        for faults in made.planted.values():
            assert sorted(faults.values()) == sorted(PLANTED)


def test_the_folder_holds_the_listed_videos_and_no_other(ssv2: SynthSet) -> None:
    listed = {str(row["id"]) for rows in read_ssv2(ssv2).values() for row in rows}
    missing = {i for faults in ssv2.planted.values() for i, fault in faults.items() if fault == "missing"}
    assert {path.stem for path in ssv2.videos.iterdir()} == listed - missing


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_processes_do_not_change_a_byte(ssv2: SynthSet, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    again = synth_ssv2(
        tmp_path / "again",
        num_train=NUM_TRAIN,
        num_val=NUM_VAL,
        seed=7,
        num_workers=2,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    assert content(tmp_path / "again") == content(ssv2.annotations.parent)
    assert again.planted == ssv2.planted
    total = NUM_TRAIN + NUM_VAL + 2 * len(PLANTED)
    assert steps == [(done, total) for done in range(1, total + 1)]


def test_another_seed_and_another_split_give_other_clips(ssv2: SynthSet, tmp_path: Path) -> None:
    other = synth_ssv2(tmp_path / "other", num_train=2, num_val=1, seed=8, num_workers=1)
    digests = [path.read_bytes() for made in (ssv2, other) for path in made.videos.iterdir() if path.stat().st_size]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("make", [synth_ssv2, synth_kinetics])
def test_refuses_a_used_folder_and_an_empty_split(make: object, tmp_path: Path) -> None:
    assert callable(make)
    (tmp_path / "old.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        make(tmp_path, num_train=2, num_val=2, seed=0, num_workers=1)
    with pytest.raises(UserError, match="num_val is 0"):
        make(tmp_path / "new", num_train=2, num_val=0, seed=0, num_workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]
