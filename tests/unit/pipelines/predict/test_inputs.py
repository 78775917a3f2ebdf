import pytest

from pipelines.predict.inputs import find_videos
from vast.errors import UserError


def test_files_folders_and_prefixes_each_once(tmp_path, monkeypatch):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("a/1.mp4", "a/deep/2.WEBM", "a/notes.txt", "b.bin"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    found = find_videos(["a", "a/1.mp4", "b.bin", "a"])
    assert [video.name for video in found] == ["a/1.mp4", "a/deep/2.WEBM", "b.bin"]  # a named file may have any name
    assert [video.read().decode() for video in found] == ["a/1.mp4", "a/deep/2.WEBM", "b.bin"]


@pytest.mark.parametrize("word", ["missing.mp4", "empty"])
def test_a_word_that_means_nothing_is_refused(tmp_path, monkeypatch, word):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"VIDEO: {word}: no such file"):
        find_videos([word])
