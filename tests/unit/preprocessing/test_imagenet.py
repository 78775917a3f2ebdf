import tarfile
from collections import Counter
from pathlib import Path

import pytest

from preprocessing import imagenet
from preprocessing.archives import Archive
from preprocessing.class_lists import class_list
from preprocessing.imagenet import read_imagenet
from preprocessing.records import Annotations
from preprocessing.sources import Sources, VideoFile
from vast.dataset_format import UNLABELLED
from vast.errors import UserError

WNIDS = class_list("imagenet1k").names
TENCH, GOLDFISH, SHARK = WNIDS[:3]
SNAKE = "n01751748"


def put(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tree(folder: Path) -> Path:
    return put(
        folder,
        f"train/{SHARK}/{SHARK}_7.JPEG",
        f"train/{TENCH}/{TENCH}_10026.JPEG",
        f"val/{SHARK}/ILSVRC2012_val_00000001.JPEG",
        f"val/{TENCH}/ILSVRC2012_val_00000293.JPEG",
    )


def labels(found: Annotations, split: str = "") -> dict[str, int]:
    return {record.source_id: record.label for record in found.records if split in ("", record.split)}


def accounted(found: Annotations) -> Annotations:
    """Every picture is a record, a failure or unlisted, once; no two records of a split have one key."""
    keys = Counter((record.split, record.key) for record in found.records)
    assert set(keys.values()) <= {1}
    assert all(
        record.key.replace("-", "").replace("_", "").isalnum() and record.key.isascii() for record in found.records
    )
    lines = [
        *(record.source_name for record in found.records),
        *(one.source_name for one in found.failures),
        *found.unlisted,
    ]
    assert set(Counter(name for name in lines if name).values()) <= {1}
    assert {failure.stage for failure in found.failures} <= {"match"}
    assert found.media == "image"
    return found


@pytest.mark.parametrize("where", ["", "ILSVRC/Data/CLS-LOC", "deep/er/down"])
def test_class_folders_at_any_depth_have_the_published_ids(tmp_path: Path, where: str) -> None:
    tree(tmp_path / where)
    found = accounted(read_imagenet(tmp_path))
    assert found.classes == WNIDS
    assert labels(found, "train") == {f"{SHARK}_7": 2, f"{TENCH}_10026": 0}
    assert labels(found, "val") == {"ILSVRC2012_val_00000001": 2, "ILSVRC2012_val_00000293": 0}
    assert found.records[0].key == f"imagenet1k_{TENCH}_10026"
    assert "train: 2 pictures; published: 1 281 167; far fewer are here" in found.notes
    assert any(f"val: no picture of 998 classes: {GOLDFISH}" in note for note in found.notes)


def test_the_folder_names_of_other_hands_are_known(tmp_path: Path) -> None:
    put(tmp_path, f"ILSVRC2012_img_train/{TENCH}/a.JPEG", f"validation/{TENCH}/images/b.jpg", f"Test/{TENCH}/c.png")
    found = accounted(read_imagenet(tmp_path, splits=("train", "val", "test")))
    assert [(record.split, record.label) for record in found.records] == [("train", 0), ("val", 0), ("test", 0)]


def test_a_class_may_stand_in_the_name_of_the_picture(tmp_path: Path) -> None:
    put(
        tmp_path,
        f"train_images_0/{SHARK}_10026_{SHARK}.JPEG",
        f"train_images_1/{TENCH}_3.JPEG",
        f"val_images/ILSVRC2012_val_00000293_{TENCH}.JPEG",
        "test_images/ILSVRC2012_test_00000001.JPEG",
    )
    found = accounted(read_imagenet(tmp_path, splits=("train", "val", "test")))
    assert labels(found) == {
        f"{SHARK}_10026": 2,
        f"{TENCH}_3": 0,
        "ILSVRC2012_val_00000293": 0,
        "ILSVRC2012_test_00000001": UNLABELLED,
    }


def listed(monkeypatch: pytest.MonkeyPatch, *names: str, **sizes: int) -> None:
    """Let the listing hold these names; what stands before a "!" is an archive."""
    files = []
    for name in sorted(names):
        archive = Archive((f"/x/{name.partition('!')[0]}",), "tar") if "!" in name else None
        plain = name.replace("!", "/")
        files.append(VideoFile("/x", plain, sizes.get(name.rpartition("/")[2].partition(".")[0], 5), archive))
    sources = Sources(tuple(files), {"AppleDouble": 3}, ("x.tar ends too early",))
    monkeypatch.setattr(imagenet, "list_sources", lambda *args, **options: sources)


def test_archives_count_as_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(
        monkeypatch,
        f"train/{TENCH}.tar!{TENCH}_1.JPEG",
        f"train/{SHARK}.tar!{SHARK}/{SHARK}_1.JPEG",
        f"train.tar.gz!train/{GOLDFISH}/{GOLDFISH}_1.JPEG",
        f"val_images.tar.gz!ILSVRC2012_val_00000293_{TENCH}.JPEG",
        "notes.tar!picture.png",
    )
    found = accounted(read_imagenet(tmp_path))
    assert labels(found) == {
        f"{TENCH}_1": 0,
        f"{GOLDFISH}_1": 1,
        f"{SHARK}_1": 2,
        "ILSVRC2012_val_00000293": 0,
    }
    assert found.unlisted == ("notes.tar/picture.png",)
    assert any("AppleDouble 3" in note for note in found.notes)
    assert "x.tar ends too early" in found.notes


def test_a_picture_and_its_copy_in_an_archive_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(
        monkeypatch,
        f"train/{TENCH}.tar!{TENCH}_1.JPEG",
        f"train/{TENCH}/{TENCH}_1.JPEG",
        f"val/{TENCH}/ILSVRC2012_val_00000293.JPEG",
        "ILSVRC2012_img_val.tar!ILSVRC2012_val_00000293.JPEG",
    )
    found = accounted(read_imagenet(tmp_path))
    assert [record.source_name for record in found.records] == [
        f"train/{TENCH}/{TENCH}_1.JPEG",
        f"val/{TENCH}/ILSVRC2012_val_00000293.JPEG",
    ]
    assert len(found.unlisted) == 2
    assert "train: 1 pictures are there twice, and read once" in found.notes
    monkeypatch.undo()
    put(tmp_path, f"train/{TENCH}/a.JPEG", f"val/{TENCH}/b.JPEG")
    put(tmp_path, f"train/{TENCH}/more/a.JPEG", content=b"longer")
    found = accounted(read_imagenet(tmp_path))
    assert [(failure.reason, failure.source_name) for failure in found.failures] == [
        ("ambiguous", f"train/{TENCH}/a.JPEG")
    ]


def test_folders_that_are_no_class_are_failures_and_named(tmp_path: Path) -> None:
    tree(tmp_path)
    put(tmp_path, "train/n99999999/a.JPEG", "train/tench/b.JPEG", "train/loose.JPEG", "elsewhere/c.JPEG")
    found = accounted(read_imagenet(tmp_path))
    assert [(failure.source_name, failure.reason) for failure in found.failures] == [
        ("train/n99999999/a.JPEG", "unknown class"),
        ("train/tench/b.JPEG", "unknown class"),
        ("train/loose.JPEG", "no class"),
    ]
    assert "'n99999999'" in found.failures[0].detail
    assert found.unlisted == ("elsewhere/c.JPEG",)
    assert any("2 folders are no class: 'n99999999' (1 pictures), 'tench'" in note for note in found.notes)
    put(tmp_path / "other", "train/cat/a.JPEG", "train/dog/a.JPEG", f"val/{TENCH}/b.JPEG")
    with pytest.raises(
        UserError, match=r"train: none of 2 class folders is in imagenet1k: 'cat', 'dog'; expected such as"
    ):
        read_imagenet(tmp_path / "other")


def test_other_classes_need_their_list(tmp_path: Path) -> None:
    put(tmp_path, "train/dog/a.JPEG", "train/cat/a.JPEG", "val/cat/a.JPEG")
    (tmp_path / "classes.txt").write_text("dog\nbird\ncat\n")
    found = accounted(read_imagenet(tmp_path, name="pets", classes_file=tmp_path / "classes.txt"))
    assert found.classes == ("dog", "bird", "cat")
    assert {record.source_name: record.label for record in found.records} == {
        "train/cat/a.JPEG": 2,
        "train/dog/a.JPEG": 0,
        "val/cat/a.JPEG": 2,
    }
    assert len({record.key for record in found.records if record.split == "train"}) == 2
    assert set(found.digests) == {"classes.txt"}
    assert not any("published" in note for note in found.notes)
    tree(tmp_path / "two")
    (tmp_path / "map.txt").write_text(f"{SHARK} great white shark, man-eater\n{TENCH} tench, Tinca tinca\n")
    found = read_imagenet(tmp_path / "two", classes_file=tmp_path / "map.txt")
    assert (found.classes, labels(found, "train")) == ((SHARK, TENCH), {f"{SHARK}_7": 0, f"{TENCH}_10026": 1})


def flat(folder: Path, num: int = 4) -> Path:
    put(folder, f"train/{TENCH}/a.JPEG")
    return put(folder, *(f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, num + 1)))


def test_flat_validation_pictures_need_a_list(tmp_path: Path) -> None:
    flat(tmp_path)
    with pytest.raises(UserError, match=r"4 pictures of val lie in no class folder.*sort them.*LOC_val_solution\.csv"):
        read_imagenet(tmp_path)
    # The numbers alone are no label ids: the kit counts in an order of its own.
    put(tmp_path, "kit/data/ILSVRC2012_validation_ground_truth.txt", content=b"1\n1\n1\n1\n")
    with pytest.raises(UserError, match="nothing says their classes"):
        read_imagenet(tmp_path)
    assert len(read_imagenet(tmp_path, splits=("train",)).records) == 1


def test_flat_validation_pictures_with_kaggles_list(tmp_path: Path) -> None:
    flat(tmp_path / "ILSVRC/Data/CLS-LOC")
    rows = [
        "ImageId,PredictionString",
        f"ILSVRC2012_val_00000002,{TENCH} 85 1 499 272 {TENCH} 1 2 3 4",
        f"ILSVRC2012_val_00000001,{SNAKE} 1 1 2 2 ",
        f"ILSVRC2012_val_00000004,{SHARK} 1 1 2 2 ",
        f"ILSVRC2012_val_00000005,{SHARK} 1 1 2 2 ",
    ]
    path = tmp_path / "LOC_val_solution.csv"
    path.write_text("\n".join(rows))
    found = accounted(read_imagenet(tmp_path))
    assert labels(found, "val") == {
        "ILSVRC2012_val_00000001": WNIDS.index(SNAKE),
        "ILSVRC2012_val_00000002": 0,
        "ILSVRC2012_val_00000004": 2,
    }
    assert [(failure.source_id, failure.reason) for failure in found.failures] == [
        ("ILSVRC2012_val_00000003", "no class"),
        ("ILSVRC2012_val_00000005", "missing"),
    ]
    assert set(found.digests) == {"LOC_val_solution.csv"}
    path.write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,n99999999 1\nILSVRC2012_val_00000002,\n")
    with pytest.raises(UserError, match=r"2 problem[\s\S]*line 2: .*n99999999[\s\S]*line 3"):
        read_imagenet(tmp_path)
    path.write_text("id,label\n")
    with pytest.raises(UserError, match="expected a header ImageId,PredictionString; it is id,label"):
        read_imagenet(tmp_path)


def test_flat_validation_pictures_with_the_numbers_of_a_kit(tmp_path: Path) -> None:
    flat(tmp_path)
    kit = tmp_path / "devkit" / "data"
    put(kit, "ILSVRC2012_validation_ground_truth.txt", content=b"490\n449\n2\n449\n")
    put(kit, "map_clsloc.txt", content=f"{SHARK} 2 shark\n{TENCH} 449 tench\n{SNAKE} 490 sea_snake\n".encode())
    found = accounted(read_imagenet(tmp_path))
    assert list(labels(found, "val").values()) == [WNIDS.index(SNAKE), 0, 2, 0]
    assert set(found.digests) == {"ILSVRC2012_validation_ground_truth.txt", "map_clsloc.txt"}
    # Numbers of another kit are found out by a picture whose class is known.
    put(kit, "map_clsloc.txt", content=f"{SHARK} 490 shark\n{TENCH} 449 tench\n{SNAKE} 2 sea_snake\n".encode())
    with pytest.raises(UserError, match=f"ILSVRC2012_val_00000001 is {SHARK}, but it is known to be {SNAKE}"):
        read_imagenet(tmp_path)
    put(kit, "map_clsloc.txt", content=f"{TENCH} 449 tench\n{SNAKE} 490 sea_snake\n".encode())
    with pytest.raises(UserError, match=r"line 3: '2' is not in map_clsloc\.txt"):
        read_imagenet(tmp_path)


def test_a_split_must_be_there_once(tmp_path: Path) -> None:
    tree(tmp_path / "one")
    with pytest.raises(UserError, match="no pictures in a folder or archive called test"):
        read_imagenet(tmp_path, splits=("test",))
    with pytest.raises(UserError, match="no split 'extra'; it has train, val, test"):
        read_imagenet(tmp_path, splits=("extra",))
    with pytest.raises(UserError, match="data set name"):
        read_imagenet(tmp_path, name="a/b")
    put(tmp_path, f"DET/train/{TENCH}/a.JPEG")
    with pytest.raises(UserError, match=r"several folders of train: DET/train, one/train"):
        read_imagenet(tmp_path)
    with pytest.raises(UserError, match="no pictures in a folder or archive called train"):
        read_imagenet(tmp_path / "one" / "train")


def test_the_archive_of_archives_must_be_unpacked_once(tmp_path: Path) -> None:
    put(tmp_path, f"val/{TENCH}/a.JPEG")
    with tarfile.open(tmp_path / f"{TENCH}.tar", "w") as inner:
        inner.add(tmp_path / f"val/{TENCH}/a.JPEG", f"{TENCH}_1.JPEG")
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        outer.add(tmp_path / f"{TENCH}.tar", f"{TENCH}.tar")
    (tmp_path / f"{TENCH}.tar").unlink()
    with pytest.raises(
        UserError, match=r"called train.* 1 archives lie in another .* unpack ILSVRC2012_img_train\.tar"
    ):
        read_imagenet(tmp_path, scans=str(tmp_path / "scans"))


def test_hostile_names_get_keys_of_ours(tmp_path: Path) -> None:
    names = ["-rf", "a b", "$(x)", "ü", "y" * 200, "a\nb", "x.."]
    put(tmp_path, *(f"train/{TENCH}/{name}.JPEG" for name in names), f"train/{SHARK}/-rf.JPEG")
    found = accounted(read_imagenet(tmp_path, splits=("train",)))
    assert len(found.records) == len(names) + 1
    assert "imagenet1k_-rf" in {record.key for record in found.records}


def test_the_order_of_the_listing_is_the_order_of_the_records(tmp_path: Path) -> None:
    one, other = tree(tmp_path / "one"), tmp_path / "other"
    for path in sorted(one.rglob("*.JPEG"), reverse=True):
        put(other, path.relative_to(one).as_posix())
    first, second = read_imagenet(one), read_imagenet(other)
    assert [record.key for record in first.records] == [record.key for record in second.records]
