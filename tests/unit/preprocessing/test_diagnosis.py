"""A run whose input is wrong says what is wrong with it, from the data and not from guesses."""

from pathlib import Path

import pytest

from preprocessing.diagnosis import FailureLimit, diagnose, parse_limit
from preprocessing.kinetics import read_kinetics
from preprocessing.records import Annotations, Failure
from vast.errors import UserError

HEADER = "label,youtube_id,time_start,time_end\n"


def ids(count: int, first: int = 0) -> list[str]:
    return [f"-a_{number:08d}" for number in range(first, first + count)]


def row(video_id: str, start: int = 10, label: str = "yoga") -> str:
    return f"{label},{video_id},{start},{start + 10}\n"


def read(tmp_path: Path, names: list[str], train: list[str], val: list[str] | None = None) -> Annotations:
    folder, media = tmp_path / "lists", tmp_path / "videos"
    folder.mkdir()
    media.mkdir()
    (folder / "train.csv").write_text(HEADER + "".join(map(row, train)))
    (folder / "val.csv").write_text(HEADER + "".join(map(row, val or [])))
    for name in names:
        (media / name).parent.mkdir(parents=True, exist_ok=True)
        (media / name).touch()
    return read_kinetics(folder, media)


def said(found: Annotations) -> str:
    return "\n".join(diagnose(found))


def test_nothing_is_said_where_nothing_failed(tmp_path: Path) -> None:
    assert diagnose(read(tmp_path, [f"{video_id}.mp4" for video_id in ids(5)], ids(5))) == []


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    text = said(read(tmp_path, [], ids(12)))
    assert "12 of 12 records have no file; 0 names match. The first: no -a_00000000_000010_000020" in text
    assert "the folder of raw files has no file that could be asked for" in text


def test_names_of_another_kind_are_shown_beside_those_that_are_asked_for(tmp_path: Path) -> None:
    text = said(read(tmp_path, [f"air_drumming/{number}.mp4" for number in range(7)] + ["x/holiday.mp4"], ids(12)))
    assert "no -a_00000000_000010_000020 and no -a_00000000 with a video suffix" in text
    assert "8 files are asked for by no record: 7 named by a number as air_drumming/0.mp4, 1 of other names" in text
    assert "8 lie in 2 sub-folders or archives as air_drumming" in text
    assert "another split" not in text


def test_files_of_another_split_or_version_are_told(tmp_path: Path) -> None:
    names = [f"{video_id}_000010_000020.mp4" for video_id in ids(9, first=100)]
    text = said(read(tmp_path, names, ids(12)))
    assert "9 files are asked for by no record: 9 named id_start_end as -a_00000100_000010_000020.mp4" in text
    assert "none of these is of a listed video: perhaps of another split or version than train here" in text


def test_a_split_that_lies_elsewhere_is_named(tmp_path: Path) -> None:
    text = said(read(tmp_path, [f"{video_id}.mp4" for video_id in ids(3, first=50)], ids(12), ids(3, first=50)))
    assert "12 of 15 records have no file; 3 names match" in text
    assert "no record of train has a file (12 missing) but val has 3: is it elsewhere?" in text


def test_clips_cut_at_other_times_are_told(tmp_path: Path) -> None:
    names = [f"{video_id}_000011_000021.mp4" for video_id in ids(4)]
    text = said(read(tmp_path, names, ids(12)))
    assert "4 of these, as -a_00000000_000011_000021.mp4, are of videos whose records have no file" in text
    assert "another split" not in text


def test_names_in_lower_case_are_told(tmp_path: Path) -> None:
    upper = [video_id.upper() for video_id in ids(4)]
    text = said(read(tmp_path, [f"{video_id}_000010_000020.mp4" for video_id in ids(4)], upper))
    assert (
        "4 of these, as -a_00000000_000010_000020.mp4, are ids of missing records but for upper and lower case" in text
    )


def test_ids_inside_other_names_are_told(tmp_path: Path) -> None:
    names = [f"Some title-{video_id}_256p.mp4" for video_id in ids(4)] + ["other.mp4"]
    text = said(read(tmp_path, names, ids(12)))
    assert "4 of 5 other names hold the id of a missing record, as Some title--a_00000000_256p.mp4" in text


def test_padded_numbers_are_told() -> None:
    failures = tuple(Failure(f"ssv2_{n}", "train", str(n), "", "match", "missing", f"no {n}") for n in (7, 8))
    found = Annotations("ssv2", ("a",), (), failures, {}, ("007.webm", "008.webm", "0.webm"))
    assert "2 of these, as 007.webm, are ids of missing records but for zeros in front" in said(found)


def test_conflicts_ambiguities_and_repeated_lines_are_counted_with_an_example(tmp_path: Path) -> None:
    names = [f"zumba/{video_id}.mp4" for video_id in ids(3)]
    names += [f"{folder}/{video_id}.mp4" for folder in "ab" for video_id in ids(2, first=50)]
    names += [f"{ids(1, first=90)[0]}.mp4"]
    text = said(read(tmp_path, names, ids(3) + ids(2, first=50) + ids(1, first=90) * 2))
    assert "3 of 7 records have a file in the place of another class; 3: the line says 'yoga', the file's place" in text
    assert "2 of 7 records could have more than one file or clip, as: several files: a/-a_00000050.mp4, b/" in text
    assert "1 of 7 records repeat an earlier line, as k400_-a_00000090_000010" in text
    assert "have no file" not in text


def test_odd_names_do_not_stop_the_diagnosis() -> None:
    failures = tuple(
        Failure(f"x_{n}", "train", source_id, "", "match", "missing", "no file")
        for n, source_id in enumerate(("é/ü", "x" * 500, "", "a\nb", "../../x"))
    )
    unlisted = ("\udcff.mp4", "é" * 300 + ".mp4", "/.mp4", ".mp4", "", "a/b/c", "\n", "-" * 400 + ".mp4")
    assert "5 of 5 records have no file" in said(Annotations("x", ("a",), (), failures, {}, unlisted))


def test_of_very_many_files_only_some_are_looked_at() -> None:
    failures = (Failure("x", "train", "abcdefghijk", "", "match", "missing", "no file"),)
    unlisted = tuple(f"{number}.mp4" for number in range(150_001))
    text = said(Annotations("x", ("a",), (), failures, {}, unlisted))
    assert "150 001 files are asked for by no record; of 37 501 of them: 37 501 named by a number as 0.mp4" in text


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5%", FailureLimit(0.05, True)),
        (" 12.5 % ", FailureLimit(0.125, True)),
        ("0.05", FailureLimit(0.05, True)),
        (".5", FailureLimit(0.5, True)),
        ("1.0", FailureLimit(1.0, True)),
        ("0%", FailureLimit(0.0, True)),
        ("100%", FailureLimit(1.0, True)),
        ("120", FailureLimit(120, False)),
        ("1", FailureLimit(1, False)),
        ("0", FailureLimit(0, False)),
    ],
)
def test_a_limit_is_a_share_or_a_number(text: str, expected: FailureLimit) -> None:
    assert parse_limit(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "five", "101%", "1.5", "nan", "inf", "0,05", "5%%", "%", ".", "1e-2", "٥"])
def test_what_is_no_limit_is_refused_with_examples(text: str) -> None:
    with pytest.raises(
        UserError, match=r"is no limit of failures; expected a share as 5% or 0\.05, or a number as 120"
    ):
        parse_limit(text)


def test_a_number_becomes_a_share_of_the_records() -> None:
    assert parse_limit("5%").share_of(10) == 0.05
    assert parse_limit("120").share_of(1000) == pytest.approx(0.12)
    assert parse_limit("120").share_of(100) == 1.0
    assert parse_limit("0").share_of(0) == 0.0
    for total in (1, 49, 98, 103, 600):  # as many failures as allowed must pass, one more must not
        for count in range(total):
            assert count <= parse_limit(str(count)).share_of(total) * total < count + 1
