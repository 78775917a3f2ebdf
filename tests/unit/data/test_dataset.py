import io
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest

from vast.data.dataset import ShardDataset
from vast.errors import StoreError, UserError


@pytest.fixture
def damaged_url(data_url: str, tmp_path: Path) -> str:
    """The data set with one changed byte in training sample 11."""
    folder = tmp_path / "damaged"
    shutil.copytree(data_url, folder)
    row = ShardDataset(data_url, "train").index.row(11)
    with open(folder / row.shard, "r+b") as file:
        file.seek(row.offset + row.size_bytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return str(folder)


def test_every_sample_is_the_member_of_its_shard(data_url: str) -> None:
    dataset = ShardDataset(data_url, "train")
    assert len(dataset) == 23
    assert dataset.classes[dataset.index.row(1).label] == "Pulling something from left to right"
    for i in range(len(dataset)):
        row = dataset.index.row(i)
        with tarfile.open(Path(data_url) / row.shard) as tar:
            member = tar.extractfile(f"{row.key}.mp4")
            assert member is not None
            assert dataset.read(i) == member.read()


def test_a_changed_byte_is_found_and_named(damaged_url: str) -> None:
    dataset = ShardDataset(damaged_url, "train")
    row = dataset.index.row(11)
    with pytest.raises(StoreError) as caught:
        dataset.read(11)
    text = str(caught.value)
    assert "train_011 in train-000001.tar" in text
    assert f"bytes {row.offset}..{row.offset + row.size_bytes - 1}" in text
    assert damaged_url in text
    assert dataset.read(10)


def test_a_shard_that_ends_too_early_is_named(data_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    shutil.copytree(data_url, folder)
    dataset = ShardDataset(str(folder), "train")
    row = dataset.index.row(22)
    with open(folder / row.shard, "r+b") as file:
        file.truncate(row.offset + 10)
    with pytest.raises(StoreError, match=r"sample train_022 in train-000002\.tar, bytes \d+\.\.\d+: "):
        dataset.read(22)


def test_a_read_that_goes_wrong_once_is_repeated(data_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShardDataset(data_url, "train")
    right = dataset.read(3)
    answers = [right[:-1] + bytes([right[-1] ^ 1]), right]
    monkeypatch.setattr(dataset.source._store, "get_range", lambda *_: answers.pop(0))
    assert dataset.read(3) == right
    assert answers == []


def test_it_can_be_pickled(data_url: str) -> None:
    dataset = ShardDataset(data_url, "val")
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == 7
    assert copy.read(6) == dataset.read(6)


def test_an_unknown_split_or_place_is_a_user_error(data_url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'test'.*train, val"):
        ShardDataset(data_url, "test")
    with pytest.raises(UserError, match="no data set at"):
        ShardDataset(str(tmp_path), "train")
