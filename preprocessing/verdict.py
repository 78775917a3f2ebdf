"""What became of a video, told from ffmpeg's statistics and the structure of the file; the same in every run."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn

from preprocessing.ffmpeg import ClipError, Messages
from preprocessing.probe import VideoInfo
from preprocessing.proof import MIN_SIDE

MAX_SIDE = 16_384
# Containers round lengths and leave out the last frame's; below this share of the declared length a video is cut short.
MIN_SHARE = 0.9

# Counted messages: of a packet that is not whole, and of a stretch of the file that the container's reader skipped.
_FAILED = ("corrupt_packets", "broken_blocks")
_LOST = ("lost", "lost_page", "lost_tag", "lost_data")
_FILTERED = re.compile(r"(\d+) frames in, (\d+) frames out; (\d+) frames dropped, (\d+) frames duplicated\.$", re.M)
_SCALED = re.compile(r"w:(\d+) h:(\d+) fmt:\S+ .* -> w:(\d+) h:(\d+) fmt:", re.M)
_READ = re.compile(
    r"\(video\): (\d+) packets read \(\d+ bytes\); (\d+) frames decoded; (?:(\d+) decode errors; )?", re.M
)
_FIRST = re.compile(r"Set first pts to (-?\d+)$", re.M)
_MUXED = re.compile(r"\(video\): (\d+) frames encoded; (\d+) packets muxed ", re.M)


@dataclass(frozen=True)
class Part:
    """The part of a file that is read, in seconds from its start."""

    start_s: float = 0.0
    length_s: float | None = None
    """Reading ends here at the latest."""
    is_cut: bool = False
    """The part was cut out of a longer video and must be found whole."""


@dataclass(frozen=True)
class Encoded:
    """What ffmpeg says of its own work."""

    packets: int
    decoded: int
    failed: int
    """Packets that could not be decoded, or only in part."""
    first: int
    """Number of the first frame on the file's clock, at the output's rate."""
    frames_in: int
    frames_out: int
    irregular: int
    """Frames dropped and repeated."""
    muxed: int
    source_size: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class SourceFacts:
    """What decoding the source has shown of the part that became the clip; only container and codec are claims."""

    container: str
    """ffmpeg's first name for the format, such as mov or matroska."""
    codec: str
    width: int
    """Of the upright picture, before pixels were made square."""
    height: int
    rotation: int
    """Degrees by which the stored picture was turned counterclockwise."""
    num_frames: int
    duration_s: float
    """To half a frame of the clip."""
    video_fps: float
    """Frames for each second of that duration."""
    is_vfr: bool | None
    """Frames had to be repeated or left out to reach a constant rate; None where the rate was lowered anyway."""


def judge(messages: Messages, info: VideoInfo, part: Part, rate: Fraction) -> Encoded:
    """Read ffmpeg's statistics.

    Args:
        messages: What it printed.
        info: What the headers claim.
        part: What was to be encoded.
        rate: The output's frames a second.

    Raises:
        ClipError: The source is damaged or lacks its end, or there is no output.
    """
    encoded = _statistics(messages)
    if encoded.frames_out == 0:
        _raise_without_pictures(encoded, info, part)
    _check_source(encoded, messages, info, part, rate)
    width, height = encoded.size
    if min(width, height) < MIN_SIDE:
        detail = f"{width}x{height} after scaling, expected at least {MIN_SIDE} a side"
        raise ClipError("transcode", "too small", detail)
    if max(width, height) > MAX_SIDE:
        detail = f"{width}x{height} after scaling, expected at most {MAX_SIDE} a side"
        raise ClipError("transcode", "too large", detail)
    if encoded.muxed == 0 or messages.return_code:
        raise ClipError("prove", "bad output", f"ffmpeg ended with {messages.return_code} after {encoded.muxed} frames")
    return encoded


def _statistics(messages: Messages) -> Encoded:
    # What several threads may say at once is taken from lines that are printed in one go, the rest from the end, when
    # only one is left.
    text, noted, counts = messages.text, messages.noted.decode(errors="replace"), messages.counts
    read, muxed, scaled, first = _READ.search(text), _MUXED.search(text), _SCALED.search(noted), _FIRST.search(noted)
    filtered = [tuple(map(int, found)) for found in _FILTERED.findall(noted)]
    errors = int(read[3] or 0) if read else 0
    return Encoded(
        packets=int(read[1]) if read else 0,
        decoded=int(read[2]) if read else 0,
        failed=max(errors + counts["corrupt_frames"], *(counts[name] for name in _FAILED)),
        first=max(0, int(first[1])) if first else 0,
        frames_in=sum(found[0] for found in filtered),
        frames_out=sum(found[1] for found in filtered),
        irregular=sum(found[2] + found[3] for found in filtered),
        muxed=int(muxed[2]) if muxed else 0,
        source_size=(int(scaled[1]), int(scaled[2])) if scaled else (0, 0),
        size=(int(scaled[3]), int(scaled[4])) if scaled else (0, 0),
    )


def _raise_without_pictures(encoded: Encoded, info: VideoInfo, part: Part) -> NoReturn:
    if info.is_torn:
        raise ClipError("transcode", "cut short", f"{_torn(info)}; no frame could be decoded")
    if part.is_cut:
        raise ClipError("transcode", "cut short", f"no frame could be decoded from {part.start_s:g} s on")
    found = f"{encoded.decoded} of {encoded.packets} packets could be decoded"
    raise ClipError("transcode", "unreadable", f"{found}, and no frame could be shown")


def _check_source(encoded: Encoded, messages: Messages, info: VideoInfo, part: Part, rate: Fraction) -> None:
    counts = messages.counts
    lost = sum(counts[name] for name in _LOST)
    length_s = float(encoded.frames_out / rate)
    wanted_s = _wanted_s(info, part, info.is_torn or lost > 0)
    late_s = 0.0 if part.is_cut else float(encoded.first / rate)
    missing_s = max(0.0, wanted_s - late_s - length_s)
    lacks_frames = missing_s > 1.5 / rate
    if info.is_torn and (encoded.failed or counts["partial"] or counts["ended"] or lacks_frames):
        raise ClipError("transcode", "cut short", f"{_torn(info)}; {length_s:.2f} s could be decoded")
    if encoded.failed:
        raise ClipError("transcode", "damaged", f"{encoded.failed} of {encoded.packets} packets could not be decoded")
    if lost and (encoded.irregular or lacks_frames):
        found = f"{encoded.frames_in} frames could be decoded"
        raise ClipError("transcode", "damaged", f"{lost} stretch(es) of the file are no {info.container}; {found}")
    if missing_s > (1 - MIN_SHARE) * wanted_s + 1 / rate:
        raise ClipError("transcode", "cut short", f"{length_s:.2f} s could be decoded of {wanted_s:.2f} s")
    if counts["reconfigured"]:
        raise ClipError("transcode", "damaged", "a turned picture changes its size or format in the middle")


def _wanted_s(info: VideoInfo, part: Part, is_doubtful: bool) -> float:
    """Return where the clip should end, in seconds after its start; 0 where no header is to be trusted."""
    if part.is_cut and part.length_s is not None and info.declared_s is not None:
        return min(part.length_s, info.declared_s - part.start_s)
    # An mp4 tells the length of its longest track, and of a missing end its reader complains. Where the structure of
    # another file shows that it is whole, a header that declares more is wrong.
    if info.container == "mov" or info.declared_s is None or not (is_doubtful or info.whole_bytes is None):
        return 0.0
    return info.declared_s if part.length_s is None else min(info.declared_s, part.length_s)


def _torn(info: VideoInfo) -> str:
    return f"the file ends after {info.size_bytes} of at least {info.whole_bytes} bytes"


def describe_source(info: VideoInfo, encoded: Encoded, rate: Fraction) -> SourceFacts:
    """Return what encoding at a rate, in frames a second, has shown of the source."""
    duration_s = encoded.frames_out / rate
    # One frame in a hundred may be repeated or lost by rounding alone.
    is_vfr = encoded.irregular > 0.01 * encoded.frames_in if rate == info.rate else None
    return SourceFacts(
        container=info.container,
        codec=info.codec,
        width=encoded.source_size[0],
        height=encoded.source_size[1],
        rotation=info.rotation,
        num_frames=encoded.frames_in,
        duration_s=round(float(duration_s), 6),
        video_fps=round(float(encoded.frames_in / duration_s), 6),
        is_vfr=is_vfr,
    )
