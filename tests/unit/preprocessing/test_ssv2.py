"""Something-Something v2's files and traps, on made-up ids and empty files."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from preprocessing.class_lists import class_list
from preprocessing.records import AMBIGUOUS, DUPLICATE, MISSING
from preprocessing.ssv2 import read_ssv2
from vast.dataset_format import UNLABELLED
from vast.errors import UserError

TEMPLATES = ["Holding [something] next to [something]", "Putting [something], twice", "[Something] falling (down)"]
CLASSES = sorted(template.replace("[", "").replace("]", "") for template in TEMPLATES)
PREFIX = "something-something-v2-"
PUBLISHED = class_list("ssv2").names


def entry(video_id: str, template: str) -> dict[str, Any]:
    return {"id": video_id, "label": "holding a potato", "template": template, "placeholders": ["a potato"]}


def indexed(texts: list[str]) -> dict[str, str]:
    return {text: str(index) for index, text in enumerate(texts)}


def write(folder: Path, prefix: str = "", **content: Any) -> Path:
    files = {
        "labels": indexed(CLASSES),
        "train": [entry(str(number), template) for number, template in enumerate(TEMPLATES, 1)],
        "validation": [entry("04", TEMPLATES[0])],
        **content,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for stem, value in files.items():
        (folder / f"{prefix}{stem}.json").write_text(json.dumps(value))
    return folder


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "part").mkdir(parents=True)
    for name in ("1.webm", "part/2.webm", "04.webm", "99.webm"):
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_the_class_is_the_template_without_brackets(tmp_path: Path, media: Path, prefix: str) -> None:
    found = read_ssv2(write(tmp_path / "labels", prefix), media)
    assert list(found.classes) == CLASSES
    got = [(r.split, r.key, r.source_id, found.classes[r.label]) for r in found.records]
    assert got == [
        ("train", "ssv2_1", "1", "Holding something next to something"),
        ("train", "ssv2_2", "2", "Putting something, twice"),
        ("val", "ssv2_04", "04", "Holding something next to something"),
    ]
    (failure,) = found.failures
    assert (failure.key, failure.stage, failure.reason) == ("ssv2_3", "match", MISSING)
    assert found.unlisted == ("99.webm",)


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_both_sets_of_file_names_are_read_and_which_was_found_is_said(tmp_path: Path, media: Path, prefix: str) -> None:
    found = read_ssv2(write(tmp_path / "labels", prefix), media)
    names = [f"{prefix}{stem}.json" for stem in ("labels", "train", "validation")]
    assert set(found.digests) == set(names)
    assert found.notes[0] == f"annotation files: {', '.join(names)}"


def test_the_folder_above_labels_may_be_given(tmp_path: Path, media: Path) -> None:
    write(tmp_path / "set" / "labels")
    assert read_ssv2(tmp_path / "set", media).records == read_ssv2(tmp_path / "set" / "labels", media).records


def test_round_brackets_and_commas_stay_in_the_class_text(tmp_path: Path, media: Path) -> None:
    folder = write(tmp_path / "labels", train=[entry("1", TEMPLATES[2]), entry("2", TEMPLATES[1])])
    found = read_ssv2(folder, media, splits=("train",))
    assert [found.classes[r.label] for r in found.records] == ["Something falling (down)", "Putting something, twice"]


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["holding a potato", None, "holding something next to something", ["x"], ""])
def test_a_template_that_is_not_in_the_list_names_its_entry(tmp_path: Path, media: Path, template: Any) -> None:
    folder = write(tmp_path / "labels", train=[entry("1", TEMPLATES[0]), entry("7", template)])
    with pytest.raises(UserError, match=r"entry 1, id 7: template .* is not in labels\.json"):
        read_ssv2(folder, media)


def test_label_and_template_swapped_are_found_out(tmp_path: Path, media: Path) -> None:
    swapped = {"id": "1", "label": TEMPLATES[0], "template": "holding a potato next to a box", "placeholders": []}
    with pytest.raises(UserError, match="entry 0, id 1: template 'holding a potato next to a box'"):
        read_ssv2(write(tmp_path / "labels", train=[swapped]), media)


def test_ids_in_the_order_of_bracketed_templates_are_refused(tmp_path: Path, media: Path) -> None:
    templates = ["Putting [something] down", "Putting number one down"]
    assert sorted(templates) == templates
    bracketed = indexed([text.replace("[", "").replace("]", "") for text in templates])
    with pytest.raises(UserError, match="the official ids run from 0 in the alphabetical order"):
        read_ssv2(write(tmp_path / "labels", labels=bracketed), media)


def test_the_published_list_is_accepted_and_one_other_text_in_it_is_shown(tmp_path: Path, media: Path) -> None:
    train = [
        entry("1", "Approaching [something] with your camera"),
        entry("2", "Wiping [something] off of [something]"),
    ]
    folder = write(tmp_path / "labels", labels=indexed(list(PUBLISHED)), train=train)
    found = read_ssv2(folder, media, splits=("train",))
    assert [record.label for record in found.records] == [0, 173]
    changed = [*PUBLISHED[:57], "Poking something so that it rolls", *PUBLISHED[58:]]
    assert changed == sorted(changed)
    write(folder, labels=indexed(changed))
    with pytest.raises(
        UserError, match=r"index 57 is 'Poking something so that it rolls'; .* 174 classes has 'Poking some"
    ):
        read_ssv2(folder, media, splits=("train",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": ["a"]}, "expected one object of class text to index"),
        ({"labels": {}}, "expected one object of class text to index"),
        ({"labels": {"a": "one"}}, "the index of 'a' is 'one'; expected a number"),
        ({"labels": {"a": True}}, "the index of 'a' is True"),
        ({"labels": {"a": 0.0}}, "the index of 'a' is 0.0"),
        ({"labels": {"a": "٠"}}, "the index of 'a' is"),
        ({"labels": {"a": "1"}}, "'a' has index 1, expected 0"),
        ({"labels": {"a": "0", "b": "0"}}, "'b' has index 0, expected 1"),
        ({"train": {"id": "1"}}, "expected a list of objects"),
        ({"train": [{"id": 1}]}, "entry 0: id is 1; expected a string"),
        ({"train": ["1"]}, "entry 0: id is None"),
        ({"train": [{"id": "../1"}]}, r"entry 0: id is '\.\./1'"),
        ({"train": [{"id": "1\0"}]}, "entry 0: id is"),
        ({"train": [{"id": "=cmd()"}]}, r"entry 0: id is '=cmd\(\)'"),
        ({"train": [{"id": "1" * 10_000_000}]}, r"entry 0: id is '1+\.\.\."),
    ],
)
def test_malformed_files_say_what_was_expected(
    tmp_path: Path, media: Path, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_ssv2(write(tmp_path / "labels", **content), media)
    assert len(str(caught.value)) < 1000


def test_a_class_text_given_twice_is_not_silently_the_last(tmp_path: Path, media: Path) -> None:
    folder = write(tmp_path / "labels")
    (folder / "labels.json").write_text('{"a": "0", "b": "1", "a": "2"}')
    with pytest.raises(UserError, match="the key 'a' occurs twice"):
        read_ssv2(folder, media)


def test_missing_and_doubled_annotation_files_are_named(tmp_path: Path, media: Path) -> None:
    folder = write(tmp_path / "labels")
    (folder / "train.json").write_text("[")
    with pytest.raises(UserError, match=r"train\.json is not JSON"):
        read_ssv2(folder, media)
    (folder / "train.json").unlink()
    with pytest.raises(UserError, match=r"has no train\.json or something-something-v2-train\.json"):
        read_ssv2(folder, media)
    write(tmp_path / "labels", PREFIX)
    with pytest.raises(UserError, match=r"has both labels\.json and something-something-v2-labels\.json"):
        read_ssv2(folder, media)
    with pytest.raises(UserError, match="no split 'dev'; it has train, val, test"):
        read_ssv2(write(tmp_path / "other"), media, splits=("dev",))
    with pytest.raises(UserError, match="is not a folder of annotation files"):
        read_ssv2(tmp_path / "none", media)


# --- the test split ---------------------------------------------------------------------------------------------------


def test_the_test_split_is_unlabelled(tmp_path: Path, media: Path) -> None:
    folder = write(tmp_path / "labels", test=[{"id": "99"}])
    found = read_ssv2(folder, media, splits=("test",))
    assert [record.label for record in found.records] == [UNLABELLED]
    assert "it has no labels" in found.notes[1]


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_test_answers_label_the_test_split_where_there_are_any(tmp_path: Path, media: Path, prefix: str) -> None:
    folder = write(tmp_path / "labels", prefix, test=[{"id": "99"}, {"id": "04"}])
    text = "04;Holding something next to something\r\n99;Putting something, twice\r\n5;Something falling (down)\r\n"
    (folder / f"{prefix}test-answers.csv").write_text("\ufeff" + text, newline="")
    found = read_ssv2(folder, media, splits=("test",))
    assert [found.classes[record.label] for record in found.records] == [
        "Putting something, twice",
        "Holding something next to something",
    ]
    assert f"{prefix}test-answers.csv" in found.digests


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("99;Putting something, twice\n", r"answers 1 of the 2 entries of test\.json, not '04'"),
        ("99;Putting something\n", "line 1: '99;Putting something'; expected an id, a semicolon and a class text"),
        ("99,Holding something next to something\n", "line 1: '99,Holding"),
        ("=cmd();x\n", r"line 1: '=cmd\(\);x'"),
        ("99;Putting something, twice\n99;Something falling (down)\n", "line 2: a second answer for id '99'"),
        ('"99;Putting something, twice\n', "is not a CSV file: unexpected end"),
        ("9\0;x\n", "line 1 holds a NUL byte"),
    ],
)
def test_answers_that_do_not_fit_say_why(tmp_path: Path, media: Path, answers: str, message: str) -> None:
    folder = write(tmp_path / "labels", test=[{"id": "99"}, {"id": "04"}])
    (folder / "test-answers.csv").write_text(answers)
    with pytest.raises(UserError, match=message):
        read_ssv2(folder, media, splits=("test",))


# --- files ------------------------------------------------------------------------------------------------------------


def test_converted_videos_are_found_but_two_of_one_id_are_not_chosen_from(tmp_path: Path, media: Path) -> None:
    (media / "3.mp4").write_bytes(b"x")
    found = read_ssv2(write(tmp_path / "labels"), media)
    assert [record.source_name for record in found.records if record.source_id == "3"] == ["3.mp4"]
    (media / "2.mp4").write_bytes(b"x")
    (failure,) = read_ssv2(write(tmp_path / "labels"), media).failures
    assert (failure.key, failure.reason, failure.detail) == (
        "ssv2_2",
        AMBIGUOUS,
        "several files: 2.mp4, part/2.webm",
    )


def test_a_missing_video_is_a_counted_failure_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = read_ssv2(write(tmp_path / "labels"), tmp_path / "empty")
    assert found.records == ()
    assert {failure.reason for failure in found.failures} == {MISSING}
    assert len(found.failures) == 4


def test_ids_are_strings_and_zeros_in_front_count(tmp_path: Path, media: Path) -> None:
    folder = write(tmp_path / "labels", train=[entry("4", TEMPLATES[0]), entry("01", TEMPLATES[0])])
    found = read_ssv2(folder, media, splits=("train",))
    assert {failure.source_id for failure in found.failures} == {"4", "01"}


def test_a_repeated_entry_is_a_failure(tmp_path: Path, media: Path) -> None:
    train = [entry("1", TEMPLATES[0]), entry("1", TEMPLATES[0]), entry("1", TEMPLATES[1])]
    found = read_ssv2(write(tmp_path / "labels", train=train), media, splits=("train",))
    assert [(failure.reason, failure.detail) for failure in found.failures] == [
        (DUPLICATE, "an earlier entry has the same id"),
        (DUPLICATE, "an earlier entry has the same id and another template"),
    ]
    assert len(found.records) == 1


def test_splits_that_share_videos_are_told_and_sizes_stand_beside_the_published(tmp_path: Path, media: Path) -> None:
    both = [entry("1", TEMPLATES[0]), entry("2", TEMPLATES[1])]
    found = read_ssv2(write(tmp_path / "labels", train=both, validation=both), media)
    assert "train and val share all their 2 videos: they are the same list" in found.notes
    assert "train: 2 entries; the published list has 168 913; this one is far shorter" in found.notes
    found = read_ssv2(write(tmp_path / "labels", train=both, validation=both[:1]), media)
    assert "train and val share 1 videos (of 2 and 1)" in found.notes


def test_videos_in_parts_of_one_archive_are_read_in_place(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("1.webm", "2.webm", "04.webm"):
            member = tarfile.TarInfo(f"20bn-something-something-v2/{name}")
            member.size = 4000
            archive.addfile(member, io.BytesIO(bytes(range(250)) * 16))
    content, folder = buffer.getvalue(), tmp_path / "parts"
    folder.mkdir()
    for number, start in enumerate(range(0, len(content), 100)):
        (folder / f"20bn-something-something-v2-{number:02d}").write_bytes(content[start : start + 100])
    found = read_ssv2(write(tmp_path / "labels"), folder)
    assert [record.source_id for record in found.records] == ["1", "2", "04"]
    assert all(record.file.archive is not None for record in found.records)
