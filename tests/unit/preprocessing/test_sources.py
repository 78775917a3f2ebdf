"""The raw files of a folder: what is listed, what is passed over, and what is handed to a decoder."""

import json
import os
import pickle
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.members import escape_name, unescape_name
from preprocessing.sources import IMAGE_SUFFIXES, SourceError, VideoFile, list_sources, local_file
from vast.errors import UserError


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def put(folder: Path, *names: str, data: bytes = b"clip") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def names(folder: Path, **options) -> list[str]:
    return [file.source_name for file in list_sources(folder, **options).files]


# Listing


def test_media_files_are_listed_in_order_of_their_names(raw):
    put(raw, "b.mp4", "a/z.webm", "a b/c.MP4", "a/b/c.mkv", "a.mov", "ä.avi", "-x.m4v", "x.jpeg", "list.csv", "noext")
    put(raw, "x.tar.gz.mp4")
    found = list_sources(raw)
    listed = [file.source_name for file in found.files]
    assert listed == sorted(listed)
    assert set(listed) == {"b.mp4", "a/z.webm", "a b/c.MP4", "a/b/c.mkv", "a.mov", "ä.avi", "-x.m4v", "x.tar.gz.mp4"}
    assert found.skipped == {"not a media file": 3}
    assert found.problems == ()
    assert names(raw, suffixes=IMAGE_SUFFIXES) == ["x.jpeg"]


def test_a_file_knows_where_it_is_and_how_large(raw):
    put(raw, "deep/er/x y.mp4", data=b"12345")
    (file,) = list_sources(raw).files
    assert (file.folder, file.source_name, file.size_bytes) == (str(raw), "deep/er/x y.mp4", 5)
    assert (file.path, file.stem) == (str(raw / "deep/er/x y.mp4"), "x y")
    assert file.archive is None


def test_the_order_and_content_do_not_depend_on_how_the_folder_is_named(raw, monkeypatch):
    put(raw, "b.mp4", "a/z.webm")
    monkeypatch.chdir(raw.parent)
    monkeypatch.setenv("HOME", str(raw.parent))
    assert list_sources("raw") == list_sources(raw) == list_sources("~/raw")


def test_entries_that_nobody_means_are_counted(raw):
    put(raw, "._a.mp4", ".DS_Store", "__MACOSX/a.mp4", "__MACOSX/b.mp4", ".hidden.mp4", ".snapshot/a.mp4", "a/._b.mp4")
    put(raw, "a.mp4")
    found = list_sources(raw)
    assert [file.source_name for file in found.files] == ["a.mp4"]
    assert found.skipped == {"AppleDouble": 4, "hidden": 2}


def test_links_are_followed_and_loops_are_not(raw, tmp_path):
    put(raw, "real/a.mp4")
    put(tmp_path / "elsewhere", "b.mp4", "below/c.mp4")
    (raw / "link.mp4").symlink_to(raw / "real" / "a.mp4")
    (raw / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (raw / "up").symlink_to("..")
    (raw / "real" / "self").symlink_to(".")
    (raw / "real" / "root").symlink_to("/")
    (tmp_path / "elsewhere" / "below" / "back").symlink_to(tmp_path / "elsewhere")
    found = list_sources(raw)
    listed = [file.source_name for file in found.files]
    assert listed == ["elsewhere/b.mp4", "elsewhere/below/c.mp4", "link.mp4", "real/a.mp4"]
    assert found.skipped == {"link to a folder around it": 4}
    assert [file.size_bytes for file in found.files] == [4] * 4


def test_a_folder_is_listed_once_however_many_links_lead_there(raw, tmp_path):
    """Without that, twenty folders that each link twice to the next are a million."""
    put(raw, "z/a.mp4")
    (raw / "a").symlink_to("z")
    for number in range(20):
        folder = tmp_path / f"chain{number}"
        put(folder, f"{number}.mp4")
        for name in "xy":
            (folder / name).symlink_to(tmp_path / f"chain{number + 1}")
    (tmp_path / "chain20").mkdir()
    (raw / "chain").symlink_to(tmp_path / "chain0")
    found = list_sources(raw)
    assert "z/a.mp4" in [file.source_name for file in found.files]
    assert len(found.files) == 21
    assert found.skipped == {"linked folder that is listed already": 21}


def test_folders_with_names_of_files_are_folders(raw, tmp_path):
    put(raw, "x.mp4/inside.mp4", "part.tar/inside.mp4")
    put(tmp_path / "other", "linked.mp4")
    (raw / "y.mp4").symlink_to(tmp_path / "other")
    assert names(raw) == ["part.tar/inside.mp4", "x.mp4/inside.mp4", "y.mp4/linked.mp4"]


def test_a_folder_that_cannot_be_listed_is_named(raw, monkeypatch):
    put(raw, "good/a.mp4", "locked/b.mp4")
    really = os.scandir

    def scandir(path):
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = list_sources(raw)
    assert [file.source_name for file in found.files] == ["good/a.mp4"]
    assert found.problems == ("locked/: cannot be listed: Permission denied",)


def test_what_is_no_folder_is_an_error(raw):
    put(raw, "list.csv")
    os.mkfifo(raw / "fifo.tar")
    for name in ("nothing", "list.csv", "fifo.tar"):
        with pytest.raises(UserError, match=name):
            list_sources(raw / name)


def test_archives_that_are_no_files_are_passed_over(raw):
    os.mkfifo(raw / "fifo.tar")
    (raw / "gone.zip").symlink_to("nowhere")
    found = list_sources(raw)
    assert found.files == ()
    assert found.skipped == {"not a file": 2}


def test_plain_files_and_members_are_listed_together(raw, scratch):
    put(raw, "b.mp4", "a/c.mp4")
    with tarfile.open(raw / "a.tar", "w") as tar:
        tar.add(raw / "b.mp4", "m.mp4")
    found = list_sources(raw)
    assert [file.source_name for file in found.files] == ["a.tar/m.mp4", "a/c.mp4", "b.mp4"]
    for file in found.files:
        with local_file(file, scratch) as path:
            assert Path(path).read_bytes() == b"clip"


def test_files_can_be_sent_to_other_processes(raw):
    put(raw, "b.mp4")
    with tarfile.open(raw / "a.tar.gz", "w:gz") as tar:
        tar.add(raw / "b.mp4", "m.mp4")
    files = list_sources(raw).files
    assert pickle.loads(pickle.dumps(files)) == files
    assert len({file.archive for file in files}) == 2
    # one folder and one archive for all
    twice = files + tuple(VideoFile(file.folder, "other.mp4", 4, file.archive, 0) for file in files)
    assert len(pickle.dumps(twice)) < len(pickle.dumps(files)) + 100


# Names


byte_names = st.binary(min_size=1, max_size=30).filter(lambda name: not set(b"/\0") & set(name))
tricky_names = st.text("\\x5cf" + "\udcff\udc80é", min_size=1, max_size=12)


@settings(deadline=None, derandomize=True)
@given(name=st.one_of(byte_names.map(os.fsdecode), tricky_names, st.text(max_size=20)))
def test_every_name_can_be_written_down_and_taken_back(name):
    written = escape_name(name)
    assert unescape_name(written) == name
    written.encode()
    is_utf8 = not any("\udc80" <= letter <= "\udcff" for letter in name)
    if is_utf8 and "\\x" not in name:
        assert written == name


@settings(deadline=None, derandomize=True)
@given(one=tricky_names, other=tricky_names)
def test_different_names_stay_different(one, other):
    assert (escape_name(one) == escape_name(other)) == (one == other)


def test_names_that_are_not_utf8_open(raw, scratch):
    odd = [
        b"\xff\xfe/caf\xe9.mp4",
        b"back\\slash.mp4",
        b"looks\\xe9.mp4",
        b"new\nline.mp4",
        b"trail .mp4",
        b"%03d$(x).mp4",
    ]
    (raw / os.fsdecode(b"\xff\xfe")).mkdir()
    for name in odd:
        Path(os.fsdecode(os.path.join(os.fsencode(raw), name))).write_bytes(name)
    found = list_sources(raw)
    assert len(found.files) == len(odd)
    assert "\\xff\\xfe/caf\\xe9.mp4" in [file.source_name for file in found.files]
    for file in found.files:
        json.dumps(file.source_name, ensure_ascii=False).encode()
        with local_file(file, scratch) as path:
            assert os.fsencode(path) == os.path.join(os.fsencode(raw), Path(path).read_bytes())


# Handing over


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda path: path.unlink(), "missing: "),
    "dangling link": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "missing: "),
    "folder in the way": (lambda path: (path.unlink(), path.mkdir()), "not a file: it is a folder"),
    "link to itself": (lambda path: (path.unlink(), path.symlink_to(path.name)), "unreadable: Too many levels"),
    "FIFO": (lambda path: (path.unlink(), os.mkfifo(path)), "not a file: it is a FIFO"),
    "device": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "not a file: it is a device"),
    "socket": (lambda path: (path.unlink(), bind(path)), "not a file: it is a socket"),
    "empty": (lambda path: path.write_bytes(b""), "empty: 0 bytes"),
}


def bind(path: Path) -> None:
    # the name of a socket is short
    there = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{there}/{path.name}")
    os.close(there)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_no_file_with_content_is_refused(raw, scratch, kind):
    spoil, said = KINDS[kind]
    put(raw, "x.mp4")
    (file,) = list_sources(raw).files
    spoil(raw / "x.mp4")
    for found in [file, *list_sources(raw).files]:  # spoilt after the listing or before
        with pytest.raises(SourceError) as raised, local_file(found, scratch):
            pass
        assert str(raised.value).startswith(said)
        assert str(raw) not in str(raised.value)
    assert not list(scratch.iterdir())


def test_a_file_that_may_not_be_read_is_unreadable(raw, scratch, monkeypatch):
    put(raw, "x.mp4")
    (file,) = list_sources(raw).files

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceError, match="unreadable: Permission denied"), local_file(file, scratch):
        pass


def test_a_plain_file_is_given_itself(raw, scratch):
    put(raw, "x.mp4")
    (file,) = list_sources(raw).files
    with local_file(file, scratch) as path:
        assert path == str(raw / "x.mp4")
        assert not list(scratch.iterdir())
    assert (raw / "x.mp4").exists()


def test_a_member_s_copy_is_removed_whatever_happens(raw, scratch):
    put(raw, "b.mp4")
    with tarfile.open(raw / "a.tar", "w") as tar:
        tar.add(raw / "b.mp4", "m.mp4")
    file = list_sources(raw).files[0]

    def decode() -> None:
        with local_file(file, scratch) as path:
            assert Path(path).parent == scratch
            assert "m.mp4" not in path
            raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder"):
        decode()
    assert not list(scratch.iterdir())


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(SourceError("missing", "what was found")))
    assert (error.reason, error.detail, str(error)) == ("missing", "what was found", "missing: what was found")
