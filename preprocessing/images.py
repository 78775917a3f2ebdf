"""One picture file to one upright RGB JPEG that every decoder agrees on, proven by decoding it.

What a file is called says nothing: data sets hold PNG files called .JPEG, CMYK JPEGs and truncated downloads. So the
content decides, only formats of a short list are opened, and sizes are looked at before pixels are.

Pictures mean what the usual loaders of the field (torchvision's and timm's `Image.open(path).convert("RGB")`) see:
EXIF orientation, colour profiles and alpha are ignored, of several frames the first is taken. Where a copy of the file
would leave an orientation for another decoder to obey, it is encoded anew without it.
"""

import hashlib
import io
import os
import re
import stat
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from preprocessing.transcode import ClipError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is opened. Others of Pillow's formats run programs (EPS) or are rarely met and rarely tested."""
MAX_FILE_BYTES = 512 << 20
MAX_SIDE = 65_500
"""JPEG has no larger pictures."""
MAX_SCANS = 1000
"""A progressive JPEG has about ten scans; each costs time for the whole picture, even an empty one of a few bytes."""
COPY_OVERHEAD_BYTES = 64 << 10
"""Headers that a copied file may have; one that is larger than its raw pixels and these carries something else."""

_FILLER = hashlib.shake_128(b"neither an end nor a flat block").digest(1024).replace(b"\xff", b"\x7f")
_END = b"\xff\xd9"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class ImageSettings(BaseModel):
    """How pictures are encoded; part of the plan's digest and of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    short_side: int = Field(default=256, ge=32)
    """Short side in pixels; a smaller picture keeps its size, and an RGB JPEG that is not larger is copied as it is."""
    quality: int = Field(default=90, ge=1, le=95)
    """JPEG quality of what is encoded anew; chroma is stored at half the size (4:2:0), as cameras do."""
    max_pixels: int = Field(default=80_000_000, ge=1, le=89_478_485)
    """Pixels of the largest picture that is decoded; decoding takes about ten bytes of memory for each."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """What was found in a raw picture file."""

    format: str
    """By content, in Pillow's words: JPEG, MPO (a JPEG with further pictures behind it), PNG, WEBP, GIF or BMP."""
    mode: str
    """Pillow's mode before conversion, such as RGB, L, CMYK or I;16."""
    width: int
    height: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An encoded picture, a JPEG, and what decoding it has shown."""

    media: bytes
    width: int
    height: int
    source: ImageSource


def encode_image(path: str | os.PathLike[str], settings: ImageSettings) -> EncodedImage:
    """Encode a picture and prove the result by decoding it.

    An RGB JPEG whose short side is not larger than the setting is copied byte for byte, once a full decode has shown it
    whole. Anything else is converted to RGB, scaled down by its short side where that is larger, and encoded. The same
    file, settings and version of Pillow give the same bytes.

    Args:
        path: The picture.
        settings: How to encode.

    Raises:
        ClipError: Of stage "read" with reason missing, empty, not a file, unreadable or too large; of stage "transcode"
            with reason unreadable, cut short or too large; of stage "prove" with reason bad output.
    """
    raw = _read(path)
    with warnings.catch_warnings():
        # Pillow warns of transparency in palettes and of damaged EXIF data; neither matters here.
        warnings.simplefilter("ignore")
        image = _decode(raw, settings.max_pixels)
        source = ImageSource(image.format or "", image.mode, image.width, image.height, len(raw))
        if _may_copy(source, settings.short_side) and not _is_turned(image):
            return EncodedImage(raw, source.width, source.height, source)
        scaled = _scale(_to_rgb(image), settings.short_side)
        media = _encode(scaled, settings.quality)
        _prove(media, scaled.size)
    return EncodedImage(media, *scaled.size, source)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        # Not blocking, as opening a pipe waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ClipError("read", "not a file", "a folder, device or pipe")
            if status.st_size > MAX_FILE_BYTES:
                raise ClipError("read", "too large", f"{status.st_size} bytes, expected at most {MAX_FILE_BYTES}")
            raw = file.read()
    except FileNotFoundError:
        raise ClipError("read", "missing", "there is no such file") from None
    except IsADirectoryError:
        raise ClipError("read", "not a file", "a folder, device or pipe") from None
    except OSError as error:
        raise ClipError("read", "unreadable", error.strerror or "") from None
    if not raw:
        raise ClipError("read", "empty", "0 bytes")
    return raw


def _decode(raw: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
        _check_cost(image, raw, max_pixels)
        image.load()
    except ClipError:
        raise
    except UnidentifiedImageError:
        expected = "JPEG, PNG, WebP, GIF or BMP"
        raise ClipError("transcode", "unreadable", f"begins with {raw[:8]!r}; expected {expected}") from None
    except Image.DecompressionBombError:
        raise ClipError("transcode", "too large", f"expected at most {max_pixels} pixels") from None
    except Exception as error:  # Pillow's parsers raise almost anything on hostile files
        message = _ADDRESS.sub("", f"{error}" or type(error).__name__)
        raise ClipError("transcode", "cut short" if "truncated" in message.lower() else "unreadable", message) from None
    if image.format in ("JPEG", "MPO") and not _is_whole_jpeg(image, raw):
        raise ClipError("transcode", "cut short", "the JPEG ends before its last block; the rest would be one colour")
    return image


def _is_turned(image: Image.Image) -> bool:
    """Tell whether a decoder that obeys EXIF would turn the picture; damaged EXIF data may say anything."""
    try:
        return bool(image.getexif().get(ExifTags.Base.Orientation, 1) != 1)
    except Exception:
        return True


def _check_cost(image: Image.Image, raw: bytes, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        detail = f"{image.width}x{image.height}, expected at most {max_pixels} pixels"
        raise ClipError("transcode", "too large", detail)
    if image.format in ("JPEG", "MPO") and (num_scans := raw.count(b"\xff\xda")) > MAX_SCANS:
        raise ClipError("transcode", "too large", f"{num_scans} scans, expected at most {MAX_SCANS}")


def _is_whole_jpeg(image: Image.Image, raw: bytes) -> bool:
    """Tell whether the blocks of a decoded JPEG were all in the file.

    A file without its end marker is an error to Pillow. One whose tail is lost but for the marker is not: the decoder
    goes on with blocks of the last colour. So where the last corner is of one colour, or the scan that was cut may be a
    refining one, the picture is decoded again with noise before the marker: whole pictures never read it.
    """
    width, height = image.size
    corner = image.crop((max(0, width - 4), max(0, height - 4), width, height))
    if not image.info.get("progressive") and any(low != high for low, high in _ranges(corner)):
        return True
    end = raw.rfind(_END)
    try:
        with Image.open(io.BytesIO(raw[:end] + _FILLER + _END), formats=FORMATS) as noisy:
            return noisy.size == image.size and noisy.tobytes() == image.tobytes()
    except Exception:
        return False


def _ranges(image: Image.Image) -> list[tuple[float, float]]:
    return [band.getextrema() for band in image.split()]  # type: ignore[misc]  # one band has one pair


def _may_copy(source: ImageSource, short_side: int) -> bool:
    limit = 3 * source.width * source.height + COPY_OVERHEAD_BYTES
    is_plain = source.format == "JPEG" and source.mode == "RGB" and source.size_bytes <= limit
    return is_plain and min(source.width, source.height) <= short_side


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would cut values at 255, which makes almost everything white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _scale(image: Image.Image, short_side: int) -> Image.Image:
    """Scale down so that the shorter side is `short_side`; the other keeps the aspect, to the nearest pixel."""
    short = min(image.size)
    if short > short_side:
        width, height = (max(1, round(side * short_side / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if max(image.size) > MAX_SIDE:
        detail = f"{image.width}x{image.height} after scaling, a JPEG has at most {MAX_SIDE} a side"
        raise ClipError("transcode", "too large", detail)
    return image


def _encode(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    # Pillow hands on comments, profiles and EXIF data of the picture it read.
    image.info = {}
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", progressive=False, optimize=False)
    return buffer.getvalue()


def _prove(media: bytes, size: tuple[int, int]) -> None:
    try:
        with Image.open(io.BytesIO(media), formats=("JPEG",)) as image:
            image.load()
            found = (image.mode, image.size)
    except OSError as error:
        detail = _ADDRESS.sub("", str(error))
        raise ClipError("prove", "bad output", f"the encoded picture cannot be decoded: {detail}") from None
    if found != ("RGB", size):
        raise ClipError("prove", "bad output", f"decodes to {found}, expected an RGB picture of {size}")
