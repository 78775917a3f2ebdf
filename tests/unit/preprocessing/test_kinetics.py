"""Every layout and every trap of the Kinetics copies in circulation, on made-up ids and empty files."""

import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing import kinetics
from preprocessing.class_lists import class_list
from preprocessing.kinetics import file_key, read_kinetics, size_notes
from preprocessing.records import AMBIGUOUS, CONFLICT, DUPLICATE, MISSING, Annotations
from preprocessing.sources import Sources, VideoFile
from vast.dataset_format import UNLABELLED
from vast.errors import UserError

IDS = ("-abcdefghij", "_a_bcdefgh_", "abcdefghijk", "ABCDEFGHIJK", "--_-_-__--_")
HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
K400 = class_list("kinetics400").names
HEAD = "massaging person's head"


def rows(*ids: str, label: str = "air drumming", start: int = 5, split: str = "train") -> str:
    return "".join(f'"{label}",{video_id},{start},{start + 10},{split},0\n' for video_id in ids)


def lists(folder: Path, **content: str | bytes) -> Path:
    """Write train.csv and so on; `__` in a name stands for a dot."""
    folder.mkdir(exist_ok=True)
    for name, text in content.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / (name.replace("__", ".") if "__" in name else f"{name}.csv")).write_bytes(data)
    return folder


def videos(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def clip(video_id: str, start: int = 5) -> str:
    return f"{video_id}_{start:06d}_{start + 10:06d}.mp4"


def read(tmp_path: Path, train: str | bytes, *names: str, **options: object) -> Annotations:
    """Read one train.csv and a folder of files with these names."""
    folder = lists(tmp_path / "lists", train=train)
    return read_kinetics(folder, videos(tmp_path / "videos", *names), **{"splits": ("train",), **options})


def reasons(found: Annotations) -> dict[str, str]:
    return {failure.key: failure.reason for failure in found.failures}


def notes(found: Annotations) -> str:
    return "\n".join(found.notes)


# --- annotation lists -------------------------------------------------------------------------------------------------


def test_columns_are_found_by_name_wherever_they_stand(tmp_path: Path) -> None:
    text = f"Split, time_end, time_start, YouTube_ID, label\ntrain, 15, 5, {IDS[0]}, yoga\n"
    (record,) = read(tmp_path, text, clip(IDS[0])).records
    assert (record.source_id, K400[record.label], record.start_s, record.end_s) == (IDS[0], "yoga", 5, 15)


@pytest.mark.parametrize(
    ("header", "lacking"),
    [
        ("label,id", "youtube_id, time_start, time_end"),
        ("label,youtube_id,start,time_end", "time_start"),
        ("path,label", "youtube_id, time_start, time_end"),
    ],
)
def test_a_lacking_column_is_named_with_the_header_that_was_found(tmp_path: Path, header: str, lacking: str) -> None:
    with pytest.raises(UserError, match=rf"no column {lacking}; the header is: {header.replace(',', ', ')}"):
        read(tmp_path, f"{header}\nx,y,z,w\n")


def test_a_test_list_without_labels_gives_unlabelled_records(tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists", test=f"youtube_id,time_start,time_end,split\n{IDS[0]},5,15,test\n")
    found = read_kinetics(folder, videos(tmp_path / "videos", clip(IDS[0])), splits=("test",))
    assert [(record.split, record.label) for record in found.records] == [("test", UNLABELLED)]
    assert len(found.classes) == 400
    assert "test: the list has no labels; it can be packed and predicted, not trained or scored on" in found.notes


def test_a_test_list_with_empty_labels_is_unlabelled_but_not_half_of_it(tmp_path: Path) -> None:
    media = videos(tmp_path / "videos", clip(IDS[0]), clip(IDS[1]))
    folder = lists(tmp_path / "lists", test=HEADER + rows(*IDS[:2], label="", split="test"))
    found = read_kinetics(folder, media, splits=("test",))
    assert {record.label for record in found.records} == {UNLABELLED}
    lists(folder, test=HEADER + rows(IDS[0], label="", split="test") + rows(IDS[1], split="test"))
    with pytest.raises(UserError, match="1 of 2 labels are empty; expected all or none"):
        read_kinetics(folder, media, splits=("test",))


def test_is_cc_may_be_absent_and_times_may_be_floats(tmp_path: Path) -> None:
    text = f"label,youtube_id,time_start,time_end,split\nyoga,{IDS[0]},5.0,15.0,train\nyoga,{IDS[1]},7.9,1.7e1,train\n"
    found = read(tmp_path, text, clip(IDS[0]), f"{IDS[1]}_000007_000017.mp4")
    assert [(record.start_s, record.end_s) for record in found.records] == [(5, 15), (7, 17)]


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("-1", "9", "line 3: time_start -1, time_end 9; expected 0 <= start < end"),
        ("20", "15", "line 3: time_start 20, time_end 15"),
        ("5", "5", "line 3: time_start 5, time_end 5"),
        ("five", "15", "line 3: time_start, time_end are 'five', '15'; expected seconds"),
        ("nan", "15", "line 3: time_start, time_end are 'nan'"),
        ("5", "inf", "line 3: time_start, time_end are '5', 'inf'"),
        ("5", "1e999", "line 3: time_start, time_end are '5', '1e999'"),
        ("5", "1000000", "line 3: time_start 5, time_end 1000000"),
        ("", "", "line 3: time_start, time_end are '', ''"),
    ],
)
def test_impossible_times_are_refused_with_their_line(tmp_path: Path, start: str, end: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, f"{HEADER}{rows(IDS[0])}yoga,{IDS[1]},{start},{end},train,0\n")


def test_all_bad_lines_are_shown_at_once(tmp_path: Path) -> None:
    text = (
        f"yoga,short,5,15,train,0\nyoga,{IDS[0]},20,15,train,0\nyoga,{IDS[0]},five,15,train,0\n,{IDS[0]},1,2,train,0\n"
    )
    with pytest.raises(UserError) as caught:
        read(tmp_path, HEADER + text)
    for line in ("line 2: youtube_id is 'short'", "line 3: time_start 20", "line 4: time_start", "line 5: the label"):
        assert line in str(caught.value)


def test_a_wholly_broken_list_is_not_read_to_its_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"100 problem\(s\)"):
        read(tmp_path, HEADER + "yoga,short,5,15,train,0\n" * 5000)


def test_quoted_labels_lose_their_quotes_once(tmp_path: Path) -> None:
    label = "passing American football (in game)"
    text = (
        f'{HEADER}"{label}",{IDS[0]},5,15,train,0\n"""{label}""",{IDS[1]},5,15,train,0\n{label},{IDS[2]},5,15,train,0\n'
    )
    found = read(tmp_path, text, *map(clip, IDS[:3]))
    assert [K400[record.label] for record in found.records] == [label] * 3


def test_commas_in_class_texts_are_read_by_a_real_csv_reader(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("putting it down, slowly\nyoga\n")
    text = f'{HEADER}"putting it down, slowly",{IDS[0]},5,15,train,0\n'
    found = read(tmp_path, text, clip(IDS[0]), classes_file=tmp_path / "classes.txt")
    assert [found.classes[record.label] for record in found.records] == ["putting it down, slowly"]
    with pytest.raises(UserError, match="line 2: time_start, time_end are 'abcdefghijk', '5'"):
        read(tmp_path, f"{HEADER}putting it down, slowly,{IDS[2]},5,15,train,0\n")


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("train__csv", "kinetics400"),
        ("kinetics-400_train__csv", "kinetics400"),
        ("kinetics_400_train__csv", "kinetics400"),
        ("kinetics_train__csv", "kinetics700"),
        ("kinetics700_2020_train__csv", "kinetics700"),
        ("k600_train__txt", "kinetics600"),
    ],
)
def test_the_releases_names_of_a_list_are_known(tmp_path: Path, name: str, version: str) -> None:
    folder = lists(tmp_path / "lists", **{name: HEADER + rows(IDS[0])})
    found = read_kinetics(folder, videos(tmp_path / "videos", clip(IDS[0])), version=version, splits=("train",))
    assert len(found.records) == 1
    assert list(found.digests) == [name.replace("__", ".")]


def test_validate_is_val_as_a_file_name_and_as_a_value(tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists", validate=HEADER + rows(IDS[0], split="validate"))
    found = read_kinetics(folder, videos(tmp_path / "videos", clip(IDS[0])), splits=("val",))
    assert [record.split for record in found.records] == ["val"]
    assert "another split" not in notes(found)


def test_lines_that_say_they_are_of_another_split_are_noted(tmp_path: Path) -> None:
    found = read(tmp_path, HEADER + rows(*IDS[:2], split="test") + rows(IDS[2]))
    assert "train: lines of train.csv say that they are of another split: 'test' 2" in found.notes


def test_k600_s_txt_is_preferred_to_its_incomplete_csv(tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists", train=HEADER + rows(IDS[0]), train__txt=HEADER + rows(*IDS[:3]))
    media = videos(tmp_path / "videos", *map(clip, IDS[:3]))
    found = read_kinetics(folder, media, version="kinetics600", splits=("train",))
    assert len(found.records) == 3
    assert "train.txt is read and train.csv is not: the mirror marks it as incomplete" in notes(found)
    found = read_kinetics(folder, media, version="kinetics400", splits=("train",))
    assert list(found.digests) == ["train.csv"]


@pytest.mark.parametrize(
    "lines",
    [
        ["air drumming,{id},5,15,train", "yoga,{id},7,17,train"],
        ["{id}\t5\t15\tair drumming", "{id}\t7\t17\tyoga"],
        ["{id};air_drumming;5.0;15.0", "{id};yoga;7.0;17.0"],
        ["air drumming/{id}_000005_000015.mp4", "yoga/{id}_000007_000017.mp4"],
        ["train/air_drumming/{id}_000005_000015", "train/yoga/{id}_000007_000017"],
        ["{id}_000005_000015.mp4,air drumming", "{id}_000007_000017.mp4,yoga"],
        ["youtube_id\ttime_start\ttime_end\tlabel", "{id}\t5\t15\tair drumming", "{id}\t7\t17\tyoga"],
    ],
)
def test_a_txt_of_unknown_form_is_found_out_by_its_content(tmp_path: Path, lines: list[str]) -> None:
    ids = iter(IDS)
    text = "\n".join(line.format(id=next(ids)) if "{id}" in line else line for line in lines)
    folder = lists(tmp_path / "lists", train__txt=text)
    media = videos(tmp_path / "videos", clip(IDS[0], 5), clip(IDS[1], 7))
    found = read_kinetics(folder, media, version="kinetics600", splits=("train",))
    got = [(record.source_id, record.start_s, record.end_s, found.classes[record.label]) for record in found.records]
    assert got == [(IDS[0], 5, 15, "air drumming"), (IDS[1], 7, 17, "yoga")]


def test_a_class_of_eleven_letters_is_not_taken_for_an_id(tmp_path: Path) -> None:
    text = "".join(f"headbanging,{video_id},5,15\n" for video_id in IDS)
    folder = lists(tmp_path / "lists", train__txt=text)
    found = read_kinetics(folder, videos(tmp_path / "videos"), version="kinetics600", splits=("train",))
    assert {failure.source_id for failure in found.failures} == set(IDS)


def test_names_alone_are_a_list_without_labels(tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists", train__txt="\n".join(clip(video_id) for video_id in IDS))
    media = videos(tmp_path / "videos", *(f"yoga/{clip(video_id)}" for video_id in IDS))
    found = read_kinetics(folder, media, version="kinetics600", splits=("train",))
    assert {found.classes[record.label] for record in found.records} == {"yoga"}
    assert "they are those of the folders or archives of the files" in notes(found)


def test_deepmind_s_json_is_read_where_there_is_no_csv(tmp_path: Path) -> None:
    entry = {"annotations": {"label": "yoga", "segment": [84.0, 94.0]}, "duration": 10.0, "subset": "validate"}
    folder = lists(tmp_path / "lists", validate__json=json.dumps({IDS[0]: {**entry, "url": "https://x"}}))
    media = videos(tmp_path / "videos", clip(IDS[0], 84), clip(IDS[1]))
    (record,) = read_kinetics(folder, media, version="kinetics700", splits=("val",)).records
    assert (record.start_s, record.end_s, class_list("kinetics700").names[record.label]) == (84, 94, "yoga")
    lists(folder, validate=HEADER + rows(IDS[1], split="validate"))
    found = read_kinetics(folder, media, version="kinetics700", splits=("val",))
    assert [record.source_id for record in found.records] == [IDS[1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected an object of ids"),
        ("{}", "expected an object of ids"),
        (f'{{"{IDS[0]}": {{}}}}', "entry 1: time_start, time_end are '', ''"),
        (f'{{"{IDS[0]}": {{"annotations": {{"segment": [1]}}}}}}', "entry 1: time_start, time_end are '', ''"),
        (f'{{"{IDS[0]}": {{}}, "{IDS[0]}": {{}}}}', "occurs twice"),
        ("{", "is not JSON"),
    ],
)
def test_a_malformed_json_says_what_was_expected(tmp_path: Path, content: str, message: str) -> None:
    folder = lists(tmp_path / "lists", train__json=content)
    with pytest.raises(UserError, match=message):
        read_kinetics(folder, videos(tmp_path / "videos"), splits=("train",))


def test_missing_and_doubled_lists_are_named(tmp_path: Path) -> None:
    media = videos(tmp_path / "videos")
    folder = lists(tmp_path / "lists", **{"kinetics-600_val__csv": HEADER})
    with pytest.raises(
        UserError, match=r"no list of the split 'val' \(val\.csv, .*kinetics-600_val\.csv is of another"
    ):
        read_kinetics(folder, media, splits=("val",))
    lists(folder, val=HEADER, validate=HEADER)
    with pytest.raises(UserError, match=r"has both val\.csv and validate\.csv"):
        read_kinetics(folder, media, splits=("val",))
    with pytest.raises(UserError, match="Kinetics has no split 'dev'; it has train, val, test"):
        read_kinetics(folder, media, splits=("dev",))
    with pytest.raises(UserError, match="data set name 'a/b'"):
        read_kinetics(folder, media, name="a/b")
    with pytest.raises(UserError, match="no Kinetics version 'ssv2'"):
        read_kinetics(folder, media, version="ssv2")
    with pytest.raises(UserError, match="no split was asked for"):
        read_kinetics(folder, media, splits=())
    with pytest.raises(UserError, match="is not a folder of annotation files"):
        read_kinetics(folder / "val.csv", media)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty; expected a header with youtube_id"),
        (b"\n\n", "is empty"),
        (f"{HEADER}sal\xf3n,{IDS[0]},5,15,train,0\n".encode("latin-1"), "line 2 is not UTF-8: byte 0xf3"),
        (f"{HEADER}yo\0ga,{IDS[0]},5,15,train,0\n".encode(), "line 2 holds a NUL byte"),
        ((HEADER + rows(IDS[0])).encode("utf-16"), "line 1 (is not UTF-8|holds a NUL)"),
        (HEADER.encode() + b"yoga," + b"x" * 10_000_000 + b",5,15,train,0\n", "line 2 is longer than 65536 bytes"),
        (f'{HEADER}"yoga,{IDS[0]},5,15,train,0\n'.encode(), "not a CSV file: unexpected end of data; is a quote left"),
        (f'{HEADER}"yoga"x,{IDS[0]},5,15,train,0\n'.encode(), "not a CSV file"),
        ((HEADER + '"yoga\n' + rows(*IDS) * 2000).encode(), "not a CSV file"),
        (b"\x1f\x8b\x08\0\0\0", "line 1 (holds a NUL byte|is not UTF-8)"),
        (f"{HEADER}{rows(IDS[0])}".replace("\n", "\r").encode(), "no column|not a CSV file"),
    ],
)
def test_what_is_no_csv_says_why(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


def test_a_byte_order_mark_and_windows_line_ends_are_no_trouble(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + (HEADER + rows(*IDS) + "\n").replace("\n", "\r\n").encode()
    assert len(read(tmp_path, text, *map(clip, IDS)).records) == len(IDS)


@pytest.mark.parametrize("cell", ["=cmd()", "+1", "@SUM(A1)", "=HYPERLINK(1)", "#NAME?"])
def test_a_formula_is_neither_an_id_nor_a_label(tmp_path: Path, cell: str) -> None:
    with pytest.raises(UserError, match=r"youtube_id is .*expected 11 of"):
        read(tmp_path, f"{HEADER}yoga,{cell},5,15,train,0\n")
    with pytest.raises(UserError, match=r"line 2: label .* is not in kinetics400"):
        read(tmp_path, f"{HEADER}{cell},{IDS[0]},5,15,train,0\n")


def test_an_id_that_a_spreadsheet_has_rewritten_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"youtube_id is '#NAME\?'.*a spreadsheet has rewritten it"):
        read(tmp_path, f"{HEADER}yoga,#NAME?,5,15,train,0\n")


# --- labels -----------------------------------------------------------------------------------------------------------


def test_a_cut_list_keeps_the_official_ids(tmp_path: Path) -> None:
    text = HEADER + rows(IDS[0], label="zumba") + rows(IDS[1], label="abseiling")
    found = read(tmp_path, text, *map(clip, IDS[:2]))
    assert [record.label for record in found.records] == [399, 0]
    assert found.classes == K400


@pytest.mark.parametrize(
    "label", [HEAD, "massaging_person's_head", "massaging_persons_head", "Massaging Person’s Head"]
)
def test_spellings_of_a_label_are_matched_and_shown_as_published(tmp_path: Path, label: str) -> None:
    (record,) = read(tmp_path, HEADER + rows(IDS[0], label=label), clip(IDS[0])).records
    assert K400[record.label] == HEAD


def test_k600_s_lower_case_class_is_found_by_the_other_versions_spelling(tmp_path: Path) -> None:
    text = HEADER + rows(IDS[0], label="passing American football (not in game)")
    found = read(tmp_path, text, clip(IDS[0]), version="kinetics600")
    assert found.classes[found.records[0].label] == "passing american football (not in game)"
    assert found.records[0].key == f"k600_{IDS[0]}_000005"


def test_an_unknown_label_names_the_nearest_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2: label 'playing gitar' is not in kinetics400; near: 'playing guitar'"):
        read(tmp_path, HEADER + rows(IDS[0], label="playing gitar"))


def test_labels_of_another_version_say_which(tmp_path: Path) -> None:
    text = HEADER + rows(IDS[0], label="hugging (not baby)") + rows(IDS[1], label="milking goat")
    with pytest.raises(UserError, match="all 2 unknown labels are classes of kinetics700"):
        read(tmp_path, text)


def test_a_class_file_fixes_the_ids(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(f"zumba\n{HEAD}\n")
    text = HEADER + rows(IDS[0], label="massaging_Persons_head")
    found = read(tmp_path, text, clip(IDS[0]), classes_file=tmp_path / "classes.txt")
    assert found.classes == ("zumba", HEAD)
    assert found.records[0].label == 1
    assert set(found.digests) == {"train.csv", "classes.txt"}
    (tmp_path / "classes.txt").write_text("zumba\n")
    with pytest.raises(UserError, match=r"label 'massaging_Persons_head' is not in classes\.txt"):
        read(tmp_path, text, classes_file=tmp_path / "classes.txt")


def test_a_class_file_in_uniformer_s_order_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs.txt").write_text("riding a bike\t0\nmarching\t1\ndodgeball\t2\nplaying cymbals\t3\n")
    with pytest.raises(UserError, match=r"theirs\.txt is in UniFormer's order, not that of kinetics400"):
        read(tmp_path, HEADER + rows(IDS[0]), classes_file=tmp_path / "theirs.txt")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "{id}_000005_000015.mp4",
        "{id}_000005_000015.MKV",
        "{id}_000005_000015.webm",
        "{id}_5_15.mp4",
        "{id}_5.mp4",
        "{id}.mp4",
        "air drumming/{id}_000005_000015.mp4",
        "air_drumming/{id}.mkv",
        "train/air_drumming/{id}_000005_000015.mp4",
        "part_12/{id}_000005_000015.mp4",
    ],
)
@pytest.mark.parametrize("video_id", IDS)
def test_every_form_of_name_is_found_whatever_the_id_begins_with(tmp_path: Path, form: str, video_id: str) -> None:
    name = form.format(id=video_id)
    (record,) = read(tmp_path, HEADER + rows(video_id), name).records
    assert (record.source_id, record.source_name) == (video_id, name)
    assert record.key == f"k400_{video_id}_000005"


@pytest.mark.parametrize("folder", ["massaging_person's_head", "massaging_persons_head", HEAD, HEAD.upper()])
def test_class_folders_may_be_normalised_by_any_toolbox(tmp_path: Path, folder: str) -> None:
    found = read(tmp_path, HEADER + rows(IDS[0], label=HEAD), f"{folder}/{clip(IDS[0])}")
    assert [record.source_name for record in found.records] == [f"{folder}/{clip(IDS[0])}"]


def test_clips_of_one_video_are_told_apart_by_their_start(tmp_path: Path) -> None:
    text = HEADER + rows(IDS[0], start=5) + rows(IDS[0], start=50, label="yoga")
    found = read(tmp_path, text, clip(IDS[0], 5), clip(IDS[0], 50))
    assert [(record.key[-6:], K400[record.label], record.source_name) for record in found.records] == [
        ("000005", "air drumming", clip(IDS[0], 5)),
        ("000050", "yoga", clip(IDS[0], 50)),
    ]


def test_a_bare_id_that_could_be_two_records_is_ambiguous_and_not_guessed(tmp_path: Path) -> None:
    text = HEADER + rows(IDS[0], start=5) + rows(IDS[0], start=50) + rows(IDS[1])
    found = read(tmp_path, text, f"{IDS[0]}.mp4", f"{IDS[1]}.mp4")
    assert reasons(found) == {f"k400_{IDS[0]}_{start:06d}": AMBIGUOUS for start in (5, 50)}
    assert found.failures[0].detail == f"{IDS[0]}.mp4 does not say which of 2 clips of this video it is"
    assert [record.source_id for record in found.records] == [IDS[1]]
    assert found.unlisted == ()


def test_the_second_clip_may_be_in_another_split(tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists", train=HEADER + rows(IDS[0]), val=HEADER + rows(IDS[0], start=50, split="val"))
    found = read_kinetics(folder, videos(tmp_path / "videos", f"{IDS[0]}.mp4"))
    assert set(reasons(found).values()) == {AMBIGUOUS}
    found = read_kinetics(folder, videos(tmp_path / "videos", clip(IDS[0])))
    assert [record.split for record in found.records] == ["train"]
    assert "train and val share all their 1 videos" in found.notes


def test_two_files_of_one_clip_are_not_chosen_from(tmp_path: Path) -> None:
    found = read(tmp_path, HEADER + rows(IDS[0]), f"a/{clip(IDS[0])}", f"b/{clip(IDS[0])}", "stray.mp4")
    (failure,) = found.failures
    assert (failure.stage, failure.reason, failure.source_name) == ("match", AMBIGUOUS, "")
    assert failure.detail == f"several files: a/{clip(IDS[0])}, b/{clip(IDS[0])}"
    assert found.unlisted == ("stray.mp4",)


def test_a_file_with_the_start_is_taken_before_a_bare_one(tmp_path: Path) -> None:
    found = read(tmp_path, HEADER + rows(IDS[0]), clip(IDS[0]), f"{IDS[0]}.mp4")
    assert [record.source_name for record in found.records] == [clip(IDS[0])]
    assert found.unlisted == (f"{IDS[0]}.mp4",)


def test_rows_without_file_and_files_without_row_are_both_listed(tmp_path: Path) -> None:
    found = read(tmp_path, HEADER + rows(*IDS[:3]), clip(IDS[0]), clip(IDS[1], 6), clip(IDS[4]))
    assert reasons(found) == {f"k400_{video_id}_000005": MISSING for video_id in IDS[1:3]}
    assert found.failures[0].detail == f"no {IDS[1]}_000005_000015 and no {IDS[1]} with a video suffix"
    assert set(found.unlisted) == {clip(IDS[1], 6), clip(IDS[4])}
    assert len(found.records) + len(found.failures) == 3


def test_nothing_is_lost_or_counted_twice(tmp_path: Path) -> None:
    text = HEADER + rows(*IDS) + rows(IDS[0]) + rows(IDS[0], label="yoga") + rows(IDS[1], start=50)
    found = read(tmp_path, text, clip(IDS[0]), f"{IDS[1]}.mp4", f"yoga/{clip(IDS[2])}", f"a/{clip(IDS[3])}")
    assert len(found.records) + len(found.failures) == len(IDS) + 3
    assert {failure.reason for failure in found.failures} == {MISSING, AMBIGUOUS, CONFLICT, DUPLICATE}


def test_a_repeated_row_is_a_failure_that_says_whether_the_label_differs(tmp_path: Path) -> None:
    text = HEADER + rows(IDS[0]) + rows(IDS[0]) + rows(IDS[0], label="yoga")
    found = read(tmp_path, text, clip(IDS[0]))
    assert len(found.records) == 1
    assert [(failure.reason, failure.detail) for failure in found.failures] == [
        (DUPLICATE, "an earlier line has the same id and start"),
        (DUPLICATE, "an earlier line has the same id and start and another label"),
    ]


def test_hostile_names_are_files_that_no_row_asks_for(tmp_path: Path) -> None:
    names = (
        f"{IDS[0]}_{'9' * 200}.mp4",
        f"{IDS[0]}_٠٠٠٠٠٥.mp4",
        f"{IDS[0]}\n.mp4",
        "é" * 50 + ".mp4",
        f"{IDS[0]}5.mp4",
    )
    found = read(tmp_path, HEADER + rows(IDS[0]), *names)
    assert reasons(found) == {f"k400_{IDS[0]}_000005": MISSING}
    assert set(found.unlisted) == set(names)


def test_a_key_is_taken_from_the_first_eleven_characters() -> None:
    assert file_key("_a_bcdefgh__5_15") == b"_a_bcdefgh_000005"
    assert file_key("--_-_-__--_") == b"--_-_-__--_"
    assert file_key("abcdefghijk_1234567") == b""
    assert file_key("abcdefghij") == b""


def test_a_span_that_is_not_ten_seconds_is_kept_as_it_is(tmp_path: Path) -> None:
    text = f"{HEADER}yoga,{IDS[0]},5,7,train,0\nyoga,{IDS[1]},0,300,train,0\n"
    found = read(tmp_path, text, f"{IDS[0]}_000005_000015.mp4", f"{IDS[1]}.mp4")
    assert [(record.start_s, record.end_s) for record in found.records] == [(5, 7), (0, 300)]


def expected(lines: list[tuple[str, int]], names: list[str]) -> list[str]:
    """What becomes of each line, worked out the slow way."""
    outcomes: list[str] = []
    for number, (video_id, start) in enumerate(lines):
        named = [name for name in names if name.rpartition("/")[2].startswith(f"{video_id}_{start:06d}_")]
        bare = [name for name in names if name.rpartition("/")[2] == f"{video_id}.mp4"]
        files = named or bare
        is_vague = not named and len({other for other_id, other in lines if other_id == video_id}) > 1
        if (video_id, start) in lines[:number]:
            outcomes.append(DUPLICATE)
        elif not files:
            outcomes.append(MISSING)
        else:
            outcomes.append(files[0] if len(files) == 1 and not is_vague else AMBIGUOUS)
    return outcomes


lines_strategy = st.lists(st.tuples(st.sampled_from(IDS[:3]), st.sampled_from([5, 50])), min_size=1, max_size=8)
names_strategy = st.lists(
    st.builds(
        lambda folder, video_id, start: f"{folder}{clip(video_id, start) if start else video_id + '.mp4'}",
        st.sampled_from(["", "a/", "b/"]),
        st.sampled_from(IDS[:4]),
        st.sampled_from([0, 5, 50]),
    ),
    max_size=8,
    unique=True,
)


@settings(max_examples=150, deadline=None)
@given(lines=lines_strategy, names=names_strategy)
def test_any_lines_and_files_end_as_the_slow_way_says(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, int]], names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    lists(folder, train=HEADER + "".join(rows(video_id, start=start) for video_id, start in lines))
    files = tuple(VideoFile("/videos", name, 1) for name in sorted(names))
    with mock.patch.object(kinetics, "list_sources", return_value=Sources(files, {})):
        found = read_kinetics(folder, "/videos", splits=("train",))
    outcomes = expected(lines, names)
    assert [record.source_name for record in found.records] == [name for name in outcomes if name.endswith(".mp4")]
    assert [failure.reason for failure in found.failures] == [name for name in outcomes if not name.endswith(".mp4")]


# --- classes told by folders and archives -----------------------------------------------------------------------------


def test_a_folder_of_another_class_than_the_row_s_is_a_conflict(tmp_path: Path) -> None:
    found = read(tmp_path, HEADER + rows(*IDS[:2]), f"yoga/{clip(IDS[0])}", f"air drumming/{clip(IDS[1])}")
    (failure,) = found.failures
    assert (failure.stage, failure.reason, failure.source_name) == ("match", CONFLICT, f"yoga/{clip(IDS[0])}")
    assert failure.detail == "the line says 'air drumming', the file's place 'yoga'"
    assert [record.source_id for record in found.records] == [IDS[1]]


def test_a_folder_that_is_no_class_of_the_version_says_nothing(tmp_path: Path) -> None:
    found = read(tmp_path, HEADER + rows(IDS[0]), f"hugging (not baby)/{clip(IDS[0])}")
    assert len(found.records) == 1


def test_the_innermost_class_name_counts(tmp_path: Path) -> None:
    found = read(tmp_path, HEADER + rows(IDS[0]), f"yoga/air_drumming/part_1/{clip(IDS[0])}")
    assert len(found.records) == 1


def test_an_unlabelled_split_with_one_flat_file_stays_unlabelled_as_a_whole(tmp_path: Path) -> None:
    text = "youtube_id,time_start,time_end\n" + "".join(f"{video_id},5,15\n" for video_id in IDS[:2])
    found = read(tmp_path, text, f"yoga/{clip(IDS[0])}", clip(IDS[1]))
    assert {record.label for record in found.records} == {UNLABELLED}


# --- replacements -----------------------------------------------------------------------------------------------------


def test_a_replacement_overrides_by_id_and_start_and_is_recorded(tmp_path: Path) -> None:
    text = HEADER + rows(*IDS[:3]) + rows(IDS[0], start=50)
    other = videos(tmp_path / "other", f"replacement/{clip(IDS[0])}", clip(IDS[2]), clip(IDS[4]))
    names = (clip(IDS[0]), clip(IDS[0], 50), clip(IDS[1]))
    found = read(tmp_path, text, *names, replacements=other)
    assert {record.key: record.replaced for record in found.records} == {
        f"k400_{IDS[0]}_000005": True,
        f"k400_{IDS[0]}_000050": False,
        f"k400_{IDS[1]}_000005": False,
        f"k400_{IDS[2]}_000005": True,
    }
    replaced = {record.source_id: record.file.folder for record in found.records if record.replaced}
    assert set(replaced.values()) == {str(other)}
    assert found.unlisted == (clip(IDS[4]),)
    assert "2 records have a file of the replacement set; 1 files gave way to them" in found.notes


def test_the_mirror_s_replacement_set_is_known_by_its_name(tmp_path: Path) -> None:
    names = (clip(IDS[0]), f"replacement_for_corrupted_k400/{clip(IDS[0])}", clip(IDS[1]))
    found = read(tmp_path, HEADER + rows(*IDS[:2]), *names)
    assert [(record.source_name, record.replaced) for record in found.records] == [(names[1], True), (names[2], False)]
    assert found.failures == ()


def test_a_bare_replacement_is_used_where_it_can_only_mean_one_clip(tmp_path: Path) -> None:
    other = videos(tmp_path / "other", f"{IDS[0]}.mp4", f"{IDS[1]}.mp4")
    text = HEADER + rows(*IDS[:2]) + rows(IDS[1], start=50)
    found = read(tmp_path, text, clip(IDS[0]), clip(IDS[1]), clip(IDS[1], 50), replacements=other)
    assert [record.replaced for record in found.records] == [True, False, False]
    assert found.unlisted == (f"{IDS[1]}.mp4",)


def test_two_replacements_of_one_clip_are_not_chosen_from(tmp_path: Path) -> None:
    other = videos(tmp_path / "other", f"a/{clip(IDS[0])}", f"b/{clip(IDS[0])}")
    found = read(tmp_path, HEADER + rows(IDS[0]), clip(IDS[0]), replacements=other)
    assert reasons(found) == {f"k400_{IDS[0]}_000005": AMBIGUOUS}


# --- sizes and splits -------------------------------------------------------------------------------------------------


def test_published_sizes_stand_beside_the_found_one_and_a_short_list_is_no_error(tmp_path: Path) -> None:
    found = read(tmp_path, HEADER + rows(IDS[0]), clip(IDS[0]))
    (note,) = (note for note in found.notes if note.startswith("train: 1 lines"))
    assert "246 534 (the original list), 240 436 (OpenMMLab's copy)" in note
    assert note.endswith("this one is far shorter")


def test_neither_test_list_s_size_is_an_error_or_far_shorter() -> None:
    for size in (38_685, 39_805):
        (note,) = size_notes("kinetics400", "test", size)
        assert "far shorter" not in note
        assert "39 805 (CVDF's list), 38 685 (ActivityNet's list)" in note
    assert "far shorter" in size_notes("kinetics400", "val", 17_747)[0]


def test_val_and_test_of_the_same_list_are_told(tmp_path: Path) -> None:
    folder = lists(
        tmp_path / "lists",
        train=HEADER + rows(*IDS[:3]),
        val=HEADER + rows(*IDS[2:], split="val"),
        test=HEADER + rows(*IDS[2:], split="test"),
    )
    found = read_kinetics(folder, videos(tmp_path / "videos", *map(clip, IDS)), splits=("train", "val", "test"))
    assert "val and test share all their 3 clips: they are the same list" in found.notes
    assert "train and val share 1 clips (of 3 and 3)" in found.notes
    assert [record.split for record in found.records].count("val") == 3
    assert found.failures == ()


def test_digests_name_every_annotation_file(tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists", train=HEADER + rows(IDS[0]), val=HEADER + rows(IDS[1], split="val"))
    found = read_kinetics(folder, videos(tmp_path / "videos"))
    assert set(found.digests) == {"train.csv", "val.csv"}
    lists(folder, val=HEADER + rows(IDS[2], split="val"))
    again = read_kinetics(folder, videos(tmp_path / "videos"))
    assert [found.digests[name] == again.digests[name] for name in ("train.csv", "val.csv")] == [True, False]


def test_reading_twice_gives_the_same_whatever_the_folder_is_called(tmp_path: Path) -> None:
    text = HEADER + rows(*IDS) + rows(IDS[0])
    names = (f"a/{clip(IDS[0])}", f"b/{clip(IDS[0])}", f"yoga/{clip(IDS[1])}", clip(IDS[2]))
    one, two = (read(tmp_path / name, text, *names) for name in made(tmp_path, ("one", "two")))
    assert one.failures == two.failures
    assert [record.key for record in one.records] == [record.key for record in two.records]
    assert str(tmp_path) not in repr(one.failures)


def made(parent: Path, names: Iterable[str]) -> Iterable[str]:
    for name in names:
        (parent / name).mkdir()
        yield name


# --- archives ---------------------------------------------------------------------------------------------------------


def pack(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name in names:
            source = path.parent.parent / "content"
            source.write_bytes(b"x" * 10)
            archive.add(source, name)


def test_kinetics_400_s_parts_are_flat_and_say_nothing_of_classes(tmp_path: Path) -> None:
    pack(tmp_path / "videos" / "train" / "part_0.tar.gz", clip(IDS[0]), f"./{clip(IDS[1])}")
    pack(tmp_path / "videos" / "train" / "part_1.tar", clip(IDS[2]))
    found = read(tmp_path, HEADER + rows(*IDS[:3]))
    assert sorted(record.source_id for record in found.records) == sorted(IDS[:3])
    assert found.unlisted == ()


def test_kinetics_600_s_archives_are_called_after_classes_and_compared_with_the_rows(tmp_path: Path) -> None:
    label, other = "mountain climber (exercise)", "passing american football (not in game)"
    pack(tmp_path / "videos" / f"{label}.tar.gz", f"{label}/{clip(IDS[0])}", f"{label}/._{clip(IDS[0])}")
    pack(tmp_path / "videos" / f"{other.replace(' ', '_')}.tar.gz", clip(IDS[1]), clip(IDS[2]))
    text = HEADER + rows(IDS[0], label=label) + rows(IDS[1], label=other) + rows(IDS[2], label="yoga")
    found = read(tmp_path, text, version="kinetics600")
    assert [found.classes[record.label] for record in found.records] == [label, other]
    (failure,) = found.failures
    assert (failure.reason, failure.source_id) == (CONFLICT, IDS[2])
    assert any(note.startswith("passed over in the folder of videos:") for note in found.notes)


def test_kinetics_700_s_archives_hold_class_folders(tmp_path: Path) -> None:
    pack(tmp_path / "videos" / "k700_train_001.tar.gz", f"abseiling/{clip(IDS[0])}", f"abseiling/{clip(IDS[1])}")
    text = HEADER + rows(IDS[0], label="abseiling") + rows(IDS[1], label="yoga")
    found = read(tmp_path, text, version="kinetics700")
    assert [record.source_id for record in found.records] == [IDS[0]]
    assert reasons(found) == {f"k700_{IDS[1]}_000005": CONFLICT}


def test_the_replacement_archive_overrides_members_of_parts(tmp_path: Path) -> None:
    pack(tmp_path / "videos" / "part_0.tar.gz", clip(IDS[0]), clip(IDS[1]))
    name = "replacement_for_corrupted_k400"
    pack(tmp_path / "videos" / f"{name}.tgz", f"{name}/{clip(IDS[0])}")
    found = read(tmp_path, HEADER + rows(*IDS[:2]))
    assert {record.source_id: record.replaced for record in found.records} == {IDS[0]: True, IDS[1]: False}


def test_a_replacement_archive_may_be_given_by_itself(tmp_path: Path) -> None:
    name = "replacement_for_corrupted_k400"
    pack(tmp_path / "other" / f"{name}.tgz", f"{name}/{clip(IDS[0])}")
    pack(tmp_path / "other" / "unrelated.tar", clip(IDS[1]))
    archive = tmp_path / "other" / f"{name}.tgz"
    found = read(tmp_path, HEADER + rows(*IDS[:2]), clip(IDS[0]), replacements=archive)
    assert {record.source_id: record.replaced for record in found.records} == {IDS[0]: True}
