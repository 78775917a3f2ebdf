import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing import object_stream
from preprocessing.profiles import TranscodeSettings
from preprocessing.transcode import transcode
from preprocessing.verify import verify
from preprocessing.verify_shard import ShardFindings
from vast.dataset_format import (
    UNLABELLED,
    Manifest,
    SampleRow,
    ShardInfo,
    SplitInfo,
    classes_digest,
    dataset_digest,
    manifest_checksum,
    shard_name,
    write_manifest,
)
from vast.sample_index import read_index, write_index
from vast.shard_writer import ShardWriter

SETTINGS = TranscodeSettings(short_side=48)
CLASSES = ["a", "b", "c"]
# (split, stage, reason) of the records that are in no shard.
FAILED = [("train", "match", "missing"), ("train", "transcode", "cut short"), ("val", "read", "empty")]
EMPTY = {"records": 0, "samples": 0, "failures": 0, "size_bytes": 0, "index_sha256": "", "shards": []}
UNLISTED = ["stray one.mp4", "stray two.mp4"]


class Sample:
    """One sample as a shard writer gets it."""

    def __init__(self, key: str, media: bytes, num_frames: int, label: int, duration_s: float, replaced: bool = False):
        self.key, self.media, self.replaced = key, media, replaced
        self.measured: dict[str, Any] = {
            "duration_s": duration_s,
            "video_fps": num_frames / duration_s if duration_s else 0.0,
            "width": 64,
            "height": 48,
            "num_frames": num_frames,
        }
        self.label = label


def write_set(folder: Path, shards: dict[str, list[list[Sample]]], media: str = "video", suffix: str = "mp4") -> Path:
    """Write a data set as the builder does, one list of samples a shard."""
    folder.mkdir()
    splits = {}
    for split, contents in shards.items():
        infos, rows = [], []
        for number, samples in enumerate(contents):
            info, of_shard = _write_shard(folder / shard_name(split, number), split, samples, suffix)
            infos.append(info)
            rows += of_shard
        failures = sum(split == of for of, _, _ in FAILED)
        splits[split] = SplitInfo(
            records=len(rows) + failures,
            samples=len(rows),
            failures=failures,
            replaced=sum(sample.replaced for samples in contents for sample in samples),
            size_bytes=sum(info.size_bytes for info in infos),
            index_sha256=write_index(str(folder), split, rows),
            shards=infos,
        )
    lines = [
        {"key": f"x_failed{i}", "split": split, "source_id": "f", "source_name": "", "stage": stage, "reason": reason}
        for i, (split, stage, reason) in enumerate(FAILED)
    ]
    (folder / "failures.jsonl").write_text("".join(json.dumps({**line, "detail": "é"}) + "\n" for line in lines))
    (folder / "unlisted.jsonl").write_text("".join(json.dumps({"source_name": name}) + "\n" for name in UNLISTED))
    manifest = Manifest(
        name="x",
        media=media,  # type: ignore[arg-type]
        classes=CLASSES,
        classes_digest=classes_digest(CLASSES),
        splits=splits,
        unlisted=len(UNLISTED),
        failures_sha256=hashlib.sha256((folder / "failures.jsonl").read_bytes()).hexdigest(),
        unlisted_sha256=hashlib.sha256((folder / "unlisted.jsonl").read_bytes()).hexdigest(),
        annotations={"train.csv": "00"},
        transcode=SETTINGS.model_dump(mode="json"),
        software={"ffmpeg": "7"},
        plan_digest="sha256:00",
        digest=dataset_digest(splits),
    )
    write_manifest(str(folder), manifest)
    return folder


def _write_shard(path: Path, split: str, samples: list[Sample], suffix: str) -> tuple[ShardInfo, list[SampleRow]]:
    rows = []
    with ShardWriter(path) as writer:
        for sample in samples:
            meta = {
                **sample.measured,
                "split": split,
                "label": sample.label,
                "class": None if sample.label == UNLABELLED else CLASSES[sample.label],
                "source_id": f"id {sample.key}",
                "replaced": sample.replaced,
            }
            place = writer.add(sample.key, sample.media, suffix, meta)
            rows.append(
                SampleRow(
                    key=sample.key,
                    shard=path.name,
                    offset=place.offset,
                    size_bytes=place.size_bytes,
                    label=sample.label,
                    source_id=f"id {sample.key}",
                    sha256=place.sha256,
                    **sample.measured,
                )
            )
        return writer.finish(), rows


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    raw = [make_clip(folder / f"{i}.mp4", num_frames=6, fps=12, seed=i) for i in range(6)]
    return [transcode(path, SETTINGS).media for path in raw]


@pytest.fixture(scope="module")
def samples(clips: list[bytes]) -> list[Sample]:
    # A key of more than a hundred letters makes its tar header an extended one.
    keys = ["x_0", "x_1-_", "x_" + 120 * "y", "x_3", "x_4", "x_5"]
    labels = [0, 1, 0, 1, UNLABELLED, UNLABELLED]
    pairs = zip(keys, clips, labels, strict=True)
    return [Sample(key, clip, 6, label, 0.5, replaced=key == "x_3") for key, clip, label in pairs]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    return write_set(out, {"train": [samples[:2], samples[2:4]], "val": [samples[4:]]})


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "set"))


def rows(data: Path, split: str = "train") -> list[SampleRow]:
    index = read_index(str(data), split)
    return index.rows(range(len(index)))


def edit_manifest(data: Path, change: Callable[[Any], None]) -> None:
    content = json.loads((data / "manifest.json").read_text())
    change(content)
    content["checksum"] = manifest_checksum({name: value for name, value in content.items() if name != "checksum"})
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    (data / "manifest.json").write_text(text + "\n")


def adopt_index(data: Path, changed: list[SampleRow]) -> None:
    """Write another train index and let the manifest vouch for it."""
    digest = write_index(str(data), "train", changed)
    edit_manifest(data, lambda content: content["splits"]["train"].update(index_sha256=digest))


def names_it(problems: list[str], name: str) -> bool:
    return any(problem.startswith(name) or ("manifest" in name and name in problem) for problem in problems)


def problems_naming(data: Path, name: str, **options: Any) -> list[str]:
    found = verify(str(data), **options)
    assert names_it(found, name), (name, found)
    return found


def test_a_whole_data_set_has_no_problem(pristine: Path) -> None:
    before = {path: path.read_bytes() for path in pristine.iterdir()}
    calls: list[tuple[int, int]] = []
    notes: list[str] = []
    found = verify(
        str(pristine), decode_all=True, on_progress=lambda *counts: calls.append(counts), on_note=notes.append
    )
    assert found == []
    assert notes == []
    assert calls[-1] == (6, 6)
    assert {path: path.read_bytes() for path in pristine.iterdir()} == before


def test_chunks_of_any_size_read_the_same(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size_bytes in (1000, 512, 7):
        monkeypatch.setattr(object_stream, "CHUNK_BYTES", size_bytes)
        assert verify(str(pristine), decode_sample=1) == []


def test_what_is_no_data_set_is_a_problem(tmp_path: Path) -> None:
    assert "there is no manifest.json" in verify(str(tmp_path))[0]


@pytest.fixture(scope="module")
def victim(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for many damages one after the other; each is mended before the next."""
    return Path(shutil.copytree(pristine, tmp_path_factory.mktemp("victim") / "set"))


SHARDS = ["train-000000.tar", "train-000001.tar", "val-000000.tar"]
ALL = [*SHARDS, "train.parquet", "val.parquet", "failures.jsonl", "unlisted.jsonl", "manifest.json"]
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def damaged(victim: Path, name: str, content: bytes) -> list[str]:
    path = victim / name
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        return verify(str(victim), decode_sample=1)
    finally:
        path.write_bytes(whole)


@many
@given(name=st.sampled_from(ALL), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_changed_byte_is_found(victim: Path, name: str, place: float, flip: int) -> None:
    content = bytearray((victim / name).read_bytes())
    content[int(place * len(content))] ^= flip
    assert names_it(damaged(victim, name, bytes(content)), name)


@many
@given(name=st.sampled_from(ALL), place=st.floats(0, 1, exclude_max=True), is_longer=st.booleans())
def test_any_other_length_is_found(victim: Path, name: str, place: float, is_longer: bool) -> None:
    content = (victim / name).read_bytes()
    cut = int(place * len(content))
    assert names_it(damaged(victim, name, content + content[:cut] + b"x" if is_longer else content[:cut]), name)


@pytest.mark.parametrize("name", ALL)
def test_a_lost_or_emptied_file_is_found(data: Path, name: str) -> None:
    (data / name).write_bytes(b"")
    problems_naming(data, name)
    (data / name).unlink()
    problems_naming(data, name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train-000007.tar", "a shard that the manifest does not name"),
        ("test.parquet", "does not belong to the data set"),
        ("notes/read.me", "does not belong to the data set"),
        ("two\nlines", "does not belong to the data set"),
        (os.fsdecode(b"not \xff utf-8"), "does not belong to the data set"),
        ("unfinished-0011-train-000000.tar.json", "the report of a build that has not ended"),
        ("scan-abc", "a list of an archive's members"),
        ("lock.json", "the lock of a build"),
        (".train-000000.tar.0123456789abcdef0123456789abcdef.tmp", "a temporary file"),
    ],
)
def test_a_stray_file_is_named(data: Path, name: str, kind: str) -> None:
    (data / name).parent.mkdir(exist_ok=True)
    (data / name).write_bytes(b"x")
    (problem,) = verify(str(data))
    assert problem.startswith((f"{name}: ", f"{name!r}: "))
    assert kind in problem
    assert len(problem.encode().splitlines()) == 1


def test_many_strays_are_counted(data: Path) -> None:
    for number in range(40):
        (data / f"stray {number}").touch()
    found = verify(str(data))
    assert len(found) == 11
    assert found[-1] == "and 30 more of this kind"


def test_exchanged_shards_are_found_even_when_the_manifest_agrees(data: Path) -> None:
    first, second = data / "train-000000.tar", data / "train-000001.tar"
    first.rename(data / "x")
    second.rename(first)
    (data / "x").rename(second)
    assert "sha256 is" in "\n".join(problems_naming(data, "train-000000.tar"))

    def adopt(content: Any) -> None:
        one, other = content["splits"]["train"]["shards"]
        one["name"], other["name"] = other["name"], one["name"]
        content["splits"]["train"]["shards"] = [other, one]
        splits = {name: SplitInfo.model_validate(info) for name, info in content["splits"].items()}
        content["digest"] = dataset_digest(splits)

    edit_manifest(data, adopt)
    found = "\n".join(problems_naming(data, "train-000000.tar"))
    assert "sha256 is" not in found
    assert "x_3 is not in the index" in found
    assert "x_0 is not in it, the index says it is" in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": 1024}, "the index says at 1024"),
        ({"label": 7}, "has label 7 in the index, there are 3 classes"),
        ({"label": -2}, "has label -2 in the index, there are 3 classes"),
        ({"label": 2}, "its json says label 0, the index says 2"),
        ({"label": UNLABELLED}, "its json says class 'a', the index says None"),
        ({"source_id": "z"}, "its json says source_id 'id x_0', the index says 'z'"),
        ({"duration_s": 0.25}, "its json says duration_s 0.5, the index says 0.25"),
        ({"sha256": "00"}, "its mp4 has not the index's sha256"),
        ({"num_frames": 7}, "6 frames in 6 packets, the encoder claims 7"),
        ({"width": 1}, "its frames are [(64, 48)], expected 1x48"),
        ({"key": "x_none"}, "x_none is not in it, the index says it is"),
        ({"key": "x_1-_"}, "1 keys occur more than once, such as x_1-_"),
        ({"key": "x_3"}, "1 keys occur more than once, such as x_3"),
        ({"shard": "train-000009.tar"}, "names shards that the manifest does not: train-000009.tar"),
        ({"shard": "train-000001.tar"}, "x_0 is not in the index"),
    ],
)
def test_an_index_that_disagrees_with_the_shards_is_found(data: Path, change: dict[str, Any], message: str) -> None:
    changed = rows(data)
    changed[0] = replace(changed[0], **change)
    adopt_index(data, changed)
    assert message in "\n".join(verify(str(data)))


def test_an_index_of_other_length_is_found(data: Path) -> None:
    adopt_index(data, rows(data)[:-1])
    found = "\n".join(problems_naming(data, "train.parquet"))
    assert "3 rows, the manifest says 4 samples" in found
    assert "x_3 is not in the index" in found
    adopt_index(data, [])
    assert "0 rows, the manifest says 4 samples" in "\n".join(verify(str(data)))


def test_swapped_labels_are_found(data: Path) -> None:
    first, second, *others = rows(data)
    adopt_index(data, [replace(first, label=second.label), replace(second, label=first.label), *others])
    found = "\n".join(problems_naming(data, "train-000000.tar"))
    assert "x_0: its json says label 0, the index says 1" in found
    assert "x_1-_: its json says class 'b', the index says 'a'" in found


def test_an_index_that_is_none_is_found(data: Path) -> None:
    (data / "train.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    digest = "49a1e2a5"
    edit_manifest(data, lambda content: content["splits"]["train"].update(index_sha256=digest))
    problems_naming(data, "train.parquet")


def rewrite_shard(data: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> list[str]:
    """Change the members of the first shard, let the manifest vouch for the result, and verify."""
    path = data / "train-000000.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    change(members)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    adopt_shard(data, path)
    return verify(str(data))


def adopt_shard(data: Path, path: Path) -> None:
    def adopt(content: Any) -> None:
        info = content["splits"]["train"]
        info["shards"][0] |= {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size_bytes": path.stat().st_size,
        }
        info["size_bytes"] = sum(shard["size_bytes"] for shard in info["shards"])
        splits = {name: SplitInfo.model_validate(each) for name, each in content["splits"].items()}
        content["digest"] = dataset_digest(splits)

    edit_manifest(data, adopt)


def json_with(**fields: Any) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        header, content = members[1]
        members[1] = header, json.dumps({**json.loads(content), **fields}).encode()

    return change


def member(name: str, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    header = tarfile.TarInfo(name)
    header.type = kind
    return header, b""


def renamed(number: int, name: str) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[number][0].name = name

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (json_with(label=1), "train-000000.tar: x_0: its json says label 1, the index says 0"),
        (json_with(split="val"), "x_0: its json says split 'val', the index says 'train'"),
        (json_with(replaced=True), "manifest.json: says 1 samples of train are replaced, the shards say 2"),
        (lambda members: members.pop(1), "x_0: x_1-_.mp4 follows where its json is expected"),
        (lambda members: members.pop(0), "'x_0.json' stands where a sample's mp4 is expected"),
        (lambda members: members.pop(), "x_1-_: the end follows where its json is expected"),
        (lambda members: members.extend(members[:2]), "x_0 is in it twice"),
        (lambda members: members.__setitem__(1, (members[1][0], b"{")), "x_0: its json cannot be read"),
        (lambda members: members.__setitem__(1, (members[1][0], b"[1]")), "x_0: its json cannot be read: it is a list"),
        (lambda members: members.__setitem__(1, (members[1][0], b"[" * 9999)), "x_0: its json cannot be read"),
        (renamed(0, "../x_0.mp4"), "'../x_0.mp4' stands where a sample's mp4 is expected"),
        (renamed(0, "x_0.webm"), "'x_0.webm' stands where a sample's mp4 is expected"),
        (lambda members: members.append(member("link", tarfile.SYMTYPE)), "is no whole tar: link is no plain file"),
        (lambda members: members.append(member("x_9.mp4")), "x_9 is not in the index"),
    ],
)
def test_changed_members_are_found_even_when_the_manifest_agrees(
    data: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None], message: str
) -> None:
    assert message in "\n".join(rewrite_shard(data, change))


def test_a_tar_without_an_end_or_with_something_behind_it_is_found(data: Path) -> None:
    path = data / "train-000000.tar"
    whole = path.read_bytes()
    content = whole.rstrip(b"\0")
    content += bytes(-len(content) % 512)
    for changed, message in (
        (content, "lacks the two empty blocks"),
        (content + bytes(512), "lacks the two empty blocks"),
        (content + bytes(1024) + b"more", "something after the end of the tar"),
        (b"y" + whole[1:], "is no whole tar: the header before byte 512 is damaged"),
        (whole[: len(content) - 700], "is no whole tar"),
    ):
        path.write_bytes(changed)
        adopt_shard(data, path)
        assert message in "\n".join(problems_naming(data, path.name))


def test_a_clip_that_cannot_be_decoded_is_found_when_it_is_asked_for(tmp_path: Path, samples: list[Sample]) -> None:
    bad = Sample("x_9", b"no video at all", 6, 0, 0.5)
    data = write_set(tmp_path / "set", {"train": [[*samples[:2], bad, *samples[2:4]]], "val": [samples[4:]]})
    assert verify(str(data), decode_sample=2) == []
    (problem,) = verify(str(data), decode_all=True)
    assert problem.startswith("train-000000.tar: x_9: is not as the index says or cannot be decoded")
    assert verify(str(data), decode_sample=3) == [problem]


def test_a_clip_that_lasts_otherwise_than_everyone_says_is_found(tmp_path: Path, samples: list[Sample]) -> None:
    bad = Sample("x_9", samples[0].media, 6, 0, 0.6)
    data = write_set(tmp_path / "set", {"train": [[bad]], "val": []})
    found = [problem.split("x_9: ")[1] for problem in verify(str(data))]
    assert found == ["its duration_s is 0.5, the index says 0.6", "its video_fps is 12.0, the index says 10.0"]


def test_a_key_that_clients_would_split_is_found_even_when_all_agree_on_it(data: Path) -> None:
    def rename(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[0][0].name, members[1][0].name = "x 0.mp4", "x 0.json"

    changed = rows(data)
    adopt_index(data, [replace(changed[0], key="x 0"), *changed[1:]])
    assert "'x 0.mp4' stands where a sample's mp4 is expected" in "\n".join(rewrite_shard(data, rename))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[:-1], "webdataset reads 1 samples, the index has 2"),
        (lambda found: [*found, found[0]], "webdataset reads sample 3 otherwise than the index has it: x_0"),
        (lambda found: found[::-1], "webdataset reads sample 1 otherwise"),
        (lambda found: [{**found[0], "mp4": b""}], "webdataset reads sample 1 otherwise"),
        (lambda found: [{"__key__": "x_0", "mp4": found[0]["mp4"]}], "webdataset reads sample 1 otherwise"),
        (lambda found: 1 // 0, "webdataset cannot read it: ZeroDivisionError"),
    ],
)
def test_what_webdataset_reads_otherwise_is_found(
    pristine: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], Any], message: str
) -> None:
    from webdataset import tariterators

    group = tariterators.group_by_keys
    monkeypatch.setattr(tariterators, "group_by_keys", lambda members: change(list(group(members))))
    assert f"train-000000.tar: {message}" in "\n".join(verify(str(pristine), decode_sample=0))


def test_an_interrupt_does_not_wait_for_the_shards(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def read_on(task: object, on_sample: Callable[[], None]) -> ShardFindings:
        for _ in range(10**8):
            on_sample()
        ended.append(task)
        return ShardFindings()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("preprocessing.verify._Task.run", read_on)
    monkeypatch.setattr("preprocessing.verify.wait", lambda pending, timeout: (set(), pending))
    with pytest.raises(KeyboardInterrupt):
        verify(str(pristine), on_progress=interrupt)
    assert not ended


def test_pictures_are_verified_too(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(buffer, "JPEG")
    whole = [Sample(f"x_{i}", buffer.getvalue(), 1, 0, 0.0) for i in range(3)]
    bad = Sample("x_bad", buffer.getvalue()[:200], 1, 0, 0.0)
    data = write_set(tmp_path / "set", {"train": [whole], "val": [[bad]]}, "image", "jpg")
    (problem,) = verify(str(data))
    assert problem.startswith("val-000000.tar: x_bad: cannot be decoded")
    data = write_set(tmp_path / "named", {"train": [whole], "val": [whole[:1]]}, "video", "jpg")
    assert "'x_0.jpg' stands where a sample's mp4 is expected" in "\n".join(verify(str(data)))


def test_a_split_without_samples_is_whole(tmp_path: Path, samples: list[Sample]) -> None:
    data = write_set(tmp_path / "set", {"train": [samples[:2]], "val": []})
    assert verify(str(data)) == []


def test_splits_that_share_keys_are_noted(tmp_path: Path, samples: list[Sample]) -> None:
    data = write_set(tmp_path / "set", {"train": [samples[:3]], "val": [samples[1:2]]})
    notes: list[str] = []
    assert verify(str(data), on_note=notes.append) == []
    assert notes == ["train and val share 1 keys"]


def move(content: Any, name: str) -> None:
    """Count one more for the second train shard and one less for the first, which changes no sum."""
    first, second = content["splits"]["train"]["shards"]
    first[name] -= 1
    second[name] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["splits"]["val"].update(records=2), "records 2 is not samples 2 + failures 1"),
        (
            lambda content: content["splits"]["val"].update(records=4, failures=2),
            "1 lines for val, the manifest says 2",
        ),
        (lambda content: content["splits"]["train"].update(replaced=0), "says 0 samples of train are replaced"),
        (lambda content: move(content, "samples"), "train-000000.tar: 2 samples, the manifest says 1"),
        (lambda content: move(content, "size_bytes"), "train-000000.tar: 10240 bytes, the manifest says 10239"),
        (lambda content: content.update(unlisted=3), "unlisted.jsonl: 2 lines, the manifest says 3"),
        (lambda content: content["classes"].reverse(), "classes_digest does not belong to classes"),
        (lambda content: content.update(media="image"), "stands where a sample's jpg is expected"),
        (lambda content: content["splits"].update(test=EMPTY), "test.parquet: cannot be read"),
        (lambda content: content["splits"].update({"../x": EMPTY}), "../x.parquet: cannot be read"),
        (lambda content: content.update(format_version=2), "format version 2"),
        (
            lambda content: content["transcode"].update(crf="?"),
            "transcode has settings that no clip can be proven by: crf",
        ),
    ],
)
def test_a_manifest_that_does_not_add_up_is_found(data: Path, change: Callable[[Any], None], message: str) -> None:
    edit_manifest(data, change)
    assert message in "\n".join(verify(str(data)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nothing", "line 4: is no JSON object with the texts detail, key, reason"),
        (b"[]", "line 4: is no JSON object"),
        (b'{"split": "train"}', "line 4: is no JSON object"),
        (b"\xff", "line 4: is no JSON object"),
        (b"", "line 4: is no JSON object"),
        ({"detail": None}, "line 4: is no JSON object"),
        ({"stage": "dance"}, "line 4: has stage 'dance' and reason 'missing'"),
        ({"reason": ""}, "line 4: has stage 'match' and reason ''"),
        ({"split": "test"}, "line 4: has split 'test', the manifest has train, val"),
        ({}, "failures.jsonl: 3 lines for train, the manifest says 2"),
        ({"key": "\ud800", "stage": "read"}, "failures.jsonl: 3 lines for train, the manifest says 2"),
        ({"key": "x_0", "stage": "read"}, "failures.jsonl: 1 keys are samples of train too, such as x_0"),
    ],
)
def test_failure_lines_that_are_none_are_found(data: Path, line: bytes | dict[str, Any], message: str) -> None:
    path = data / "failures.jsonl"
    content = path.read_bytes()
    if isinstance(line, dict):
        line = json.dumps({**json.loads(content.splitlines()[0]), **line}).encode()
    path.write_bytes(content + line + b"\n")
    assert message in "\n".join(problems_naming(data, "failures.jsonl"))


def test_many_problems_of_a_shard_are_counted(tmp_path: Path, samples: list[Sample]) -> None:
    many_samples = [Sample(f"x_{i}", b"x", 6, 0, 0.5) for i in range(40)]
    data = write_set(tmp_path / "set", {"train": [many_samples], "val": []})
    adopt_index(data, [replace(row, label=1) for row in rows(data)])
    found = verify(str(data), decode_sample=0)
    assert len(found) == 11
    assert found[-1] == "train-000000.tar: and 70 more problems"
