"""What a raw video file is, before it is encoded: its kind, its best video stream, and whether its end is missing.

Raw files are hostile, so this process never parses their streams: ffmpeg does, in a process with limits, and it is told
only a descriptor, so that no name can be taken for an option, a protocol or a message.
"""

import contextlib
import errno
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import imageio_ffmpeg

from preprocessing.ffmpeg import MAX_PIXELS, ClipError, descriptor_url, read_arguments, run_ffmpeg

PROBE_LIMIT_S = 60.0

_STREAM = re.compile(r"^\[info\]   Stream #0:(\d+)\S*: (\w+): (.*)$")
_SIZE = re.compile(r", (\d{1,6})x(\d{1,6})(?:,| \[|$)")
_RATE = {unit: re.compile(rf", ([0-9.]+)(k?) {unit}(?:,| |$)") for unit in ("fps", "tbr")}
_DURATION = re.compile(r"^\[info\]   Duration: (\d+):(\d\d):(\d\d\.\d+),")
_START = re.compile(r"^\[info\]   Duration: .*, start: ([0-9.]+),")
_TAG = re.compile(r"^\[info\]\s+DURATION\s+: (\d+):(\d\d):(\d\d\.\d+)$")
_ROTATION = re.compile(r"^\[info\]\s+displaymatrix: rotation of (-?[0-9.]+) degrees$")
_REFUSED = re.compile(r"Picture size (\d+x\d+) exceeds specified max pixel count")
_MAX_BOXES = 100_000
# Not the file's fault.
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True)
class VideoInfo:
    """What the headers claim; good for choosing how to read the file, not for writing down."""

    container: str
    """First of ffmpeg's names for the format, such as mov or matroska."""
    codec: str
    stream: int
    """The largest video stream that is no cover picture."""
    rate: Fraction
    """Frames a second."""
    rotation: int
    """Degrees by which the picture has to be turned counterclockwise to be upright, 0 to 359."""
    declared_s: float | None
    """Where the video ends on the clock of the file; its first stream starts at zero."""
    size_bytes: int
    whole_bytes: int | None
    """Size that the container's outermost boxes give; None where its format does not tell."""

    @property
    def is_torn(self) -> bool:
        """The file ends within one of its boxes."""
        return self.whole_bytes is not None and self.whole_bytes > self.size_bytes


@contextlib.contextmanager
def open_video(path: str) -> Iterator[int]:
    """Open a plain file and give its descriptor.

    Raises:
        ClipError: With reason missing, empty, not a file, or unreadable.
        OSError: The machine has no descriptor or memory left.
    """
    try:
        # Before opening, too: opening a device may do something, and a FIFO would wait.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ClipError("read", "not a file", "a folder, device or pipe")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ClipError("read", "missing", "there is no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _SHORTAGES:
            raise
        raise ClipError("read", "unreadable", getattr(error, "strerror", None) or "not a path") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ClipError("read", "not a file", "a folder, device or pipe")
        if status.st_size == 0:
            raise ClipError("read", "empty", "0 bytes")
        yield descriptor
    finally:
        os.close(descriptor)


def probe(descriptor: int, time_limit_s: float = PROBE_LIMIT_S) -> VideoInfo:
    """Read a file's headers.

    Raises:
        ClipError: With reason unreadable, no video stream, too large, or timeout.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *read_arguments(), "-i", descriptor_url(descriptor)]
    messages = run_ffmpeg(command, descriptor, time_limit_s)
    lines = messages.head.decode(errors="replace").splitlines()
    opened = next((line for line in lines if line.startswith("[info] Input #0, ")), None)
    if refused := _REFUSED.search(messages.text):
        raise ClipError("transcode", "too large", f"{refused[1]}, expected at most {MAX_PIXELS} pixels")
    if opened is None:
        raise _unusable(descriptor, "unreadable", messages.complaint())
    streams = [(number, match) for number, line in enumerate(lines) if (match := _STREAM.match(line))]
    videos = [(number, match) for number, match in streams if match[2] == "Video" and "(attached pic)" not in match[3]]
    if not videos:
        raise _unusable(descriptor, "no video stream", f"{len(streams)} other stream(s)")
    number, match = max(videos, key=lambda item: math.prod(_size(item[1][3])))
    width, height = _size(match[3])
    if width * height > MAX_PIXELS:
        raise ClipError("transcode", "too large", f"{width}x{height}, expected at most {MAX_PIXELS} pixels")
    if (codec := match[3].split()[0].rstrip(",")) == "none":
        raise ClipError("transcode", "unreadable", f"no decoder for {match[3].split(',')[0]}")
    container = opened.removeprefix("[info] Input #0, ").split(",")[0]
    own = lines[number + 1 : next((later for later, _ in streams if later > number), len(lines))]
    rotations = [float(found[1]) for line in own if (found := _ROTATION.match(line))]
    size_bytes = os.fstat(descriptor).st_size
    return VideoInfo(
        container=container,
        codec=codec,
        stream=int(match[1]),
        rate=_guess_rate(match[3], container),
        rotation=round(rotations[0]) % 360 if rotations else 0,
        declared_s=_declared_s(lines, own),
        size_bytes=size_bytes,
        whole_bytes=_whole_bytes(descriptor, container, size_bytes),
    )


def _unusable(descriptor: int, reason: str, detail: str) -> ClipError:
    # A missing end explains every other complaint.
    head = os.pread(descriptor, 12, 0)
    size_bytes = os.fstat(descriptor).st_size
    kind = {b"\x1a\x45\xdf\xa3": "matroska", b"RIFF": "avi"}.get(head[:4], "mov" if head[4:8] == b"ftyp" else "")
    whole_bytes = _whole_bytes(descriptor, kind, size_bytes) or 0
    if whole_bytes > size_bytes:
        return ClipError(
            "transcode", "cut short", f"the file ends after {size_bytes} of at least {whole_bytes} bytes; {detail}"
        )
    return ClipError("transcode", reason, detail)


def _size(description: str) -> tuple[int, int]:
    found = _SIZE.search(description)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _guess_rate(description: str, container: str) -> Fraction:
    found = {unit: pattern.search(description) for unit, pattern in _RATE.items()}
    rates = {unit: float(match[1]) * (1000 if match[2] else 1) for unit, match in found.items() if match}
    average, guess = rates.get("fps", 0.0), rates.get("tbr", 0.0)
    if container == "mpeg" or "progressive" not in description:
        guess = average if abs(guess - 2 * average) < 0.02 else guess  # fields were counted, not frames
    # Where frame times are irregular the guess is a clock's rate, 90 000 a second.
    rate = average if average and (not guess or guess > 60) else guess
    return exact_rate(rate) if rate else Fraction(25)


def exact_rate(rate: float) -> Fraction:
    """Return the frame rate that ffmpeg has rounded to two places: a whole number, one of NTSC's, or as it is printed.

    Args:
        rate: Frames a second.
    """
    for known in (Fraction(round(rate)), Fraction(1000 * round(rate * 1.001), 1001)):
        if known and abs(float(known) - rate) < 0.006:
            return known
    return Fraction(rate).limit_denominator(1000) or Fraction(1, 1000)


def _declared_s(lines: Sequence[str], own: Sequence[str]) -> float | None:
    # Matroska: the stream's own length is a tag; the container's may be that of a longer sound track.
    found = [match for line in own if (match := _TAG.match(line))] or [
        match for line in lines if (match := _DURATION.match(line))
    ]
    starts = [float(match[1]) for line in lines if (match := _START.match(line))]
    if not found:
        return None
    # Most containers write down the end and not the length, and ffmpeg moves the start to zero.
    return max(0.0, 3600 * int(found[0][1]) + 60 * int(found[0][2]) + float(found[0][3]) - sum(starts))


def _whole_bytes(descriptor: int, container: str, size_bytes: int) -> int | None:
    walk = {"mov": _boxes_end, "matroska": _segment_end, "avi": _riff_end}.get(container)
    try:
        return walk(descriptor, size_bytes) if walk else None
    except struct.error:  # the file ends within a header
        return size_bytes + 1


def _boxes_end(descriptor: int, size_bytes: int) -> int | None:
    position = 0
    for _ in range(_MAX_BOXES):
        if position >= size_bytes:
            return position
        size, kind = struct.unpack_from(">I4s", head := os.pread(descriptor, 16, position))
        if size == 1:
            (size,) = struct.unpack_from(">Q", head, 8)
        if size < 8 or not kind.isascii():  # 0: up to the end; else no box but garbage behind the last one
            return size_bytes
        position += size
    return None


def _segment_end(descriptor: int, size_bytes: int) -> int | None:
    position = 0
    head = os.pread(descriptor, 4096, 0)
    for kind in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if head[position : position + 4] != kind or len(head) < position + 12:
            return None
        length = 9 - head[position + 4].bit_length()
        field_bytes = head[position + 4 : position + 4 + length]
        size = int.from_bytes(field_bytes) - (1 << 7 * length)
        if length > 8 or size == (1 << 7 * length) - 1:  # live recordings do not know their size
            return None
        position += 4 + length + size
    return position


def _riff_end(descriptor: int, size_bytes: int) -> int | None:
    # Up to the end of the pictures; an index may follow, which is not needed.
    position, end, whole = 0, None, None
    for _ in range(_MAX_BOXES):
        if position >= size_bytes:
            break
        kind, size, form = struct.unpack("<4sI4s", os.pread(descriptor, 12, position).ljust(12, b"\0"))
        if kind == b"RIFF":
            whole = position + 8 + size if 0 < size < 0xFFFFFFFF else None
            position += 12
            continue
        if (kind, form) == (b"LIST", b"movi"):
            end = position + 8 + size if 0 < size < 0xFFFFFFFF else None
        position += 8 + size + size % 2
    return end or whole
