"""How clips are encoded: settings, the named profiles, and the ffmpeg command that they come to."""

from fractions import Fraction
from pathlib import Path
from typing import Literal, Self

import av
import imageio_ffmpeg
from pydantic import BaseModel, ConfigDict, Field, model_validator

from preprocessing.ffmpeg import ClipError, read_arguments
from preprocessing.probe import VideoInfo

UNREADABLE_WIDTHS = (24, 48, 72)
"""decord 0.6 fails on these, and on 16 and less; such a clip loses two columns."""
SEEKABLE = frozenset({"mov", "matroska", "avi"})
"""Containers whose index leads to the right frame; in others ffmpeg only guesses, so they are read from the start."""


class TranscodeSettings(BaseModel):
    """How clips are encoded; part of the plan's digest and of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    profile: Literal["s256", "s320", "intra", "jpeg32"] = "s256"
    """The profile that these settings started from; the other fields say what is done."""
    short_side: int = Field(default=256, ge=32, multiple_of=2)
    """Short side of the clip in pixels; smaller videos keep their size."""
    crf: int = Field(default=23, ge=0, le=51)
    """x264's constant rate factor; 18 costs about 60 % more to decode, 28 about 20 % less bytes."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = "veryfast"
    """x264's preset."""
    tune: Literal["fastdecode", "none"] = "fastdecode"
    """x264's tune; fastdecode saves 33 to 47 % of the decoding time for about 20 % more bytes."""
    gop_s: float = Field(default=1.0, ge=0, le=60)
    """Seconds between key frames; 0 makes every frame a key frame."""
    max_fps: float = Field(default=60.0, gt=0)
    """Highest frame rate in frames a second; slower videos keep their rate."""
    jpeg_frames: int | None = Field(default=None, ge=1)
    """Keep so many frames, evenly spread, as JPEG pictures instead of H.264; for sampling by segments only."""
    jpeg_quality: int = Field(default=4, ge=2, le=31)
    """The JPEG encoder's quantiser; lower is better."""

    @model_validator(mode="after")
    def _jpeg_has_no_gop(self) -> Self:
        if self.jpeg_frames is not None and self.gop_s:
            raise ValueError("jpeg_frames needs gop_s 0: every JPEG picture is a key frame")
        return self


PROFILES = {
    "s256": TranscodeSettings(),
    "s320": TranscodeSettings(profile="s320", short_side=320),
    "intra": TranscodeSettings(profile="intra", gop_s=0),
    "jpeg32": TranscodeSettings(profile="jpeg32", gop_s=0, jpeg_frames=32),
}
"""The default; more accuracy for more bytes; cheapest random access; cheapest of all for one frame a segment."""


def output_rate(info: VideoInfo, settings: TranscodeSettings) -> Fraction:
    """Return the constant rate, in frames a second, at which a video is encoded."""
    return min(info.rate, Fraction(settings.max_fps).limit_denominator(1001))


def gop_frames(rate: Fraction, settings: TranscodeSettings) -> int:
    """Return how many frames there are from one key frame to the next, at a rate in frames a second."""
    return max(1, round(rate * Fraction(settings.gop_s)))


def ffmpeg_arguments(
    source: str,
    output: str,
    settings: TranscodeSettings,
    info: VideoInfo,
    *,
    start_s: float = 0.0,
    length_s: float | None = None,
) -> list[str]:
    """Return the whole command; no part of it comes from a name when `source` is a descriptor's.

    Args:
        source: What to read: a descriptor's name, or an absolute path, as ids may begin with "-".
        output: Path of the mp4.
        settings: How to encode.
        info: What `probe` says of the source.
        start_s: First second that is encoded.
        length_s: Seconds that are encoded at most.
    """
    rate = output_rate(info, settings)
    seek = _seek(start_s, length_s) if info.container in SEEKABLE else []
    trim = "" if info.container in SEEKABLE else _trim(start_s, length_s)
    # A picture that changes its size or format goes on in the same filters, of which only scale comes to see it. The
    # filters that turn a picture cannot bear that; there a new graph is made.
    one_graph = ["-reinit_filter", "0"] if not info.rotation else []
    return [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", *read_arguments(), *one_graph, *seek, "-i", source),
        *("-map", f"0:{info.stream}", "-map_metadata", "-1", "-map_chapters", "-1"),
        # The filter and not "-r": that appends two frames at the end when it lowers a rate. And not "-fps_mode cfr",
        # which would fill the time before a video that starts later than its sound.
        *("-vf", f"{trim}fps={rate.numerator}/{rate.denominator},{_scale(settings.short_side)},setsar=1"),
        *("-fps_mode", "vfr", "-filter_threads", "1", *_codec_arguments(settings, gop_frames(rate, settings))),
        # Frames are reordered without an edit list, which decoders treat differently.
        *("-threads", "1", "-use_editlist", "0", "-movflags", "+faststart+negative_cts_offsets"),
        *("-fflags", "+bitexact", "-flags:v", "+bitexact", output),
    ]


def _seek(start_s: float, length_s: float | None) -> list[str]:
    start = ["-ss", str(start_s)] if start_s else []
    return [*start, *(("-t", str(length_s)) if length_s is not None else ())]


def _trim(start_s: float, length_s: float | None) -> str:
    if not start_s and length_s is None:
        return ""
    end = f":end={start_s + length_s}" if length_s is not None else ""
    return f"trim=start={start_s}{end},setpts=PTS-{start_s}/TB,"


def _scale(short_side: int) -> str:
    # Display width and height; the shorter is cut down to short_side, both become even, nothing is enlarged.
    size = {"short": short_side, "w": "(iw*sar)", "h": "ih"}
    side = "2*trunc(min({short},{a})/2)"
    other = "min(2*round(min({short},{a})*{b}/{a}/2),max(2,2*trunc({b}/2)))"
    wide = {**size, "a": size["h"], "b": size["w"]}
    tall = {**size, "a": size["w"], "b": size["h"]}
    width = f"if(gte({size['w']},{size['h']}),{other.format(**wide)},{side.format(**tall)})"
    height = f"if(gte({size['w']},{size['h']}),{side.format(**wide)},{other.format(**tall)})"
    shorn = "+".join(f"eq(ld(0),{bad})" for bad in UNREADABLE_WIDTHS)
    return f"scale=w='st(0,{width});ld(0)-2*({shorn})':h='{height}'"


def _codec_arguments(settings: TranscodeSettings, gop: int) -> list[str]:
    if settings.jpeg_frames is not None:
        return ["-pix_fmt", "yuvj420p", "-c:v", "mjpeg", "-q:v", str(settings.jpeg_quality)]
    tune = ["-tune", settings.tune] if settings.tune != "none" else []
    return [
        *("-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", settings.preset, *tune, "-crf", str(settings.crf)),
        *("-g", str(gop), "-keyint_min", str(gop), "-sc_threshold", "0"),
    ]


def spread_pictures(path: Path, rate: Fraction, num_pictures: int, num_kept: int) -> bytes:
    """Keep the middle picture of each of `num_kept` equal parts of an mp4 of JPEG pictures, in the time they all took.

    Args:
        path: The mp4; the new one is written beside it.
        rate: Its frames a second.
        num_pictures: Its frames.
        num_kept: Frames of the new one, no more than there are.

    Raises:
        ClipError: The mp4 cannot be read.
    """
    output = path.with_suffix(".spread.mp4")
    options = {"movflags": "faststart", "use_editlist": "0", "fflags": "+bitexact"}
    wanted = [(2 * k + 1) * num_pictures // (2 * num_kept) for k in range(num_kept)]
    try:
        with av.open(str(path)) as source, av.open(str(output), "w", format="mp4", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            stream.time_base = time_base = num_pictures / (num_kept * rate)
            packets = (packet for packet in source.demux(video=0) if packet.size)
            for number, packet in enumerate(packet for i, packet in enumerate(packets) if i in wanted):
                packet.stream, packet.time_base = stream, time_base
                packet.pts = packet.dts = number
                packet.duration = 1
                target.mux(packet)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ClipError("prove", "bad output", f"its pictures cannot be taken out: {type(error).__name__}") from None
    return output.read_bytes()
