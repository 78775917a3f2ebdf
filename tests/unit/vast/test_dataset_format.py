import hashlib
import json
import string
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vast.dataset_format import (
    Manifest,
    SampleRow,
    ShardInfo,
    ShardWriter,
    SplitInfo,
    classes_digest,
    dataset_digest,
    read_index,
    read_manifest,
    write_index,
    write_manifest,
)
from vast.errors import UserError

KEYS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=120)
ROW = SampleRow("k", "train-000000.tar", 512, 9, 3, "-_é", 1.5, 29.97, 128, 96, 45, "0" * 64)


def shard(name: str, samples: int, sha256: str = "aa") -> ShardInfo:
    return ShardInfo(name=name, size_bytes=100 * samples, sha256=sha256, samples=samples)


def split(*shards: ShardInfo, failures: int = 0) -> SplitInfo:
    samples = sum(s.samples for s in shards)
    return SplitInfo(
        records=samples + failures,
        samples=samples,
        failures=failures,
        size_bytes=sum(s.size_bytes for s in shards),
        index_sha256="bb",
        shards=list(shards),
    )


def manifest(**changes: object) -> Manifest:
    splits = {"train": split(shard("train-000000.tar", 3), shard("train-000001.tar", 2, "cc"), failures=1)}
    content = {
        "name": "k400",
        "created": "2020-01-01T00:00:00Z",
        "classes": ["a", "b"],
        "classes_digest": classes_digest(["a", "b"]),
        "splits": splits,
        "annotations": {"train.csv": "dd"},
        "transcode": {"crf": 23},
        "software": {},
        "plan_digest": "sha256:ee",
        "digest": dataset_digest(splits),
    }
    return Manifest.model_validate({**content, **changes})


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


def test_a_manifest_comes_back_equal(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), manifest())
    assert read_manifest(str(tmp_path)) == manifest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["b", "a"]}, "classes_digest does not belong"),
        ({"digest": "sha256:0"}, "digest does not belong to the shards"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        manifest(**changes)


def test_every_record_is_a_sample_or_a_failure() -> None:
    content = split(shard("train-000000.tar", 3), failures=2).model_dump()
    for name in ("records", "samples", "size_bytes"):
        with pytest.raises(ValidationError, match=name):
            SplitInfo.model_validate({**content, name: content[name] + 1})


def test_the_digest_sees_content_and_order_of_shards() -> None:
    one, two = shard("train-000000.tar", 1, "aa"), shard("train-000001.tar", 1, "bb")
    swapped = shard("train-000000.tar", 1, "bb"), shard("train-000001.tar", 1, "aa")
    digests = {dataset_digest({"train": split(*shards)}) for shards in ((one, two), swapped, (one,))}
    assert len(digests) == 3
    assert dataset_digest({"a": split(one), "b": split(two)}) == dataset_digest({"b": split(two), "a": split(one)})


def test_an_unfinished_data_set_is_none(tmp_path: Path) -> None:
    write_index(str(tmp_path), "train", [ROW])
    with pytest.raises(UserError, match=r"no data set at .*there is no manifest\.json"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format_version": 2}', "has format version 2; this program reads 1"),
        (json.dumps({**manifest().model_dump(), "name": 5}), "name: Input should be a valid string"),
    ],
)
def test_a_damaged_or_newer_manifest_says_so(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_manifest(str(tmp_path))


def test_the_index_comes_back_equal_and_with_the_same_bytes(tmp_path: Path) -> None:
    rows = [replace(ROW, key=f"k{i}", label=i - 1, offset=1 << (i + 30), shard=f"s{i % 2}") for i in range(9)]
    digest = write_index(str(tmp_path), "train", rows)
    assert digest == hashlib.sha256((tmp_path / "train.parquet").read_bytes()).hexdigest()
    assert write_index(str(tmp_path), "train", iter(rows)) == digest
    index = read_index(str(tmp_path), "train")
    assert [index.row(i) for i in range(len(index))] == rows
    assert index.label.dtype == "int32"
    assert all(column.dtype != object for column in vars(index).values())


def test_an_empty_index_is_an_index(tmp_path: Path) -> None:
    write_index(str(tmp_path), "val", [])
    assert len(read_index(str(tmp_path), "val")) == 0


def test_an_unknown_split_lists_the_known_ones(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), manifest())
    with pytest.raises(UserError, match="has no split 'valid'; it has: train"):
        read_index(str(tmp_path), "valid")


def test_a_file_that_is_no_index_says_so(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="is no sample index"):
        read_index(str(tmp_path), "train")
