import os
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vast.errors import ObjectMissing, StoreError, UserError
from vast.storage import LocalStore, S3Store, join_url, open_store

KEY_PART = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,8}", fullmatch=True)
KEYS = st.lists(KEY_PART, min_size=1, max_size=3).map("/".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(key=KEYS, data=st.binary(max_size=300), bounds=st.tuples(st.integers(0, 300), st.integers(0, 300)))
def test_what_is_put_is_read_whole_and_by_range(tmp_path: Path, key: str, data: bytes, bounds: tuple[int, int]) -> None:
    store = open_store(str(tmp_path / os.urandom(4).hex()))
    store.put_bytes(key, data)
    start, end = sorted(min(bound, len(data)) for bound in bounds)
    assert store.get_bytes(key) == data
    assert store.get_range(key, start, end - start) == data[start:end]
    assert store.size(key) == len(data)
    assert list(store.list()) == [key]


def test_a_range_past_the_end_is_an_error_and_not_a_short_answer(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put_bytes("a", b"12345")
    with pytest.raises(StoreError, match=r"a has no bytes 3\.\.6: they end at 5"):
        store.get_range("a", 3, 4)


def test_a_missing_object_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for call in (store.get_bytes, store.size, lambda key: store.get_range(key, 0, 1)):
        with pytest.raises(ObjectMissing, match="there is no b/c"):
            call("b/c")
    with pytest.raises(ObjectMissing):
        store.get_file("b/c", tmp_path / "copy")
    assert not store.exists("b/c")
    store.delete("b/c")
    store.put_bytes("b", b"")
    store.delete("b/c")


def test_a_put_that_fails_leaves_the_older_object_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put_bytes("a", b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StoreError, match=r"cannot write a: .*No space left"):
        store.put_bytes("a", b"new")
    assert store.get_bytes("a") == b"old"
    assert os.listdir(tmp_path / "store") == ["a"]


def test_files_travel_both_ways(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    (tmp_path / "from").write_bytes(b"content")
    store.put_file("x/y", tmp_path / "from")
    store.get_file("x/y", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == b"content"


def test_a_folder_that_is_not_there_for_the_copy_is_not_called_a_missing_object(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put_bytes("a", b"1")
    with pytest.raises(FileNotFoundError) as caught:
        store.get_file("a", tmp_path / "nowhere" / "copy")
    assert not isinstance(caught.value, ObjectMissing)


def test_list_is_sorted_and_takes_any_prefix(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for key in ("b/2", "b/1", "bc", "a", "b-1"):
        store.put_bytes(key, b"")
    (tmp_path / ".a.123.tmp").write_bytes(b"half an upload")
    assert list(store.list()) == ["a", "b-1", "b/1", "b/2", "bc"]
    assert list(store.list("b")) == ["b-1", "b/1", "b/2", "bc"]
    assert list(store.list("b/")) == ["b/1", "b/2"]
    assert list(store.list("nowhere/")) == []


@pytest.mark.parametrize("key", ["", "/a", "../a", "a/../../b", "a//b", "./a", "a/"])
def test_keys_cannot_leave_the_store(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        open_store(str(tmp_path)).put_bytes(key, b"")


def test_a_relative_folder_is_fixed_when_the_store_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("data")
    monkeypatch.chdir("/")
    store.put_bytes("a", b"1")
    assert (tmp_path / "data" / "a").is_file()


@pytest.mark.parametrize("url", ["gs://bucket/x", "http://host/x", "s3://", "s3://bucket/x?region=y", "", " "])
def test_a_url_that_is_no_store_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError, match="s3://bucket/prefix"):
        open_store(url)


def test_urls_and_stores_survive_a_pickle_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    for url in (str(tmp_path), "s3://bucket/a/b"):
        store = open_store(url)
        data = pickle.dumps(store)
        assert pickle.loads(data).url == store.url == url
        assert b"very-secret" not in data


@pytest.mark.parametrize(
    ("url", "kind", "clean"),
    [
        ("s3://bucket", S3Store, "s3://bucket"),
        ("s3://bucket/a//", S3Store, "s3://bucket/a"),
        ("file:///tmp/a%20b", LocalStore, "/tmp/a b"),
    ],
)
def test_urls_have_one_spelling(url: str, kind: type, clean: str) -> None:
    store = open_store(url)
    assert isinstance(store, kind)
    assert store.url == clean


def test_join_url() -> None:
    assert join_url("s3://b/p/", "x", "/y/") == "s3://b/p/x/y"
    assert join_url("/", "x") == "/x"
    assert join_url("data", "x") == "data/x"
