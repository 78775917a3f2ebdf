import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocessing import lists
from preprocessing.archives import Archive
from preprocessing.class_lists import class_list
from preprocessing.lists import read_folder, read_list
from preprocessing.records import Annotations
from preprocessing.sources import Sources, VideoFile
from vast.dataset_format import UNLABELLED
from vast.errors import UserError

K400 = class_list("kinetics400").names
SSV2 = class_list("ssv2").names


def videos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def lines(path: Path, *text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return path


def labels(found: Annotations) -> dict[str, int]:
    return {record.source_name: record.label for record in found.records}


def reasons(found: Annotations) -> dict[str, str]:
    return {failure.source_id: failure.reason for failure in found.failures}


def accounted(found: Annotations, num_lines: int) -> Annotations:
    """Every line is a record or a failure; no two records of a split have one key, and keys are whole."""
    assert len(found.records) + len(found.failures) == num_lines
    keys = Counter((record.split, record.key) for record in found.records)
    assert set(keys.values()) <= {1}
    for record in found.records:
        assert record.key.replace("-", "_").replace("_", "a").isalnum()
        assert record.key.isascii()
    assert {failure.stage for failure in found.failures} <= {"match"}
    return found


@pytest.mark.parametrize(
    ("form", "style"),
    [
        ("{path}.mp4 {label}", "auto"),  # mmaction2, SlowFast, pytorchvideo, VideoMAE
        ("{path}.mp4,{label}", "auto"),  # UniFormer, X-ViT
        ("{path}.mp4, {label}", "auto"),
        ("{path}.mp4\t{label}", "auto"),
        ("{path}.mp4;{label}", "auto"),
        ("{path}.mp4|{label}", "mmaction2"),
        ("{path}.mp4 300 {label}", "slowfast"),
        ("{path}.mp4,300,{label}", "xvit"),
        ("{path} 300 {label}", "auto"),  # TSM; UniFormer's and VideoMAE's lists of frames
        ("{path},{label}", "auto"),
        ("/data/user/k400/{path}.mp4 {label}", "videomae"),
        ("./{path}.MP4 {label}", "auto"),
        ('"{path}.mp4" {label}', "auto"),
        ('"{path}.mp4",{label}', "auto"),
    ],
)
def test_every_toolbox_says_the_same(tmp_path: Path, form: str, style: str) -> None:
    stems = ["a b/with space, and comma", "a b/-dash_000001", "c/it's 300 fine", "c/plain.v2"]
    media = videos(tmp_path / "media", *(f"{stem}.mp4" for stem in stems))
    text = [form.format(path=stem, label=7 - i) for i, stem in enumerate(stems)]
    found = read_list({"train": lines(tmp_path / "list.txt", *text, "")}, media, name="x", format=style)
    assert labels(accounted(found, 4)) == {f"{stem}.mp4": 7 - i for i, stem in enumerate(stems)}
    assert found.classes[7] == "class_00007"
    assert any("class_00000" in note for note in found.notes)
    assert set(found.digests) == {"list.txt"}


@pytest.mark.parametrize(
    "form", ['{path}.mp4 "{label}"', "{path}.mp4 {label}", "{path}.mp4,{label}", '{path},"{label}"']
)
def test_labels_may_be_names_with_spaces_and_commas(tmp_path: Path, form: str) -> None:
    texts = ["Putting something, something and something", "air drumming", "archery"]
    media = videos(tmp_path / "media", "0.mp4", "1.mp4", "2.mp4")
    text = [form.format(path=i, label=label) for i, label in enumerate(texts)]
    found = read_list({"val": lines(tmp_path / "val.csv", *text)}, media, name="x")
    assert found.classes == tuple(sorted(texts))
    assert [found.classes[record.label] for record in found.records] == texts
    assert any("sorted class names" in note for note in found.notes)


def test_a_table_with_column_names_is_read_by_them(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "a.mp4", "b, c.mp4")
    path = lines(tmp_path / "t.csv", "\ufeffid,label,video_path", "9,archery,/x/a.mp4", '8,"bowling","/x/b, c.mp4"')
    found = read_list({"train": path}, media, name="x")
    assert [found.classes[record.label] for record in found.records] == ["archery", "bowling"]
    with pytest.raises(UserError, match="read_kinetics"):
        read_list({"train": lines(path, "label,youtube_id,time_start", "x,y,1")}, media, name="x")


def test_a_parquet_table_of_video2dataset(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "train/0wR5jVB-WPk_000417_000427.mp4", "train/3caPS4FHFF8_000036_000046.mp4")
    path = tmp_path / "k400_train.parquet"
    paths = [
        f"/path/to/{name}" for name in ("train/0wR5jVB-WPk_000417_000427.mp4", "train/3caPS4FHFF8_000036_000046.mp4")
    ]
    pq.write_table(pa.table({"label": ["abseiling", None], "path": paths, "is_cc": [0, 1]}), path)
    found = read_list(tmp_path, media, name="x")
    assert [(record.label, record.source_id) for record in found.records] == [(0, "0wR5jVB-WPk"), (-1, "3caPS4FHFF8")]
    pq.write_table(pa.table({"path": paths, "label": [3.0, 1.0]}), path)
    assert [record.label for record in read_list(tmp_path, media, name="x").records] == [3, 1]
    pq.write_table(pa.table({"url": paths}), path)
    with pytest.raises(UserError, match=r"no column path or .* the header is: url"):
        read_list(tmp_path, media, name="x")
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="is no parquet file"):
        read_list(tmp_path, media, name="x")


def test_paths_of_another_machine_are_matched_by_their_ends(tmp_path: Path) -> None:
    media = videos(
        tmp_path / "media", "air_drumming/001.mp4", "bowling/001.mp4", "val/bowling/002.mp4", "deep/er/3.mp4"
    )
    path = lines(
        tmp_path / "train.csv",
        "/home/someone/k400/air drumming/001.mp4 0",
        r"D:\data\bowling\001.mp4 1",
        "/home/someone/k400/train/bowling/002.mp4 1",
        "3.mp4 0",
    )
    found = accounted(read_list({"train": path}, media, name="x"), 4)
    assert [record.source_name for record in found.records] == [
        "air_drumming/001.mp4",
        "bowling/001.mp4",
        "val/bowling/002.mp4",
        "deep/er/3.mp4",
    ]


def test_what_may_be_several_files_is_not_guessed(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "a/1.mp4", "b/1.mp4", "1/a.mp4", "a.mp4", "c/2.webm", "c/2.mp4", "d/3.mp4")
    path = lines(
        tmp_path / "l.txt", "1.mp4 0", "x/1.mp4 0", "a.mp4 0", "/x/2.mp4 0", "e/3.mp4 0", "f/3.mp4 0", "4.mp4 0"
    )
    found = accounted(read_list({"train": path}, media, name="x"), 7)
    # The whole relative path, and then the whole name, decide between files that end alike.
    assert [record.source_name for record in found.records] == ["a.mp4", "c/2.mp4"]
    assert [failure.reason for failure in found.failures] == ["ambiguous"] * 4 + ["missing"]
    assert "several files: a/1.mp4, b/1.mp4" in found.failures[0].detail
    assert "both lead to d/3.mp4" in found.failures[2].detail
    # A candidate of an ambiguous line is asked for; other files are not.
    assert set(found.unlisted) == {"1/a.mp4", "c/2.webm"}


def test_a_path_that_is_there_as_it_is_written_is_meant(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "x/a.mp4", "y/x/a.mp4")
    found = read_list({"train": lines(tmp_path / "l.txt", "x/a.mp4 0")}, media, name="x")
    assert (labels(found), found.unlisted) == ({"x/a.mp4": 0}, ("y/x/a.mp4",))
    assert reasons(read_list({"train": lines(tmp_path / "l.txt", "/d/x/a.mp4 0")}, media, name="x")) == {
        "a": "ambiguous"
    }


def test_two_videos_of_one_name_never_get_the_same_file(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "bowling/001.mp4", "archery/002.mp4")
    path = lines(tmp_path / "l.txt", "/x/archery/001.mp4 0", "/x/bowling/001.mp4 1", "/x/archery/002.mp4 0")
    found = accounted(read_list({"train": path}, media, name="x"), 3)
    assert labels(found) == {"bowling/001.mp4": 1, "archery/002.mp4": 0}
    assert reasons(found) == {"001": "ambiguous"}


def test_one_video_written_in_full_and_short_is_one_video(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "val/x.mp4")
    lists = {"val": lines(tmp_path / "v.txt", "x.mp4 0"), "test": lines(tmp_path / "t.txt", "/data/val/x.mp4 0")}
    found = accounted(read_list(lists, media, name="x"), 2)
    assert [record.split for record in found.records] == ["val", "test"]
    assert any("val and test share 1 videos (they are the same list)" in note for note in found.notes)


def test_lists_of_mp4_find_the_webm_they_were_made_from(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "78687.webm", "7868.webm")
    found = read_list({"train": lines(tmp_path / "train.csv", "/x/78687.mp4 19")}, media, name="x")
    assert labels(found) == {"78687.webm": 19}
    assert "1 paths of the lists mean files of another name or suffix" in found.notes
    found = read_list({"train": lines(tmp_path / "train.csv", "78687 134 19", "7868 9 3")}, media, name="x")
    assert labels(found) == {"78687.webm": 19, "7868.webm": 3}
    assert [record.source_id for record in found.records] == ["78687", "7868"]


def test_kinetics_ids_and_clips_find_each_other(tmp_path: Path) -> None:
    media = videos(
        tmp_path / "media",
        "0wR5jVB-WPk_000417_000427.mp4",
        "-caPS4FHFF8.mp4",
        "xnC3nngvLCo_000001_000011.mp4",
        "xnC3nngvLCo_000050_000060.mp4",
    )
    text = ["0wR5jVB-WPk.mp4,341", "-caPS4FHFF8_000036_000046.mp4,341", "xnC3nngvLCo.mp4,3"]
    found = accounted(read_list({"val": lines(tmp_path / "val.csv", *text)}, media, name="x"), 3)
    assert [record.source_id for record in found.records] == ["0wR5jVB-WPk", "-caPS4FHFF8"]
    assert [(failure.source_id, failure.reason) for failure in found.failures] == [("xnC3nngvLCo", "ambiguous")]


def test_repeated_lines_are_duplicates_and_contradictions_are_conflicts(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "a.mp4", "b.mp4", "c.mp4")
    path = lines(tmp_path / "l.txt", "a.mp4 0", "b.mp4 1", "a.mp4 0", "b.mp4 0", "c.mp4 1")
    found = accounted(read_list({"train": path}, media, name="x"), 5)
    assert labels(found) == {"a.mp4": 0, "c.mp4": 1}
    assert [(failure.source_id, failure.reason) for failure in found.failures] == [
        ("b", "conflict"),
        ("a", "duplicate"),
        ("b", "conflict"),
    ]
    assert found.failures[1].detail == "l.txt line 3 repeats l.txt line 1"


def test_a_folder_of_lists_is_sorted_out_by_names(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "a.mp4", "b.mp4", "c.mp4")
    folder = tmp_path / "lists"
    lines(folder / "kinetics400_train_list_videos.txt", "a.mp4 0")
    lines(folder / "kinetics400_val_list_videos.txt", "b.mp4 0")
    lines(folder / "test.csv", "c.mp4")
    lines(folder / "trainval.txt", "c.mp4 0")
    lines(folder / "labels.txt", "archery")
    found = read_list(folder, media, name="x")
    assert [(record.split, record.label) for record in found.records] == [
        ("train", 0),
        ("val", 0),
        ("test", UNLABELLED),
    ]
    lines(folder / "train.csv", "a.mp4 0")
    with pytest.raises(UserError, match=r"kinetics400_train_list_videos\.txt and train\.csv for train"):
        read_list(folder, media, name="x")
    with pytest.raises(UserError, match=r"no train\.csv"):
        read_list(media, media, name="x")
    with pytest.raises(UserError, match="no list and no folder of lists"):
        read_list(folder / "nothing.csv", media, name="x")


def test_one_list_and_chosen_splits(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "a.mp4", "b.mp4")
    for name, split in (
        ("my_list.txt", "train"),
        ("kinetics400_val_list_videos.txt", "val"),
        ("trainval.csv", "train"),
    ):
        found = read_list(lines(tmp_path / name, "a.mp4 0"), media, name="x")
        assert [record.split for record in found.records] == [split]
    folder = lines(tmp_path / "lists/train.csv", "a.mp4 0").parent
    lines(folder / "val.csv", "b.mp4 1")
    found = read_list(folder, media, name="x", splits=("val",))
    assert ([record.split for record in found.records], found.unlisted) == (["val"], ("a.mp4",))
    lines(folder / "train.csv", "a.mp4 archery")
    lines(folder / "val.csv", "b.mp4 bowling")
    found = read_list(folder, media, name="x", splits=("val",))
    assert (labels(found), found.classes) == ({"b.mp4": 1}, ("archery", "bowling"))
    with pytest.raises(UserError, match="no list of test; there are lists of train, val"):
        read_list(folder, media, name="x", splits=("val", "test"))


def test_two_lists_of_one_file_name_keep_their_digests(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "a.mp4", "b.mp4")
    lists = {"train": lines(tmp_path / "1/list.txt", "a.mp4 0"), "val": lines(tmp_path / "2/list.txt", "b.mp4 0")}
    assert set(read_list(lists, media, name="x").digests) == {"1/list.txt", "2/list.txt"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 3 17", "say who wrote the list"),
        ("a.mp4 3 17 24", "several labels a video"),
        ("a.mp4,3,17,24", "several labels a video"),
        ("a 3 17 24", "several labels a video"),
        ("a.mp4 -3", "the label is -3"),
        (",3", "there is no path"),
        ('"",3', "there is no path"),
        ("original_vido_id video_id frame_id path labels", "lists frames"),
        ("a.mp4 123456", "expected less than 100000"),
    ],
)
def test_what_is_no_list_of_videos_with_one_label_says_so(tmp_path: Path, text: str, message: str) -> None:
    media = videos(tmp_path / "media", "a.mp4")
    with pytest.raises(UserError, match=message):
        read_list({"train": lines(tmp_path / "l.txt", text)}, media, name="x")


def test_several_labels_are_named_with_the_writer_and_line(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "a.mp4")
    path = lines(tmp_path / "l.txt", "a.mp4 3", "a.mp4 3 17")
    with pytest.raises(UserError, match=r"l\.txt line 2: 2 labels, 3 17: several labels a video are not supported"):
        read_list({"train": path}, media, name="x", format="mmaction2")
    with pytest.raises(UserError, match="format is 'coco'"):
        read_list({"train": path}, media, name="x", format="coco")  # type: ignore[arg-type]


def test_lists_of_frame_folders_are_not_taken_for_lists_of_videos(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "other.mp4")
    path = lines(tmp_path / "train_videofolder.txt", "air drumming/clip_1 300 12", "bowling/clip_2 300 3")
    with pytest.raises(UserError, match=r"names 'air drumming/clip_1'.*folders of frames"):
        read_list({"train": path}, media, name="x")
    media = videos(tmp_path / "media", "clip_2.mp4")
    found = accounted(read_list({"train": path}, media, name="x"), 2)
    assert (labels(found), reasons(found)) == ({"clip_2.mp4": 3}, {"clip_1": "missing"})
    for name in ("list.json", "list.h5"):
        with pytest.raises(UserError, match="lists are not read"):
            read_list({"train": lines(tmp_path / name, "{}")}, media, name="x")


def test_unlabelled_lines_stay_unlabelled(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "a b.mp4", "c.mp4", "d.mp4", "e.mp4")
    lists = {
        "train": lines(tmp_path / "1.txt", "c.mp4 2"),
        "test": lines(tmp_path / "2.txt", "a b.mp4", "d.mp4 -1", "e"),
    }
    found = accounted(read_list(lists, media, name="x"), 4)
    assert [record.label for record in found.records] == [2, UNLABELLED, UNLABELLED, UNLABELLED]
    with pytest.raises(UserError, match="no line has a label"):
        read_list({"test": lists["test"]}, media, name="x")
    classes = lines(tmp_path / "classes.txt", "x", "y")
    assert read_list({"test": lists["test"]}, media, name="x", classes_file=classes).classes == ("x", "y")


def test_numbers_and_names_in_one_data_set_are_refused(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "a.mp4", "b.mp4")
    lists = {"train": lines(tmp_path / "1.txt", "a.mp4 2"), "val": lines(tmp_path / "2.txt", "b.mp4 bowling")}
    with pytest.raises(UserError, match=r"1\.txt line 1 has the label 2, 2\.txt line 1 'bowling'"):
        read_list(lists, media, name="x")


def test_a_class_list_names_the_numbers(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "a.mp4", "b.mp4")
    path = lines(tmp_path / "l.txt", "a.mp4 1", "b.mp4 0")
    for text in (["zumba!", "bowling!"], ["0 zumba!", "1 bowling!"], ["zumba!\t0", "bowling!\t1"]):
        classes = lines(tmp_path / "classes.txt", *text)
        found = read_list({"train": path}, media, name="x", classes_file=classes)
        assert found.classes == ("zumba!", "bowling!")
        assert [record.label for record in found.records] == [1, 0]
        assert set(found.digests) == {"l.txt", "classes.txt"}
    with pytest.raises(UserError, match=r"has 2 classes, 0\.\.1; the lists have label 2"):
        read_list({"train": lines(path, "a.mp4 0", "b.mp4 2")}, media, name="x", classes_file=classes)


def test_lists_that_count_from_one(tmp_path: Path) -> None:
    # As UCF101's own files do.
    media = videos(tmp_path / "media", "v_Archery_g08_c01.avi", "v_Bowling_g08_c01.avi")
    path = lines(tmp_path / "l.txt", "Archery/v_Archery_g08_c01.avi 1", "Bowling/v_Bowling_g08_c01.avi 2")
    for text in (["1 Archery", "2 Bowling"], ["Archery", "Bowling"], None):
        classes = lines(tmp_path / "classInd.txt", *text) if text else None
        found = read_list({"train": path}, media, name="ucf", classes_file=classes)
        assert [(found.classes[record.label], record.label) for record in found.records] == [
            ("Archery", 0),
            ("Bowling", 1),
        ]
        assert any("from 1" in note for note in found.notes)


def test_class_folders_name_the_numbers(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "a.mp4", "b.mp4", "c.mp4")
    path = lines(tmp_path / "l.txt", "/x/jumping_high/a.mp4 3", "/x/flying/b.mp4 0", "/x/flying/c.mp4 0")
    found = read_list({"train": path}, media, name="x")
    assert found.classes == ("flying", "class_00001", "class_00002", "jumping_high")
    path = lines(tmp_path / "l.txt", "/x/jumping_high/a.mp4 3", "/x/flying/b.mp4 0", "/x/swimming/c.mp4 0")
    assert read_list({"train": path}, media, name="x").classes[0] == "class_00000"


def test_folders_named_after_published_classes_give_the_published_ids(tmp_path: Path) -> None:
    some = [name for name in uniformer_order() if name != "zumba"]
    media = videos(tmp_path / "media", *(f"{name.replace(' ', '_')}/{i}.mp4" for i, name in enumerate(some)))
    text = [f"{i}.mp4,{uniformer_order().index(name)}" for i, name in enumerate(some)]
    found = read_list({"train": lines(tmp_path / "l.csv", *text)}, media, name="x")
    assert found.classes == K400
    assert {record.file.stem: K400[record.label] for record in found.records} == {
        str(i): name for i, name in enumerate(some)
    }


def test_the_class_list_of_another_order_is_found_out_by_the_folders(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "air_drumming/a.mp4", "abseiling/b.mp4", "archery/c.mp4")
    classes = lines(tmp_path / "classes.txt", *K400)
    path = lines(tmp_path / "l.txt", "a.mp4 158", "b.mp4 341", "c.mp4 302")
    with pytest.raises(UserError, match=r"label 158 is .* but its videos lie in a folder 'air drumming'.* 3 videos"):
        read_list({"train": path}, media, name="x", classes_file=classes)
    # One video in a wrong folder is no order of its own.
    path = lines(tmp_path / "l.txt", "a.mp4 1", "b.mp4 0", "c.mp4 7")
    assert labels(read_list({"train": path}, media, name="x", classes_file=classes))["archery/c.mp4"] == 7


UNIFORMER_START = ["riding a bike", "marching", "dodgeball"]


def uniformer_order() -> list[str]:
    """An order that begins as UniFormer's and has the five classes of its lists' beginnings where they are."""
    places = {
        341: "abseiling",
        158: "air drumming",
        189: "answering questions",
        16: "applauding",
        398: "applying cream",
    }
    order = [places.get(i, "") for i in range(400)]
    rest = [*UNIFORMER_START, *(name for name in K400 if name not in (*UNIFORMER_START, *places.values()))]
    return [name or rest.pop(0) for name in order]


def test_uniformers_order_becomes_everyones(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", *(f"{i}.mp4" for i in range(7)))
    ids = [341, 341, 158, 189, 16, 398, 0]
    lists = {"val": lines(tmp_path / "val.csv", *(f"{i}.mp4,{label}" for i, label in enumerate(ids)))}
    order = lines(tmp_path / "order.txt", *(f"{name}\t{i}" for i, name in enumerate(uniformer_order())))
    found = read_list(lists, media, name="k400", classes_file=order)
    assert found.classes == K400
    assert [K400[record.label] for record in found.records] == [uniformer_order()[label] for label in ids]
    assert [record.label for record in found.records][:3] == [0, 0, 1]
    assert any("another order than kinetics400" in note for note in found.notes)
    with pytest.raises(UserError, match="count in UniFormer's order, where 341 is 'abseiling'"):
        read_list(lists, media, name="k400", classes_file=lines(tmp_path / "k400.txt", *K400))
    lines(tmp_path / "val.csv", *(f"{i}.mp4,{label}" for i, label in enumerate([*ids[:-1], 399])))
    assert any("UniFormer's order" in note for note in read_list(lists, media, name="k400").notes)


def test_bracketed_templates_are_in_nobodys_order(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "166766.webm")
    path = lines(tmp_path / "train.txt", "166766 50 57")
    bracketed = [text.replace("something", "[something]").replace("Something", "[Something]") for text in SSV2]
    with pytest.raises(UserError, match="sorted with its square brackets"):
        read_list({"train": path}, media, name="ssv2", classes_file=lines(tmp_path / "c.txt", *sorted(bracketed)))
    found = read_list({"train": path}, media, name="ssv2", classes_file=lines(tmp_path / "c.txt", *bracketed))
    assert found.classes == SSV2
    assert found.classes[found.records[0].label] == "Poking something so that it falls over"


def test_names_of_a_published_list_get_its_ids_in_any_spelling(tmp_path: Path) -> None:
    spelled = [name.replace(" ", "_").upper() for name in K400]
    media = videos(tmp_path / "media", *(f"{i}.mp4" for i in range(400)))
    text = [f"{i}.mp4 {name}" for i, name in reversed(list(enumerate(spelled)))]
    found = read_list({"train": lines(tmp_path / "l.txt", *text)}, media, name="x")
    assert found.classes == K400
    assert labels(found) == {f"{i}.mp4": i for i in range(400)}
    # One class less moves no other.
    found = read_list({"train": lines(tmp_path / "l.txt", *text[:-1])}, media, name="x")
    assert found.classes == K400
    # A part of it is a data set of its own.
    assert len(read_list({"train": lines(tmp_path / "l.txt", *text[:200])}, media, name="x").classes) == 200
    with pytest.raises(UserError, match=r"200 problem[\s\S]*'NEWS_ANCHORING' is not in c\.txt"):
        read_list({"train": tmp_path / "l.txt"}, media, name="x", classes_file=lines(tmp_path / "c.txt", "a", "b"))


NAMES = st.lists(
    st.text(
        st.characters(exclude_characters='/\0\n\r"', exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=12
    ),
    unique_by=lambda name: name.casefold(),
    min_size=1,
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(names=NAMES, comma=st.booleans())
def test_any_file_name_comes_back_with_its_label_under_a_key_of_ours(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], comma: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    names = [f"{name}.mp4" for name in names if not name.startswith(".")]
    if not names:
        return
    media = videos(folder / "media", *names)
    text = [f'"{name}"{"," if comma else " "}{i}' for i, name in enumerate(names)]
    found = accounted(read_list({"train": lines(folder / "l.txt", *text)}, media, name="x"), len(names))
    assert labels(found) == {name: i for i, name in enumerate(names)}


def test_keys_are_ours_whatever_the_names_are(tmp_path: Path) -> None:
    hostile = ["plain-1_a", "-rm -rf", "$(reboot)", "a;b", "=cmd()", "ü", "x" * 150, "..", "a.b"]
    media = videos(tmp_path / "media", *(f"{name}.mp4" for name in hostile), "other/plain-1_a.mp4")
    text = [f'"{name}.mp4" 0' for name in hostile if name != ".."] + ["other/plain-1_a.mp4 0"]
    found = accounted(read_list({"train": lines(tmp_path / "l.txt", *text)}, media, name="x"), len(text))
    assert found.records[0].key == "x_plain-1_a"
    assert found.records[-1].key.startswith("x_plain-1_a_")
    assert max(len(record.key) for record in found.records) < 110
    with pytest.raises(UserError, match="data set name"):
        read_list({"train": tmp_path / "l.txt"}, media, name="a b")


def test_source_ids_are_what_data_sets_share(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "train/a/1.mp4", "train/a/2.mp4", "val/b/1.mp4")
    lists = {"train": lines(tmp_path / "t", "a/1.mp4 0", "a/2.mp4 0"), "val": lines(tmp_path / "v", "b/1.mp4 1")}
    assert [record.source_id for record in read_list(lists, media, name="x").records] == ["1", "2", "1"]
    media = videos(tmp_path / "media", "train/b/1.mp4")
    # Of two that end alike, a line of train means the one in a folder of that name.
    lines(tmp_path / "t", "a/1.mp4 0", "b/1.mp4 1")
    assert [record.source_id for record in read_list(lists, media, name="x").records] == [
        "train/a/1",
        "train/b/1",
        "val/b/1",
    ]


def test_class_folders_with_splits(tmp_path: Path) -> None:
    media = videos(
        tmp_path / "media",
        "train/bowling/a.mp4",
        "train/air drumming/deep/b.mp4",
        "validation/bowling/c.webm",
        "val/loose.mp4",
        "test/d.mp4",
        "stray/e.mp4",
    )
    found = accounted(read_folder(media, name="x"), 5)
    assert found.classes == ("air drumming", "bowling")
    assert labels(found) == {
        "train/bowling/a.mp4": 1,
        "train/air drumming/deep/b.mp4": 0,
        "validation/bowling/c.webm": 1,
        "test/d.mp4": UNLABELLED,
    }
    assert [(failure.split, failure.source_name, failure.reason) for failure in found.failures] == [
        ("val", "val/loose.mp4", "no class")
    ]
    assert found.unlisted == ("stray/e.mp4",)
    assert any("ranks of 2 sorted class names" in note for note in found.notes)
    found = read_folder(media, name="x", splits=("val",))
    assert (found.classes, labels(found)) == (("air drumming", "bowling"), {"validation/bowling/c.webm": 1})
    assert len(found.unlisted) == 4


def test_class_folders_without_splits_are_for_training(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "b/1.mp4", "a/1.mp4")
    found = accounted(read_folder(media, name="x"), 2)
    assert labels(found) == {"a/1.mp4": 0, "b/1.mp4": 1}
    assert {record.split for record in found.records} == {"train"}
    assert any("taken for training" in note for note in found.notes)
    with pytest.raises(UserError, match="no folder called val"):
        read_folder(media, name="x", splits=("train", "val"))
    deeper = videos(tmp_path / "deeper", "ucf/a/1.mp4", "ucf/b/1.mp4")
    with pytest.raises(UserError, match="all videos lie in the folder 'ucf'"):
        read_folder(deeper, name="x")
    with pytest.raises(UserError, match="no video lies in a class folder"):
        read_folder(videos(tmp_path / "flat", "1.mp4"), name="x")


def test_archives_count_as_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {
        "train/bowling.tar!1.mp4": ("train", "bowling"),
        "train/archery (indoor).tar.gz!archery (indoor)/2.mp4": ("train", "archery (indoor)"),
        "val.tar!bowling/3.mp4": ("val", "bowling"),
        "val.zip!val/bowling/4.mp4": ("val", "bowling"),
        "part_1.tgz!train/archery (indoor)/5.mp4": ("train", "archery (indoor)"),
        "train/part_2.tar!bowling/6.mp4": ("train", "bowling"),
    }
    files = []
    for name in sorted(places):
        archive = Archive((f"/x/{name.partition('!')[0]}",), "tar")
        files.append(VideoFile("/x", name.replace("!", "/"), 5, archive))
    monkeypatch.setattr(lists, "list_sources", lambda *args, **options: Sources(tuple(files), {}))
    found = accounted(read_folder(tmp_path, name="x"), 6)
    assert {record.source_name: (record.split, found.classes[record.label]) for record in found.records} == {
        name.replace("!", "/"): place for name, place in places.items()
    }
    path = lines(tmp_path / "l.txt", "archery_(indoor)/2.mp4 0", "/x/bowling/1.mp4 1")
    assert len(read_list({"train": path}, tmp_path, name="x").records) == 2


def test_scanning_archives_is_told(tmp_path: Path) -> None:
    media = videos(tmp_path / "raw", "a.mp4", "b.mp4")
    (tmp_path / "media/train").mkdir(parents=True)
    for name, place in (("a", "bowling"), ("b", "archery")):
        with tarfile.open(tmp_path / f"media/train/{place}.tar", "w") as archive:
            archive.add(media / f"{name}.mp4", f"{name}.mp4")
    told: list[tuple[int, int]] = []
    read_folder(tmp_path / "media", name="x", on_scan=lambda *counts: told.append(counts))
    assert told == sorted(told)
    assert (told[-1], {num for _, num in told}) == ((2, 2), {2})
    told.clear()
    path = lines(tmp_path / "l.txt", "a.mp4 0", "b.mp4 1")
    found = read_list({"train": path}, tmp_path / "media", name="x", on_scan=lambda *counts: told.append(counts))
    assert (len(found.records), told[-1]) == (2, (2, 2))


def test_class_folders_of_a_published_list_get_its_ids(tmp_path: Path) -> None:
    some = [name.replace(" ", "_") for name in K400[5:]]
    media = videos(tmp_path / "media", *(f"{name}/{i}.mp4" for i, name in enumerate(some)))
    found = read_folder(media, name="x")
    assert found.classes == K400
    assert sorted(labels(found).values()) == list(range(5, 400))
    classes = lines(tmp_path / "classes.txt", "x", "y")
    with pytest.raises(UserError, match=r"is not in classes\.txt"):
        read_folder(media, name="x", classes_file=classes)
