import errno
import os
import pickle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vast.errors import ObjectMissing, StoreError, UserError
from vast.storage import LocalStore, Store, join_url, open_store
from vast.storage_s3 import S3Store

KEY_PART = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,8}", fullmatch=True)
KEYS = st.lists(KEY_PART, min_size=1, max_size=3).map("/".join)
RACES, NUM_RACERS = 20, 4


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


def test_a_put_tells_what_was_written_and_a_version_changes_with_every_put(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "file").write_bytes(b"12345")
    versions = set()
    for number in range(20):
        written = store.put_bytes("a", b"12345") if number % 2 else store.put_file("a", tmp_path / "file")
        assert written == store.stat("a")
        assert written.size_bytes == 5
        versions.add(written.version)
    assert len(versions) == 20
    with pytest.raises(ObjectMissing):
        store.stat("b")


def test_create_and_replace_only_do_what_they_are_asked(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    assert store.conditional_puts()
    assert not store.replace("a/b", b"0", "1-2")
    assert store.create("a/b", b"1")
    first = store.stat("a/b").version
    assert not store.create("a/b", b"2")
    assert store.get_bytes("a/b") == b"1"
    assert store.replace("a/b", b"3", first)
    assert not store.replace("a/b", b"4", first)
    assert store.get_bytes("a/b") == b"3"
    store.delete("a/b")
    assert not store.replace("a/b", b"5", first)
    assert os.listdir(tmp_path / "store" / "a") == []


def test_where_a_folder_should_be_made_in_place_of_a_file_create_fails(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put_bytes("a", b"a file")
    with pytest.raises(StoreError, match="cannot write a/b"):
        store.create("a/b", b"")


def test_create_does_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    store = open_store(str(tmp_path))
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    assert store.get_bytes("a") == b"1"
    assert os.listdir(tmp_path) == ["a"]


def _win(store: Store, barrier: Any, wins: Any) -> None:
    me = str(os.getpid()).encode()
    for number in range(RACES):
        barrier.wait(60)
        if store.create(f"c{number}", me):
            wins.put(("create", number))
        barrier.wait(60)
        version = store.stat(f"c{number}").version
        barrier.wait(60)
        if store.replace(f"c{number}", me + b"!", version):
            wins.put(("replace", number))
    wins.put(None)


def test_of_processes_that_create_and_replace_at_once_exactly_one_wins(tmp_path: Path) -> None:
    store, context = open_store(str(tmp_path)), get_context("fork")
    barrier, wins = context.Barrier(NUM_RACERS), context.Queue()
    racers = [context.Process(target=_win, args=(store, barrier, wins)) for _ in range(NUM_RACERS)]
    for racer in racers:
        racer.start()
    ends, won = 0, []
    while ends < NUM_RACERS:
        win = wins.get(timeout=60)
        ends += win is None
        won += [win] if win else []
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert sorted(won) == sorted((kind, number) for kind in ("create", "replace") for number in range(RACES))
    assert sorted(os.listdir(tmp_path)) == sorted(f"c{number}" for number in range(RACES))


def test_sweep_removes_what_killed_puts_left_and_nothing_else(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    assert store.sweep() == 0
    child = get_context("fork").Process(target=_put_and_die, args=(store,))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    store.put_bytes("sub/b", b"another's")
    others = [".hidden", ".a.b.tmp", "a.tmp", f"sub/.b.{'0' * 32}.tmp"]
    for name in others:
        (tmp_path / "store" / name).write_bytes(b"")
    left = set(os.listdir(tmp_path / "store")) - {"sub", *others}
    assert len(left) == 1
    assert list(store.list()) == [".hidden", "a.tmp", "sub/b"]
    assert store.sweep() == 1
    assert not left & set(os.listdir(tmp_path / "store"))
    assert all((tmp_path / "store" / name).exists() for name in others)


def _put_and_die(store: Store) -> None:
    os.fsync = lambda descriptor: os._exit(9)
    store.put_bytes("a", b"never seen")
