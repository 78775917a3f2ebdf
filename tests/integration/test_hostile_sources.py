"""Hostile names, links, archives and cells, through the whole build: samples or failure lines, nothing elsewhere."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocessing.build import build_dataset
from preprocessing.kinetics import read_kinetics
from preprocessing.lists import read_folder
from preprocessing.transcode import TranscodeSettings
from preprocessing.verify import verify
from vast.dataset_format import read_manifest
from vast.errors import UserError
from vast.sample_index import read_index

SETTINGS = TranscodeSettings(short_side=32)
NAMES = [
    *("-i.mp4", "--help.mp4", "-leadingdash.mp4", "http:example.mp4", "concat:a|b.mp4", "file:x.mp4", "pipe:1.mp4"),
    *("two  spaces.mp4", " leading.mp4", "trailing .mp4", "new\nline.mp4", "tab\tx.mp4", "quote'.mp4", 'double".mp4'),
    *("$(touch pwned).mp4", "`touch pwned`.mp4", ";touch pwned;.mp4", "|touch pwned.mp4", "&& touch pwned.mp4"),
    *("back\\slash.mp4", "*.mp4", "?.mp4", "[a-z].mp4", "{a,b}.mp4", "%03d.mp4", "%s%n.mp4", "#q?x=1.mp4", "a.b.c.mp4"),
    *("=cmd().mp4", "@SUM(A1).mp4", "emoji\U0001f600.mp4", "漢字.mp4", "e\u0301.mp4", "\u00e9.mp4", "\u202etxt.mp4"),
    *("UPPER.MP4", "upper.mp4", "con.mp4", f"{'x' * 240}.mp4", "~root.mp4", "__x__.mp4"),
    os.fsdecode(b"latin-\xe9.mp4"),
]


def classes(folder: Path) -> Path:
    """A class list, as one class folder alone could be anything."""
    path = folder / "classes.txt"
    path.write_text("jogging\nyoga\n")
    return path


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def accounted_for(url: Path, split: str) -> tuple[set[str], dict[str, str]]:
    """Source names of the samples and, of the failures, with their reasons; the data set verifies."""
    assert verify(str(url)) == []
    info = read_manifest(str(url)).splits[split]
    failures = [json.loads(line) for line in (url / "failures.jsonl").read_text().splitlines()]
    samples = set()
    for shard in info.shards:
        with tarfile.open(url / shard.name) as tar:
            names = [name for name in tar.getnames() if name.endswith(".json")]
            samples |= {json.load(tar.extractfile(name))["source_name"] for name in names}  # type: ignore[arg-type]
    assert info.records == len(samples) + len(failures)
    return samples, {failure["source_name"]: failure["reason"] for failure in failures}


def test_names_that_mean_something_to_a_shell_a_decoder_or_a_tar_reader(
    tmp_path: Path, make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", num_frames=4).read_bytes()
    videos, here = tmp_path / "raw" / "jogging", tmp_path / "here"
    videos.mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    for name in NAMES:
        (videos / name).write_bytes(clip)
    for name in (".hidden.mp4", "._apple.mp4", ".DS_Store", "notes.txt"):
        (videos / name).write_bytes(clip)
    before = everything_in(tmp_path)
    scratch = tmp_path / "scratch"
    found = read_folder(videos.parent, name="x", classes_file=classes(tmp_path))
    build_dataset(str(tmp_path / "set"), found, SETTINGS, num_workers=0, scratch=scratch)
    samples, failures = accounted_for(tmp_path / "set", "train")
    assert failures == {}
    assert len(samples) == len(NAMES)
    index = read_index(str(tmp_path / "set"), "train")
    assert len(set(index.column("key").tolist())) == len(NAMES)
    made = {name for name in everything_in(tmp_path) if name not in before}
    assert {name.split("/")[0] for name in made} == {"set", "scratch", "classes.txt"}
    assert everything_in(here) == everything_in(scratch) == []


def test_entries_that_are_no_clips(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    videos = tmp_path / "raw" / "yoga"
    good = make_clip(videos / "good.mp4", num_frames=4)
    secret = tmp_path / "secret.txt"
    secret.write_text("a machine's own file")
    os.mkfifo(videos / "fifo.mp4")
    (videos / "folder.mp4").mkdir()
    (videos / "empty.mp4").touch()
    (videos / "null.mp4").symlink_to(os.devnull)
    (videos / "loop").symlink_to(videos.parent)
    (videos / "self.mp4").symlink_to("self.mp4")
    (videos / "dangling.mp4").symlink_to("nowhere.mp4")
    (videos / "linked.mp4").symlink_to(good)
    (videos / "text.mp4").write_text("not a video")
    (videos / "playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{good}\n#EXTINF:1,\n{secret}\n")
    (videos / "script.mp4").write_text(f"ffconcat version 1.0\nfile '{good}'\n")
    found = read_folder(videos.parent, name="x", classes_file=classes(tmp_path))
    build_dataset(str(tmp_path / "set"), found, SETTINGS, num_workers=0)
    samples, failures = accounted_for(tmp_path / "set", "train")
    assert samples == {"yoga/good.mp4", "yoga/linked.mp4"}
    assert failures["yoga/fifo.mp4"] == failures["yoga/null.mp4"] == "not a file"
    assert failures["yoga/empty.mp4"] == "empty"
    for name in ("text", "playlist", "script"):
        assert failures[f"yoga/{name}.mp4"] == "unreadable", name
    assert "a machine's own file" not in "".join(
        path.read_text(errors="replace") for path in (tmp_path / "set").iterdir()
    )


def test_archives_that_reach_out(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    clip = make_clip(tmp_path / "clip.mp4", num_frames=4).read_bytes()
    archive = tmp_path / "raw" / "yoga.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        for name in ("good.mp4", "../out.mp4", "/abs.mp4", "a/../../out.mp4", "new\nline.mp4", "._apple.mp4"):
            member = tarfile.TarInfo(name)
            member.size = len(clip)
            tar.addfile(member, io.BytesIO(clip))
        for name, kind in (("device", tarfile.CHRTYPE), ("fifo", tarfile.FIFOTYPE), ("folder", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(f"{name}.mp4")
            member.type = kind
            tar.addfile(member)
        for name, kind in (("symbolic", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(f"{name}.mp4")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    before = everything_in(tmp_path)
    found = read_folder(archive.parent, name="x", classes_file=classes(tmp_path))
    build_dataset(str(tmp_path / "set"), found, SETTINGS, num_workers=0)
    samples, failures = accounted_for(tmp_path / "set", "train")
    assert "yoga.tar/good.mp4" in samples
    assert not any("out.mp4" in name or "abs.mp4" in name for name in samples)
    assert not any(name in " ".join([*samples, *failures]) for name in ("device", "fifo", "symbolic", "hard", "apple"))
    assert {name.split("/")[0] for name in everything_in(tmp_path) if name not in before} == {"set", "classes.txt"}
    assert not (tmp_path.parent / "out.mp4").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("=cmd|' /C calc'!A0,abcdefghijk,0,10,train", "=cmd"),
        ("jogging,../../../etc,0,10,train", "youtube_id"),
        ("jogging,$(touch pw),0,10,train", "youtube_id"),
        ("jogging,abcdefghijk,-1,10,train", "line 2"),
        ("jogging,abcdefghijk,nan,inf,train", "line 2"),
        ("jogging,abc\0efghijk,0,10,train", "line 2|NUL|youtube_id"),
        ("jogging,abcdefghijk,1e400,10,train", "line 2"),
    ],
)
def test_cells_that_mean_something_to_others(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "train.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{row}\n")
    with pytest.raises(UserError, match=message):
        read_kinetics(tmp_path, tmp_path / "videos", splits=("train",))
