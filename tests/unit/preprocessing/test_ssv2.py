import json
from pathlib import Path
from typing import Any

import pytest

from preprocessing.ssv2 import read_ssv2
from vast.errors import UserError

TEMPLATES = ["Holding [something] next to [something]", "Putting [something], twice", "[Something] falling (down)"]
CLASSES = sorted(template.replace("[", "").replace("]", "") for template in TEMPLATES)


def entry(video_id: str, template: str) -> dict[str, Any]:
    return {"id": video_id, "label": "holding a potato", "template": template, "placeholders": ["a potato"]}


def write(folder: Path, prefix: str = "", **content: Any) -> Path:
    files = {
        "labels": {text: str(index) for index, text in enumerate(CLASSES)},
        "train": [entry(str(number), template) for number, template in enumerate(TEMPLATES, 1)],
        "validation": [entry("04", TEMPLATES[0])],
        **content,
    }
    folder.mkdir(exist_ok=True)
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


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_the_class_is_the_template_without_brackets(tmp_path: Path, media: Path, prefix: str) -> None:
    found = read_ssv2(write(tmp_path / "labels", prefix), media)
    assert list(found.classes) == CLASSES
    got = [(r.split, r.key, r.source_id, found.classes[r.label]) for r in found.records]
    assert got == [
        ("train", "ssv2_1", "1", "Holding something next to something"),
        ("train", "ssv2_2", "2", "Putting something, twice"),
        ("val", "ssv2_04", "04", "Holding something next to something"),
    ]
    assert [(failure.key, failure.reason) for failure in found.failures] == [("ssv2_3", "missing")]
    assert found.unlisted == ("99.webm",)
    assert set(found.digests) == {f"{prefix}{stem}.json" for stem in ("labels", "train", "validation")}


def test_the_test_split_is_unlabelled(tmp_path: Path, media: Path) -> None:
    folder = write(tmp_path / "labels", test=[{"id": "99"}])
    assert [record.label for record in read_ssv2(folder, media, splits=("test",)).records] == [-1]


@pytest.mark.parametrize("template", ["holding a potato", None, "holding something next to something"])
def test_a_template_that_is_not_in_the_list_names_its_entry(tmp_path: Path, media: Path, template: str) -> None:
    folder = write(tmp_path / "labels", train=[entry("1", TEMPLATES[0]), entry("7", template)])
    with pytest.raises(UserError, match=r"entry 1, id 7: template .* is not in labels\.json"):
        read_ssv2(folder, media)


def test_ids_in_the_order_of_bracketed_templates_are_refused(tmp_path: Path, media: Path) -> None:
    templates = ["Putting [something] down", "Putting number one down"]
    assert sorted(templates) == templates
    bracketed = {text.replace("[", "").replace("]", ""): str(index) for index, text in enumerate(templates)}
    with pytest.raises(UserError, match="the official ids run from 0 in the alphabetical order"):
        read_ssv2(write(tmp_path / "labels", labels=bracketed), media)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": ["a"]}, "expected one object of class text to index"),
        ({"labels": {"a": "one"}}, "an index is not a number"),
        ({"labels": {"a": "1"}}, "'a' has index 1, expected 0"),
        ({"train": {"id": "1"}}, "expected a list of objects"),
        ({"train": [{"id": 1}]}, "entry 0: id is 1; expected a string"),
        ({"train": ["1"]}, "entry 0: id is None"),
    ],
)
def test_malformed_files_say_what_was_expected(
    tmp_path: Path, media: Path, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_ssv2(write(tmp_path / "labels", **content), media)


def test_missing_and_doubled_files_are_named(tmp_path: Path, media: Path) -> None:
    folder = write(tmp_path / "labels")
    (folder / "train.json").write_text("[")
    with pytest.raises(UserError, match=r"train\.json is not JSON"):
        read_ssv2(folder, media)
    (folder / "train.json").unlink()
    with pytest.raises(UserError, match=r"has no train\.json or something-something-v2-train\.json"):
        read_ssv2(folder, media)
    write(tmp_path / "labels", "something-something-v2-")
    with pytest.raises(UserError, match=r"has both labels\.json and something-something-v2-labels\.json"):
        read_ssv2(folder, media)
