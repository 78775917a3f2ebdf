"""Bad and odd video files: each ends as a proven clip or as one failure, the same each time, and leaves nothing behind.

The files are made here, tiny, by the packaged ffmpeg; a kind that its build cannot encode is skipped with the reason.
"""

import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import pytest

from preprocessing.transcode import Clip, ClipError, TranscodeSettings, transcode

pytestmark = pytest.mark.slow

LIMIT_S = 30.0
BASE = "testsrc2=s=96x64:r=25:d=1.2,noise=alls=20,format=yuv420p"
BASE_FRAMES = 30
SOUND = ("-f", "lavfi", "-i", "sine")
H264 = ("-c:v", "libx264", "-preset", "veryfast")


def ffmpeg(*arguments: str | Path) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unknown encoder" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[0])
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with good.mp4 (H.264 and sound, header first), late.mp4 (header last), good.webm and good.avi."""
    folder = tmp_path_factory.mktemp("base")
    video = ("-f", "lavfi", "-i", BASE)
    sound = (*SOUND, "-t", "1.2")
    ffmpeg(*video, *sound, *H264, "-g", "10", "-c:a", "aac", "-movflags", "+faststart", folder / "good.mp4")
    ffmpeg("-i", folder / "good.mp4", "-c", "copy", folder / "late.mp4")
    ffmpeg(*video, "-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", folder / "good.webm")
    ffmpeg(*video, "-c:v", "mpeg4", "-bf", "2", "-b:v", "600k", folder / "good.avi")
    return folder


Make = Callable[[Path, Path], Path]
"""Makes the file out of the base's folder in an empty folder."""


@dataclass(frozen=True)
class Kind:
    """One kind of file and what is to become of it."""

    make: Make
    expected: str | tuple[int, int, int]
    """Reason of the failure, or the clip's frames, width and height."""


GOOD = (BASE_FRAMES, 96, 64)


def cut(source: str, share: float) -> Make:
    def make(base: Path, folder: Path) -> Path:
        data = (base / source).read_bytes()
        return written(folder, data[: int(share * len(data))], source)

    return make


def written(folder: Path, data: bytes, name: str = "x.mp4") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def content(data: bytes) -> Make:
    return lambda base, folder: written(folder, data.replace(b"{good}", os.fsencode(base / "good.mp4")))


def encoded(name: str, *options: str, source: str = BASE) -> Make:
    def make(base: Path, folder: Path) -> Path:
        ffmpeg("-f", "lavfi", "-i", source, *options, folder / name)
        return folder / name

    return make


def copied(name: str, *options: str, before: tuple[str, ...] = (), source: str = "good.mp4") -> Make:
    def make(base: Path, folder: Path) -> Path:
        ffmpeg(*before, "-i", base / source, *options, "-c", "copy", folder / name)
        return folder / name

    return make


def changed(change: Callable[[bytearray], None], source: str = "good.mp4") -> Make:
    def make(base: Path, folder: Path) -> Path:
        data = bytearray((base / source).read_bytes())
        change(data)
        return written(folder, bytes(data), source)

    return make


def patched(kind: bytes, offset: int, value: bytes) -> Make:
    """Overwrite bytes of every box of a kind, counted from behind the kind."""

    def change(data: bytearray) -> None:
        at, found = 0, 0
        while (at := data.find(kind, at)) >= 0:
            at += len(kind)
            data[at + offset : at + offset + len(value)] = value
            found += 1
        assert found

    return changed(change)


def zeroed(start: float, num_bytes: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        at = int(start * len(data))
        data[at : at + num_bytes] = bytes(num_bytes)

    return change


def named(name: str | bytes) -> Make:
    def make(base: Path, folder: Path) -> Path:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.link(base / "good.mp4", path)
        return Path(os.fsdecode(path))

    return make


def joined(name: str, codec: tuple[str, ...], *sources: str) -> Make:
    """Put streams of several sizes or formats behind each other without encoding them again."""

    def make(base: Path, folder: Path) -> Path:
        parts = folder.parent / f"{folder.name}-parts"
        parts.mkdir()
        for number, source in enumerate(sources):
            ffmpeg("-f", "lavfi", "-i", source, *codec, parts / f"{number}{Path(name).suffix}")
        lines = (f"file {number}{Path(name).suffix}\n" for number in range(len(sources)))
        (parts / "list").write_text("".join(lines))
        ffmpeg("-f", "concat", "-i", parts / "list", "-c", "copy", folder / name)
        return folder / name

    return make


def cover(base: Path, folder: Path) -> Path:
    parts = folder.parent / f"{folder.name}-parts"
    parts.mkdir()
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x64", "-frames:v", "1", parts / "cover.png")
    both = ("-map", "0:a", "-map", "1:v", "-c", "copy", "-disposition:v", "attached_pic")
    ffmpeg("-i", base / "good.mp4", "-i", parts / "cover.png", *both, folder / "x.mp4")
    return folder / "x.mp4"


def two_streams(base: Path, folder: Path) -> Path:
    small = ("-filter_complex", "[0:v]scale=32:32[s]", "-map", "[s]", "-map", "0:v")
    ffmpeg("-i", base / "good.mp4", *small, *H264, folder / "x.mp4")
    return folder / "x.mp4"


def fifo(base: Path, folder: Path) -> Path:
    os.mkfifo(folder / "x.mp4")
    return folder / "x.mp4"


def directory(base: Path, folder: Path) -> Path:
    (folder / "x.mp4").mkdir()
    return folder / "x.mp4"


def link(target: str) -> Make:
    def make(base: Path, folder: Path) -> Path:
        (folder / "x.mp4").symlink_to(target.replace("{base}", str(base)))
        return folder / "x.mp4"

    return make


def sparse(size_bytes: int, source: str = "") -> Make:
    def make(base: Path, folder: Path) -> Path:
        path = written(folder, (base / source).read_bytes() if source else b"")
        os.truncate(path, size_bytes)
        return path

    return make


def thirty_seconds_of_sound(base: Path, folder: Path) -> Path:
    both = (*SOUND, "-t", "30", "-map", "0:v", "-map", "1:a", "-c:v", "copy")
    ffmpeg("-i", base / "good.mp4", *both, folder / "x.mp4")
    return folder / "x.mp4"


def a_low_rate(base: Path, folder: Path) -> Path:
    """A hundred frames a second, in a track that claims to last for days."""
    path = encoded("x.mp4", *H264, source="testsrc2=s=96x64:r=100:d=1")(base, folder)
    data = bytearray(path.read_bytes())
    at = data.index(b"mdhd") + 20
    data[at : at + 4] = b"\xff\xff\xff\xf0"
    return written(folder, bytes(data))


def ten_days(data: bytearray) -> None:
    at = data.index(b"\x44\x89\x88") + 3
    data[at : at + 8] = struct.pack(">d", 864e6)


def without_moov(data: bytearray) -> None:
    at = data.index(b"moov")
    data[at : at + 4] = b"vomo"


def flipped(data: bytearray) -> None:
    for at in range(len(data) // 3, len(data), len(data) // 40):
        data[at] ^= 0x10


HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n%s\n#EXT-X-ENDLIST\n"
VFR = "testsrc2=s=96x64:r=25:d=2,select='lt(n,13)+not(mod(n,6))',format=yuv420p"
OPEN = "open-gop=1:keyint=10:bframes=3:b-pyramid=none"

KINDS = {
    # Damage.
    **{f"faststart cut at {share}": Kind(cut("good.mp4", share), "cut short") for share in (0.02, 0.1, 0.5, 0.95)},
    **{f"moov at the end cut at {share}": Kind(cut("late.mp4", share), "cut short") for share in (0.1, 0.5, 0.98)},
    **{f"webm cut at {share}": Kind(cut("good.webm", share), "cut short") for share in (0.1, 0.5, 0.95)},
    **{f"avi cut at {share}": Kind(cut("good.avi", share), "cut short") for share in (0.1, 0.5, 0.95)},
    "webm of a few bytes": Kind(cut("good.webm", 0.0005), "unreadable"),
    "no moov": Kind(changed(without_moov), "unreadable"),
    "bits flipped": Kind(changed(flipped), "damaged"),
    "mp4 zeroed in the middle": Kind(changed(zeroed(0.5, 4000)), "damaged"),
    "webm zeroed in the middle": Kind(changed(zeroed(0.5, 4000), "good.webm"), "damaged"),
    "avi zeroed in the middle": Kind(changed(zeroed(0.5, 4000), "good.avi"), "damaged"),
    "all zero behind the header": Kind(changed(zeroed(0.1, 10**6)), "damaged"),
    # No video.
    "no bytes": Kind(content(b""), "empty"),
    "one byte": Kind(content(b"x"), "unreadable"),
    "text": Kind(content(b"This video is not available.\n"), "unreadable"),
    "a page": Kind(content(b"<!DOCTYPE html><html><title>404</title></html>"), "unreadable"),
    "random bytes": Kind(content(bytes(i * i * 7919 % 251 for i in range(100_000))), "unreadable"),
    "an ftyp box alone": Kind(content(b"\0\0\0\x18ftypisom\0\0\2\0isomavc1"), "unreadable"),
    "hls naming a system file": Kind(content(HLS % b"/etc/hostname"), "unreadable"),
    "hls naming a video": Kind(content(HLS % b"{good}"), "unreadable"),
    "ffconcat": Kind(content(b"ffconcat version 1.0\nfile '{good}'\n"), "unreadable"),
    "dash": Kind(content(b"<?xml version='1.0'?><MPD><BaseURL>{good}</BaseURL></MPD>"), "unreadable"),
    "sdp": Kind(content(b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n"), "unreadable"),
    "a playlist of pictures": Kind(content(b"file '{good}'\nduration 1\n"), "unreadable"),
    "png": Kind(encoded("x.mp4", "-frames:v", "1", "-c:v", "png", "-f", "image2"), "unreadable"),
    "gif": Kind(encoded("x.mp4", "-f", "gif"), "unreadable"),
    "sound alone": Kind(copied("x.mp4", "-map", "0:a"), "no video stream"),
    "sound with a cover": Kind(cover, "no video stream"),
    # Length, size.
    "one frame": Kind(encoded("x.mp4", *H264, "-frames:v", "1"), (1, 96, 64)),
    "two frames": Kind(encoded("x.webm", "-c:v", "libvpx", "-frames:v", "2"), (2, 96, 64)),
    "33x17, 4:4:4": Kind(
        encoded("x.mp4", *H264, "-pix_fmt", "yuv444p", source="testsrc2=s=33x17:d=0.4"), "too small"
    ),
    "71x45, 4:4:4": Kind(
        encoded("x.mp4", *H264, "-pix_fmt", "yuv444p", source="testsrc2=s=71x45:d=0.4"), (10, 70, 44)
    ),
    "4096x16": Kind(encoded("x.mp4", *H264, source="testsrc2=s=4096x16:d=0.2"), "too small"),
    "2x2": Kind(encoded("x.mp4", *H264, source="testsrc2=s=2x2:d=0.2"), "too small"),
    "16x4096": Kind(encoded("x.mp4", *H264, source="testsrc2=s=16x4096:d=0.2"), "too small"),
    "7680x4320": Kind(encoded("x.mp4", "-c:v", "mjpeg", source="color=s=7680x4320:d=0.08"), (2, 456, 256)),
    "8192x8192": Kind(encoded("x.mp4", "-c:v", "mjpeg", source="color=s=8192x8192:d=0.08"), "too large"),
    "1000 a second": Kind(encoded("x.mp4", *H264, source="testsrc2=s=96x64:r=1000:d=0.3"), (18, 96, 64)),
    "one in two seconds": Kind(encoded("x.mp4", *H264, source="testsrc2=s=96x64:r=1/2:d=6"), (3, 96, 64)),
    "all black": Kind(encoded("x.mp4", *H264, source="color=black:s=96x64:d=0.4"), (10, 96, 64)),
    # Time and geometry.
    "turned by 90": Kind(copied("x.mp4", before=("-display_rotation", "90")), (BASE_FRAMES, 64, 96)),
    "turned by 180": Kind(copied("x.mp4", before=("-display_rotation", "180")), GOOD),
    "turned by 45": Kind(copied("x.mp4", before=("-display_rotation", "45")), GOOD),
    "mirrored": Kind(copied("x.mp4", before=("-display_hflip",)), GOOD),
    "pixels 2:1": Kind(encoded("x.mp4", *H264, "-vf", "setsar=2"), (BASE_FRAMES, 192, 64)),
    "pixels 1:3": Kind(encoded("x.mp4", *H264, "-vf", "setsar=1/3"), (BASE_FRAMES, 32, 64)),
    "pixels 100:1": Kind(encoded("x.mp4", *H264, "-vf", "setsar=100", source="testsrc2=s=200x64:d=0.1"), "too large"),
    "varying rate": Kind(encoded("x.mp4", *H264, "-fps_mode", "vfr", source=VFR), (49, 96, 64)),
    "varying rate, matroska": Kind(encoded("x.mkv", *H264, "-fps_mode", "vfr", source=VFR), (49, 96, 64)),
    "a gap": Kind(
        encoded("x.mp4", *H264, "-vf", "select='lt(n,5)+gt(n,24)'", "-fps_mode", "vfr"), GOOD
    ),
    "interlaced": Kind(
        encoded("x.mp4", *H264, "-flags", "+ildct+ilme", "-vf", "tinterlace=interleave_top"), (15, 96, 64)
    ),
    "open groups": Kind(encoded("x.mkv", *H264, "-x264-params", OPEN), GOOD),
    "no key frame at the start": Kind(copied("x.mkv", "-bsf:v", "noise=drop='lt(n,2)'", "-an"), (20, 96, 64)),
    "starts at 3600 s": Kind(copied("x.mkv", "-output_ts_offset", "3600"), GOOD),
    "starts at 1.5 s": Kind(copied("x.mkv", "-output_ts_offset", "1.5"), GOOD),
    "cut with an edit list": Kind(copied("x.mp4", before=("-ss", "0.5")), (17, 96, 64)),
    "size changes": Kind(
        joined("x.webm", ("-c:v", "libvpx"), "testsrc2=s=96x64:d=0.4", "testsrc2=s=64x48:d=0.4"), (20, 96, 64)
    ),
    "format changes": Kind(
        joined(
            *("x.webm", ("-c:v", "libvpx-vp9", "-cpu-used", "8")),
            *("testsrc2=d=0.2,format=yuv420p", "testsrc2=d=0.2,format=yuv444p"),
        ),
        (10, 320, 240),
    ),
    "two video streams": Kind(two_streams, GOOD),
    "30 s of sound": Kind(thirty_seconds_of_sound, GOOD),
    # Codecs and containers.
    "h264, 10 bit": Kind(encoded("x.mp4", *H264, "-pix_fmt", "yuv420p10le"), GOOD),
    "h264, grey": Kind(encoded("x.mp4", *H264, "-pix_fmt", "gray"), GOOD),
    "h264, full range": Kind(encoded("x.mp4", *H264, "-pix_fmt", "yuvj420p"), GOOD),
    "h264, fragmented": Kind(encoded("x.mp4", *H264, "-movflags", "+frag_keyframe+empty_moov"), GOOD),
    "hevc": Kind(encoded("x.mp4", "-c:v", "libx265", "-x265-params", "log-level=error"), GOOD),
    "hevc, 10 bit": Kind(
        encoded("x.mp4", "-c:v", "libx265", "-x265-params", "log-level=error", "-pix_fmt", "yuv420p10le"), GOOD
    ),
    "av1": Kind(encoded("x.mp4", "-c:v", "libaom-av1", "-cpu-used", "8", "-frames:v", "10"), (10, 96, 64)),
    "vp9": Kind(encoded("x.webm", "-c:v", "libvpx-vp9", "-cpu-used", "8"), GOOD),
    "vp8": Kind(encoded("x.webm", "-c:v", "libvpx"), GOOD),
    "vp9, alpha": Kind(encoded("x.webm", "-c:v", "libvpx-vp9", "-cpu-used", "8", "-pix_fmt", "yuva420p"), GOOD),
    "mpeg4 with b frames, avi": Kind(encoded("x.avi", "-c:v", "mpeg4", "-bf", "2"), GOOD),
    "mpeg1": Kind(encoded("x.mpg", "-c:v", "mpeg1video"), GOOD),
    "mpeg2, program stream": Kind(encoded("x.mpg", "-c:v", "mpeg2video", "-bf", "2"), GOOD),
    "mpeg2, transport stream": Kind(encoded("x.ts", "-c:v", "mpeg2video"), "unreadable"),
    "wmv2": Kind(encoded("x.wmv", "-c:v", "wmv2"), GOOD),
    "flv1": Kind(encoded("x.flv", "-c:v", "flv"), GOOD),
    "theora": Kind(encoded("x.ogv", "-c:v", "libtheora"), GOOD),
    "mjpeg": Kind(encoded("x.avi", "-c:v", "mjpeg"), GOOD),
    "prores": Kind(encoded("x.mov", "-c:v", "prores_ks"), GOOD),
    "ffv1, 16 bit": Kind(encoded("x.mkv", "-c:v", "ffv1", "-pix_fmt", "gray16le"), GOOD),
    "raw h264": Kind(encoded("x.h264", *H264), "unreadable"),
    # Headers that lie.
    "movie of 4 294 967 s": Kind(patched(b"mvhd", 16, b"\xff\xff\xff\xf0"), GOOD),
    "track of 335 544 s": Kind(patched(b"mdhd", 16, b"\xff\xff\xff\xf0"), GOOD),
    "matroska of ten days": Kind(changed(ten_days, "good.webm"), GOOD),
    "stsz of 2^28 samples": Kind(patched(b"stsz", 8, b"\x10\0\0\0"), "unreadable"),
    "stts of 2^28 samples": Kind(patched(b"stts", 8, b"\x0f\xff\xff\xff"), GOOD),
    "frames of two days": Kind(patched(b"stts", 12, b"\x7f\xff\xff\xff"), (1, 96, 64)),
    "a gap of ten hours": Kind(
        encoded("x.mkv", *H264, "-vf", "setpts='PTS+if(gte(N,20),36000/TB,0)'", "-fps_mode", "vfr"), "timeout"
    ),
    "a rate far too low": Kind(a_low_rate, (60, 96, 64)),
    "65535x65535": Kind(patched(b"tkhd", 76, b"\xff\xff\0\0\xff\xff\0\0"), GOOD),
    # The file system.
    "missing": Kind(lambda base, folder: folder / "x.mp4", "missing"),
    "fifo": Kind(fifo, "not a file"),
    "folder": Kind(directory, "not a file"),
    "link to itself": Kind(link("x.mp4"), "unreadable"),
    "link to nothing": Kind(link("nothing"), "missing"),
    "link to a device": Kind(link("/dev/zero"), "not a file"),
    "link to a video": Kind(link("{base}/good.mp4"), GOOD),
    "10 GB, sparse": Kind(sparse(10 << 30, "good.mp4"), GOOD),
    "10 GB of nothing": Kind(sparse(10 << 30), "unreadable"),
    # Names.
    **{
        f"name {name!r}": Kind(named(name), GOOD)
        for name in (
            *("-i.mp4", "--help", "http:example.mp4", "file:x.mp4", "pipe:0", "concat:a|b", "two  spaces .mp4"),
            *("new\nline.mp4", "quote's \".mp4", "$(touch pwned).mp4", "`id`;|&.mp4", "%03d.mp4", "*?[a].mp4"),
            *("日本.mp4", "e\u0301.mp4", "🎬", "UPPER.MP4", "a.b.c", ".hidden"),
            *(b"not\xff utf8.mp4", "n" * 251 + ".mp4"),
            "\n[in#0 @ 0x0] [verbose]   Input stream #0:0 (video): 9 packets read (9 bytes); 9 frames decoded",
        )
    },
}  # fmt: skip


def outcome(path: Path, scratch: Path, time_limit_s: float) -> Clip | tuple[str, str, str]:
    started = time.monotonic()
    try:
        return transcode(path, TranscodeSettings(), scratch=scratch, time_limit_s=time_limit_s)
    except ClipError as error:
        return error.stage, error.reason, error.detail
    finally:
        # A probe and an encode, each with its own limit.
        assert time.monotonic() - started < 2 * time_limit_s + 5


def listing(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            status = os.lstat(os.path.join(parent, name))
            found.append((os.path.join(parent, name), status.st_size, status.st_mtime_ns))
    return sorted(found)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_ends_as_it_should(kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scratch, here = tmp_path / "raw", tmp_path / "scratch", tmp_path / "here"
    for each in (folder, scratch, here):
        each.mkdir()
    monkeypatch.chdir(here)
    path = KINDS[kind].make(base, folder)
    before = listing(tmp_path), listing(base)
    time_limit_s = 1.0 if KINDS[kind].expected == "timeout" else LIMIT_S
    first = outcome(path, scratch, time_limit_s)
    assert first == outcome(path, scratch, time_limit_s)
    # The clocks of scratch and of the folder itself aside, nothing has changed.
    assert (listing(folder), listing(base)) == (
        [row for row in before[0] if row[0].startswith(f"{folder}/")],
        before[1],
    )
    assert listing(scratch) == []
    assert listing(here) == []
    if isinstance(first, Clip):
        assert (first.num_frames, first.width, first.height) == KINDS[kind].expected
        assert first.duration_s == pytest.approx(first.num_frames / first.video_fps, abs=1e-4)
    else:
        assert not any(secret in first[2] for secret in (str(tmp_path), str(base), "/dev/fd", " @ 0x"))
        assert first[1] == KINDS[kind].expected, first


def test_there_are_many_kinds() -> None:
    assert len(KINDS) > 100
    assert {kind.expected for kind in KINDS.values() if isinstance(kind.expected, str)} == {
        *("missing", "not a file", "empty", "unreadable", "no video stream", "cut short", "damaged"),
        *("too large", "too small", "timeout"),
    }


def test_an_encoder_whose_worker_was_killed_comes_to_an_end() -> None:
    code = (
        "import os, sys\n"
        "from preprocessing.ffmpeg import run_ffmpeg\n"
        "command = [sys.argv[1], '-nostdin', '-f', 'lavfi', '-i', 'testsrc2', '-f', 'null', '-']\n"
        "run_ffmpeg(command, os.open(os.devnull, os.O_RDONLY), 2.0)\n"
    )
    # found here, as finding it starts an ffmpeg too
    worker = subprocess.Popen([sys.executable, "-c", code, imageio_ffmpeg.get_ffmpeg_exe()])
    orphan = None
    try:
        deadline = time.monotonic() + 20
        while orphan is None and time.monotonic() < deadline and worker.poll() is None:
            children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
            orphan = next((int(child) for child in children if is_ffmpeg(int(child))), None)
        if orphan is None:
            pytest.skip("the kernel does not list a process's children")
        limits = Path(f"/proc/{orphan}/limits")
        while re.search(r"^Max cpu time +unlimited", limits.read_text(), re.MULTILINE):  # set once it has started
            assert time.monotonic() < deadline, "ffmpeg runs without a limit"
        os.kill(worker.pid, signal.SIGSTOP)  # so that its own limit does not come first
        time.sleep(0.2)
        worker.kill()
        deadline = time.monotonic() + 180
        while is_ffmpeg(orphan):
            assert time.monotonic() < deadline, "ffmpeg still runs"
            time.sleep(0.1)
    finally:
        worker.kill()
        worker.wait()
        if orphan is not None and is_ffmpeg(orphan):
            os.kill(orphan, signal.SIGKILL)


def is_ffmpeg(pid: int) -> bool:
    try:
        return (
            "ffmpeg" in Path(f"/proc/{pid}/comm").read_text()
            and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        )
    except OSError:
        return False
