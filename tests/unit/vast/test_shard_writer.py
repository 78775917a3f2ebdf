import hashlib
import string
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vast.shard_writer import ShardWriter

KEYS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=120)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(samples=st.dictionaries(KEYS, st.binary(max_size=2000), max_size=6))
def test_any_tar_reader_finds_what_was_added_where_the_writer_says(tmp_path: Path, samples: dict[str, bytes]) -> None:
    path = tmp_path / "train-000000.tar"
    with ShardWriter(path) as writer:
        places = {key: writer.add(key, media, meta={"z": 1, "a": "é"}) for key, media in samples.items()}
        info = writer.finish()
    data = path.read_bytes()
    assert (info.size_bytes, info.samples) == (len(data), len(samples))
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert info.size_bytes % tarfile.RECORDSIZE == 0
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert names == [f"{key}.{suffix}" for key in samples for suffix in ("mp4", "json")]
        for key, media in samples.items():
            place = places[key]
            assert tar.getmember(f"{key}.mp4").offset_data == place.offset
            assert data[place.offset : place.offset + place.size_bytes] == media
            assert place.sha256 == hashlib.sha256(media).hexdigest()


def test_a_shard_tells_nothing_of_clock_or_user(tmp_path: Path) -> None:
    contents = set()
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name) as writer:
            writer.add("k", b"media", meta={"b": 1, "a": 2} if name == "a" else {"a": 2, "b": 1})
            writer.finish()
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1
    with tarfile.open(tmp_path / "a") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
            assert (member.uname, member.gname) == ("bigdata", "bigdata")


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a b", "é", "../a", ".hidden", "a\n"])
def test_keys_that_readers_would_split_or_skip_are_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path / "s.tar") as writer, pytest.raises(ValueError, match="cannot be a sample's key"):
        writer.add(key, b"")


def test_a_key_may_come_once(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.tar") as writer:
        writer.add("k", b"1")
        with pytest.raises(ValueError, match=r"s\.tar has the key 'k' already"):
            writer.add("k", b"2")


def test_a_shard_that_was_not_finished_does_not_stay(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path / "s.tar") as writer:
            writer.add("k", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
