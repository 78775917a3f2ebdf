import itertools
import logging
import pickle
import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vast.data import fetch
from vast.data.cache import DiskCache
from vast.data.dataset import ShardDataset
from vast.data.fetch import SampleSource, merged
from vast.dataset_format import SampleRow
from vast.errors import ObjectDamaged, ObjectMissing, StoreError, UserError
from vast.storage import LocalStore


@pytest.fixture(autouse=True)
def _audible(caplog: pytest.LogCaptureFixture) -> None:
    """Ray, where an earlier test of the session has started it, leaves the root logger at ERROR."""
    caplog.set_level(logging.WARNING, logger="vast")


@pytest.fixture
def dataset(data_url: str) -> ShardDataset:
    return ShardDataset(data_url, "train")


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """The ranges that are read, in the order of their beginning."""
    asked: list[tuple[str, int, int]] = []
    really = LocalStore.get_range

    def spy(self: LocalStore, key: str, offset: int, size_bytes: int) -> bytes:
        asked.append((key, offset, size_bytes))
        return really(self, key, offset, size_bytes)

    monkeypatch.setattr(LocalStore, "get_range", spy)
    return asked


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, num_times: int) -> list[float]:
    """Have so many reads of the store fail; return when each came."""
    came: list[float] = []
    really = LocalStore.get_range

    def fail(self: LocalStore, key: str, offset: int, size_bytes: int) -> bytes:
        came.append(time.monotonic())
        if len(came) <= num_times:
            raise error
        return really(self, key, offset, size_bytes)

    monkeypatch.setattr(LocalStore, "get_range", fail)
    monkeypatch.setattr(fetch, "_FIRST_PAUSE_S", 0.01)
    return came


def test_what_is_submitted_comes_in_the_order_of_the_rows(dataset: ShardDataset) -> None:
    rows = dataset.index.rows([22, 3, 4, 0, 17, 2, 3])
    found = [coming.result() for coming in dataset.source.submit(rows)]
    assert found == [dataset.source.read(row) for row in rows]
    assert dataset.source.submit([]) == []


def test_neighbours_come_in_one_request_a_shard(dataset: ShardDataset, ranges: list[tuple[str, int, int]]) -> None:
    rows = dataset.index.rows(range(23))
    ranges.clear()  # the index, read just now
    for coming in dataset.source.submit(rows):
        coming.result()
    assert sorted(key for key, _, _ in ranges) == [f"train-{shard:06d}.tar" for shard in range(3)]


@given(
    members=st.lists(st.tuples(st.integers(0, 1 << 19), st.integers(1, 10 << 20)), min_size=1, max_size=20),
    seed=st.integers(0, 100),
)
def test_merging_loses_nothing_and_bounds_requests(members: list[tuple[int, int]], seed: int) -> None:
    rows, ends = [], {"a": 0, "b": 0}
    for i, (gap, size_bytes) in enumerate(members):
        shard = "ab"[i % 3 // 2]
        rows.append(SampleRow(str(i), shard, ends[shard] + gap, size_bytes, 0, "", 1.0, 1.0, 1, 1, 1, ""))
        ends[shard] = rows[-1].offset + size_bytes
    samples: list[tuple[SampleRow, Future[bytes]]] = [(row, Future()) for row in rows]
    random.Random(seed).shuffle(samples)
    groups = list(merged(samples))
    assert sorted(int(row.key) for group in groups for row, _ in group) == list(range(len(rows)))
    for group in groups:
        first, last = group[0][0], group[-1][0]
        assert {row.shard for row, _ in group} == {first.shard}
        assert len(group) == 1 or last.offset + last.size_bytes - first.offset <= fetch._MERGED_BYTES
        for (row, _), (following, _) in itertools.pairwise(group):
            assert 0 <= following.offset - row.offset - row.size_bytes <= fetch._GAP_BYTES


def test_a_store_that_answers_again_was_asked_patiently(
    dataset: ShardDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row = dataset.index.row(3)
    right = dataset.source.read(row)
    came = failing(monkeypatch, StoreError("down"), 3)
    assert SampleSource(dataset.url, patience_s=60).read(row) == right
    assert len(came) == 4
    assert caplog.text.count("the store does not answer, asking again: down") == 3
    pauses = [later - earlier for earlier, later in itertools.pairwise(came)]
    assert pauses[1] > 0.02
    assert pauses[2] > 0.04


def test_patience_ends(dataset: ShardDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataset.index.row(3)
    came = failing(monkeypatch, StoreError("down"), 10**6)
    with pytest.raises(StoreError, match=r"sample train_003 in train-000000\.tar, bytes .*: down") as caught:
        SampleSource(dataset.url, patience_s=0.2).read(row)
    assert not isinstance(caught.value, ObjectDamaged)
    assert 2 < len(came) < 10


@pytest.mark.parametrize("error", [ObjectMissing("gone"), ObjectDamaged("short"), UserError("refused")])
def test_what_time_does_not_mend_is_told_at_once(
    dataset: ShardDataset, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    row = dataset.index.row(3)
    came = failing(monkeypatch, error, 10**6)
    with pytest.raises(type(error), match=str(error)):
        SampleSource(dataset.url, patience_s=3600).read(row)
    assert len(came) == 1


def test_closing_ends_the_wait_for_a_store(dataset: ShardDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataset.index.row(3)
    came = failing(monkeypatch, StoreError("down"), 10**6)
    monkeypatch.setattr(fetch, "_FIRST_PAUSE_S", 3600.0)
    source = SampleSource(dataset.url, patience_s=10**5)
    (coming,) = source.submit([row])
    while not came:
        time.sleep(0.001)
    source.close()
    with pytest.raises(StoreError, match="down"):
        coming.result(timeout=60)


def test_one_damaged_sample_among_neighbours_does_not_touch_the_others(data_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(data_url, folder)
    dataset = ShardDataset(str(folder), "train")
    rows = dataset.index.rows(range(15, 23))
    with open(folder / rows[0].shard, "r+b") as file:
        file.seek(rows[1].offset + 100)
        file.write(b"?")
    with open(folder / rows[7].shard, "r+b") as file:
        file.truncate(rows[7].offset + 10)
    coming = dataset.source.submit(rows)
    for number, future in enumerate(coming):
        if number in (1, 7):
            with pytest.raises(ObjectDamaged, match=rows[number].key):
                future.result()
        else:
            assert future.result() == dataset.source.read(rows[number])


def test_a_cache_saves_the_store(dataset: ShardDataset, ranges: list[tuple[str, int, int]], tmp_path: Path) -> None:
    rows = dataset.index.rows(range(9))
    source = SampleSource(dataset.url, cache=DiskCache(tmp_path / "cache", 10**9))
    first = [coming.result() for coming in source.submit(rows)]
    num_ranges = len(ranges)
    again = SampleSource(dataset.url, cache=DiskCache(tmp_path / "cache", 10**9))
    assert [coming.result() for coming in again.submit(rows)] == first
    assert again.read(rows[4]) == first[4]
    assert len(ranges) == num_ranges


def test_a_copy_for_another_process_has_the_same_settings(dataset: ShardDataset, tmp_path: Path) -> None:
    source = SampleSource(dataset.url, 7.0, DiskCache(tmp_path, 10**6))
    source.submit(dataset.index.rows([0]))[0].result()
    copy = pickle.loads(pickle.dumps(source))
    assert copy._patience_s == 7.0
    assert copy.read(dataset.index.row(1)) == dataset.read(1)
    assert copy._cache.get(dataset.index.row(1).sha256) == dataset.read(1)


def test_many_threads_may_submit(dataset: ShardDataset, encode: Callable[..., bytes]) -> None:
    rows = dataset.index.rows(range(23))
    expected = [dataset.source.read(row) for row in rows]
    results: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda: results.append([f.result() for f in dataset.source.submit(rows)]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4
