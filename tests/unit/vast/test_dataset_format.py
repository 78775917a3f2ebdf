import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from vast.dataset_format import (
    Manifest,
    ShardInfo,
    SplitInfo,
    class_difference,
    classes_digest,
    dataset_digest,
    read_manifest,
    write_manifest,
)
from vast.errors import UserError
from vast.sample_index import read_index


def shard(name: str, samples: int, sha256: str = "aa") -> ShardInfo:
    return ShardInfo(name=name, size_bytes=100 * samples, sha256=sha256, samples=samples)


def split(*shards: ShardInfo, failures: int = 0) -> SplitInfo:
    samples = sum(s.samples for s in shards)
    return SplitInfo(
        records=samples + failures,
        samples=samples,
        failures=failures,
        size_bytes=sum(s.size_bytes for s in shards),
        index_sha256="bb",
        shards=list(shards),
    )


def manifest(**changes: object) -> Manifest:
    splits = {"train": split(shard("train-000000.tar", 3), shard("train-000001.tar", 2, "cc"), failures=1)}
    content = {
        "name": "k400",
        "classes": ["a", "b"],
        "classes_digest": classes_digest(["a", "b"]),
        "splits": splits,
        "annotations": {"train.csv": "dd"},
        "transcode": {"crf": 23},
        "software": {},
        "plan_digest": "sha256:ee",
        "digest": dataset_digest(splits),
    }
    return Manifest.model_validate({**content, **changes})


def test_a_manifest_comes_back_equal(tmp_path: Path) -> None:
    for content in (manifest(), manifest(media="image", unlisted=3)):
        write_manifest(str(tmp_path), content)
        assert read_manifest(str(tmp_path)) == content


def test_a_manifest_with_the_time_of_its_build_can_still_be_read(tmp_path: Path) -> None:
    newer = ("unlisted", "media")
    older = {name: value for name, value in manifest().model_dump().items() if name not in newer}
    del older["splits"]["train"]["replaced"]
    (tmp_path / "manifest.json").write_text(json.dumps({**older, "created": "2020-01-01T00:00:00Z"}))
    assert read_manifest(str(tmp_path)) == manifest()


def test_the_same_manifest_has_the_same_bytes(tmp_path: Path) -> None:
    contents = set()
    for name in ("a", "b"):
        write_manifest(str(tmp_path / name), manifest())
        contents.add((tmp_path / name / "manifest.json").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["b", "a"]}, "classes_digest does not belong"),
        ({"digest": "sha256:0"}, "digest does not belong to the shards"),
        ({"surprise": 1}, "surprise"),
        ({"created": "2020-01-01T00:00:00Z"}, "created"),
        ({"media": "sound"}, "media"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        manifest(**changes)


def test_every_record_is_a_sample_or_a_failure() -> None:
    content = split(shard("train-000000.tar", 3), failures=2).model_dump()
    for name in ("records", "samples", "size_bytes"):
        with pytest.raises(ValidationError, match=name):
            SplitInfo.model_validate({**content, name: content[name] + 1})
    assert SplitInfo.model_validate({**content, "replaced": 3}).replaced == 3
    for replaced in (4, -1):
        with pytest.raises(ValidationError, match=f"replaced {replaced} is not between 0 and samples 3"):
            SplitInfo.model_validate({**content, "replaced": replaced})


def test_the_digest_sees_content_and_order_of_shards() -> None:
    one, two = shard("train-000000.tar", 1, "aa"), shard("train-000001.tar", 1, "bb")
    swapped = shard("train-000000.tar", 1, "bb"), shard("train-000001.tar", 1, "aa")
    digests = {dataset_digest({"train": split(*shards)}) for shards in ((one, two), swapped, (one,))}
    assert len(digests) == 3
    assert dataset_digest({"a": split(one), "b": split(two)}) == dataset_digest({"b": split(two), "a": split(one)})


def test_an_unfinished_data_set_is_none(tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_bytes(bytes(1024))
    with pytest.raises(UserError, match=r"no data set at .*there is no manifest\.json"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format_version": 2}', "has format version 2; this program reads 1"),
        (json.dumps({**manifest().model_dump(), "name": 5}), "name: Input should be a valid string"),
    ],
)
def test_a_damaged_or_newer_manifest_says_so(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_manifest(str(tmp_path))


def test_an_unknown_split_lists_the_known_ones(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), manifest())
    with pytest.raises(UserError, match="has no split 'valid'; it has: train"):
        read_index(str(tmp_path), "valid")


def test_a_manifest_whose_checksum_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), manifest())
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"k400"', '"k401"'))
    with pytest.raises(UserError, match="its checksum does not belong to the rest"):
        read_manifest(str(tmp_path))


def test_the_first_difference_of_class_lists_in_words() -> None:
    assert class_difference(["a", "b"], ["a", "b"], "here") == ""
    assert class_difference(["a", "b"], ["a", "c"], "here").endswith("label id 1 is 'c' there and 'b' here")
    assert class_difference(["a"], ["a", "b"], "here").endswith("1 here; label id 1 is 'b' only there")
    assert class_difference(["a", "b"], ["a"], "here").endswith("2 here; label id 1 is 'b' only here")
