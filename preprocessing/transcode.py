"""One video file to one clip that every decoder agrees on, proven by decoding it.

The output is an mp4 of constant rate, with closed and regular groups of pictures, upright, square pixels, 8-bit 4:2:0,
no edit list, no sound. Profiles and their cost were measured: `veryfast` with `fastdecode` and a GOP of one second
makes files that decode 16 to 21 times cheaper than a raw 720p clip.

Raw files are read by ffmpeg alone, in order, in a process with limits (`ffmpeg.py`). The decoder goes on after an error
to the end of the file, and the verdict is reached from counts and from the container's structure: ffmpeg's threads
report in any order, and a failure must read the same in every run. Why a video ends as a `ClipError`:

    stage      reason           when
    read       missing          there is no such file
               not a file       a folder, device or pipe; refused before it is opened
               empty            0 bytes
               unreadable       the system does not let us open it
    transcode  unreadable       no container or codec that is read, no decodable picture, or ffmpeg crashes on it
               no video stream  only sound, subtitles or a cover picture
               cut short        the file lacks its end, or holds less than nine tenths of what its header declares
               damaged          packets that cannot be decoded; a clip with holes is no sample
               not trimmed      longer than the annotated span, yet it does not reach to the end of that span
               too large        too many pixels, more memory or a larger clip than the limits
               too small        a side below 18 pixels, which training could not open
               timeout          ffmpeg took longer than the time limit
    prove      bad output       the encoded clip is not what it was meant to be

Damage that a decoder conceals without saying so cannot be seen, nor can the missing end of MPEG and Ogg files, whose
headers do not tell a length.
"""

import errno
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from preprocessing.ffmpeg import ClipError as ClipError
from preprocessing.ffmpeg import descriptor_url, run_ffmpeg
from preprocessing.probe import VideoInfo, open_video, probe
from preprocessing.profiles import PROFILES as PROFILES
from preprocessing.profiles import TranscodeSettings as TranscodeSettings
from preprocessing.profiles import ffmpeg_arguments as ffmpeg_arguments
from preprocessing.profiles import gop_frames, output_rate, spread_pictures
from preprocessing.proof import Claim, Measured, prove
from preprocessing.verdict import Encoded, Part, SourceFacts, describe_source, judge

TIME_LIMIT_S = 300.0
# With less than this left, a failure to write says nothing of the video.
LITTLE_BYTES = 64 << 20
# A span's end is a whole second; the video may end a little before.
END_SLACK_S = 1.0


@dataclass(frozen=True)
class Clip:
    """An encoded clip and what decoding it has shown."""

    media: bytes
    duration_s: float
    video_fps: float
    width: int
    height: int
    num_frames: int
    source: SourceFacts


@dataclass(frozen=True)
class _Run:
    """What the runs of ffmpeg on one file have in common."""

    descriptor: int
    output: Path
    settings: TranscodeSettings
    part: Part
    time_limit_s: float


def transcode(
    path: str | os.PathLike[str],
    settings: TranscodeSettings,
    *,
    span: tuple[int, int] | None = None,
    part: Part | None = None,
    scratch: Path | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> Clip:
    """Encode a video and prove the result by decoding all of it.

    The same file, settings and ffmpeg build give the same bytes: one thread, no clock, no metadata of the source.

    Args:
        path: The video.
        settings: How to encode.
        span: First and last second of the annotated clip in its original video. A file that reaches beyond the last and
            is longer than a trimmed clip (1.5 times the span and 5 s) is cut to the span, any other taken whole.
        part: The part of the file to encode, whatever it is a part of; not with a span.
        scratch: Folder for the output until it has been read; the system's when None.
        time_limit_s: Wall time after which a run of ffmpeg is ended; a video takes two, rarely three.

    Raises:
        ClipError: The video cannot become a clip.
        OSError: The scratch folder is full, or somebody else ended ffmpeg; not the video's fault.
    """
    with (
        open_video(os.fspath(path)) as descriptor,
        tempfile.TemporaryDirectory(prefix="vast-clip-", dir=scratch) as folder,
    ):
        info = probe(descriptor, time_limit_s)
        part = part or _choose_part(info, span)
        run = _Run(descriptor, Path(folder, "clip.mp4"), settings, part, time_limit_s)
        encoded = _encode(run, info)
        if encoded.frames_out < encoded.frames_in / 2 and output_rate(info, settings) == info.rate:
            # No video loses most of its frames at its own rate: the header lies.
            info = replace(info, rate=Fraction(settings.max_fps).limit_denominator(1001))
            encoded = _encode(run, info)
        rate = output_rate(info, settings)
        if span is not None and not part.is_cut and encoded.frames_out / rate > _longest_s(span):
            raise _not_trimmed(span, float(encoded.frames_out / rate))
        kept = min(encoded.muxed, settings.jpeg_frames or encoded.muxed)
        if settings.jpeg_frames:
            media = spread_pictures(run.output, rate, encoded.muxed, kept)
        else:
            media = run.output.read_bytes()
    claim = Claim(kept, *encoded.size, gop=gop_frames(rate, settings))
    return _clip(media, prove(media, claim), describe_source(info, encoded, rate))


def _encode(run: _Run, info: VideoInfo) -> Encoded:
    source = descriptor_url(run.descriptor)
    part = run.part
    command = ffmpeg_arguments(
        source, str(run.output), run.settings, info, start_s=part.start_s, length_s=part.length_s
    )
    messages = run_ffmpeg(command, run.descriptor, run.time_limit_s)
    folder = run.output.parent
    if messages.counts["no_space"] and messages.return_code and shutil.disk_usage(folder).free < LITTLE_BYTES:
        raise OSError(errno.ENOSPC, "no space left for temporary files", str(folder))
    return judge(messages, info, part, output_rate(info, run.settings))


def _longest_s(span: tuple[int, int]) -> float:
    """Return the longest length of a trimmed clip; copies cut at key frames run over by some seconds."""
    return 1.5 * (span[1] - span[0]) + 5


def _choose_part(info: VideoInfo, span: tuple[int, int] | None) -> Part:
    if span is None:
        return Part()
    if info.declared_s is None or info.declared_s <= _longest_s(span):
        # A header that lies must not make us decode hours.
        return Part(length_s=_longest_s(span) + 1)
    if info.declared_s < span[1] - END_SLACK_S:
        raise _not_trimmed(span, info.declared_s)
    return Part(start_s=span[0], length_s=span[1] - span[0], is_cut=True)


def _not_trimmed(span: tuple[int, int], length_s: float) -> ClipError:
    expected = f"expected at most {_longest_s(span):g} s of a trimmed clip, or {span[1]} s of the original"
    return ClipError("transcode", "not trimmed", f"lasts {length_s:.1f} s or more, {expected}")


def _clip(media: bytes, measured: Measured, source: SourceFacts) -> Clip:
    return Clip(
        media=media,
        duration_s=measured.duration_s,
        video_fps=measured.video_fps,
        width=measured.width,
        height=measured.height,
        num_frames=measured.num_frames,
        source=source,
    )
