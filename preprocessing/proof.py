"""Proves an encoded clip before it is packed: what the training reader will find in it is what was meant.

Everything that has made decoders disagree is looked for: edit lists, a moov box at the end, open or irregular groups of
pictures, uneven time stamps, a rotation left for others to apply, fewer frames than claimed. All frames are decoded
once, in order, by FFmpeg as PyAV carries it, and some are fetched out of order by decord, as training does.
"""

import hashlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from preprocessing.ffmpeg import ClipError

MIN_SIDE = 18
"""decord cannot open a video whose width is 16 or less."""
NUM_PICKS = 2
TOLERANCE = 2.0
"""Mean difference of 8-bit values that two versions of the colour conversion may show."""

_PARENTS = frozenset({b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl"})
_UPRIGHT = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
_IDR, _SLICE = 5, 1


@dataclass(frozen=True)
class Claim:
    """What a clip is meant to be."""

    num_frames: int
    width: int
    height: int
    gop: int
    """Frames from one key frame to the next."""


@dataclass(frozen=True)
class Measured:
    """What decoding a clip has shown."""

    num_frames: int
    duration_s: float
    video_fps: float
    width: int
    height: int


@dataclass
class _Decoded:
    """All that is kept of a sequential decode."""

    ticks: list[int]
    """Time stamps of the packets, in decoding order."""
    keys: list[int]
    """Positions of the packets that are key frames."""
    num_idr: int
    duration_ticks: int
    time_base: Fraction
    num_frames: int
    sizes: set[tuple[int, int]]
    kept: dict[int, av.VideoFrame]


def prove(media: bytes, claim: Claim) -> Measured:
    """Check an encoded clip and measure it.

    Args:
        media: An mp4.
        claim: What it has to be.

    Raises:
        ClipError: It is something else, with reason bad output.
    """
    _check_boxes(media)
    picks = _picks(media, claim.num_frames)
    decoded = _decode(media, {neighbour for pick in picks for neighbour in (pick - 1, pick, pick + 1)})
    _check_frames(decoded, claim)
    _check_times(decoded, claim)
    _check_random_access(media, picks, decoded.kept)
    duration_s = decoded.duration_ticks * decoded.time_base
    return Measured(
        num_frames=decoded.num_frames,
        duration_s=round(float(duration_s), 6),
        video_fps=round(float(decoded.num_frames / duration_s), 6),
        width=claim.width,
        height=claim.height,
    )


def measure(media: bytes) -> Measured | None:
    """What the header of a clip says if it is one that needs no encoding to be read right; None of any other bytes.

    It is an H.264 mp4 of one track without edit list or rotation whose frames follow each other at a constant rate, as
    all clips of our shards are. Nothing is decoded.
    """
    try:
        _check_boxes(media)
        content = {kind: media[start:end] for kind, start, end in boxes(media)}
        (rows,) = struct.unpack_from(">I", content[b"stts"], 4)
        num_frames, ticks = struct.unpack_from(">II", content[b"stts"], 8)
        version = content[b"mdhd"][0]
        (ticks_a_second,) = struct.unpack_from(">I", content[b"mdhd"], 20 if version else 12)
        kind = content[b"stsd"][12:16]
        width, height = struct.unpack_from(">HH", content[b"stsd"], 40)
    except (ClipError, KeyError, struct.error, IndexError):
        return None
    if rows != 1 or not num_frames or not ticks or not ticks_a_second or kind != b"avc1" or min(width, height) < 1:
        return None
    duration_s = Fraction(num_frames * ticks, ticks_a_second)
    return Measured(
        num_frames, round(float(duration_s), 6), round(float(num_frames / duration_s), 6), int(width), int(height)
    )


def boxes(media: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Walk an mp4's boxes, those inside others too: kind, first byte of the content, end.

    Raises:
        ValueError: A box does not end where its parent ends.
    """
    end = len(media) if end is None else end
    while start < end:
        if end - start < 8:
            raise ValueError("a box is cut off")
        size, kind = struct.unpack_from(">I4s", media, start)
        content = start + 8
        if size == 1 and end - start >= 16:
            (size,) = struct.unpack_from(">Q", media, start + 8)
            content = start + 16
        if not content - start <= size <= end - start:
            raise ValueError(f"the box {kind!r} does not fit")
        yield kind, content, start + size
        if kind in _PARENTS:
            yield from boxes(media, content, start + size)
        start += size


def _bad(detail: str) -> ClipError:
    return ClipError("prove", "bad output", detail)


def _check_boxes(media: bytes) -> None:
    try:
        found = list(boxes(media))
    except ValueError as error:
        raise _bad(str(error)) from None
    kinds = [kind for kind, _, _ in found]
    if not kinds or kinds[0] != b"ftyp":
        raise _bad("it is no mp4")
    if b"elst" in kinds:
        raise _bad("it has an edit list, which decoders treat differently")
    if kinds.count(b"moov") != 1 or kinds.count(b"mdat") != 1 or kinds.index(b"moov") > kinds.index(b"mdat"):
        raise _bad("its moov box is not before its only mdat box")
    if kinds.count(b"trak") != 1:
        raise _bad(f"it has {kinds.count(b'trak')} tracks, expected one")
    start, end = next((start, end) for kind, start, end in found if kind == b"tkhd")
    if media[end - 44 : end - 8] != _UPRIGHT or end - start < 84:
        raise _bad("a rotation is left for the decoder to apply")


def _picks(media: bytes, num_frames: int) -> list[int]:
    """Draw frames from the content, so that the same clip is always proven in the same manner."""
    digest = hashlib.sha256(media).digest()
    draws = (int.from_bytes(digest[8 * i : 8 * i + 8]) for i in range(NUM_PICKS))
    return list(dict.fromkeys(draw % max(num_frames, 1) for draw in draws))


def _decode(media: bytes, keep: set[int]) -> _Decoded:
    decoded = _Decoded([], [], 0, 0, Fraction(1), 0, set(), {})
    try:
        with av.open(io.BytesIO(media), mode="r", format="mp4") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            decoded.time_base = stream.time_base or Fraction(1)
            for packet in container.demux(stream):
                if packet.pts is not None:
                    _note_packet(decoded, packet)
                for frame in packet.decode():
                    if frame.is_corrupt or frame.rotation:
                        raise _bad(f"frame {decoded.num_frames} is damaged or turned")
                    if decoded.num_frames in keep:
                        decoded.kept[decoded.num_frames] = frame
                    decoded.sizes.add((frame.width, frame.height))
                    decoded.num_frames += 1
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise _bad(f"it cannot be decoded: {error}") from None
    return decoded


def _note_packet(decoded: _Decoded, packet: "av.Packet[av.VideoStream]") -> None:
    if packet.is_keyframe:
        decoded.keys.append(len(decoded.ticks))
        decoded.num_idr += packet.stream.codec_context.name != "h264" or _is_idr(bytes(packet))
    decoded.ticks.append(packet.pts or 0)
    decoded.duration_ticks += packet.duration or 0


def _is_idr(packet: bytes) -> bool:
    kinds, position = set(), 0
    while position + 4 < len(packet):
        kinds.add(packet[position + 4] & 31)
        position += 4 + int.from_bytes(packet[position : position + 4])
    return _IDR in kinds and _SLICE not in kinds


def _check_frames(decoded: _Decoded, claim: Claim) -> None:
    if decoded.num_frames != claim.num_frames or len(decoded.ticks) != claim.num_frames:
        found = f"{decoded.num_frames} frames in {len(decoded.ticks)} packets"
        raise _bad(f"{found}, the encoder claims {claim.num_frames}")
    if decoded.sizes != {(claim.width, claim.height)} or claim.width % 2 or claim.height % 2:
        raise _bad(f"its frames are {sorted(decoded.sizes)}, expected {claim.width}x{claim.height}, both even")


def _check_times(decoded: _Decoded, claim: Claim) -> None:
    shown = sorted(decoded.ticks)
    # The i-th frame is due at i/n of the whole, to a tick of the container's clock; in integers, as fractions are slow.
    whole, n = decoded.duration_ticks, claim.num_frames
    if whole < n or any(abs(tick * n - i * whole) > n for i, tick in enumerate(shown)):
        raise _bad("its frames do not follow each other at a constant rate from zero on")
    if decoded.keys != list(range(0, claim.num_frames, claim.gop)) or decoded.num_idr != len(decoded.keys):
        raise _bad(f"its key frames are not every {claim.gop} frames")
    # A closed group: nothing that is decoded after a key frame is shown before it, nor the other way round.
    if any(decoded.ticks[key] != shown[key] for key in decoded.keys):
        raise _bad("a group of pictures is open")


def _check_random_access(media: bytes, picks: list[int], kept: dict[int, av.VideoFrame]) -> None:
    fetched_THWC = _fetch(media, picks)
    for pick, fetched_HWC in zip(picks, fetched_THWC, strict=True):
        own = _difference(fetched_HWC, kept[pick])
        # Nothing is closer than the very same.
        others = [_difference(fetched_HWC, kept[i]) for i in (pick - 1, pick + 1) if own and i in kept]
        # Of frames that look alike none is much closer than the other.
        if own > TOLERANCE or any(other < own / 2 for other in others):
            raise _bad(f"decord's frame {pick} is another one than the decoder's (they differ by {own:.1f})")


def _fetch(media: bytes, picks: list[int]) -> NDArray[np.uint8]:
    # Imported here: it is the training reader's, and no more than this proof needs it.
    import decord
    import decord.logging

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(io.BytesIO(media), ctx=decord.cpu(0), num_threads=1)
        frames: Any = reader.get_batch(picks).asnumpy()
    except Exception as error:  # decord's exceptions are of six unrelated families
        raise _bad(f"decord cannot read it: {type(error).__name__}") from None
    return np.asarray(frames, np.uint8)


def _difference(fetched_HWC: NDArray[np.uint8], frame: av.VideoFrame) -> float:
    rgb_HWC = frame.to_ndarray(format="rgb24")
    if rgb_HWC.shape != fetched_HWC.shape:
        return float("inf")
    # Every fourth row is enough to tell frames apart.
    return float(np.abs(fetched_HWC[::4].astype(np.int16) - rgb_HWC[::4]).mean())
