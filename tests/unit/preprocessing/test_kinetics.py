from pathlib import Path

import pytest

from preprocessing.kinetics import read_kinetics
from preprocessing.records import AMBIGUOUS, MISSING
from vast.errors import UserError

IDS = ("-abcdefghij", "_a_bcdefgh_", "abcdefghijk", "ABCDEFGHIJK")
HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


def write(folder: Path, train: str, val: str = HEADER, val_name: str = "val.csv") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.csv").write_text(train)
    (folder / val_name).write_text(val)
    return folder


def videos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_both_file_forms_flat_or_in_class_folders_are_found(tmp_path: Path) -> None:
    rows = "".join(f'"air drumming",{video_id},5,15,train,0\n' for video_id in IDS)
    folder = write(tmp_path / "csv", HEADER + rows)
    media = videos(
        tmp_path / "media",
        f"{IDS[0]}_000005_000015.mp4",
        f"air drumming/{IDS[1]}_000005_000015.mkv",
        f"air drumming/{IDS[2]}.mp4",
    )
    found = read_kinetics(folder, media)
    assert [(record.source_id, record.source_name) for record in found.records] == [
        (IDS[0], f"{IDS[0]}_000005_000015.mp4"),
        (IDS[1], f"air drumming/{IDS[1]}_000005_000015.mkv"),
        (IDS[2], f"air drumming/{IDS[2]}.mp4"),
    ]
    assert [record.key for record in found.records] == [f"k400_{video_id}_000005" for video_id in IDS[:3]]
    assert [(failure.source_id, failure.reason) for failure in found.failures] == [(IDS[3], MISSING)]
    assert (found.records[0].start_s, found.records[0].end_s) == (5, 15)


def test_one_video_may_give_two_clips(tmp_path: Path) -> None:
    video_id = IDS[0]
    folder = write(tmp_path / "csv", HEADER + f"x,{video_id},5,15,train,0\ny,{video_id},50,60,train,0\n")
    both = videos(tmp_path / "both", f"{video_id}_000005_000015.mp4", f"{video_id}_000050_000060.mp4")
    records = read_kinetics(folder, both).records
    assert [(record.key[-6:], record.label) for record in records] == [("000005", 0), ("000050", 1)]
    assert records[1].source_name.startswith(f"{video_id}_000050")
    bare = read_kinetics(folder, videos(tmp_path / "bare", f"{video_id}.mp4"))
    assert [failure.reason for failure in bare.failures] == [AMBIGUOUS, AMBIGUOUS]
    assert "2 clips" in bare.failures[0].detail


def test_two_files_for_one_clip_are_not_chosen_from(tmp_path: Path) -> None:
    folder = write(tmp_path / "csv", HEADER + f"x,{IDS[0]},5,15,train,0\n")
    media = videos(tmp_path / "media", f"a/{IDS[0]}_000005_000015.mp4", f"b/{IDS[0]}_000005_000015.mp4", "stray.mp4")
    found = read_kinetics(folder, media)
    assert [failure.reason for failure in found.failures] == [AMBIGUOUS]
    assert found.unlisted == ("stray.mp4",)


def test_columns_are_found_by_name_and_times_may_be_floats(tmp_path: Path) -> None:
    train = f'\ufeffsplit,time_end,time_start,youtube_id,label\ntrain,15.0,5.0,{IDS[0]},"b, quoted"\n'
    folder = write(tmp_path / "csv", train, f"label,youtube_id,time_start,time_end\na,{IDS[1]},1,2\n", "validate.csv")
    media = videos(tmp_path / "media", f"{IDS[0]}_000005_000015.mp4", f"{IDS[1]}_000001_000002.mp4")
    found = read_kinetics(folder, media, name="k700")
    assert found.classes == ("a", "b, quoted")
    assert [(r.split, r.label, r.key) for r in found.records] == [
        ("train", 1, f"k700_{IDS[0]}_000005"),
        ("val", 0, f"k700_{IDS[1]}_000001"),
    ]
    assert set(found.digests) == {"train.csv", "validate.csv"}


def test_a_split_without_labels_is_unlabelled(tmp_path: Path) -> None:
    folder = write(tmp_path / "csv", HEADER + f"x,{IDS[0]},5,15,train,0\n")
    (folder / "test.csv").write_text(f"youtube_id,time_start,time_end,split\n{IDS[1]},5,15,test\n")
    media = videos(tmp_path / "media", f"{IDS[0]}.mp4", f"{IDS[1]}.mp4")
    found = read_kinetics(folder, media, splits=("train", "test"))
    assert [(record.split, record.label) for record in found.records] == [("train", 0), ("test", -1)]


def test_a_class_file_fixes_the_ids_and_forgives_spelling(tmp_path: Path) -> None:
    folder = write(tmp_path / "csv", HEADER + f"massaging_Persons_head,{IDS[0]},5,15,train,0\n")
    (tmp_path / "classes.txt").write_text("zumba\nmassaging person's head\n")
    media = videos(tmp_path / "media", f"{IDS[0]}.mp4")
    found = read_kinetics(folder, media, classes_file=tmp_path / "classes.txt")
    assert found.classes == ("zumba", "massaging person's head")
    assert found.records[0].label == 1
    (tmp_path / "classes.txt").write_text("zumba\n")
    with pytest.raises(UserError, match=r"train\.csv line 2: label 'massaging_Persons_head' is not in the class list"):
        read_kinetics(folder, media, classes_file=tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("zumba\nZumba\n")
    with pytest.raises(UserError, match="'zumba' and 'Zumba' differ only in case"):
        read_kinetics(folder, media, classes_file=tmp_path / "classes.txt")


def test_all_bad_rows_are_shown_at_once(tmp_path: Path) -> None:
    rows = f"x,short,5,15,train,0\nx,{IDS[0]},20,15,train,0\nx,{IDS[0]},five,15,train,0\n,{IDS[0]},1,2,train,0\n"
    folder = write(tmp_path / "csv", HEADER + rows)
    with pytest.raises(UserError) as caught:
        read_kinetics(folder, videos(tmp_path / "media", "x.mp4"))
    for line in ("line 2: youtube_id is 'short'", "line 3: time_start 20", "line 4: time_start", "line 5: the label"):
        assert line in str(caught.value)


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    media = videos(tmp_path / "media", "x.mp4")
    folder = write(tmp_path / "csv", "label,id\nx,y\n")
    with pytest.raises(UserError, match="no column youtube_id, time_start, time_end; the header is: label, id"):
        read_kinetics(folder, media)
    (folder / "validate.csv").write_text(HEADER)
    with pytest.raises(UserError, match=r"has both val\.csv and validate\.csv"):
        read_kinetics(folder, media)
    with pytest.raises(UserError, match=r"has no test\.csv"):
        read_kinetics(folder, media, splits=("test",))
    with pytest.raises(UserError, match="data set name 'a/b'"):
        read_kinetics(folder, media, name="a/b")
