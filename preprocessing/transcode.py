"""One video file to one clip that every decoder agrees on, proven by decoding it.

The output is H.264 in mp4: constant rate, closed and regular GOPs, upright, square pixels, 8-bit 4:2:0, no audio.
Settings and their cost were measured: `veryfast` with `fastdecode` and a GOP of one second makes files that decode 16
to 21 times cheaper than a raw 720p clip.

Raw files are hostile. They are opened by ffmpeg in a process with a time and a memory limit; only containers and
protocols of a short list are accepted, or a playlist called x.mp4 could read other files of the machine.
"""

import contextlib
import io
import itertools
import os
import re
import resource
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import imageio_ffmpeg
from pydantic import BaseModel, ConfigDict, Field

TIME_LIMIT_S = 300.0
# Address space of ffmpeg; generous, as 8K video needs about a quarter of it.
MEMORY_LIMIT_BYTES = 8 << 30
FORMATS = "mov,mp4,matroska,webm,avi"
# decord cannot open a video whose width is 16 or less.
MIN_SIDE = 18
# Containers round durations and leave out the last frame's; below this share of the declared length a video is cut off.
MIN_SPAN = 0.9

_CODEC_LINE = re.compile(r"\[[a-z0-9]+\] ")
# What a message holds that says nothing, or differs from run to run.
_NOISE = re.compile(r" @ 0x[0-9a-f]+|\[Errno \d+\] ")


class TranscodeSettings(BaseModel):
    """How clips are encoded; part of the plan's digest and of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    short_side: int = Field(default=256, ge=32, multiple_of=2)
    """Short side of the clip in pixels; smaller videos keep their size."""
    crf: int = Field(default=23, ge=0, le=51)
    """x264's constant rate factor; 18 costs about 60 % more to decode, 28 about 20 % less bytes."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = "veryfast"
    """x264's preset."""
    tune: Literal["fastdecode", "none"] = "fastdecode"
    """x264's tune; fastdecode saves 33 to 47 % of the decoding time for about 20 % more bytes."""
    gop_s: float = Field(default=1.0, gt=0, le=60)
    """Seconds between key frames."""
    max_fps: float = Field(default=60.0, gt=0)
    """Highest frame rate in frames a second; slower videos keep their rate."""


@dataclass(frozen=True)
class Clip:
    """An encoded clip and what decoding it has shown."""

    media: bytes
    duration_s: float
    video_fps: float
    width: int
    height: int
    num_frames: int


class ClipError(Exception):
    """A video that cannot become a clip: a reason in a few words, and what exactly was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class _Source:
    rate: Fraction
    declared_s: float | None


def transcode(
    path: str | os.PathLike[str],
    settings: TranscodeSettings,
    *,
    max_duration_s: float | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> Clip:
    """Encode a video and prove the result by decoding all of it.

    The same file, settings and ffmpeg build give the same bytes: one thread, no clock, no metadata of the source.

    Args:
        path: The video.
        settings: How to encode.
        max_duration_s: Refuse longer videos, which nobody has trimmed to the annotated clip.
        time_limit_s: Wall time after which ffmpeg is killed.

    Raises:
        ClipError: With reason missing, empty, not a file, unreadable, no video stream, not trimmed, timeout, cut short,
            too small, or bad output.
    """
    source_path = os.path.abspath(path)
    _check_file(source_path)
    source = _probe(source_path)
    if max_duration_s is not None and source.declared_s is not None and source.declared_s > max_duration_s:
        raise ClipError("not trimmed", f"lasts {source.declared_s:.1f} s, expected at most {max_duration_s:.1f} s")
    with tempfile.TemporaryDirectory(prefix="vast-clip-") as folder:
        output = Path(folder, "clip.mp4")
        arguments = ffmpeg_arguments(source_path, str(output), settings, source.rate)
        complaint = _run_ffmpeg(arguments, source_path, time_limit_s)
        media = output.read_bytes()
    clip = _prove(media)
    if source.declared_s is not None and clip.duration_s + 1 / clip.video_fps < MIN_SPAN * source.declared_s:
        # ffmpeg's threads race: the same torn mp4 ends it with an error or, at times, only with a complaint. Of a torn
        # Matroska file it always says no more than that it ended.
        if complaint and "ended prematurely" not in complaint:
            raise ClipError("unreadable", complaint)
        raise ClipError("cut short", f"decodes to {clip.duration_s:.2f} s of the declared {source.declared_s:.2f} s")
    return clip


def ffmpeg_arguments(source: str, output: str, settings: TranscodeSettings, rate: Fraction) -> list[str]:
    """Return the whole command; `source` must be absolute, as ids may begin with "-".

    Args:
        source: Absolute path of the video.
        output: Path of the mp4.
        settings: How to encode.
        rate: The source's frame rate.
    """
    rate = min(rate, Fraction(settings.max_fps).limit_denominator(1001))
    gop = str(max(1, round(rate * Fraction(settings.gop_s))))
    # Display width and height; the shorter is cut down to short_side, both become even, nothing is enlarged.
    size = {"short": settings.short_side, "w": "iw*sar", "h": "ih"}
    width = "if(gte({w},{h}),2*round(min({short},{h})*{w}/{h}/2),2*trunc(min({short},{w})/2))".format(**size)
    height = "if(gte({w},{h}),2*trunc(min({short},{h})/2),2*round(min({short},{w})*{h}/({w})/2))".format(**size)
    tune = ["-tune", settings.tune] if settings.tune != "none" else []
    return [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", "-xerror"),
        *("-protocol_whitelist", "file,pipe", "-format_whitelist", FORMATS, "-threads", "1", "-i", source),
        # V: the first video stream that is not a cover picture.
        *("-map", "0:V:0", "-an", "-sn", "-dn", "-map_metadata", "-1", "-map_chapters", "-1"),
        # The filter and not "-r": that appends two frames at the end when it lowers a rate.
        *("-vf", f"fps={rate.numerator}/{rate.denominator},scale=w='{width}':h='{height}',setsar=1"),
        *("-fps_mode", "cfr", "-filter_threads", "1", "-pix_fmt", "yuv420p"),
        *("-c:v", "libx264", "-preset", settings.preset, *tune, "-crf", str(settings.crf)),
        *("-g", gop, "-keyint_min", gop, "-sc_threshold", "0", "-threads", "1"),
        *("-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart", output),
    ]


def _check_file(path: str) -> None:
    # A FIFO hangs every decoder, so the kind of file is looked at before anything opens it.
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ClipError("missing", "there is no such file") from None
    except OSError as error:
        raise ClipError("unreadable", error.strerror or "") from None
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("not a file", "a folder, device or pipe")
    if status.st_size == 0:
        raise ClipError("empty", "0 bytes")


def _probe(path: str) -> _Source:
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        with av.open(path, options=options, metadata_errors="ignore", timeout=30.0) as container:
            covers = av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & covers]
            if not streams:
                raise ClipError("no video stream", f"{len(container.streams)} other stream(s)")
            stream = streams[0]
            rate = stream.guessed_rate or stream.average_rate or Fraction(0)
            if rate > 60 and stream.average_rate:
                # Some containers only tell the clock's rate, 1000 a second.
                rate = stream.average_rate
            if rate <= 0:
                raise ClipError("unreadable", "no frame rate")
            lengths = [_declared_s(container, stream), stream.frames / float(rate) if stream.frames else None]
            # No header can be trusted alone: one damaged field must not make a good video look cut short.
            return _Source(rate, min((length for length in lengths if length), default=None))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ClipError("unreadable", _plain(str(error), path)) from None


def _declared_s(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska and WebM: the stream's own length is a tag; the container's may be that of a longer sound track.
    if tag := re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", "")):
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    return container.duration / av.time_base if container.duration else None


def _run_ffmpeg(arguments: list[str], source: str, time_limit_s: float) -> str:
    """Run to the end; returns what it complained about without failing."""
    process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    # From outside and not by preexec_fn, which is unsafe in a process with threads and slow in a large one.
    if hasattr(resource, "prlimit"):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    try:
        _, messages = process.communicate(timeout=time_limit_s)
    except subprocess.TimeoutExpired:
        raise ClipError("timeout", f"ffmpeg was killed after {time_limit_s:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    text = _plain(messages.decode(errors="replace"), source)
    if process.returncode:
        raise ClipError("unreadable", text or f"ffmpeg ended with {process.returncode}")
    return text


def _prove(media: bytes) -> Clip:
    """Decode all frames of our own output, in order, and measure it."""
    try:
        with av.open(io.BytesIO(media), mode="r", format="mp4") as container:
            stream = container.streams.video[0]
            times = [float(frame.time) for frame in container.decode(stream) if frame.time is not None]
            width, height, rate = stream.width, stream.height, float(stream.average_rate or 0)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise ClipError("bad output", f"the encoded clip cannot be decoded: {error}") from None
    if not times:
        raise ClipError("unreadable", "no frame could be decoded")
    if min(width, height) < MIN_SIDE:
        raise ClipError("too small", f"{width}x{height} after scaling, expected at least {MIN_SIDE} a side")
    fps = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else rate
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    # A time stamp is a multiple of the container's clock, so steps differ by less than a millisecond.
    if any(abs(step - 1 / fps) > 0.001 for step in steps):
        raise ClipError("bad output", "the encoded clip has no constant frame rate")
    return Clip(media, round(len(times) / fps, 6), round(fps, 6), width, height, len(times))


def _plain(message: str, path: str) -> str:
    """Shorten a decoder's message to what is the same in every run: no address, no path of this machine.

    ffmpeg's threads report in any order, so only the first lines of one of them are kept: the codec's, if it spoke.
    """
    lines = _NOISE.sub("", message.replace(path, os.path.basename(path))).splitlines()
    lines = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    of_codec = [line for line in lines if _CODEC_LINE.match(line)]
    return "; ".join((of_codec or lines)[:2])[:300]
