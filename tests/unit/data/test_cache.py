import fcntl
import hashlib
import logging
import multiprocessing
import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vast.data import cache as cache_module
from vast.data.cache import DiskCache


@pytest.fixture(autouse=True)
def _audible(caplog: pytest.LogCaptureFixture) -> None:
    """Ray, where an earlier test of the session has started it, leaves the root logger at ERROR."""
    caplog.set_level(logging.WARNING, logger="vast")


def content(number: int, size_bytes: int = 1000) -> tuple[str, bytes]:
    data = number.to_bytes(4, "little") * (size_bytes // 4)
    return hashlib.sha256(data).hexdigest(), data


def held(folder: Path) -> dict[str, int]:
    """Bytes of each cached file."""
    return {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file() and len(path.name) == 64}


def test_what_was_put_is_found_by_other_processes_caches(tmp_path: Path) -> None:
    sha256, data = content(1)
    assert DiskCache(tmp_path / "c", 10**6).get(sha256) is None
    DiskCache(tmp_path / "c", 10**6).put(sha256, data)
    assert DiskCache(tmp_path / "c", 10**6).get(sha256) == data


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"?" + data[1:], lambda data: b""])
def test_damaged_bytes_are_thrown_away(tmp_path: Path, damage) -> None:
    sha256, data = content(1)
    cache = DiskCache(tmp_path, 10**6)
    cache.put(sha256, data)
    (path,) = tmp_path.glob(f"*/{sha256}")
    path.write_bytes(damage(data))
    assert cache.get(sha256) is None
    assert not path.exists()
    cache.put(sha256, data)
    assert cache.get(sha256) == data


@given(numbers=st.lists(st.integers(0, 30), max_size=80), max_files=st.integers(1, 12))
def test_the_bound_holds_and_the_last_one_put_is_there(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], max_files: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = DiskCache(folder, max_files * 1000)
    for number in numbers:
        cache.put(*content(number))
        assert sum(held(folder).values()) <= max_files * 1000
        assert cache.get(content(number)[0]) == content(number)[1]


def test_the_ones_used_longest_ago_make_room(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10_000)
    for number in range(10):
        cache.put(*content(number))
        (path,) = tmp_path.glob(f"*/{content(number)[0]}")
        os.utime(path, (number, number))
    assert cache.get(content(0)[0]) is not None  # used now
    cache.put(*content(10))
    left = set(held(tmp_path))
    assert {content(0)[0], content(10)[0]} <= left
    assert content(1)[0] not in left


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    DiskCache(tmp_path, 500).put(*content(1))
    assert held(tmp_path) == {}


@pytest.mark.parametrize("ledger", [b"", b"nonsense", b"%020d" % 10**15, b"%020d" % 0])
def test_a_wrong_ledger_is_counted_anew(tmp_path: Path, ledger: bytes) -> None:
    cache = DiskCache(tmp_path, 5000)
    for number in range(5):
        cache.put(*content(number))
    (tmp_path / "ledger").write_bytes(ledger)
    later = DiskCache(tmp_path, 5000)  # a process that begins after a crash
    for number in range(5, 20):
        later.put(*content(number))
        assert sum(held(tmp_path).values()) <= 5000
        assert later.get(content(number)[0]) is not None


def test_orphans_of_a_crash_go_when_room_is_made(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 2000)
    cache.put(*content(0))
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    old, young = (folder / f".{name}.{'0' * 32}.tmp" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"x" * 100)
    os.utime(old, (0, 0))
    for number in range(1, 4):
        cache.put(*content(number))
    assert not old.exists()
    assert young.exists()


def test_a_full_disk_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path, 10**9)
    cache.put(*content(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # writes end with EFBIG, as with ENOSPC
    try:
        cache.put(*content(1))
        cache.put(*content(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.text.count("nothing is cached for 60 s") == 1
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(cache, "_sulks_until", 0.0)
    cache.put(*content(1))
    assert cache.get(content(1)[0]) is not None


def test_a_folder_that_cannot_be_made_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "cache", 10**6)
    cache.put(*content(1))
    assert cache.get(content(1)[0]) is None
    assert "nothing is cached" in caplog.text


def fill(folder: Path, first: int) -> None:
    cache = DiskCache(folder, 20_000)
    for number in range(first, first + 150):
        cache.put(*content(number))
        assert cache.get(content(number)[0]) in (None, content(number)[1])


def test_processes_share_one_bound(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(tmp_path, 100 * number)) for number in range(4)]
    for process in processes:
        process.start()
    most = 0
    while any(process.is_alive() for process in processes):
        with open(tmp_path / "ledger", "ab") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)  # or files come and go while they are counted
            most = max(most, sum(held(tmp_path).values()))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert 0 < most <= 20_000
    assert cache_module._read(os.open(tmp_path / "ledger", os.O_RDONLY)) == sum(held(tmp_path).values())
