import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing import sheet
from preprocessing.preview import MAX_FRAMES, contact_sheet
from preprocessing.sheet import GAP, MARGIN, MAX_WIDTH, TEXT_GAP, TEXT_WIDTH, CellSize, cell_size, elided, wrapped
from vast.dataset_format import (
    UNLABELLED,
    Manifest,
    SampleRow,
    SplitInfo,
    classes_digest,
    dataset_digest,
    write_manifest,
)
from vast.errors import UserError
from vast.sample_index import write_index
from vast.shard_writer import ShardWriter
from vast.storage import LocalStore

CLASSES = ["a", "b", "c", "d"]
LEFT = MARGIN + TEXT_WIDTH + TEXT_GAP


def grey_clip(path: Path, num_frames: int, width: int = 64, height: int = 48) -> bytes:
    """Encode a clip whose frame i is of one grey, 20 * i + 10."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            picture = np.full((height, width, 3), 20 * number + 10, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def picture(colour: str, size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def write_set(
    folder: Path,
    samples: Sequence[tuple[int, bytes, int]],
    classes: list[str] | None = None,
    media: str = "video",
    size: tuple[int, int] = (64, 48),
) -> str:
    """Write a data set of (label, media, number of frames) and return its URL."""
    classes = CLASSES if classes is None else classes
    folder.mkdir(exist_ok=True)
    rows = []
    with ShardWriter(folder / "train-000000.tar") as writer:
        for number, (label, content, num_frames) in enumerate(samples):
            key = f"x_{number}"
            place = writer.add(key, content, "jpg" if media == "image" else "mp4")
            of_clip = (num_frames / 10, 10.0, *size, num_frames)
            rows.append(
                SampleRow(key, "train-000000.tar", place.offset, place.size_bytes, label, key, *of_clip, place.sha256)
            )
        shards = [writer.finish()]
    info = SplitInfo(
        records=len(rows),
        samples=len(rows),
        failures=0,
        size_bytes=shards[0].size_bytes,
        index_sha256=write_index(str(folder), "train", rows),
        shards=shards,
    )
    about: dict[str, Any] = {"annotations": {}, "transcode": {}, "software": {}, "plan_digest": "", "media": media}
    splits = {"train": info}
    digests = {"classes_digest": classes_digest(classes), "digest": dataset_digest(splits)}
    write_manifest(str(folder), Manifest(name="x", classes=classes, splits=splits, **digests, **about))
    return str(folder)


@pytest.fixture(scope="module")
def greys(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return grey_clip(tmp_path_factory.mktemp("clips") / "grey.mp4", 12)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, greys: bytes) -> str:
    return write_set(tmp_path_factory.mktemp("set"), [(label, greys, 12) for label in [0, 1, 3, 1, 0, 3, 1, 1]])


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that is written on the sheets of a test."""
    written: list[str] = []
    from PIL.ImageDraw import ImageDraw

    draw = ImageDraw.text

    def text(self: ImageDraw, xy: Any, text: str, *args: Any, **options: Any) -> None:
        written.append(text)
        draw(self, xy, text, *args, **options)

    monkeypatch.setattr(ImageDraw, "text", text)
    return written


def first_row(image: Image.Image, num_frames: int) -> list[tuple[int, int, int]]:
    """The colours in the middle of the first row's cells."""
    size = cell_size(num_frames)
    y = MARGIN + sheet.HEAD_HEIGHT + sheet.GROUP_GAP + size.height // 3
    return [image.getpixel((LEFT + i * (size.width + GAP) + size.width // 2, y)) for i in range(num_frames)]  # type: ignore[misc]


@pytest.mark.parametrize("num_frames", [1, 2, 6, 12])
def test_columns_go_from_the_first_frame_to_the_last(url: str, num_frames: int) -> None:
    image = contact_sheet(url, split="train", num_classes=1, clips_per_class=1, frames_per_clip=num_frames)
    found = [colour[0] for colour in first_row(image, num_frames)]
    frames = [round(i) for i in np.linspace(0, 11, num_frames)]
    assert found == pytest.approx([20 * frame + 10 for frame in frames], abs=3)


def test_classes_and_clips_are_as_many_as_asked_for(url: str, texts: list[str]) -> None:
    image = contact_sheet(url, split="train", clips_per_class=3)
    assert image.width <= MAX_WIDTH
    assert texts[:2] == ["x · train", "7 of 8 clips   ·   3 of 3 classes   ·   seed 0"]
    keys = [text for text in texts if text.startswith("x_")]
    assert len(keys) == len(set(keys)) == 7  # two of the classes have but two clips
    texts.clear()
    contact_sheet(url, split="train", num_classes=2)
    assert len([text for text in texts if text in CLASSES]) == 2


def test_fewer_classes_than_asked_for_are_all_shown(url: str, texts: list[str]) -> None:
    contact_sheet(url, split="train", num_classes=40, clips_per_class=9)
    assert [text for text in texts if text in CLASSES] == ["a", "b", "d"]
    assert sorted(text for text in texts if text.startswith("x_")) == [f"x_{i}" for i in range(8)]
    assert "4 clips" in texts


def test_the_choice_is_the_seeds_alone(url: str, texts: list[str]) -> None:
    def keys(**options: int) -> list[str]:
        texts.clear()
        contact_sheet(url, split="train", **options)
        return [text for text in texts if text.startswith("x_")]

    assert keys(num_classes=2, clips_per_class=1) == keys(num_classes=2, clips_per_class=1)
    # Clips of a class do not depend on what else is shown.
    assert set(keys(num_classes=1, clips_per_class=1)) <= set(keys(num_classes=3, clips_per_class=1))
    assert len({tuple(keys(clips_per_class=1, seed=seed)) for seed in range(8)}) > 1
    texts.clear()
    for seed in range(8):
        contact_sheet(url, split="train", num_classes=1, clips_per_class=1, seed=seed)
    assert len({text for text in texts if text in CLASSES}) > 1


def test_only_the_samples_bytes_are_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int, int]] = []
    get_range = LocalStore.get_range

    def spy(self: LocalStore, key: str, offset: int, size_bytes: int) -> bytes:
        read.append((key, offset, size_bytes))
        return get_range(self, key, offset, size_bytes)

    monkeypatch.setattr(LocalStore, "get_range", spy)
    monkeypatch.setattr(LocalStore, "get_file", None)
    contact_sheet(url, split="train", num_classes=1, clips_per_class=2)
    of_shard = [part for part in read if part[0].endswith(".tar")]
    assert len(of_shard) == 2
    clip_bytes = of_shard[0][2]
    assert sum(size_bytes for _, _, size_bytes in of_shard) == 2 * clip_bytes
    assert clip_bytes < Path(url, "train-000000.tar").stat().st_size / 4


def test_unlabelled_clips_are_one_group(tmp_path: Path, greys: bytes, texts: list[str]) -> None:
    url = write_set(tmp_path / "set", [(UNLABELLED, greys, 12)] * 7)
    contact_sheet(url, split="train", num_classes=3, clips_per_class=2)
    assert texts[1] == "6 of 7 clips   ·   seed 0"
    assert "without a label" in texts


def test_one_frame_clips_and_portraits_keep_their_shape(tmp_path: Path) -> None:
    one = grey_clip(tmp_path / "one.mp4", 1, 32, 64)
    image = contact_sheet(write_set(tmp_path / "set", [(0, one, 1)], size=(32, 64)), split="train")
    size = cell_size(6)
    row = np.asarray(image)[MARGIN + sheet.HEAD_HEIGHT + sheet.GROUP_GAP + 20, LEFT : LEFT + size.width, 0]
    assert int((row < 60).sum()) == round(size.height / 2)  # as high as a cell, half as wide


def test_what_cannot_be_decoded_says_so(tmp_path: Path, greys: bytes, texts: list[str]) -> None:
    cut = greys[: len(greys) // 2]
    samples = [(0, b"no video", 12), (0, cut, 12), (0, greys, 12), (9, greys, 0)]
    contact_sheet(write_set(tmp_path / "set", samples), split="train", clips_per_class=5)
    assert 6 <= texts.count("cannot be decoded") <= 12
    assert "label 9" in texts


def test_pictures_stand_side_by_side(tmp_path: Path, texts: list[str]) -> None:
    colours = ["red", "lime", "blue", "yellow", "cyan"]
    samples = [(0, picture(colour), 1) for colour in colours]
    url = write_set(tmp_path / "set", [*samples, (2, b"none", 1)], media="image")
    image = contact_sheet(url, split="train", clips_per_class=1, frames_per_clip=5)
    assert len({tuple(round(value, -1) for value in colour) for colour in first_row(image, 5)}) == 5
    assert texts[1] == "6 of 6 pictures   ·   2 of 2 classes   ·   seed 0"
    assert sorted(text for text in texts if text.startswith("x_")) == [f"x_{i}" for i in range(6)]
    assert texts.count("cannot be decoded") == 1


NAMES = [
    "攀岩运动" * 30,
    "Снятие чего-то с чего-то, а затем возвращение на место и ещё раз",
    "ركوب الدراجة \u202e\x00\n\t",
    "Pneumonoultramicroscopicsilicovolcanoconiosis" * 5,
    "",
    "🏃‍♀️ $\\frac{",
    "\ud800",
]


@pytest.mark.parametrize("name", NAMES[:-1])
def test_any_class_name_can_be_shown(tmp_path: Path, name: str, greys: bytes) -> None:
    image = contact_sheet(write_set(tmp_path / "set", [(0, greys, 12)], classes=[name]), split="train")
    assert image.width <= MAX_WIDTH


@pytest.mark.parametrize("name", NAMES)
def test_text_is_never_wider_than_its_room(name: str) -> None:
    font = sheet.load_font(16, bold=True)
    for width in (40, 120, 264):
        lines = wrapped(name, font, width, 3)
        assert len(lines) <= 3
        assert all(font.getlength(line) <= width for line in [*lines, elided(name, font, width)])


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text("abc", min_size=1, max_size=9), max_size=12))
def test_wrapping_loses_nothing_when_there_are_lines_enough(words: list[str]) -> None:
    lines = wrapped(" ".join(words), sheet.load_font(16), 60, 100)
    assert "".join(lines).replace(" ", "") == "".join(words)
    cut = wrapped(" ".join(words), sheet.load_font(16), 60, 2)
    assert cut == lines if len(lines) <= 2 else cut[1].endswith("…")


def test_without_the_shipped_font_there_is_pillows_own(
    url: str, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    sheet.load_font.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    contact_sheet(url, split="train", num_classes=1)
    assert sheet.load_font(13).getname()[0] != "DejaVu Sans"
    monkeypatch.undo()
    sheet.load_font.cache_clear()


@pytest.mark.parametrize("num_columns", range(1, MAX_FRAMES + 1))
def test_sheets_of_all_widths_fit(num_columns: int) -> None:
    size = cell_size(num_columns)
    assert size.width >= 40
    assert LEFT + num_columns * (size.width + GAP) - GAP + MARGIN <= MAX_WIDTH


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_fitting_keeps_the_shape(width: int, height: int) -> None:
    size = CellSize(50, 40)
    fitted = size.fit(Image.new("L", (width, height)))
    assert fitted.width <= 50
    assert fitted.height <= 40
    assert fitted.width == 50 or fitted.height == 40
    scale = fitted.width / width if fitted.width == 50 else fitted.height / height
    assert abs(fitted.width - scale * width) <= 1
    assert abs(fitted.height - scale * height) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "has no split 'test'; it has: train"),
        ({"num_classes": 0}, "expected at least 1"),
        ({"clips_per_class": 0}, "expected at least 1"),
        ({"frames_per_clip": 0}, "expected at least 1"),
        ({"frames_per_clip": MAX_FRAMES + 1}, f"at most {MAX_FRAMES} frames"),
    ],
)
def test_what_cannot_be_shown_is_the_users_to_mend(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        contact_sheet(url, **{"split": "train", **options})


def test_nothing_and_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(UserError, match="nothing to see in train"):
        contact_sheet(write_set(tmp_path / "set", []), split="train")
    monkeypatch.setattr("preprocessing.preview.MAX_ROWS", 5)
    with pytest.raises(UserError, match="6 rows, expected at most 5; show fewer classes"):
        contact_sheet(url, split="train")
