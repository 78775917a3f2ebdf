import io
import os
import pickle
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import pytest
from pydantic import ValidationError

from preprocessing.transcode import ClipError, TranscodeSettings, ffmpeg_arguments, transcode

SMALL = TranscodeSettings(short_side=32)
MakeClip = Callable[..., Path]


def ffmpeg(*arguments: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


def reason_of(path: Path, settings: TranscodeSettings = SMALL) -> str:
    with pytest.raises(ClipError) as caught:
        transcode(path, settings)
    # Failures are written down, where a machine's folders and addresses have no place.
    assert str(path.parent) not in str(caught.value)
    assert " @ 0x" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("name", ["-leading dash's.mp4", "clip.webm"])
def test_a_clip_is_what_it_says_and_the_same_each_time(tmp_path: Path, make_clip: MakeClip, name: str) -> None:
    path = make_clip(tmp_path / name, num_frames=25, width=128, height=96, fps=25)
    clip = transcode(path, SMALL)
    assert clip == transcode(path, SMALL)
    assert (clip.duration_s, clip.video_fps, clip.num_frames) == (1.0, 25.0, 25)
    assert clip.height == 32
    assert clip.width in (42, 44)
    with av.open(io.BytesIO(clip.media)) as container:
        assert not container.metadata.keys() & {"title", "creation_time", "encoder"}
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_key_frames_come_every_gop(tmp_path: Path, make_clip: MakeClip) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=40, fps=20)
    media = transcode(path, TranscodeSettings(short_side=32, gop_s=0.5)).media
    with av.open(io.BytesIO(media)) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys == [0, 10, 20, 30]


def test_small_videos_are_never_enlarged_and_odd_sizes_become_even(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=71x45:r=25:d=0.4", "-pix_fmt", "yuv444p", str(path))
    clip = transcode(path, TranscodeSettings())
    assert (clip.width, clip.height) == (70, 44)


def test_turned_and_stretched_videos_come_out_as_they_are_seen(tmp_path: Path, make_clip: MakeClip) -> None:
    path = make_clip(tmp_path / "a.mp4", width=96, height=64)
    ffmpeg("-display_rotation", "90", "-i", str(path), "-c", "copy", str(tmp_path / "turned.mp4"))
    ffmpeg("-i", str(path), "-vf", "setsar=2", str(tmp_path / "wide.mp4"))
    turned, wide = transcode(tmp_path / "turned.mp4", SMALL), transcode(tmp_path / "wide.mp4", SMALL)
    assert (turned.width, turned.height) == (32, 48)
    assert (wide.width, wide.height) == (96, 32)


def test_a_varying_rate_becomes_constant_and_a_high_one_is_capped(tmp_path: Path) -> None:
    varying = ("-vf", "select='lt(n,13)+not(mod(n,6))'", "-fps_mode", "vfr")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=2", *varying, str(tmp_path / "varying.mp4"))
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=50:d=1", str(tmp_path / "fast.mp4"))
    clip = transcode(tmp_path / "varying.mp4", SMALL)
    assert clip.video_fps == 25
    assert clip.duration_s == pytest.approx(2, abs=0.25)
    capped = transcode(tmp_path / "fast.mp4", TranscodeSettings(short_side=32, max_fps=25))
    assert (capped.video_fps, capped.num_frames) == (25, 25)


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
    assert reason_of(tmp_path / "none.mp4") == "missing"
    assert reason_of(tmp_path / "pipe.mp4") == "not a file"
    assert reason_of(tmp_path) == "not a file"


def test_a_sound_track_is_no_video(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine", "-t", "0.3", str(tmp_path / "sound.mp4"))
    assert reason_of(tmp_path / "sound.mp4") == "no video stream"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_truncated_mp4_is_a_failure_although_its_header_is_whole(
    tmp_path: Path, make_clip: MakeClip, share: float
) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    ffmpeg("-i", str(make_clip(tmp_path / "a.mp4", num_frames=50)), "-c", "copy", "-movflags", "+faststart", str(whole))
    transcode(whole, SMALL)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(share * len(data))])
    assert reason_of(cut) == "unreadable"


def test_a_truncated_webm_is_a_failure_although_nothing_complains(tmp_path: Path, make_clip: MakeClip) -> None:
    data = make_clip(tmp_path / "a.webm", num_frames=50).read_bytes()
    (tmp_path / "cut.webm").write_bytes(data[: len(data) // 2])
    assert reason_of(tmp_path / "cut.webm") == "cut short"


def test_damage_in_the_middle_is_a_failure_not_a_clip_with_holes(tmp_path: Path, make_clip: MakeClip) -> None:
    data = bytearray(make_clip(tmp_path / "a.mp4", num_frames=50).read_bytes())
    middle = len(data) // 3
    data[middle : middle + 2000] = bytes(2000)
    (tmp_path / "bad.mp4").write_bytes(data)
    assert reason_of(tmp_path / "bad.mp4") == "unreadable"


def test_a_longer_sound_track_does_not_make_a_video_cut_short(tmp_path: Path, make_clip: MakeClip) -> None:
    for name in ("long.mp4", "long.webm"):
        sound = ("-f", "lavfi", "-i", "sine", "-t", "4")
        ffmpeg("-i", str(make_clip(tmp_path / f"a{name}")), *sound, "-c:v", "copy", str(tmp_path / name))
        assert transcode(tmp_path / name, SMALL).num_frames == 12


def test_limits_of_time_length_and_size(tmp_path: Path, make_clip: MakeClip) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=24, width=640, height=480)
    with pytest.raises(ClipError, match="timeout: ffmpeg was killed after"):
        transcode(path, SMALL, time_limit_s=0.001)
    with pytest.raises(ClipError, match=r"not trimmed: lasts 2\.0 s"):
        transcode(path, SMALL, max_duration_s=1.5)
    assert reason_of(make_clip(tmp_path / "tiny.mp4", width=64, height=16)) == "too small"


def test_the_command_runs_no_shell_and_no_option_comes_from_a_name() -> None:
    command = ffmpeg_arguments("/videos/-x $(date).mp4", "/tmp/o.mp4", TranscodeSettings(max_fps=30), Fraction(60))
    assert command[command.index("-i") + 1] == "/videos/-x $(date).mp4"
    assert command[command.index("-vf") + 1].startswith("fps=30/1,")
    assert command[command.index("-g") + 1] == "30"


def test_an_error_keeps_its_parts_across_processes() -> None:
    error = pickle.loads(pickle.dumps(ClipError("unreadable", "why")))
    assert (error.reason, error.detail, str(error)) == ("unreadable", "why", "unreadable: why")


def test_settings_refuse_what_would_not_work() -> None:
    for wrong in ({"short_side": 255}, {"crf": 99}, {"preset": "best"}, {"gop_s": 0}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            TranscodeSettings.model_validate(wrong)
