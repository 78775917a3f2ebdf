from pathlib import Path

import pytest

from preprocessing.records import kinetics_key, list_videos, raise_problems
from vast.errors import UserError


def test_a_folder_is_listed_whole_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/x.WEBM", "a/._x.mp4", ".hidden/y.mp4", "notes.txt", "-c d.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    videos = list_videos(tmp_path)
    assert sorted(video.source_name for video in videos) == ["-c d.mkv", "a/x.WEBM", "b.mp4"]
    assert videos == list_videos(str(tmp_path))
    assert all(Path(video.path).is_absolute() and Path(video.path).is_file() for video in videos)


def test_no_folder_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder of videos"):
        list_videos(tmp_path / "none")


def test_start_is_part_of_a_kinetics_key() -> None:
    assert kinetics_key("k400", "-_abcdefghi", 7) == "k400_-_abcdefghi_000007"


def test_problems_are_shown_together_but_not_without_end() -> None:
    raise_problems("x.csv", [])
    with pytest.raises(UserError) as caught:
        raise_problems("x.csv", [f"line {i}" for i in range(14)])
    assert str(caught.value).splitlines()[0] == "x.csv: 14 problem(s)"
    assert str(caught.value).splitlines()[-1] == "  and 4 more"
