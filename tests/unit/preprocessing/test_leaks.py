import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from preprocessing.leaks import find_leaks
from vast.dataset_format import Manifest, SampleRow, SplitInfo, classes_digest, dataset_digest, write_manifest
from vast.errors import UserError
from vast.sample_index import write_index


def dataset(folder: Path, **sources: Sequence[str]) -> str:
    """Indexes and manifest of a data set with these source ids by split; leaks need no shards."""
    splits = {}
    for split, ids in sources.items():
        rows = [
            SampleRow(f"k_{i}", f"{split}-000000.tar", 512 * i, 9, 0, source_id, 1.0, 25.0, 64, 48, 25, "0" * 64)
            for i, source_id in enumerate(ids)
        ]
        digest = write_index(str(folder), split, rows)
        splits[split] = SplitInfo(records=0, samples=0, failures=0, size_bytes=0, index_sha256=digest, shards=[])
    content = {
        "name": "x",
        "classes": ["a"],
        "classes_digest": classes_digest(["a"]),
        "splits": splits,
        "annotations": {},
        "transcode": {},
        "software": {},
        "plan_digest": hashlib.sha256(b"").hexdigest(),
        "digest": dataset_digest(splits),
    }
    write_manifest(str(folder), Manifest.model_validate(content))
    return str(folder)


def test_shared_sources_of_two_data_sets_are_counted_for_every_pair_of_splits(tmp_path: Path) -> None:
    one = dataset(tmp_path / "a", train=["v1", "v2", "v2", "v3"], val=["v9", "v8"])
    other = dataset(tmp_path / "b", train=["v9", "w1", "v9", "w2", "w3"], val=["w4", "v2", "v1"], test=[])
    report = find_leaks(one, other)
    assert [(pair.split_a, pair.split_b, pair.num_shared) for pair in report.pairs] == [
        ("train", "test", 0),
        ("train", "train", 0),
        ("train", "val", 2),
        ("val", "test", 0),
        ("val", "train", 1),
        ("val", "val", 0),
    ]
    first, second = report.leaks
    assert (first.samples_a, first.shared_samples_a, first.share_a) == (4, 3, 0.75)
    assert (first.samples_b, first.shared_samples_b) == (3, 2)
    assert first.examples == ("v1", "v2")
    assert (second.shared_samples_a, second.shared_samples_b, second.share_b) == (1, 2, 0.4)
    assert str(second) == "val and train share 1 sources: 1 of 2 samples (50.0 %) and 2 of 5 (40.0 %): v9"
    assert str(report.pairs[0]) == "train and test share no source"
    assert report.pairs[0].share_b == 0.0


def test_the_other_way_round_it_is_the_same(tmp_path: Path) -> None:
    one, other = dataset(tmp_path / "a", train=["v1", "v2", "v2"]), dataset(tmp_path / "b", val=["v2", "v5"])
    (there,), (back,) = find_leaks(one, other).pairs, find_leaks(other, one).pairs
    assert (there.split_a, there.share_a, there.share_b) == (back.split_b, back.share_b, back.share_a)
    assert there.examples == back.examples == ("v2",)


def test_a_data_set_against_itself_compares_different_splits_once(tmp_path: Path) -> None:
    url = dataset(tmp_path / "a", train=["v1", "v2"], val=["v2"], test=["v2", "v7"])
    for again in (url, f"{url}/", f"file://{url}"):
        report = find_leaks(url, again)
        assert [(pair.split_a, pair.split_b) for pair in report.pairs] == [
            ("test", "train"),
            ("test", "val"),
            ("train", "val"),
        ]
        assert all(pair.num_shared == 1 for pair in report.pairs)
    assert [pair.split_a for pair in find_leaks(url, url, None, "train").pairs] == ["test", "val"]
    (pair,) = find_leaks(url, url, "train", "val").pairs
    assert (pair.split_a, pair.split_b) == ("train", "val")
    with pytest.raises(UserError, match="shares everything with itself"):
        find_leaks(url, url, "train", "train")
    with pytest.raises(UserError, match="shares everything with itself"):
        find_leaks(dataset(tmp_path / "one", train=["v"]), str(tmp_path / "one"))


def test_unknown_sources_are_not_shared_and_examples_are_few(tmp_path: Path) -> None:
    many = [f"v{i:03d}" for i in range(50)]
    url = dataset(tmp_path / "a", train=["", *many], val=["", "", *reversed(many)])
    (pair,) = find_leaks(url, url).pairs
    assert (pair.num_shared, pair.shared_samples_a, pair.samples_b) == (50, 50, 52)
    assert pair.examples == ("v000", "v001", "v002", "v003", "v004")
    assert str(pair).endswith("v003, v004 …")


def test_only_one_column_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = dataset(tmp_path / "a", train=["v1"], val=["v1"])
    asked = []
    monkeypatch.setattr("vast.sample_index.SampleIndex.rows", lambda *_: pytest.fail("rows were read"))
    original = __import__("vast.sample_index").sample_index.SampleIndex.columns
    monkeypatch.setattr(
        "vast.sample_index.SampleIndex.columns", lambda self, names: asked.append(names) or original(self, names)
    )
    assert find_leaks(url, url).pairs[0].num_shared == 1
    assert asked == [["source_id"], ["source_id"]]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    url = dataset(tmp_path / "a", train=["v1"])
    with pytest.raises(UserError, match="no split 'val'; it has: train"):
        find_leaks(url, dataset(tmp_path / "b", train=["v1"]), "train", "val")
    with pytest.raises(UserError, match="no data set at"):
        find_leaks(url, str(tmp_path / "nothing"))
