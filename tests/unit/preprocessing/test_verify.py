import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from preprocessing.build import build_dataset
from preprocessing.records import Annotations, Failure, Record
from preprocessing.transcode import TranscodeSettings
from preprocessing.verify import describe, verify
from vast.dataset_format import SampleRow, read_index, read_manifest, write_index
from vast.errors import UserError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    records = []
    for number in range(6):
        path = make_clip(folder / f"{number}.mp4", num_frames=12, fps=12, seed=number)
        split = "val" if number > 3 else "train"
        records.append(Record(f"x_{number}", split, str(number), number % 2, str(path), path.name))
    failures = (Failure("x_8", "val", "8", "", "missing"), Failure("x_9", "val", "9", "", "missing"))
    out = tmp_path_factory.mktemp("data") / "set"
    annotations = Annotations("x", ("a", "b", "c"), tuple(records), failures, {}, ())
    build_dataset(str(out), annotations, TranscodeSettings(short_side=32), samples_per_shard=2, num_workers=0)
    return out


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "set"))


def rows(data: Path, split: str = "train") -> list[SampleRow]:
    index = read_index(str(data), split)
    return [index.row(i) for i in range(len(index))]


def edit_manifest(data: Path, change: Callable[[dict[str, object]], None]) -> None:
    content = json.loads((data / "manifest.json").read_text())
    change(content)
    (data / "manifest.json").write_text(json.dumps(content))


def test_a_whole_data_set_has_no_problem(pristine: Path) -> None:
    assert verify(str(pristine)) == []


def test_what_is_no_data_set_is_a_problem(tmp_path: Path) -> None:
    assert "there is no manifest.json" in verify(str(tmp_path))[0]


@pytest.mark.parametrize("place", ["header", "media", "json", "padding"])
def test_any_changed_byte_is_found(data: Path, place: str) -> None:
    row = rows(data)[0]
    after = row.offset + row.size_bytes
    offset = {"header": row.offset - 500, "media": row.offset + 900, "padding": after, "json": -1}[place]
    path = data / row.shard
    content = bytearray(path.read_bytes())
    if place == "json":
        offset = content.index(b'"label"', after) + 1
    content[offset] ^= 1
    path.write_bytes(content)
    problems = verify(str(data), decode_sample=0)
    assert f"{row.shard}: sha256 is" in problems[0]
    assert len(problems) > (place == "media") + (place == "json")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_shard_is_found(data: Path, share: float) -> None:
    path = data / "train-000001.tar"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert any("train-000001.tar" in problem and "bytes, the manifest says" in problem for problem in verify(str(data)))


def test_missing_and_stray_shards_are_named(data: Path) -> None:
    (data / "val-000000.tar").rename(data / "val-000007.tar")
    problems = verify(str(data))
    assert any("val-000007.tar: a shard that the manifest does not name" in problem for problem in problems)
    assert any("there is no val-000000.tar" in problem for problem in problems)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": 1024}, "the index says 1024"),
        ({"label": 7}, "has label 7, there are 3 classes"),
        ({"label": 2}, "its json says label"),
        ({"sha256": "00"}, "do not have the index's sha256"),
        ({"num_frames": 13}, "decodes to 12 frames, the index says 13"),
        ({"width": 1}, "the index says 1x32"),
        ({"key": "x_none"}, "has no x_none.mp4 or no x_none.json"),
        ({"shard": "train-000009.tar"}, "names shards that the manifest does not"),
    ],
)
def test_an_index_that_disagrees_with_the_shards_is_found(data: Path, change: dict[str, object], message: str) -> None:
    changed = rows(data)
    changed[0] = replace(changed[0], **change)  # type: ignore[arg-type]
    digest = write_index(str(data), "train", changed)

    def adopt(content: dict[str, object]) -> None:
        content["splits"]["train"]["index_sha256"] = digest  # type: ignore[index]

    edit_manifest(data, adopt)
    assert message in "\n".join(verify(str(data)))


def test_an_exchanged_index_and_lost_failure_lines_are_found(data: Path) -> None:
    (data / "failures.jsonl").write_text("")
    write_index(str(data), "train", rows(data)[:-1])
    problems = "\n".join(verify(str(data)))
    assert "failures.jsonl: 0 lines for val, the manifest says 2" in problems
    assert "train.parquet: sha256 is" in problems
    assert "train.parquet: 3 rows, the manifest says 4 samples" in problems


def test_a_manifest_that_does_not_add_up_is_found(data: Path) -> None:
    def lose_one(content: dict[str, object]) -> None:
        content["splits"]["val"]["records"] = 3  # type: ignore[index]

    edit_manifest(data, lose_one)
    assert "records 3 is not samples 2 + failures 2" in verify(str(data))[0]


def test_a_description_counts_what_is_there(pristine: Path, tmp_path: Path) -> None:
    manifest, (train, val) = describe(str(pristine))
    assert manifest == read_manifest(str(pristine))
    assert (train.split, train.records, train.samples, train.failures, train.shards) == ("train", 4, 4, 0, 2)
    assert (val.split, val.records, val.samples, val.failures, val.shards) == ("val", 4, 2, 2, 1)
    assert train.hours == pytest.approx(4 / 3600)
    assert train.classes == 2
    assert train.size_bytes == sum(path.stat().st_size for path in pristine.glob("train-*.tar"))
    assert val.failures_by_reason == {"missing": 2}
    with pytest.raises(UserError, match="no data set at"):
        describe(str(tmp_path))
