import os
import subprocess
import sys
from pathlib import Path

import pytest

from preprocessing.scratch import shard_folder
from vast.errors import UserError


def test_the_folder_is_there_for_a_while_and_then_gone(tmp_path: Path) -> None:
    with shard_folder(tmp_path / "new", 0) as folder:
        (folder / "clip.mp4").write_bytes(b"x")
        assert folder.parent == tmp_path / "new"
        with shard_folder(tmp_path / "new", 0) as other:
            assert folder.is_dir(), "the folder of a writer that lives stays"
            assert other != folder
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from preprocessing.scratch import shard_folder
with shard_folder(Path({str(tmp_path)!r}), 0) as folder:
    (folder / "clip.mp4").write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    (left,) = tmp_path.iterdir()
    (tmp_path / "vast-shard-of-somebody-else").mkdir()
    with shard_folder(tmp_path, 0):
        assert not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["vast-shard-of-somebody-else"]


def test_too_little_room_is_said_in_people_s_words(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"--scratch: .* GB free, a shard needs 1000000\.3 GB"),
        shard_folder(tmp_path, 10**15, wait_s=0),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=rf"--scratch: cannot use .* on {os.uname().nodename}"),
        shard_folder(tmp_path / "file" / "folder", 0),
    ):
        pass
