import dataclasses
import io
import itertools
import os
import pickle
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from pydantic import ValidationError

from preprocessing import ffmpeg as ffmpeg_module
from preprocessing.ffmpeg import Messages, run_ffmpeg
from preprocessing.probe import VideoInfo, exact_rate, open_video, probe
from preprocessing.transcode import PROFILES, Clip, ClipError, TranscodeSettings, ffmpeg_arguments, transcode

SMALL = TranscodeSettings(short_side=32)
MakeClip = Callable[..., Path]


def ffmpeg(*arguments: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


def numbered(path: Path, num_frames: int, fps: int = 10, gop: int = 7) -> Path:
    """Encode frames whose brightness tells their number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"threads": "1", "crf": "4", "g": str(gop), "preset": "ultrafast"}
        for number in range(num_frames):
            luma_HW = np.full((72, 64), 128, np.uint8)
            luma_HW[:48] = 20 + 3 * (number % 64)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(luma_HW, format="yuv420p")))
        container.mux(stream.encode())
    return path


def numbers(media: bytes) -> list[int]:
    """Read the numbers, modulo 64, back."""
    with av.open(io.BytesIO(media)) as container:
        lumas = [frame.to_ndarray(format="gray")[4:-4, 4:-4].mean() for frame in container.decode(video=0)]
    # Grey is of full range: black is 0 and not 16.
    return [round((16 + luma * 219 / 255 - 20) / 3) for luma in lumas]


def noisy(path: Path, num_frames: int = 50) -> bytes:
    """Encode frames that take many more bytes than a header."""
    source = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25,noise=alls=20", "-frames:v", str(num_frames))
    codec = ("libvpx", "-deadline", "realtime", "-cpu-used", "8") if path.suffix == ".webm" else ("libx264",)
    ffmpeg(*source, "-c:v", *codec, "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path))
    return path.read_bytes()


def failure_of(path: Path, settings: TranscodeSettings = SMALL, **more: object) -> ClipError:
    with pytest.raises(ClipError) as caught:
        transcode(path, settings, **more)  # type: ignore[arg-type]
    # Failures are written down, where a machine's folders, descriptors and addresses have no place.
    assert str(path.parent) not in str(caught.value)
    assert " @ 0x" not in str(caught.value)
    assert "/dev/fd" not in str(caught.value)
    return caught.value


def reason_of(path: Path, settings: TranscodeSettings = SMALL, **more: object) -> str:
    return failure_of(path, settings, **more).reason


@pytest.mark.parametrize("name", ["-leading dash's\n%03d.mp4", "clip.webm"])
def test_a_clip_is_what_it_says_and_the_same_each_time(tmp_path: Path, make_clip: MakeClip, name: str) -> None:
    path = make_clip(tmp_path / name, num_frames=25, width=128, height=96, fps=25)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    clip = transcode(path, SMALL, scratch=scratch)
    assert clip == transcode(path, SMALL)
    assert list(scratch.iterdir()) == []
    assert (clip.duration_s, clip.video_fps, clip.num_frames) == (1.0, 25.0, 25)
    assert clip.height == 32
    assert clip.width in (42, 44)
    with av.open(io.BytesIO(clip.media)) as container:
        assert not container.metadata.keys() & {"title", "creation_time", "encoder"}
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_what_the_source_was_comes_from_decoding_it(tmp_path: Path, make_clip: MakeClip) -> None:
    source = transcode(make_clip(tmp_path / "a.webm", num_frames=30, width=64, height=48, fps=15), SMALL).source
    assert (source.container, source.codec, source.rotation) == ("matroska", "vp9", 0)
    assert (source.width, source.height, source.num_frames) == (64, 48, 30)
    assert (source.duration_s, source.video_fps, source.is_vfr) == (2.0, 15.0, False)


@pytest.mark.parametrize(("profile", "gop"), [("s256", 12), ("s320", 12), ("intra", 1), ("jpeg32", 1)])
def test_profiles(tmp_path: Path, make_clip: MakeClip, profile: str, gop: int) -> None:
    assert PROFILES[profile].profile == profile
    clip = transcode(make_clip(tmp_path / "a.mp4", num_frames=40, fps=12), PROFILES[profile])
    num_frames = 32 if profile == "jpeg32" else 40
    assert clip.num_frames == num_frames
    assert clip.duration_s == pytest.approx(40 / 12, abs=1e-6)
    assert clip.video_fps == pytest.approx(12 * num_frames / 40, abs=1e-6)
    assert clip.source.num_frames == 40
    with av.open(io.BytesIO(clip.media)) as container:
        stream = container.streams.video[0]
        keys = [number for number, frame in enumerate(container.decode(stream)) if frame.key_frame]
        assert stream.codec_context.name == ("mjpeg" if profile == "jpeg32" else "h264")
    assert keys == list(range(0, num_frames, gop))


@pytest.mark.parametrize("num_frames", [1, 20, 32, 50])
def test_jpeg_pictures_are_the_middles_of_equal_parts(tmp_path: Path, num_frames: int) -> None:
    path = numbered(tmp_path / "a.mp4", num_frames)
    clip = transcode(path, PROFILES["jpeg32"])
    kept = min(32, num_frames)
    assert numbers(clip.media) == [(2 * k + 1) * num_frames // (2 * kept) for k in range(kept)]
    assert clip.duration_s == pytest.approx(num_frames / 10, abs=1e-5)
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == num_frames


def test_key_frames_come_every_gop(tmp_path: Path, make_clip: MakeClip) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=40, fps=20)
    media = transcode(path, TranscodeSettings(short_side=32, gop_s=0.5)).media
    with av.open(io.BytesIO(media)) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys == [0, 10, 20, 30]


@pytest.mark.parametrize("width", [24, 48, 72])
def test_a_width_that_the_training_reader_cannot_open_is_shorn(tmp_path: Path, width: int) -> None:
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={width}x32:d=0.2", str(tmp_path / "a.mp4"))
    assert transcode(tmp_path / "a.mp4", TranscodeSettings()).width == width - 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [("71x45", (70, 44)), ("427x24", (426, 24)), ("34x60", (34, 60)), ("33x401", (32, 400)), ("96x96", (96, 96))],
)
def test_small_videos_are_never_enlarged_and_odd_sizes_become_even(
    tmp_path: Path, size: str, expected: tuple[int, int]
) -> None:
    path = tmp_path / "odd.mp4"
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d=0.2", "-pix_fmt", "yuv444p", str(path))
    clip = transcode(path, TranscodeSettings())
    assert (clip.width, clip.height) == expected


def test_turned_and_stretched_videos_come_out_as_they_are_seen(tmp_path: Path, make_clip: MakeClip) -> None:
    path = make_clip(tmp_path / "a.mp4", width=96, height=64)
    ffmpeg("-display_rotation", "90", "-i", str(path), "-c", "copy", str(tmp_path / "turned.mp4"))
    ffmpeg("-i", str(path), "-vf", "setsar=2", str(tmp_path / "wide.mp4"))
    turned, wide = transcode(tmp_path / "turned.mp4", SMALL), transcode(tmp_path / "wide.mp4", SMALL)
    assert (turned.width, turned.height, turned.source.rotation) == (32, 48, 90)
    assert (turned.source.width, turned.source.height) == (64, 96)
    assert (wide.width, wide.height) == (96, 32)
    with av.open(str(path)) as raw, av.open(io.BytesIO(turned.media)) as container:
        stored, seen = (next(each.decode(video=0)) for each in (raw, container))
        expected = np.rot90(stored.reformat(48, 32).to_ndarray(format="gray")).astype(int)
        assert seen.rotation == 0
        assert np.abs(seen.to_ndarray(format="gray").astype(int) - expected).mean() < 6


def test_a_varying_rate_becomes_constant_and_keeps_its_length(tmp_path: Path) -> None:
    varying = ("-vf", "select='lt(n,13)+not(mod(n,6))'", "-fps_mode", "vfr")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=2", *varying, str(tmp_path / "varying.mp4"))
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=50:d=1", str(tmp_path / "fast.mp4"))
    clip = transcode(tmp_path / "varying.mp4", SMALL)
    assert clip.video_fps == 25
    # Its last frame is the 48th of 25 a second, and mp4 gives that the length of the one before at most.
    assert clip.duration_s == pytest.approx(48 / 25 + 0.04, abs=0.25)
    assert clip.source.duration_s == clip.duration_s
    assert clip.source.num_frames == 13 + 6
    assert clip.source.is_vfr is True
    capped = transcode(tmp_path / "fast.mp4", TranscodeSettings(short_side=32, max_fps=25))
    assert (capped.video_fps, capped.num_frames) == (25, 25)
    assert (capped.source.video_fps, capped.source.num_frames, capped.source.is_vfr) == (50, 50, None)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "flv", "ogv", "wmv"])
def test_an_untrimmed_video_is_cut_to_its_span_frame_by_frame(tmp_path: Path, suffix: str) -> None:
    path = numbered(tmp_path / "a.mp4", 300, fps=25)
    if suffix != "mp4":
        # Without B frames: an avi that has them starts two frames late on its clock.
        coding = () if suffix in {"wmv", "ogv"} else ("-c:v", "libx264", "-crf", "4", "-g", "7", "-bf", "0")
        ffmpeg("-i", str(path), *coding, "-q:v", "10" if suffix == "ogv" else "2", str(tmp_path / f"a.{suffix}"))
    clip = transcode(tmp_path / f"a.{suffix}", SMALL, span=(3, 6))
    assert numbers(clip.media) == [number % 64 for number in range(75, 150)]
    assert (clip.duration_s, clip.source.num_frames, clip.source.duration_s) == (3.0, 75, 3.0)


def test_a_span_at_the_very_end_may_end_a_little_early(tmp_path: Path) -> None:
    clip = transcode(numbered(tmp_path / "a.mp4", 125), SMALL, span=(9, 13))
    assert numbers(clip.media) == [number % 64 for number in range(90, 125)]


def test_a_trimmed_video_is_taken_whole_and_one_between_is_refused(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.mp4", 40)
    assert transcode(path, SMALL, span=(100, 103)).num_frames == 40
    long = numbered(tmp_path / "b.mp4", 130)
    error = failure_of(long, span=(50, 53))
    assert (error.stage, error.reason) == ("transcode", "not trimmed")
    assert "lasts 13.0 s" in error.detail
    assert transcode(long, SMALL, span=(50, 58)).num_frames == 130


def test_a_length_that_only_the_header_claims_does_not_hide_an_untrimmed_video(tmp_path: Path) -> None:
    data = numbered(tmp_path / "a.mp4", 130).read_bytes()
    # Duration in the header of the movie and of the track; that of the media stays.
    for kind, place in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)):
        at = data.index(kind) + 4 + place
        data = data[:at] + (1000).to_bytes(4) + data[at + 4 :]
    (tmp_path / "b.mp4").write_bytes(data)
    assert reason_of(tmp_path / "b.mp4", span=(50, 53)) == "not trimmed"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "unreadable"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{good}\n#EXT-X-ENDLIST\n", "unreadable"),
        (b"ffconcat version 1.0\nfile {good}\n", "unreadable"),
    ],
    ids=["empty", "html", "playlist", "concat"],
)
def test_what_is_no_video_is_refused_whatever_its_name(
    tmp_path: Path, make_clip: MakeClip, content: bytes, reason: str
) -> None:
    good = make_clip(tmp_path / "good.mp4")
    (tmp_path / "bad.mp4").write_bytes(content.replace(b"{good}", os.fsencode(good)))
    assert reason_of(tmp_path / "bad.mp4") == reason


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    for name, reason in {"none.mp4": "missing", "pipe.mp4": "not a file", "loop.mp4": "unreadable"}.items():
        error = failure_of(tmp_path / name)
        assert (error.stage, error.reason) == ("read", reason)
    assert reason_of(tmp_path) == "not a file"
    assert reason_of(Path("/dev/zero")) == "not a file"


def test_a_sound_track_or_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine", "-t", "0.3", str(tmp_path / "sound.mp4"))
    assert reason_of(tmp_path / "sound.mp4") == "no video stream"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x64", "-frames:v", "1", str(tmp_path / "cover.png"))
    both = ("-i", str(tmp_path / "sound.mp4"), "-i", str(tmp_path / "cover.png"), "-map", "0", "-map", "1")
    ffmpeg(*both, "-c", "copy", "-disposition:v", "attached_pic", str(tmp_path / "covered.mp4"))
    assert reason_of(tmp_path / "covered.mp4") == "no video stream"


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.97])
def test_a_truncated_mp4_is_cut_short_although_its_header_is_whole(tmp_path: Path, share: float) -> None:
    cut = tmp_path / "cut.mp4"
    data = noisy(tmp_path / "whole.mp4")
    assert transcode(tmp_path / "whole.mp4", SMALL).num_frames == 50
    cut.write_bytes(data[: int(share * len(data))])
    error = failure_of(cut)
    assert error.reason == "cut short"
    assert f"the file ends after {int(share * len(data))} of at least " in error.detail
    # Its threads race, so the same is said however they are disturbed.
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(lambda _: str(failure_of(cut)), range(12))) == {str(error)}


@pytest.mark.parametrize("suffix", ["webm", "avi"])
def test_a_truncated_webm_or_avi_is_cut_short_although_nothing_complains(tmp_path: Path, suffix: str) -> None:
    data = noisy(tmp_path / f"a.{suffix}")
    for share in (0.1, 0.5, 0.9):
        (tmp_path / f"cut.{suffix}").write_bytes(data[: int(share * len(data))])
        assert reason_of(tmp_path / f"cut.{suffix}") == "cut short"


def test_damage_in_the_middle_is_a_failure_with_a_count_not_a_clip_with_holes(tmp_path: Path) -> None:
    data = bytearray(noisy(tmp_path / "a.mp4"))
    middle = len(data) // 3
    data[middle : middle + 2000] = bytes(2000)
    (tmp_path / "bad.mp4").write_bytes(data)
    error = failure_of(tmp_path / "bad.mp4")
    assert (error.stage, error.reason) == ("transcode", "damaged")
    count, rest = error.detail.split(" ", 1)
    assert 0 < int(count) < 50
    assert rest == "of 50 packets could not be decoded"


def test_damage_that_only_the_container_shows_is_a_failure(tmp_path: Path) -> None:
    data = bytearray(noisy(tmp_path / "a.webm"))
    middle = len(data) // 3
    data[middle : middle + 1000] = bytes(1000)
    (tmp_path / "bad.webm").write_bytes(data)
    assert reason_of(tmp_path / "bad.webm") == "damaged"


def test_odd_starts_are_no_damage(tmp_path: Path) -> None:
    opened, middle, late = (tmp_path / f"{name}.mkv" for name in ("open", "middle", "late"))
    source = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=2")
    ffmpeg(*source, "-c:v", "libx264", "-x264-params", "open-gop=1:keyint=10:b-pyramid=none", str(opened))
    # Drops the key frame and what follows it, so that the first frames can be decoded by nobody.
    ffmpeg("-i", str(opened), "-c", "copy", "-bsf:v", "noise=drop='lt(n,3)'", str(middle))
    sound = ("-f", "lavfi", "-i", "sine=d=3", "-itsoffset", "1", "-i", str(opened), "-map", "0", "-map", "1")
    ffmpeg(*sound, "-c:v", "copy", str(late))
    assert transcode(opened, SMALL).num_frames == 50
    assert 30 < transcode(middle, SMALL).num_frames < 50
    assert transcode(late, SMALL).num_frames == 50  # none invented for the second before the first


def test_a_picture_that_changes_its_size_goes_on_in_the_first_size(tmp_path: Path) -> None:
    for number, size in enumerate(("96x64", "64x48")):
        source = ("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d=0.4")
        ffmpeg(*source, "-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", str(tmp_path / f"{number}.webm"))
    (tmp_path / "list").write_text("file 0.webm\nfile 1.webm\n")
    ffmpeg("-f", "concat", "-i", str(tmp_path / "list"), "-c", "copy", str(tmp_path / "both.webm"))
    clip = transcode(tmp_path / "both.webm", TranscodeSettings())
    assert (clip.width, clip.height, clip.num_frames) == (96, 64, 20)


def test_the_largest_of_several_video_streams_is_taken(tmp_path: Path, make_clip: MakeClip) -> None:
    small, large = make_clip(tmp_path / "s.mp4"), make_clip(tmp_path / "l.mp4", width=96, height=64)
    ffmpeg("-i", str(small), "-i", str(large), "-map", "0", "-map", "1", "-c", "copy", str(tmp_path / "two.mp4"))
    assert transcode(tmp_path / "two.mp4", TranscodeSettings()).height == 64


def test_a_longer_sound_track_does_not_make_a_video_cut_short(tmp_path: Path, make_clip: MakeClip) -> None:
    for name in ("long.mp4", "long.webm"):
        sound = ("-f", "lavfi", "-i", "sine", "-t", "4")
        ffmpeg("-i", str(make_clip(tmp_path / f"a{name}")), *sound, "-c:v", "copy", str(tmp_path / name))
        assert transcode(tmp_path / name, SMALL).num_frames == 12


def test_limits_of_time_and_size(tmp_path: Path, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=24, width=640, height=480)
    error = failure_of(path, time_limit_s=0.001)
    assert (error.stage, str(error)) == ("transcode", "timeout: ffmpeg took longer than 0.001 s")
    assert reason_of(make_clip(tmp_path / "tiny.mp4", width=64, height=16)) == "too small"
    with monkeypatch.context() as patch:
        patch.setattr(ffmpeg_module, "OUTPUT_LIMIT_BYTES", 2000)
        assert reason_of(path) == "too large"
    monkeypatch.setattr("preprocessing.probe.MAX_PIXELS", 640 * 480 - 1)
    assert failure_of(path).detail == "640x480, expected at most 307199 pixels"


ENDLESS = ("-nostdin", "-v", "level+repeat+verbose", "-f", "lavfi", "-i", "testsrc2=s=64x48", "-f", "null", "-")


def run(*arguments: str, time_limit_s: float = 20.0) -> Messages:
    with open(os.devnull, "rb") as nothing:
        return run_ffmpeg([imageio_ffmpeg.get_ffmpeg_exe(), *arguments], nothing.fileno(), time_limit_s)


def test_a_run_without_end_is_ended() -> None:
    with pytest.raises(ClipError, match=r"^timeout: ffmpeg took longer than 0\.3 s$"):
        run(*ENDLESS, time_limit_s=0.3)


def test_a_crash_is_the_videos_fault_and_a_signal_from_outside_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = ffmpeg_module._limit
    for stop, error in ((signal.SIGSEGV, ClipError), (signal.SIGTERM, InterruptedError), (signal.SIGKILL, ClipError)):

        def stop_it(pid: int, time_limit_s: float, stop: signal.Signals = stop) -> None:
            limit(pid, time_limit_s)
            # Another program that dies of any signal stands for an ffmpeg before it has set its own handlers.
            os.kill(pid, stop)

        monkeypatch.setattr(ffmpeg_module, "_limit", stop_it)
        with open(os.devnull, "rb") as nothing, pytest.raises(error):
            run_ffmpeg(["sleep", "20"], nothing.fileno(), 20.0)


def test_a_disk_without_room_is_not_the_videos_fault(
    tmp_path: Path, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "[out#0/mp4 @ 0x1] [error] Error writing trailer: No space left on device\n"
    monkeypatch.setattr("preprocessing.transcode.run_ffmpeg", lambda *_: told(message, return_code=228))
    monkeypatch.setattr("shutil.disk_usage", lambda _: (1, 1, 0) and type("Usage", (), {"free": 0}))
    with pytest.raises(OSError, match="no space left"):
        transcode(make_clip(tmp_path / "a.mp4"), SMALL)


def told(*chunks: str, return_code: int = 0) -> Messages:
    messages = Messages(return_code=return_code)
    for chunk in chunks:
        messages.feed(chunk.encode())
    return messages


def test_messages_are_counted_across_seams_and_kept_in_bounds() -> None:
    line = "[vist#0:0/h264 @ 0x1] [dec:h264 @ 0x2] [warning] corrupt decoded frame\n"
    text = "first\n" + line * 20_000 + "last\n"
    cuts = [0, *range(7, len(text), 65_521), len(text)]
    messages = told(*(text[start:end] for start, end in itertools.pairwise(cuts)))
    assert messages.counts["corrupt_frames"] == 20_000
    assert messages.text.startswith("first\n")
    assert messages.text.endswith("last\n")
    assert len(messages.text) < 300_000
    assert len(told("x" * 10_000_000, "\n").text) < 300_000
    assert told("short", "er\n").text == "shorter\n"


def test_what_the_environment_asks_of_ffmpeg_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFREPORT", f"file={tmp_path}/report.log")
    monkeypatch.setenv("AV_LOG_FORCE_COLOR", "1")
    assert (
        "\x1b" not in run("-v", "level+verbose", "-f", "lavfi", "-i", "testsrc2", "-t", "0.1", "-f", "null", "-").text
    )
    assert list(tmp_path.iterdir()) == []


def test_the_worker_itself_opens_no_raw_file_with_a_parser(
    tmp_path: Path, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = make_clip(tmp_path / "a.mp4"), []
    real = av.open
    monkeypatch.setattr("av.open", lambda file, *rest, **more: (opened.append(file), real(file, *rest, **more))[1])
    transcode(path, SMALL)
    assert opened
    assert all(isinstance(file, io.BytesIO) for file in opened)


INFO = VideoInfo("mov", "h264", 1, Fraction(60), 0, None, 10, 10)


def test_the_command_runs_no_shell_and_no_option_comes_from_a_name() -> None:
    command = ffmpeg_arguments("/videos/-x $(date).mp4", "/tmp/o.mp4", TranscodeSettings(max_fps=30), INFO)
    assert command[command.index("-i") + 1] == "/videos/-x $(date).mp4"
    assert command[command.index("-vf") + 1].startswith("fps=30/1,")
    assert command[command.index("-g") + 1] == "30"
    assert command[command.index("-map") + 1] == "0:1"
    assert "-ss" not in command


@pytest.mark.parametrize(
    ("printed", "rate"),
    [
        (30, Fraction(30)),
        (29.97, Fraction(30000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (14.99, Fraction(15000, 1001)),
        (12.5, Fraction(25, 2)),
        (0.5, Fraction(1, 2)),
        (29.68, Fraction(742, 25)),
    ],
)
def test_rates_that_ffmpeg_rounds_are_made_exact_again(printed: float, rate: Fraction) -> None:
    assert exact_rate(printed) == rate


def test_the_rate_of_a_source_is_found(tmp_path: Path) -> None:
    for rate, expected in (("30000/1001", Fraction(30000, 1001)), ("1/2", Fraction(1, 2)), ("15", Fraction(15))):
        path = tmp_path / "a.mp4"
        ffmpeg("-f", "lavfi", "-i", f"testsrc2=s=64x48:r={rate}", "-frames:v", "8", str(path))
        with open_video(str(path)) as descriptor:
            assert probe(descriptor).rate == expected


def test_an_error_keeps_its_parts_across_processes() -> None:
    error = pickle.loads(pickle.dumps(ClipError("transcode", "unreadable", "why")))
    assert (error.stage, error.reason, error.detail) == ("transcode", "unreadable", "why")
    assert str(error) == "unreadable: why"


def test_a_clip_goes_from_thread_to_thread(tmp_path: Path, make_clip: MakeClip) -> None:
    clips: list[Clip] = []
    path = make_clip(tmp_path / "a.mp4")
    threads = [threading.Thread(target=lambda: clips.append(transcode(path, SMALL))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({dataclasses.replace(clip, source=clips[0].source) for clip in clips}) == 1
    assert len(clips) == 3


def test_settings_refuse_what_would_not_work() -> None:
    wrong = ({"short_side": 255}, {"crf": 99}, {"preset": "best"}, {"gop_s": -1}, {"unknown": 1}, {"jpeg_frames": 32})
    for fields in wrong:
        with pytest.raises(ValidationError):
            TranscodeSettings.model_validate(fields)
