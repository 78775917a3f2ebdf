import pickle
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pyarrow.fs as pafs
import pytest

from pipelines.training import ray_storage
from pipelines.training.ray_storage import patiently, storage_for
from vast.errors import ObjectDamaged, ObjectMissing, StoreError
from vast.storage import LocalStore


def test_what_ray_train_does_with_its_storage(tmp_path: Path) -> None:
    given = storage_for(str(tmp_path))
    fs: pafs.FileSystem = pickle.loads(pickle.dumps(given["storage_filesystem"]))
    assert fs == given["storage_filesystem"]  # a checkpoint counts as the run's own only where these are equal
    run = f"{given['storage_path']}/run"
    fs.create_dir(run)
    with fs.open_output_stream(f"{run}/.validate_storage_marker"):
        pass
    with fs.open_output_stream(f"{run}/snapshot.json") as file:
        file.write(b"one")
        file.write(b"two")
    assert (tmp_path / "run" / "snapshot.json").read_bytes() == b"onetwo"
    with fs.open_input_stream(f"{run}/snapshot.json") as file:
        assert file.read() == b"onetwo"
    names = [run, f"{run}/.validate_storage_marker", f"{run}/snapshot.json", f"{run}/nothing"]
    kinds = [info.type for info in fs.get_file_info(names)]
    assert kinds == [pafs.FileType.Directory, pafs.FileType.File, pafs.FileType.File, pafs.FileType.NotFound]
    fs.delete_dir(run)
    assert fs.get_file_info(run).type == pafs.FileType.NotFound
    assert not (tmp_path / "run").exists()
    with pytest.raises(FileNotFoundError):
        fs.open_input_stream(f"{run}/snapshot.json")


def test_a_record_is_replaced_in_one_piece(tmp_path: Path) -> None:
    given = storage_for(str(tmp_path))
    fs, path = given["storage_filesystem"], f"{given['storage_path']}/snapshot.json"
    for text in (b"old", b"new"):
        with fs.open_output_stream(path) as file:
            file.write(text)
            assert (tmp_path / "snapshot.json").exists() == (text == b"new")
            assert text == b"old" or (tmp_path / "snapshot.json").read_bytes() == b"old"
    assert (tmp_path / "snapshot.json").read_bytes() == b"new"


@pytest.fixture
def _quick() -> Iterator[None]:
    with mock.patch.multiple(ray_storage, _FIRST_WAIT_S=0.001, _LONGEST_WAIT_S=0.001):
        yield


@pytest.mark.usefixtures("_quick")
def test_a_store_that_comes_back_is_no_failure(tmp_path: Path) -> None:
    given = storage_for(str(tmp_path))
    whole, failures = LocalStore.put_bytes, iter([StoreError("refused")] * 3)

    def flaky(self: LocalStore, key: str, data: bytes) -> object:
        for error in failures:
            raise error
        return whole(self, key, data)

    with (
        mock.patch.object(LocalStore, "put_bytes", flaky),
        given["storage_filesystem"].open_output_stream(f"{given['storage_path']}/x") as file,
    ):
        file.write(b"data")
    assert (tmp_path / "x").read_bytes() == b"data"


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("answer", [ObjectMissing, ObjectDamaged])
def test_patience_ends_and_an_answer_needs_none(answer: type[StoreError]) -> None:
    calls = []

    def fail(error: StoreError) -> None:
        calls.append(error)
        raise error

    with pytest.raises(StoreError, match="down"):
        patiently(lambda: fail(StoreError("down")), patience_s=0.05)
    assert len(calls) > 1
    calls.clear()
    with pytest.raises(answer):
        patiently(lambda: fail(answer("nothing")), patience_s=60)
    assert len(calls) == 1
