"""Archives read in place: every layout, every tear, and members that no honest archive would hold."""

import gzip
import io
import itertools
import os
import random
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocessing import gzip_index, members, scans
from preprocessing.scans import delete_scans
from preprocessing.sources import SourceError, Sources, VideoFile, list_sources, local_file
from vast import storage
from vast.errors import UserError
from vast.storage import open_store

SET = "20bn-something-something-v2"
Content = dict[str, bytes]

quick = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def tar_of(content: Content, form: int = tarfile.GNU_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return target.getvalue()


def zip_of(content: Content, method: int = zipfile.ZIP_DEFLATED, streamed: bool = False) -> bytes:
    target = io.BytesIO()
    # what cannot seek gets sizes and checksums behind the members
    with zipfile.ZipFile(_Unseekable(target) if streamed else target, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return target.getvalue()


class _Unseekable(io.RawIOBase):
    def __init__(self, target: io.BytesIO) -> None:
        self._target = target

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        return self._target.write(data)


def in_streams(data: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return b"".join(gzip.compress(data[a:b], mtime=0) for a, b in itertools.pairwise(edges))


def put_parts(folder: Path, data: bytes, cuts: list[int], in_zips: bool) -> None:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    parts = {f"{SET}-{i:02d}": data[a:b] for i, (a, b) in enumerate(itertools.pairwise(edges))}
    if not in_zips:
        for name, part in parts.items():
            (folder / name).write_bytes(part)
        return
    half = len(parts) // 2 + 1
    for number, names in enumerate([list(parts)[:half], list(parts)[half:]]):
        stored = zip_of({name: parts[name] for name in names}, zipfile.ZIP_STORED)
        (folder / f"{SET}-{number:02d}.zip").write_bytes(stored)


def read(file: VideoFile, scratch: Path) -> bytes:
    with local_file(file, scratch) as path:
        assert os.path.isabs(path)
        data = Path(path).read_bytes()
    assert not list(scratch.iterdir())
    return data


def check(found: Sources, archive: str, content: Content, scratch: Path, order: random.Random) -> None:
    """All of `content` is found in the archive, and can be read in any order."""
    assert [file.source_name for file in found.files] == sorted(f"{archive}/{name}" for name in content)
    for file in order.sample(found.files, len(found.files)):
        data = content[file.source_name.removeprefix(f"{archive}/")]
        assert file.size_bytes == len(data)
        if data:
            assert read(file, scratch) == data
        else:
            with pytest.raises(SourceError, match="empty"):
                read(file, scratch)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch) -> None:
    """Hundreds of lists are kept here, none for long."""
    monkeypatch.setattr(storage, "_fsync", lambda path: None)


@pytest.fixture
def place(tmp_path_factory) -> Callable[[], Path]:
    """Return a function that makes a new folder with an empty `raw` and an empty `scratch`."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("archives")
        (folder / "raw").mkdir()
        (folder / "scratch").mkdir()
        return folder

    return make


@pytest.fixture
def dense_index(monkeypatch) -> None:
    """Small archives get many seek points, and members are read in several pieces."""
    monkeypatch.setattr(gzip_index, "SPACING_BYTES", 33 << 10)
    monkeypatch.setattr(gzip_index, "_READ_BYTES", 50_000)
    monkeypatch.setattr(gzip_index, "_STEP_BYTES", 70_000)


letters = "abcXYZ019 _-.()'&é漢"
name_of_a_clip = st.builds(
    lambda folders, stem: "/".join([*folders, stem]) + ".mp4",
    st.lists(st.text(letters, min_size=1, max_size=60).filter(lambda t: t[0] not in "._"), max_size=3),
    st.text(letters, min_size=1, max_size=80).filter(lambda t: t[0] not in "._"),
)
some_bytes = st.one_of(
    st.binary(max_size=2000),
    st.builds(lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 99), st.integers(0, 120_000)),
    st.builds(lambda byte, size: bytes([byte]) * size, st.integers(0, 255), st.integers(0, 120_000)),
)
some_content = st.dictionaries(name_of_a_clip, some_bytes, min_size=1, max_size=6)
some_cuts = st.lists(st.integers(0, 1 << 30), max_size=5)


@quick
@given(
    content=some_content, form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), seed=st.integers(0, 1 << 30)
)
def test_a_tar_gives_back_what_was_put_in(place, content, form, seed):
    folder = place()
    (folder / "raw" / "part_0.tar").write_bytes(tar_of(content, form))
    found = list_sources(folder / "raw")
    assert (found.problems, found.skipped) == ((), {})
    check(found, "part_0.tar", content, folder / "scratch", random.Random(seed))


@quick
@given(content=some_content, cuts=some_cuts, seed=st.integers(0, 1 << 30))
def test_a_gzipped_tar_gives_back_what_was_put_in(place, dense_index, content, cuts, seed):
    folder = place()
    (folder / "raw" / "part_0.tar.gz").write_bytes(in_streams(tar_of(content), cuts))
    found = list_sources(folder / "raw")
    assert (found.problems, found.skipped) == ((), {})
    check(found, "part_0.tar.gz", content, folder / "scratch", random.Random(seed))


@quick
@given(
    content=some_content,
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    streamed=st.booleans(),
    padding=st.integers(0, 600),
    seed=st.integers(0, 1 << 30),
)
def test_a_zip_gives_back_what_was_put_in(place, content, method, streamed, padding, seed):
    folder = place()
    (folder / "raw" / "clips.zip").write_bytes(zip_of(content, method, streamed) + bytes(padding))
    found = list_sources(folder / "raw")
    assert (found.problems, found.skipped) == ((), {})
    check(found, "clips.zip", content, folder / "scratch", random.Random(seed))


@quick
@given(content=some_content, cuts=some_cuts, in_zips=st.booleans(), seed=st.integers(0, 1 << 30))
def test_parts_cut_anywhere_are_one_archive(place, dense_index, content, cuts, in_zips, seed):
    folder = place()
    put_parts(folder / "raw", gzip.compress(tar_of(content)), cuts, in_zips)
    found = list_sources(folder / "raw")
    assert (found.problems, found.skipped) == ((), {})
    check(found, f"{SET}-??", content, folder / "scratch", random.Random(seed))


def test_what_an_archive_is_called_does_not_matter(place):
    folder = place()
    raw, content = folder / "raw", {"a.mp4": b"one", "deep/er/b.webm": b"two"}
    (raw / "part_120.tar.gz").write_bytes(tar_of(content))
    (raw / "plain.tar").write_bytes(gzip.compress(tar_of(content)))
    (raw / "old.TGZ").write_bytes(zip_of(content))
    (raw / "v7.zip").write_bytes(tar_of(content, tarfile.USTAR_FORMAT))
    found = list_sources(raw)
    assert found.problems == ()
    kinds = {file.source_name.split("/")[0]: file.archive.kind for file in found.files}
    assert kinds == {"part_120.tar.gz": "tar", "plain.tar": "tar.gz", "old.TGZ": "zip", "v7.zip": "tar"}
    assert {read(file, folder / "scratch") for file in found.files if file.stem == "b"} == {b"two"}


def test_an_archive_a_class_with_folders_inside_and_apple_s_files(place):
    folder = place()
    clip = "mountain climber (exercise)"
    content = {
        f"./{clip}/abc.mp4": b"good",
        f"./{clip}/._abc.mp4": b"fork",
        "__MACOSX/abc.mp4": b"fork",
        ".DS_Store": b"x",
        f"{clip}/.hidden.mp4": b"x",
        "readme.txt": b"x",
        "n01440764.tar": b"x",
    }
    (folder / "raw" / "train").mkdir()
    (folder / "raw" / "train" / f"{clip}.tar.gz").write_bytes(gzip.compress(tar_of(content)))
    found = list_sources(folder / "raw")
    assert [file.source_name for file in found.files] == [f"train/{clip}.tar.gz/{clip}/abc.mp4"]
    assert found.skipped == {"AppleDouble": 3, "hidden": 1, "not a media file": 1, "archive in an archive": 1}
    assert read(found.files[0], folder / "scratch") == b"good"


def test_one_archive_alone(place):
    folder = place()
    (folder / "raw" / "one.tar").write_bytes(tar_of({"a.mp4": b"one"}))
    (folder / "raw" / "two.tar").write_bytes(tar_of({"b.mp4": b"two"}))
    (folder / "raw" / "c.mp4").write_bytes(b"three")
    found = list_sources(folder / "raw" / "one.tar")
    assert [file.source_name for file in found.files] == ["one.tar/a.mp4"]
    put_parts(folder / "raw", gzip.compress(tar_of({"d.mp4": b"four"})), [9, 50], in_zips=False)
    found = list_sources(folder / "raw" / f"{SET}-01")
    assert [file.source_name for file in found.files] == [f"{SET}-??/d.mp4"]
    for name in ("c.mp4", "none.tar"):
        with pytest.raises(UserError, match=name):
            list_sources(folder / "raw" / name)


# Parts of a divided archive


def parts(folder: Path, numbers: str, in_zips: bool = False) -> None:
    put_parts(folder, gzip.compress(tar_of({"a.mp4": random.Random(0).randbytes(4000)})), [1000, 2000, 3000], in_zips)
    for number in set("0123") - set(numbers):
        (folder / f"{SET}-0{number}").unlink()


@pytest.mark.parametrize("numbers", ["013", "123", "03"])
def test_a_missing_part_is_named(place, numbers):
    folder = place()
    parts(folder / "raw", numbers)
    missing = min(set("0123") - set(numbers))
    with pytest.raises(UserError, match=f"part {SET}-0{missing} is missing"):
        list_sources(folder / "raw")


def test_a_missing_last_part_is_a_tear(place):
    folder = place()
    put_parts(
        folder / "raw",
        gzip.compress(tar_of({"a.mp4": b"a" * 9, "b.mp4": random.Random(0).randbytes(9999)})),
        [8000],
        False,
    )
    (folder / "raw" / f"{SET}-01").unlink()
    found = list_sources(folder / "raw")
    assert [file.stem for file in found.files] == ["a"]
    assert found.skipped == {"cut short": 1}
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{SET}-??: the gzip stream is cut off")


def test_a_part_that_is_there_twice_is_an_error(place):
    folder = place()
    parts(folder / "raw", "0123")
    (folder / "raw" / "copy").mkdir()
    (folder / "raw" / "copy" / f"{SET}-02").write_bytes(b"x")
    with pytest.raises(UserError, match=f"{SET}-02 is there more than once: .* copy/{SET}-02"):
        list_sources(folder / "raw")


def test_a_part_that_was_compressed_again_must_be_unzipped(place):
    folder = place()
    data = gzip.compress(tar_of({"a.mp4": b"a"}))
    (folder / "raw" / f"{SET}-00.zip").write_bytes(zip_of({f"{SET}-00": data}, zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match=rf"unzip {SET}-00.zip once"):
        list_sources(folder / "raw")


def test_parts_may_lie_in_several_folders_and_partly_unzipped(place):
    folder = place()
    raw, content = folder / "raw", {"a.mp4": random.Random(0).randbytes(5000)}
    data = gzip.compress(tar_of(content))
    put_parts(raw, data, [1000, 2000, 3000], in_zips=True)
    (raw / "unzipped").mkdir()
    (raw / "unzipped" / f"{SET}-00").write_bytes(data[:1000])
    found = list_sources(raw)
    assert [file.source_name for file in found.files] == [f"unzipped/{SET}-??/a.mp4"]
    assert read(found.files[0], folder / "scratch") == content["a.mp4"]
    for number in (1, 2, 3):
        (raw / "unzipped" / f"{SET}-0{number}").write_bytes(data[1000 * number :][: 1000 if number < 3 else None])
    found = list_sources(raw)
    assert found.skipped == {"zip of parts that are there unzipped": 2}
    assert read(found.files[0], folder / "scratch") == content["a.mp4"]


# Tears and damage


SMALL: Content = {f"{i}.mp4": random.Random(i).randbytes(size) for i, size in enumerate([700, 1, 512, 1300])}


def ends_in_tar(content: Content) -> dict[str, int]:
    with tarfile.open(fileobj=io.BytesIO(tar_of(content))) as tar:
        return {entry.name: entry.offset_data + entry.size for entry in tar}


def found_at(folder: Path, name: str, data: bytes) -> Sources:
    (folder / "raw" / name).write_bytes(data)
    return list_sources(folder / "raw")


def test_a_tar_cut_anywhere_gives_what_lies_before(place):
    folder, data, ends = place(), tar_of(SMALL), ends_in_tar(SMALL)
    last = -(-max(ends.values()) // 512) * 512
    for cut in [*range(0, last + 1100, 97), *(edge + by for edge in ends.values() for by in (-1, 0, 1))]:
        found = found_at(folder, "x.tar", data[:cut])
        whole = {name for name, end in ends.items() if end <= cut}
        assert {file.stem + ".mp4" for file in found.files} == whole, cut
        assert all(read(file, folder / "scratch") == SMALL[file.stem + ".mp4"] for file in found.files)
        assert len(found.problems) == (cut < last + 512), cut


def test_a_gzipped_tar_cut_anywhere_gives_what_lies_before(place, dense_index):
    folder, ends = place(), ends_in_tar(SMALL)
    data = gzip.compress(tar_of(SMALL), mtime=0)
    for cut in range(0, len(data), 67):
        found = found_at(folder, "x.tar.gz", data[:cut])
        known = len(zlib.decompressobj(31).decompress(data[:cut]))
        assert {file.stem + ".mp4" for file in found.files} == {name for name, end in ends.items() if end <= known}, cut
        assert all(read(file, folder / "scratch") == SMALL[file.stem + ".mp4"] for file in found.files)
        assert len(found.problems) == 1, cut


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_cut_anywhere_gives_what_lies_before(place, method):
    folder, data = place(), zip_of(SMALL, method)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    ends = {entry.filename: entry.header_offset + 30 + len(entry.filename) + entry.compress_size for entry in entries}
    for cut in range(4, len(data), 61):
        found = found_at(folder, "x.zip", data[:cut])
        assert {file.stem + ".mp4" for file in found.files} == {name for name, end in ends.items() if end <= cut}, cut
        assert all(read(file, folder / "scratch") == SMALL[file.stem + ".mp4"] for file in found.files)
        assert len(found.problems) == 1, cut


def test_a_torn_zip_whose_members_do_not_tell_their_size_is_named(place):
    found = found_at(place(), "x.zip", zip_of(SMALL, streamed=True)[:1000])
    assert found.files == ()
    assert found.problems == ("x.zip: without a table of members, and the one at byte 0 does not tell its own size",)


LAYOUTS: dict[str, bytes] = {
    "x.tar": tar_of(SMALL),
    "pax.tar": tar_of({**SMALL, "é" * 90 + ".mp4": b"long"}, tarfile.PAX_FORMAT),
    "x.tar.gz": gzip.compress(tar_of(SMALL), mtime=0),
    "stored.zip": zip_of(SMALL, zipfile.ZIP_STORED),
    "deflated.zip": zip_of(SMALL),
    "streamed.zip": zip_of(SMALL, streamed=True),
}


@settings(quick, max_examples=150)
@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4),
)
def test_damage_anywhere_is_no_crash(place, dense_index, name, edits):
    folder, data = place(), bytearray(LAYOUTS[name])
    for position, patch in edits:
        begin = position % len(data)
        data[begin : begin + len(patch)] = patch
    for file in found_at(folder, name, bytes(data)).files:
        error = None
        try:
            assert len(read(file, folder / "scratch")) == file.size_bytes
        except SourceError as raised:
            error = raised
        assert error is None or error.reason in ("unreadable", "empty")
        assert str(folder) not in str(error)
    assert not list((folder / "scratch").iterdir())


@quick
@given(magic=st.sampled_from([b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"PK\x05\x06", b"", b"\0" * 512]), junk=st.binary())
def test_junk_is_a_problem_and_no_crash(place, magic, junk):
    found = found_at(place(), "x.tar", magic + junk)
    assert found.files == ()
    assert found.problems == () or found.problems[0].startswith("x.tar: ")


def test_damage_in_a_gzip_stream_keeps_what_was_before(place):
    content = {f"{i:02d}.mp4": random.Random(i).randbytes(9000) for i in range(30)}
    data = bytearray(gzip.compress(tar_of(content)))
    data[150_000:150_010] = b"\xff" * 10
    folder = place()
    found = found_at(folder, "x.tar.gz", bytes(data))
    assert len(found.problems) == 1
    # what is damaged need not be what zlib complains of, as wrong bytes can also be inflated
    sound = [file for file in found.files if file.offset + file.size_bytes < 140_000]
    assert len(sound) >= 13
    assert all(read(file, folder / "scratch") == content[file.stem + ".mp4"] for file in sound)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.tar.gz", b"<html>404</html>", "no tar, gzip or zip archive; it begins with b'<html>404</html>'"),
        ("x.tar.gz", b"", "empty"),
        ("x.tar.gz", b"\xfd7zXZ\0 and more", "compressed with xz"),
        ("x.tar.gz", gzip.compress(b"label,youtube_id\n" * 99, mtime=0), "there is no tar header at byte 0"),
        ("x.tar", tar_of(SMALL) + b"junk" * 200, "there is no tar header at byte 10240"),
        ("x.tar.gz", gzip.compress(tar_of(SMALL), mtime=0) + b"junk" * 200, "bytes that are no gzip stream"),
        ("x.tar", tar_of(SMALL)[:3000] + b"\0" * 9000 + tar_of(SMALL)[5000:], "there is no tar header"),
    ],
)
def test_what_is_wrong_is_said(place, name, data, said):
    found = found_at(place(), name, data)
    assert len(found.problems) == 1
    assert said in found.problems[0]


def test_archives_one_behind_the_other_are_all_read(place):
    first, second = {"a.mp4": b"a"}, {"b.mp4": b"b"}
    for number, data in enumerate(
        [tar_of(first) + tar_of(second), gzip.compress(tar_of(first)) + gzip.compress(tar_of(second))]
    ):
        folder = place()
        found = found_at(folder, f"{number}.tar", data)
        assert found.problems == ()
        check(found, f"{number}.tar", first | second, folder / "scratch", random.Random(0))


# Members that no honest archive would hold


def block(name: bytes, size: int | bytes = 0, kind: bytes = b"0", more: dict[int, bytes] | None = None) -> bytes:
    """One tar header, with a right checksum."""
    header = bytearray(512)
    header[: len(name)] = name
    header[100:108] = b"0000644\0"
    header[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    for position, value in (more or {}).items():
        header[position : position + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def body(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(**records: str) -> bytes:
    lines = b""
    for key, value in records.items():
        rest = f" {key.replace('__', '.')}={value}\n".encode("utf-8", "surrogateescape")
        length = next(n for n in range(len(rest), len(rest) + 9) if len(str(n)) + len(rest) == n)
        lines += str(length).encode() + rest
    return block(b"pax", len(lines), b"x") + body(lines)


GOOD = block(b"good.mp4", 4) + body(b"good")
END = bytes(1024)
EVIL = block(b"evil.mp4", 4) + body(b"evil")
HUGE = b"\x80" + (1 << 62).to_bytes(11, "big")
NEGATIVE = b"\xff" + ((1 << 88) - 1024).to_bytes(11, "big")
SPARSE = {386: b"%011o\0%011o\0" % (0, 4), 483: b"%011o\0" % (1 << 30), 482: b"\x01"}

# Members, what is counted, and whether the archive is sound apart from that.
HOSTILE: dict[str, tuple[bytes, dict[str, int], bool]] = {
    "absolute": (block(b"/evil.mp4", 4) + body(b"evil"), {"unsafe name": 1}, True),
    "parent": (block(b"../evil.mp4", 4) + body(b"evil"), {"unsafe name": 1}, True),
    "parent inside": (block(b"a/../../evil.mp4", 4) + body(b"evil"), {"unsafe name": 1}, True),
    "newline": (block(b"ev\nil.mp4", 4) + body(b"evil"), {"unsafe name": 1}, True),
    "escape codes": (block(b"\x1b[2Jevil.mp4", 4) + body(b"evil"), {"unsafe name": 1}, True),
    "NUL in a long name": (pax(path="ev\0il.mp4") + EVIL, {"unsafe name": 1}, True),
    "no name": (block(b"", 4) + body(b"evil"), {"unsafe name": 1}, True),
    "name of dots": (block(b"./.", 4) + body(b"evil"), {"unsafe name": 1}, True),
    "endless name": (pax(path="e" * 5000 + ".mp4") + EVIL, {"unsafe name": 1}, True),
    "long name too long": (block(b"././@LongLink", 2 << 20, b"L") + bytes(2 << 20) + EVIL, {"unsafe name": 1}, True),
    "symbolic link": (block(b"evil.mp4", 0, b"2", {157: b"/etc/passwd"}), {"link": 1}, True),
    "hard link": (block(b"evil.mp4", 4, b"1", {157: b"good.mp4"}), {"link": 1}, True),
    "character device": (block(b"evil.mp4", 0, b"3"), {"device": 1}, True),
    "block device": (block(b"evil.mp4", 0, b"4"), {"device": 1}, True),
    "FIFO": (block(b"evil.mp4", 0, b"6"), {"FIFO": 1}, True),
    "folder": (block(b"evil.mp4/", 0, b"5"), {"folder named as a file": 1}, True),
    "old folder": (block(b"evil.mp4/", 0, b"\0"), {"folder named as a file": 1}, True),
    "unknown type": (block(b"evil.mp4", 4, b"Z") + body(b"evil"), {"no plain file": 1}, True),
    "volume": (block(b"evil.mp4", 4, b"M") + body(b"evil"), {"no plain file": 1}, True),
    "old sparse": (
        block(b"evil.mp4", 4, b"S", SPARSE) + bytes(504) + b"\x01" + bytes(519) + body(b"evil"),
        {"sparse file": 1},
        True,
    ),
    "new sparse": (pax(GNU__sparse__major="1", GNU__sparse__realsize="99999999") + EVIL, {"sparse file": 1}, True),
    "twin": (block(b"good.mp4", 3) + body(b"bad"), {"duplicate member": 1}, True),
    "twin spelled otherwise": (block(b".//good.mp4", 3) + body(b"bad"), {"duplicate member": 1}, True),
    "other size": (pax(size="3") + EVIL, {"impossible size": 1}, True),
    "no size": (pax(size="-5") + EVIL, {"impossible size": 1}, True),
    "broken records": (block(b"pax", 20, b"x") + body(b"99999999 path=a\n....") + EVIL, {"unsafe name": 1}, True),
    "record of nothing": (block(b"pax", 20, b"x") + body(b"0 path=evil.mp4\n....") + EVIL, {"unsafe name": 1}, True),
    "many records": (b"".join(pax(path=f"{i}") for i in range(2000)) + EVIL, {"not a media file": 1}, True),
    "huge": (block(b"evil.mp4", HUGE) + body(b"evil"), {"cut short": 1}, False),
    "huge extended header": (block(b"pax", HUGE, b"x") + body(b"evil"), {"cut short": 1}, False),
    "negative": (block(b"evil.mp4", NEGATIVE) + body(b"evil"), {}, False),
    "negative extended header": (block(b"pax", NEGATIVE, b"x") + body(b"evil"), {}, False),
    "signed size": (block(b"evil.mp4", b"-0000000004\0") + body(b"evil"), {}, False),
    "size in words": (block(b"evil.mp4", b"4_0\0") + body(b"evil"), {}, False),
    "wrong checksum": (b"x" + block(b"evil.mp4", 4)[1:] + body(b"evil"), {}, False),
    "sparse map without end": (block(b"evil.mp4", 4, b"S", SPARSE), {"cut short": 1}, False),
}


@pytest.mark.parametrize("is_gzipped", [False, True], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_hostile_members_of_a_tar(place, case, is_gzipped):
    evil, skipped, is_sound = HOSTILE[case]
    folder = place()
    # last wins, so the good twin comes behind; a torn archive can only give what comes before
    members = [evil, GOOD, END] if is_sound else [GOOD, evil] if case == "sparse map without end" else [GOOD, evil, END]
    data = b"".join(members)
    found = found_at(folder, "x.tar.gz", gzip.compress(data) if is_gzipped else data)
    assert [file.source_name for file in found.files] == ["x.tar.gz/good.mp4"]
    assert found.skipped == skipped
    assert (found.problems == ()) == is_sound
    assert read(found.files[0], folder / "scratch") == b"good"
    assert sorted(path.name for path in folder.rglob("*")) == ["raw", "scratch", "x.tar.gz"]


def test_names_that_are_not_utf8_can_be_written_down_and_read(place):
    folder = place()
    found = found_at(folder, "x.tar", block(b"\xff\xe9 a.mp4", 4) + body(b"good") + END)
    assert [file.source_name for file in found.files] == ["x.tar/\\xff\\xe9 a.mp4"]
    assert read(found.files[0], folder / "scratch") == b"good"


def test_a_size_in_an_extended_header_is_believed_where_a_header_has_no_room(place):
    found = found_at(place(), "x.tar", pax(size=str(9 << 30)) + block(b"big.mp4", 0) + body(b"good") + END)
    assert found.files == ()
    assert found.skipped == {"cut short": 1}


def test_a_file_with_a_hole_of_terabytes_takes_no_time(place):
    folder = place()
    path = folder / "raw" / "x.tar"
    path.write_bytes(GOOD + block(b"evil.mp4", b"\x80" + (3 << 40).to_bytes(11, "big")))
    os.truncate(path, 4 << 40)
    with open(path, "r+b") as file:
        file.seek(1024 + 512 + (3 << 40))
        file.write(b"no header")
    found = list_sources(folder / "raw")
    assert [file.stem for file in found.files] == ["good"]
    assert found.skipped == {"too large": 1}


def zip_entry(
    name: str, mode: int = 0, flags: int = 0, method: int = 0, size: int | None = None, data: bytes = b"evil"
) -> bytes:
    """A zip of a good member and this one."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("good.mp4", b"good")
        entry = zipfile.ZipInfo("N" * len(name.encode()))
        entry.external_attr = mode << 16
        archive.writestr(entry, data)
        entry.flag_bits |= flags
        entry.compress_type = method
        entry.file_size = len(data) if size is None else size
    found = target.getvalue().replace(b"N" * len(name.encode()), name.encode())
    return found


@pytest.mark.parametrize(
    ("data", "skipped"),
    [
        (zip_entry("/evil.mp4"), {"unsafe name": 1}),
        (zip_entry("../evil.mp4"), {"unsafe name": 1}),
        (zip_entry("ev\nil.mp4"), {"unsafe name": 1}),
        (zip_entry("evil.mp4\0.txt"), {"unsafe name": 1}),
        (zip_entry("evil.mp4", mode=0o120777), {"link": 1}),
        (zip_entry("evil.mp4", mode=0o010644), {"FIFO": 1}),
        (zip_entry("evil.mp4", mode=0o020644), {"device": 1}),
        (zip_entry("evil.mp4", mode=0o040755), {"folder named as a file": 1}),
        (zip_entry("evil.mp4/"), {"folder named as a file": 1}),
        (zip_entry("evil.mp4", flags=1), {"encrypted": 1}),
        (zip_entry("evil.mp4", method=14), {"compressed in another way than deflate": 1}),
        (zip_entry("evil.mp4", size=99), {"impossible size": 1}),
        (zip_entry("evil.mp4", method=8, size=1 << 40), {"impossible size": 1}),
        (zip_entry("evil.mp4", method=8, size=17 << 30, data=b"x" * (18 << 20)), {"too large": 1}),
        (zip_entry("good.mp4"), {"duplicate member": 1}),
    ],
)
def test_hostile_members_of_a_zip(place, data, skipped):
    folder = place()
    found = found_at(folder, "x.zip", data)
    assert (found.problems, found.skipped) == ((), skipped)
    assert [file.source_name for file in found.files] == ["x.zip/good.mp4"]
    assert read(found.files[0], folder / "scratch") == (b"evil" if "duplicate member" in skipped else b"good")


def test_a_zip_member_that_is_not_what_its_table_says_is_unreadable(place):
    folder = place()
    sound = zip_of({"a.mp4": bytes(9000)})
    shorter = sound.replace(struct.pack("<L", 9000), struct.pack("<L", 8000))
    longer = sound.replace(struct.pack("<L", 9000), struct.pack("<L", 9999))
    checksum = struct.pack("<L", zlib.crc32(bytes(9000)))
    for number, data in enumerate([shorter, longer, sound.replace(checksum, b"oops")]):
        found = found_at(folder, f"{number}.zip", data)
        with pytest.raises(SourceError, match=r"unreadable: the (member|content)"):
            read(found.files[-1], folder / "scratch")
    assert not list((folder / "scratch").iterdir())


def test_large_zips_have_wide_numbers(place, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    content = {f"{i}.mp4": random.Random(i).randbytes(500) for i in range(9)}
    folder = place()
    found = found_at(folder, "x.zip", zip_of(content))
    assert found.problems == ()
    check(found, "x.zip", content, folder / "scratch", random.Random(0))


# Bombs


def test_a_bomb_is_streamed_and_bounded(place, monkeypatch):
    monkeypatch.setattr(gzip_index, "_ALWAYS_BYTES", 30 << 20)
    pack = zlib.compressobj(9, wbits=31)
    data = pack.compress(GOOD + block(b"bomb.mp4", b"\x80" + (9 << 30).to_bytes(11, "big")))
    data += b"".join(pack.compress(bytes(1 << 20)) for _ in range(100)) + pack.flush()
    tracemalloc.start()
    found = found_at(place(), "x.tar.gz", data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [file.stem for file in found.files] == ["good"]
    assert "expands to more than" in found.problems[0]
    assert peak < 16 << 20


def test_a_gzip_header_without_end_is_no_crash(place):
    data = gzip.compress(tar_of(SMALL), mtime=0)
    name = b"x" * (1 << 20) + b"\0"
    folder = place()
    for file in found_at(folder, "x.tar.gz", data[:3] + b"\x08" + data[4:10] + name + data[10:]).files:
        with pytest.raises(SourceError, match="unreadable"):
            read(file, folder / "scratch")


def test_without_a_seek_index_nothing_is_listed(place, monkeypatch):
    monkeypatch.setattr(gzip_index.SeekIndexBuilder, "cover", lambda self, position: None)
    found = found_at(place(), "x.tar.gz", gzip.compress(tar_of(SMALL)))
    assert found.files == ()
    assert found.problems == (
        "x.tar.gz: a gzip stream that can be read from its start alone; unpack it, or pack it again",
    )


def test_too_many_members_are_a_problem(place, monkeypatch):
    monkeypatch.setattr(members, "MAX_MEMBERS", 3)
    for name, data in {
        "x.tar": tar_of(SMALL),
        "x.zip": zip_of(SMALL),
        "x.tar.gz": gzip.compress(tar_of(SMALL)),
    }.items():
        found = found_at(place(), name, data)
        assert len(found.files) == 3
        assert "more than 3 files" in found.problems[0]


# Lists that are kept


@pytest.fixture
def scanned(monkeypatch) -> list[str]:
    """The archives that are really read."""
    names: list[str] = []
    really = scans._scan
    monkeypatch.setattr(scans, "_scan", lambda place, *rest: (names.append(place.source_name), really(place, *rest))[1])
    return names


def three_kinds(raw: Path) -> None:
    (raw / "a.tar").write_bytes(tar_of(SMALL))
    (raw / "b.tar.gz").write_bytes(gzip.compress(tar_of(SMALL)))
    (raw / "c.zip").write_bytes(zip_of(SMALL))
    (raw / "empty.tar.gz").write_bytes(gzip.compress(tar_of({})))


def test_an_archive_is_listed_once(place, scanned):
    folder = place()
    url = str(folder / "kept")
    three_kinds(folder / "raw")
    told: list[tuple[int, int]] = []
    first = list_sources(folder / "raw", scans=url, on_progress=lambda done, total: told.append((done, total)))
    assert scanned == ["a.tar", "b.tar.gz", "c.zip", "empty.tar.gz"]
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert list_sources(folder / "raw", scans=url) == first
    assert list_sources(folder / "raw", scans=url, suffixes=frozenset({".avi"})).skipped == {"not a media file": 12}
    assert len(scanned) == 4
    for file in first.files:
        assert read(file, folder / "scratch") == SMALL[file.stem + ".mp4"]


def test_an_archive_that_has_changed_is_listed_again(place, scanned):
    folder = place()
    url = str(folder / "kept")
    three_kinds(folder / "raw")
    old = list_sources(folder / "raw", scans=url)
    other = {name: data[::-1] for name, data in reversed(SMALL.items())}
    for name, data in {
        "a.tar": tar_of(other),
        "b.tar.gz": gzip.compress(tar_of(other)),
        "c.zip": zip_of(other),
    }.items():
        (folder / "raw" / name).write_bytes(data)
    for file in old.files:  # not the clips that were listed, and no other ones in their place
        with pytest.raises(SourceError, match="unreadable"):
            read(file, folder / "scratch")
    found = list_sources(folder / "raw", scans=url)
    assert scanned[4:] == ["a.tar", "b.tar.gz", "c.zip"]
    assert all(read(file, folder / "scratch") == other[file.stem + ".mp4"] for file in found.files)


def test_a_torn_archive_is_listed_again(place, scanned):
    folder = place()
    (folder / "raw" / "a.tar.gz").write_bytes(gzip.compress(tar_of(SMALL))[:-30])
    for _ in range(2):
        assert len(list_sources(folder / "raw", scans=str(folder / "kept")).problems) == 1
    assert scanned == ["a.tar.gz"] * 2


@pytest.mark.parametrize("damage", ["index", "json", "truncated"])
def test_a_kept_list_that_is_damaged_is_made_again(place, scanned, damage):
    folder = place()
    (folder / "raw" / "a.tar.gz").write_bytes(gzip.compress(tar_of(SMALL)))
    first = list_sources(folder / "raw", scans=str(folder / "kept"))
    for path in (folder / "kept").iterdir():
        if path.suffix == ".gzidx" and damage == "index":
            path.unlink()
        elif path.suffix == ".json" and damage != "index":
            path.write_bytes(b"{}" if damage == "json" else path.read_bytes()[:-9])
    assert list_sources(folder / "raw", scans=str(folder / "kept")) == first
    assert len(scanned) == 2


def test_scans_are_deleted_and_nothing_else(place):
    folder = place()
    store = open_store(str(folder / "kept"))
    three_kinds(folder / "raw")
    list_sources(folder / "raw", scans=store.url)
    assert len(list(store.list("scan-"))) == 5
    others = ["manifest.json", "scan-notes.json", "train-000000.tar", "x/scan-" + "0" * 32 + ".json"]
    for key in others:
        store.put_bytes(key, b"x")
    delete_scans(store.url)
    assert sorted(store.list()) == sorted(others)
    delete_scans(str(folder / "nowhere"))


def test_several_processes_find_the_same(place, monkeypatch):
    folder = place()
    three_kinds(folder / "raw")
    (folder / "raw" / "torn.tar").write_bytes(tar_of(SMALL)[:2000])
    alone = list_sources(folder / "raw", scans=str(folder / "one"))
    monkeypatch.setattr(scans, "MIN_SHARED_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    told: list[tuple[int, int]] = []
    shared = list_sources(
        folder / "raw", scans=str(folder / "two"), on_progress=lambda *progress: told.append(progress)
    )
    assert told == [(number, 5) for number in range(6)]
    assert [file.source_name for file in shared.files] == [file.source_name for file in alone.files]
    assert (shared.skipped, shared.problems) == (alone.skipped, alone.problems)
    kept = {name: {path.name: path.read_bytes() for path in (folder / name).iterdir()} for name in ("one", "two")}
    assert kept["one"] == kept["two"]
    assert all(read(file, folder / "scratch") == SMALL[file.stem + ".mp4"] for file in shared.files)


def test_lists_kept_nowhere_go_with_the_process(place):
    folder = place()
    (folder / "raw" / "a.tar.gz").write_bytes(gzip.compress(tar_of(SMALL)))
    code = (
        "import os, sys; from preprocessing.sources import list_sources\n"
        "print(list_sources(sys.argv[1]).files[0].archive.scan, flush=True)\n"
        "pid = os.fork()\n"
        "if not pid: sys.exit()\n"
        "os.waitpid(pid, 0); print(os.path.exists(list_sources(sys.argv[1]).files[0].archive.scan))"
    )
    command = [sys.executable, "-c", code, str(folder / "raw")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    scan, is_there = done.stdout.split()
    assert is_there == "True"
    assert not Path(scan).parent.exists()


# Reading


def test_few_files_stay_open(place):
    folder = place()
    for number in range(40):
        (folder / "raw" / f"{number}.tar.gz").write_bytes(gzip.compress(tar_of({f"{number}.mp4": b"x" * 99})))
    before = len(os.listdir("/proc/self/fd"))
    found = list_sources(folder / "raw")
    for file in found.files * 2:
        assert read(file, folder / "scratch") == b"x" * 99
    assert len(os.listdir("/proc/self/fd")) <= before + 20


def test_a_seek_index_is_read_in_pieces(place, dense_index, monkeypatch):
    """However large an index is, a member costs one state of 32 KB, and the list of points is fetched once."""
    content = {f"{i}.mp4": random.Random(i).randbytes(60_000) for i in range(20)}
    folder = place()
    found = found_at(folder, "x.tar.gz", gzip.compress(tar_of(content)))
    ranges: list[int] = []
    really = storage.LocalStore.get_range
    monkeypatch.setattr(
        storage.LocalStore,
        "get_range",
        lambda self, key, at, size: (ranges.append(size), really(self, key, at, size))[1],
    )
    for file in found.files * 2:
        assert read(file, folder / "scratch") == content[file.stem + ".mp4"]
    assert max(ranges[2:]) == 32 << 10
    assert len([size for size in ranges if size < 32 << 10]) == 2


def test_archives_that_are_gone_are_missing(place):
    folder = place()
    three_kinds(folder / "raw")
    found = list_sources(folder / "raw")
    for path in (folder / "raw").iterdir():
        path.unlink()
    for file in found.files:
        with pytest.raises(SourceError, match="missing: its archive is no longer there"):
            read(file, folder / "scratch")


def test_a_full_disk_is_no_fault_of_the_file(place):
    folder = place()
    found = found_at(folder, "x.tar", tar_of(SMALL))
    with pytest.raises(UserError, match="--scratch"), local_file(found.files[0], folder / "no such folder"):
        pass
