"""Videos to a data set, on a local folder and on S3, by any number of Ray workers."""

import gc
import hashlib
import json
import subprocess
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from preprocessing.build import build_dataset
from preprocessing.describe import describe
from preprocessing.kinetics import read_kinetics
from preprocessing.records import Annotations
from preprocessing.ssv2 import read_ssv2
from preprocessing.transcode import TranscodeSettings
from preprocessing.verify import verify
from vast.dataset_format import read_manifest
from vast.errors import UserError
from vast.sample_index import read_index
from vast.storage import open_store

SETTINGS = TranscodeSettings(short_side=32)


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> Annotations:
    """Twelve train and four val clips with the usual faults: missing, empty, truncated, text."""
    root = tmp_path_factory.mktemp("kinetics")
    videos = root / "videos"
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(16):
        split, video_id = ("val" if number >= 12 else "train"), f"-_{number:09d}"
        label = ("air drumming", "passing American football (in game)")[number % 2]
        lines[split].append(f'"{label}",{video_id},{number},{number + 10},{split},0')
        make_clip(videos / label / f"{video_id}_{number:06d}_{number + 10:06d}.mp4", num_frames=8, seed=number)
    files = sorted(videos.rglob("*.mp4"))
    files[0].unlink()
    files[1].write_bytes(b"")
    files[2].write_bytes(files[2].read_bytes()[:-300])
    files[3].write_text("<html>")
    for split, rows in lines.items():
        (root / f"{split}.csv").write_text("label,youtube_id,time_start,time_end,split,is_cc\n" + "\n".join(rows))
    return read_kinetics(root, videos)


def content(url: str) -> dict[str, str]:
    store = open_store(url)
    return {key: hashlib.sha256(store.get_bytes(key)).hexdigest() for key in store.list()}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_workers_and_stores_leave_no_trace(kinetics: Annotations, tmp_path: Path, s3_url: str) -> None:
    contents = []
    for url, num_workers in (
        (str(tmp_path / "alone"), 0),
        (str(tmp_path / "one"), 1),
        (f"{s3_url}/k400/v1", 2),
        (f"{s3_url}/k400/all", None),
    ):
        result = build_dataset(url, kinetics, SETTINGS, samples_per_shard=3, num_workers=num_workers)
        assert result.manifest.splits["train"].failures + result.manifest.splits["val"].failures == 4
        assert verify(url) == []
        contents.append(content(url))
    assert all(other == contents[0] for other in contents)
    assert len(contents[0]) == 6 + 5, "four train and two val shards, two indexes, failures, unlisted and manifest"
    again = build_dataset(f"{s3_url}/k400/v1", kinetics, SETTINGS, samples_per_shard=3, num_workers=2)
    assert again.was_complete


@pytest.mark.usefixtures("ray_local")
def test_an_error_in_a_task_reaches_the_caller_as_it_is(kinetics: Annotations, tmp_path: Path) -> None:
    scratch = tmp_path / "file" / "folder"
    scratch.parent.write_bytes(b"a file where a folder should be")
    with pytest.raises(UserError, match=r"--scratch: cannot use .*file/folder on .*: Not a directory"):
        build_dataset(str(tmp_path / "set"), kinetics, SETTINGS, num_workers=1, scratch=scratch)


def test_on_s3_the_field_s_own_tools_read_the_shards(kinetics: Annotations, s3_url: str, tmp_path: Path) -> None:
    url = f"{s3_url}/set"
    steps: list[tuple[int, int, int]] = []
    build_dataset(
        url, kinetics, SETTINGS, samples_per_shard=6, num_workers=0, on_progress=lambda *step: steps.append(step)
    )
    assert steps[-1] == (16, 16, 4)
    store, index = open_store(url), read_index(url, "train")
    shards = [shard.name for shard in read_manifest(url).splits["train"].shards]
    for name in shards:
        store.get_file(name, tmp_path / name)
    listed = []
    for name in shards:
        listed += subprocess.run(
            ["tar", "tf", tmp_path / name], check=True, capture_output=True, text=True
        ).stdout.split()
    assert listed == [f"{key}.{suffix}" for key in index.column("key") for suffix in ("mp4", "json")]

    with warnings.catch_warnings():
        # webdataset leaves the closing of its files to the collector.
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset([str(tmp_path / name) for name in shards], shardshuffle=False))
        gc.collect()
    assert [sample["__key__"] for sample in samples] == index.column("key").tolist()
    for number, sample in enumerate(samples):
        row = index.row(number)
        assert sample["mp4"] == store.get_range(row.shard, row.offset, row.size_bytes)
        assert hashlib.sha256(sample["mp4"]).hexdigest() == row.sha256
        assert json.loads(sample["json"])["class"] == read_manifest(url).classes[row.label]

    reasons = [description.failures_by_reason for description in describe(url)[1]]
    assert {
        reason: sum(each.get(reason, 0) for each in reasons)
        for reason in ("missing", "empty", "unreadable", "cut short")
    } == {
        "missing": 1,
        "empty": 1,
        "unreadable": 1,
        "cut short": 1,
    }


def test_webm_clips_of_something_something(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    labels, videos = tmp_path / "labels", tmp_path / "20bn-something-something-v2"
    labels.mkdir()
    classes = {"Holding something": "0", "Opening something": "1"}
    (labels / "labels.json").write_text(json.dumps(classes))
    for stem, ids in (("train", ("1", "2", "3")), ("validation", ("4", "5"))):
        entries = [{"id": i, "label": "opening a jar", "template": "Opening [something]"} for i in ids]
        (labels / f"{stem}.json").write_text(json.dumps(entries))
        for video_id in ids:
            make_clip(videos / f"{video_id}.webm", num_frames=24, seed=int(video_id))
    cut = videos / "5.webm"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    url = str(tmp_path / "set")
    result = build_dataset(url, read_ssv2(labels, videos), SETTINGS, num_workers=0)
    assert verify(url) == []
    assert result.manifest.classes == list(classes)
    assert read_index(url, "train").column("label").tolist() == [1, 1, 1]
    assert [line.failures_by_reason for line in describe(url)[1]] == [{}, {"cut short": 1}]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_archives_read_in_place_give_the_clips_of_the_unpacked_folder(
    tmp_path: Path, s3_url: str, make_clip: Callable[..., Path]
) -> None:
    ids = [f"a_{number:09d}" for number in range(9)]
    videos, packed = tmp_path / "videos", tmp_path / "packed" / "train"
    packed.mkdir(parents=True)
    for number, video_id in enumerate(ids):
        make_clip(videos / f"{video_id}_000000_000010.mp4", num_frames=8, seed=number)
    # As the mirror has them: gzipped parts, one of them a plain tar under that name, and a set of replacements.
    for part, mode in enumerate(("w:gz", "w", "w:gz")):
        with tarfile.open(packed / f"part_{part}.tar.gz", mode) as tar:
            for video_id in ids[3 * part : 3 * part + 3]:
                name = f"{video_id}_000000_000010.mp4"
                content_or_not = b"broken" if video_id == ids[4] else (videos / name).read_bytes()
                (tmp_path / "member").write_bytes(content_or_not)
                tar.add(tmp_path / "member", name)
                tar.add(tmp_path / "member", f"._{name}")
    with tarfile.open(tmp_path / "packed" / "replacement_for_corrupted_k400.tgz", "w:gz") as tar:
        name = f"{ids[4]}_000000_000010.mp4"
        tar.add(videos / name, f"replacement_for_corrupted_k400/{name}")
    rows = "\n".join(f"jogging,{video_id},0,10,train" for video_id in ids)
    (tmp_path / "train.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{rows}\n")

    url = f"{s3_url}/packed"
    before = sorted(path for path in tmp_path.rglob("*"))
    found = read_kinetics(tmp_path, tmp_path / "packed", splits=("train",), scans=url)
    assert any(key.startswith("scan-") for key in open_store(url).list())
    result = build_dataset(url, found, SETTINGS, samples_per_shard=3, num_workers=2)
    assert sorted(path for path in tmp_path.rglob("*")) == before, "nothing is unpacked"
    assert (result.manifest.splits["train"].samples, result.manifest.splits["train"].replaced) == (9, 1)
    assert verify(url, decode_all=True) == []
    assert not any(key.startswith("scan-") for key in open_store(url).list())

    again = read_kinetics(tmp_path, tmp_path / "packed", splits=("train",), scans=url)
    assert build_dataset(url, again, SETTINGS, samples_per_shard=3, num_workers=2).was_complete
    assert not any(key.startswith("scan-") for key in open_store(url).list()), "a look leaves nothing behind"

    plain = str(tmp_path / "plain")
    build_dataset(plain, read_kinetics(tmp_path, videos, splits=("train",)), SETTINGS, num_workers=0)
    clips = [read_index(each, "train").columns(["key", "sha256"]) for each in (url, plain)]
    packed_clips, plain_clips = (dict(zip(each["key"], each["sha256"], strict=True)) for each in clips)
    assert packed_clips == plain_clips
