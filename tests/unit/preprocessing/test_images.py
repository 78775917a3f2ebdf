import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from preprocessing import images
from preprocessing.images import EncodedImage, ImageSettings, encode_image
from preprocessing.transcode import ClipError

SMALL = ImageSettings(short_side=32)


def picture(width: int, height: int) -> Image.Image:
    """Gradients with noise: no flat block anywhere, and every corner differs."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = np.stack([x * 255 / max(1, width - 1), y * 255 / max(1, height - 1), np.full_like(x, 90)], axis=-1)
    noise = np.random.default_rng(5).integers(-12, 13, ramps.shape)
    return Image.fromarray(np.clip(ramps + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(folder: Path, raw: bytes, name: str = "x.JPEG") -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path


def pixels(media: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(media)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        return np.asarray(image).astype(int)


def far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def lost(path: Path, settings: ImageSettings = SMALL) -> ClipError:
    with pytest.raises(ClipError) as caught:
        encode_image(path, settings)
    return caught.value


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (20, 17), (1, 1), (300, 32)])
@pytest.mark.parametrize("progressive", [False, True])
def test_an_rgb_jpeg_that_is_not_larger_is_copied_byte_for_byte(
    tmp_path: Path, size: tuple[int, int], progressive: bool
) -> None:
    raw = encoded(picture(*size), progressive=progressive, comment=b"kept")
    found = encode_image(put(tmp_path, raw), SMALL)
    assert found.media == raw
    assert (found.width, found.height) == size
    assert (found.source.format, found.source.mode, found.source.size_bytes) == ("JPEG", "RGB", len(raw))


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(width=st.integers(1, 200), height=st.integers(1, 200), short=st.integers(32, 64))
def test_only_the_short_side_is_scaled_and_nothing_is_enlarged(
    tmp_path: Path, width: int, height: int, short: int
) -> None:
    found = encode_image(put(tmp_path, encoded(picture(width, height), "PNG")), ImageSettings(short_side=short))
    assert pixels(found.media).shape == (found.height, found.width, 3)
    assert min(found.width, found.height) == min(short, width, height)
    # The aspect is kept to half a pixel of the longer side.
    scale = min(1.0, short / min(width, height))
    assert abs(found.width - width * scale) <= 0.5
    assert abs(found.height - height * scale) <= 0.5
    assert (found.source.width, found.source.height) == (width, height)


def test_a_larger_jpeg_looks_the_same_and_has_nothing_but_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    profile = b"profile of a camera"
    large = picture(96, 64)
    raw = encoded(large, quality=95, exif=exif, icc_profile=profile, comment=b"said by someone")
    found = encode_image(put(tmp_path, raw), SMALL)
    assert (found.width, found.height) == (48, 32)
    assert far(pixels(found.media), np.asarray(large.resize((48, 32), Image.Resampling.LANCZOS)).astype(int)) < 6
    for word in (b"secret", profile, b"said"):
        assert word in raw
        assert word not in found.media
    again = encode_image(put(tmp_path, raw, "other name.png"), SMALL)
    assert again == found


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF"])
def test_content_decides_and_not_the_name(tmp_path: Path, kind: str) -> None:
    image = picture(40, 32)
    found = encode_image(put(tmp_path, encoded(image, kind), "n02105855_2933.JPEG"), SMALL)
    assert found.source.format == kind
    assert far(pixels(found.media), np.asarray(image).astype(int)) < 12


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("L", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG")],
)
def test_every_mode_becomes_rgb_as_the_field_converts_it(tmp_path: Path, mode: str, kind: str) -> None:
    raw = encoded(picture(40, 32).convert(mode), kind)
    found = encode_image(put(tmp_path, raw), SMALL)
    assert found.source.mode == mode
    expected = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).astype(int)
    assert far(pixels(found.media), expected) < 14


def test_a_transparent_palette_and_hidden_colours_are_shown(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (40, 32), (200, 30, 60, 0))
    found = encode_image(put(tmp_path, encoded(clear, "PNG")), SMALL)
    assert far(pixels(found.media), np.full((32, 40, 3), (200, 30, 60))) < 4
    table = picture(40, 32).convert("P")
    found = encode_image(put(tmp_path, encoded(table, "PNG", transparency=bytes(range(256)))), SMALL)
    assert found.source.mode == "P"


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    deep = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))
    found = encode_image(put(tmp_path, encoded(Image.fromarray(deep), "PNG")), SMALL)
    assert found.source.mode == "I;16"
    assert far(pixels(found.media), np.repeat((deep >> 8)[:, :, None], 3, axis=2).astype(int)) < 3


def test_the_exif_orientation_is_not_obeyed_and_not_left_for_others_to_obey(tmp_path: Path) -> None:
    image = picture(48, 32)
    turned = Image.Exif()
    turned[0x0112] = 6
    raw = encoded(image, quality=95, exif=turned)
    found = encode_image(put(tmp_path, raw), SMALL)
    assert (found.width, found.height) == (48, 32)
    assert found.media != raw
    assert Image.open(io.BytesIO(found.media)).getexif().get(0x0112) is None
    assert far(pixels(found.media), np.asarray(image).astype(int)) < 8
    upright = Image.Exif()
    upright[0x0112] = 1
    raw = encoded(image, exif=upright)
    assert encode_image(put(tmp_path, raw), SMALL).media == raw


def test_damaged_exif_data_do_not_lose_the_picture(tmp_path: Path) -> None:
    raw = encoded(picture(48, 32), exif=b"Exif\0\0II*\0\xff\xff\xff\x7fnonsense")
    assert encode_image(put(tmp_path, raw), SMALL).width == 48


def test_a_jpeg_that_carries_something_else_is_not_copied(tmp_path: Path) -> None:
    raw = encoded(picture(48, 32)) + b"PK\3\4" + bytes(3 * 48 * 32 + images.COPY_OVERHEAD_BYTES)
    found = encode_image(put(tmp_path, raw), SMALL)
    assert len(found.media) < 10_000
    several = encoded(picture(48, 32), "MPO", save_all=True, append_images=[picture(40, 32)])
    found = encode_image(put(tmp_path, several), SMALL)
    assert (found.source.format, found.width) == ("MPO", 48)
    assert far(pixels(found.media), np.asarray(picture(48, 32)).astype(int)) < 8


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP", "GIF", "BMP"])
def test_no_truncated_file_becomes_a_picture_with_a_grey_half(tmp_path: Path, kind: str) -> None:
    options = {"progressive": True} if kind == "progressive" else {}
    raw = encoded(picture(96, 80), "JPEG" if options else kind, **options)
    for share in (0.02, 0.3, 0.6, 0.9, 0.97):
        error = lost(put(tmp_path, raw[: int(len(raw) * share)]))
        assert (error.stage, error.reason in ("cut short", "unreadable")) == ("transcode", True)
        assert "0x" not in error.detail.replace(r"\x", "")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_a_truncated_jpeg_with_a_mended_end_is_found_out(tmp_path: Path, progressive: bool, share: float) -> None:
    raw = encoded(picture(160, 160), quality=90, progressive=progressive)
    cut = raw[: int(len(raw) * share)].removesuffix(b"\xff") + b"\xff\xd9"
    if not progressive:
        Image.open(io.BytesIO(cut)).load()  # Pillow itself sees nothing wrong with it
    error = lost(put(tmp_path, cut))
    assert (error.stage, error.reason) == ("transcode", "cut short")
    zeros = raw[: int(len(raw) * share)] + bytes(len(raw) - int(len(raw) * share))
    assert lost(put(tmp_path, zeros)).reason == "cut short"


@pytest.mark.parametrize("progressive", [False, True])
def test_whole_pictures_that_end_in_one_colour_are_kept(tmp_path: Path, progressive: bool) -> None:
    image = picture(100, 75)
    image.paste((128, 128, 128), (0, 30, 100, 75))
    for options in ({}, {"optimize": True}, {"restart_marker_rows": 1}, {"subsampling": "4:4:4"}):
        raw = encoded(image, progressive=progressive, **options)
        assert encode_image(put(tmp_path, raw), ImageSettings(short_side=80)).media == raw
        assert encode_image(put(tmp_path, raw + b"a tail"), ImageSettings(short_side=80)).width == 100
    flat = encoded(Image.new("RGB", (64, 48)), progressive=progressive)
    assert encode_image(put(tmp_path, flat), ImageSettings(short_side=48)).media == flat


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9001, 9001), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (80_000_001, 1)])
def test_bombs_are_refused_by_their_header(tmp_path: Path, size: tuple[int, int]) -> None:
    error = lost(put(tmp_path, png_header(*size)))
    assert (error.stage, error.reason) == ("transcode", "too large")
    assert "80000000 pixels" in error.detail


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path: Path) -> None:
    raw = encoded(picture(40, 32), progressive=True)
    last = raw.rindex(b"\xff\xda")
    scan, end = raw[last:-2], raw[-2:]
    assert encode_image(put(tmp_path, raw), SMALL).media == raw
    error = lost(put(tmp_path, raw[:-2] + images.MAX_SCANS * scan + end))
    assert (error.reason, error.detail.split()[1]) == ("too large", "scans,")


def test_what_no_jpeg_can_hold_is_a_failure(tmp_path: Path) -> None:
    error = lost(put(tmp_path, encoded(Image.new("L", (70_000, 2)), "PNG")))
    assert (error.stage, error.reason) == ("transcode", "too large")


def test_files_that_cannot_be_read_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    found = [lost(tmp_path / "nowhere"), lost(put(tmp_path, b"")), lost(tmp_path), lost(tmp_path / "pipe")]
    assert [error.reason for error in found] == ["missing", "empty", "not a file", "not a file"]
    assert {error.stage for error in found} == {"read"}
    assert lost(tmp_path / "loop").reason == "unreadable"
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    assert lost(put(tmp_path, b"x" * 11)).reason == "too large"


@pytest.mark.parametrize(
    "raw",
    [
        b"<html>404</html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a" + b"\xff" * 40,
        b"RIFF\x10\0\0\0WEBPVP8 " + bytes(4),
        b"BM" + b"\xff" * 60,
        bytes(4096),
    ],
)
def test_what_is_no_picture_is_unreadable(tmp_path: Path, raw: bytes) -> None:
    error = lost(put(tmp_path, raw))
    assert (error.stage, error.reason in ("unreadable", "cut short", "too large")) == ("transcode", True)
    assert str(tmp_path) not in str(error)
    assert " at 0x" not in str(error)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP"]))
def test_any_damage_ends_as_a_picture_or_a_failure_and_the_same_twice(
    tmp_path: Path, data: st.DataObject, kind: str
) -> None:
    raw = bytearray(encoded(picture(40, 36), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = put(tmp_path, bytes(raw))

    def outcome() -> EncodedImage | str:
        try:
            return encode_image(path, ImageSettings(short_side=32, max_pixels=1_000_000))
        except ClipError as error:
            return f"{error.stage} {error}"

    first = outcome()
    assert outcome() == first
    if isinstance(first, EncodedImage):
        assert pixels(first.media).shape == (first.height, first.width, 3)


def test_settings_refuse_what_they_do_not_know() -> None:
    for wrong in ({"short_sides": 3}, {"quality": 100}, {"short_side": 0}, {"max_pixels": 10**9}):
        with pytest.raises(ValidationError):
            ImageSettings.model_validate(wrong)
    assert all(field.description for field in ImageSettings.model_fields.values())
