import json
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from pipelines.training import uploads
from pipelines.training.uploads import MARKER, MAX_BEHIND, TornCheckpointError, Uploads, get_checkpoint, put_checkpoint
from vast.errors import StoreError
from vast.storage import LocalStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "train_state.pt").write_bytes(b"state" * 100)
    return folder


@pytest.fixture
def stored(folder: Path, tmp_path: Path) -> Path:
    put_checkpoint(str(tmp_path / "stored"), folder)
    return tmp_path / "stored"


def fetched(url: Path, tmp_path: Path) -> dict[str, bytes]:
    target = tmp_path / "fetched"
    target.mkdir()
    get_checkpoint(str(url), target)
    return {path.name: path.read_bytes() for path in target.iterdir()}


def test_a_checkpoint_comes_back_as_it_was(folder: Path, stored: Path, tmp_path: Path) -> None:
    assert fetched(stored, tmp_path) == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["model.safetensors", "train_state.pt", MARKER])
@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_a_torn_checkpoint_is_never_used(stored: Path, tmp_path: Path, name: str, damage: str) -> None:
    data = (stored / name).read_bytes()
    (stored / name).unlink()
    if damage == "short":
        (stored / name).write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        (stored / name).write_bytes(data[:10] + bytes([data[10] ^ 1]) + data[11:])
    with pytest.raises(TornCheckpointError):
        fetched(stored, tmp_path)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped-vast", "a/../../escaped", "..", ""])
def test_a_listing_cannot_name_files_elsewhere(stored: Path, tmp_path: Path, name: str) -> None:
    listing = json.loads((stored / MARKER).read_text())
    (tmp_path / "escaped").write_bytes(b"mine")
    listing["files"] = {name: next(iter(listing["files"].values()))}
    (stored / MARKER).write_text(json.dumps(listing))
    with pytest.raises(TornCheckpointError, match="no plain file name"):
        fetched(stored, tmp_path)
    assert (tmp_path / "escaped").read_bytes() == b"mine"
    assert list((tmp_path / "fetched").iterdir()) == []


@pytest.mark.parametrize("survives", range(4))
def test_an_upload_cut_off_anywhere_leaves_no_checkpoint(
    folder: Path, stored: Path, tmp_path: Path, survives: int
) -> None:
    calls = iter(range(99))

    def cut(kind: str) -> object:
        whole = getattr(LocalStore, kind)

        def maybe(self: LocalStore, *arguments: object) -> object:
            if next(calls) >= survives:
                raise KeyboardInterrupt
            return whole(self, *arguments)

        return mock.patch.object(LocalStore, kind, maybe)

    (folder / "train_state.pt").write_bytes(b"another state")
    with cut("delete"), cut("put_file"), cut("put_bytes"), pytest.raises(KeyboardInterrupt):  # type: ignore[attr-defined]
        put_checkpoint(str(stored), folder)
    if survives == 0:  # nothing was touched
        assert fetched(stored, tmp_path)["train_state.pt"] == b"state" * 100
    else:
        with pytest.raises(TornCheckpointError):
            fetched(stored, tmp_path)


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    with mock.patch.multiple(uploads, _FIRST_WAIT_S=0.01, _LONGEST_WAIT_S=0.01):
        yield


@pytest.mark.usefixtures("_no_waiting")
def test_a_store_that_fails_for_a_while_delays_the_upload_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    pending = Uploads(patience_s=60, note=notes.append)
    failures = iter([StoreError("no answer")] * 5)

    def flaky(url: str, folder: Path) -> None:
        for error in failures:
            raise error
        put_checkpoint(url, folder)

    def before() -> None:
        assert not (tmp_path / "stored").exists()
        for error in failures:
            raise error

    with mock.patch.object(uploads, "put_checkpoint", flaky):
        pending.admit(10)
        pending.store(str(tmp_path / "stored"), folder, before=before)
    assert next(failures, None) is None
    assert json.loads((tmp_path / "stored" / MARKER).read_text())["files"].keys() == {
        "model.safetensors",
        "train_state.pt",
    }
    assert len(notes) == 2
    assert "training goes on" in notes[0]
    assert "s late" in notes[1]


@pytest.mark.usefixtures("_no_waiting")
def test_training_waits_when_too_many_are_behind_and_says_why_it_ends(folder: Path, tmp_path: Path) -> None:
    pending = Uploads(patience_s=0.2, note=lambda text: None)
    with mock.patch.object(uploads, "put_checkpoint", side_effect=StoreError("s3://bucket: no answer")):
        for step in range(MAX_BEHIND):
            pending.admit(step)

        def upload() -> None:
            with pytest.raises(StoreError):
                pending.store("x", folder)

        thread = threading.Thread(target=upload)
        thread.start()
        with pytest.raises(StoreError, match=r"4 are waiting.*stops at step 9.*s3://bucket: no answer"):
            pending.admit(9)
        pending.end()  # now the store's last chance runs out
        thread.join(timeout=30)
    assert not thread.is_alive()
