import hashlib
import multiprocessing
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from itertools import islice
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vast import sample_index
from vast.dataset_format import SampleRow
from vast.errors import StoreError, UserError
from vast.sample_index import ROW_GROUP, IndexWriter, SampleIndex, read_index, write_index
from vast.storage import LocalStore

NUM_ROWS = 5 * ROW_GROUP + 100
NAMES = [field.name for field in fields(SampleRow)]


def make_row(i: int) -> SampleRow:
    return SampleRow(
        key=f"é_{i}" if i % 7 == 0 else f"k400_{i}",
        shard=f"train-{i // 400:06d}.tar",
        offset=(i % 400) << 25,
        size_bytes=1_000_000 + i * i % 1_000_003,
        label=i % 400 - 1,
        source_id="-_" + hashlib.md5(str(i).encode()).hexdigest()[:9],
        duration_s=10 - i % 3 / 7,
        video_fps=(25.0, 30000 / 1001)[i % 2],
        width=128 + i % 2,
        height=96,
        num_frames=300 - i % 3,
        sha256=hashlib.sha256(str(i).encode()).hexdigest(),
    )


@pytest.fixture(scope="module")
def rows() -> list[SampleRow]:
    return [make_row(i) for i in range(NUM_ROWS)]


@pytest.fixture(scope="module")
def url(rows: list[SampleRow], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with an index of five whole row groups and a short one."""
    folder = str(tmp_path_factory.mktemp("index"))
    write_index(folder, "train", rows)
    return folder


class CountingStore(LocalStore):
    """A folder that notes what is read of its files; reading a whole file is refused."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.ranges: list[tuple[int, int]] = []

    def get_bytes(self, key: str) -> bytes:
        raise AssertionError(f"{key} was read whole")

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        self.ranges.append((offset, size_bytes))
        return super().get_range(key, offset, size_bytes)

    def take(self) -> int:
        """Return the bytes read since the last call."""
        size_bytes = sum(size_bytes for _, size_bytes in self.ranges)
        self.ranges.clear()
        return size_bytes


def footer_bytes(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[-8:-4], "little") + 8


def group_bytes(path: Path, names: Sequence[str] = NAMES) -> list[int]:
    """Return the compressed size of some columns in each row group."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return [sum(group.column(NAMES.index(name)).total_compressed_size for name in names) for group in groups]


def test_every_row_comes_back_equal(url: str, rows: list[SampleRow]) -> None:
    index = read_index(url, "train")
    assert len(index) == NUM_ROWS
    assert index.rows(range(NUM_ROWS)) == rows
    # Keys are text, numbers are numbers: what goes into messages and JSON is plain Python.
    assert {type(value) for value in asdict(index.row(5)).values()} == {str, int, float}


@given(st.lists(st.integers(0, NUM_ROWS - 1), max_size=60))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_in_the_order_asked_for(url: str, rows: list[SampleRow], samples: list[int]) -> None:
    expected = [rows[i] for i in samples]
    index = read_index(url, "train")
    assert index.rows(samples) == expected
    assert index.rows(np.array(samples, dtype=np.int64)) == expected
    assert [index.row(i) for i in samples] == expected


@pytest.mark.parametrize("i", [-1, NUM_ROWS, 10**9])
def test_a_sample_that_is_not_there_is_an_error(url: str, i: int) -> None:
    with pytest.raises(IndexError, match=rf"train\.parquet has {NUM_ROWS} samples, none with the number {i}"):
        read_index(url, "train").rows([0, i])


@pytest.mark.parametrize("name", NAMES)
def test_a_column_is_that_of_all_rows(url: str, rows: list[SampleRow], name: str) -> None:
    index = read_index(url, "train")
    column = index.column(name)
    assert column.tolist() == [getattr(row, name) for row in rows]
    assert column.dtype == {str: object, float: "f8"}.get(
        type(getattr(rows[0], name)), "i8" if name in ("offset", "size_bytes") else "i4"
    )
    # Also where all is in memory already.
    index.rows(range(0, NUM_ROWS, 100))
    assert np.array_equal(index.column(name), column)


def test_columns_are_read_together(url: str, rows: list[SampleRow]) -> None:
    columns = read_index(url, "train").columns(["sha256", "shard", "offset"])
    assert list(columns) == ["sha256", "shard", "offset"]
    found = list(zip(*(columns[name].tolist() for name in columns), strict=True))
    assert found == [(row.sha256, row.shard, row.offset) for row in rows]


def test_only_what_is_needed_is_read(url: str) -> None:
    path = Path(url, "train.parquet")
    store = CountingStore(url)
    index = SampleIndex(store, "train")
    assert len(index) == NUM_ROWS
    assert len(store.ranges) == 1
    # The size of the first read is a guess; nothing but the footer is needed.
    assert store.take() <= max(footer_bytes(path), 128 << 10) < path.stat().st_size / 3
    groups = group_bytes(path)

    index.row(ROW_GROUP)
    assert store.ranges == [(4 + groups[0], groups[1])]
    assert store.take() == groups[1]
    index.rows([ROW_GROUP + 1, 2 * ROW_GROUP - 1])
    assert store.take() == 0, "the row group is still in memory"
    index.rows([0, NUM_ROWS - 1, ROW_GROUP, 1])
    assert store.take() == groups[0] + groups[-1]

    index = SampleIndex(store, "train")
    store.take()
    index.column("label")
    assert store.take() == sum(group_bytes(path, ["label"])) < 10_000
    index.columns(["key", "sha256"])
    assert store.take() == sum(group_bytes(path, ["key", "sha256"]))
    index.row(0)
    store.take()
    index.column("label")
    assert store.take() == sum(group_bytes(path, ["label"])[1:])


def test_a_footer_longer_than_the_first_guess_is_fetched(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vast.remote_parquet._TAIL_BYTES", 1000)
    store = CountingStore(url)
    index = SampleIndex(store, "train")
    assert store.take() == footer_bytes(Path(url, "train.parquet"))
    assert index.row(3) == make_row(3)


def test_a_shuffled_epoch_reads_each_row_group_once(url: str, rows: list[SampleRow]) -> None:
    store = CountingStore(url)
    index = SampleIndex(store, "train")
    samples = list(range(NUM_ROWS))
    random.Random(0).shuffle(samples)
    store.take()
    for start in range(0, NUM_ROWS, 64):
        batch = samples[start : start + 64]
        assert index.rows(batch) == [rows[i] for i in batch]
    assert store.take() == sum(group_bytes(Path(url, "train.parquet")))


def test_memory_is_bounded_and_the_latest_row_groups_stay(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CountingStore(url)
    index = SampleIndex(store, "train")
    index.row(0)
    (group,) = index._kept.values()
    assert 100 * ROW_GROUP < group.size_bytes < 250 * ROW_GROUP
    monkeypatch.setattr(sample_index, "KEPT_BYTES", int(3.5 * group.size_bytes))
    for i in (1, 2, 0, 3):
        index.row(i * ROW_GROUP)
    assert list(index._kept) == [2, 0, 3]
    index.rows(range(NUM_ROWS))
    assert sum(group.size_bytes for group in index._kept.values()) <= sample_index.KEPT_BYTES
    store.take()
    index.column("key")
    assert list(index._kept) == [2, 3, 4, 5], "scanning a column drops nothing"
    monkeypatch.setattr(sample_index, "KEPT_BYTES", 1)
    assert index.row(7) == make_row(7)
    assert list(index._kept) == [0]


def _look_up(index: SampleIndex, samples: list[int]) -> list[SampleRow]:
    return index.rows(samples)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_it_may_be_pickled_and_used_after_a_fork(url: str, rows: list[SampleRow], method: str) -> None:
    index = read_index(url, "train")
    samples = [1, NUM_ROWS - 1, ROW_GROUP, 2 * ROW_GROUP]
    index.rows(samples[:2])
    copy = pickle.loads(pickle.dumps(index))
    assert copy.rows(samples) == [rows[i] for i in samples]
    context: BaseContext = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        assert pool.apply_async(_look_up, (index, samples)).get(timeout=60) == [rows[i] for i in samples]
    assert len(pickle.dumps(index)) < 20_000, "rows that were read do not go with it"


def test_threads_may_share_it(url: str, rows: list[SampleRow], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_index, "KEPT_BYTES", 1 << 20)
    index = read_index(url, "train")
    draw = random.Random(0)
    batches = [[draw.randrange(NUM_ROWS) for _ in range(5)] for _ in range(60)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(index.rows, batches)) == [[rows[i] for i in batch] for batch in batches]


@pytest.mark.parametrize("num_rows", [1, ROW_GROUP - 1, ROW_GROUP, 2 * ROW_GROUP + 1])
def test_how_rows_were_batched_leaves_no_trace(tmp_path: Path, rows: list[SampleRow], num_rows: int) -> None:
    def batches(size: int) -> Iterator[list[SampleRow]]:
        left = iter(rows[:num_rows])
        while batch := list(islice(left, size)):
            yield batch

    contents = set()
    for size in (1, 400, 2 * ROW_GROUP, num_rows):
        with IndexWriter(str(tmp_path / str(size)), "train") as writer:
            for batch in batches(size):
                writer.append(batch)
            sha256 = writer.finish()
        content = (tmp_path / str(size) / "train.parquet").read_bytes()
        assert sha256 == hashlib.sha256(content).hexdigest()
        contents.add(content)
    assert write_index(str(tmp_path / "at once"), "train", iter(rows[:num_rows])) == sha256
    assert len(contents) == 1


def test_any_parquet_reader_reads_it(url: str, rows: list[SampleRow]) -> None:
    table = pq.read_table(Path(url, "train.parquet"))
    assert table.column_names == NAMES
    assert table.to_pylist() == [asdict(row) for row in rows]


def test_an_index_that_is_not_finished_is_not_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch, data = tmp_path / "scratch", tmp_path / "data"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def interrupted() -> None:
        with IndexWriter(str(data), "train") as writer:
            writer.append([make_row(0)])
            assert list(scratch.iterdir()) != []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not data.exists()
    write_index(str(data), "train", [make_row(0)])
    assert [path.name for path in data.iterdir()] == ["train.parquet"]
    assert list(scratch.iterdir()) == [], "temporary files are removed"


def test_an_empty_index_is_an_index(tmp_path: Path) -> None:
    write_index(str(tmp_path), "val", [])
    index = read_index(str(tmp_path), "val")
    assert len(index) == 0
    assert index.rows([]) == []
    columns = index.columns(["label", "key"])
    assert [columns[name].dtype for name in ("label", "key")] == ["i4", object]
    with pytest.raises(IndexError):
        index.row(0)


def test_an_index_of_one_large_row_group_is_read(tmp_path: Path, rows: list[SampleRow]) -> None:
    # As any other tool writes it, and older versions of this one did.
    table = pa.Table.from_pylist([asdict(row) for row in rows]).cast(pq.read_schema(_written(tmp_path / "model")))
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train.parquet", compression="zstd")
    index = read_index(str(tmp_path / "data"), "train")
    assert index.rows([0, NUM_ROWS - 1]) == [rows[0], rows[-1]]


def _written(folder: Path) -> Path:
    write_index(str(folder), "train", [make_row(0)])
    return folder / "train.parquet"


def _without_label(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns("label"), path)


def _label_as_text(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(4, "label", table.column("label").cast(pa.string())), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1 not really"), "does not end as a parquet file"),
        (lambda path: path.write_bytes(b""), "does not end as a parquet file"),
        (lambda path: path.write_bytes(b"PAR1"), "does not end as a parquet file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "does not end as a parquet file"),
        (lambda path: path.write_bytes(b"PAR1" + bytes(100) + b"\x60\0\0\0PAR1"), ""),
        (lambda path: path.write_bytes(b"PAR1" + b"\xff\xff\xff\xffPAR1"), "does not end as a parquet file"),
        (_without_label, "has no column 'label'"),
        (_label_as_text, "column 'label' is string, expected int32"),
    ],
)
def test_a_file_that_is_no_index_says_so(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(_written(tmp_path))
    with pytest.raises(UserError, match=rf"train\.parquet is no sample index: .*{message}.*`vast data verify"):
        read_index(str(tmp_path), "train")


def test_a_changed_byte_is_never_taken_for_a_row(tmp_path: Path) -> None:
    rows = [make_row(i) for i in range(50)]
    write_index(str(tmp_path), "train", rows)
    path = tmp_path / "train.parquet"
    content = path.read_bytes()
    (data_bytes,) = group_bytes(path)
    draw = random.Random(0)
    found = 0
    for position in draw.sample(range(4, 4 + data_bytes), 150):
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            assert read_index(str(tmp_path), "train").rows(range(50)) == rows
        except StoreError as error:
            found += "train.parquet: samples 0..49 cannot be read" in str(error)
    # The rest hit page headers' fields that say nothing about the values.
    assert found > 130


def test_a_file_that_was_replaced_or_cut_says_so(tmp_path: Path) -> None:
    path = _written(tmp_path)
    index = read_index(str(tmp_path), "train")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"train\.parquet"):
        index.row(0)
    write_index(str(tmp_path), "train", [replace(make_row(1), key="other")] * 30)
    with pytest.raises(StoreError, match="the file is damaged or was replaced"):
        index.row(0)
    path.unlink()
    with pytest.raises(StoreError, match=r"there is no train\.parquet"):
        index.row(0)
