import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from preprocessing import proof
from preprocessing.ffmpeg import ClipError
from preprocessing.proof import Claim, boxes, measure, prove
from preprocessing.transcode import TranscodeSettings, transcode

CLAIM = Claim(num_frames=24, width=64, height=48, gop=8)
# What makes a clip provable, in ffmpeg's words; each test spoils one of them.
GOOD = {
    "-vf": "fps=8,scale=64:48",
    "-pix_fmt": "yuv420p",
    "-g": "8",
    "-keyint_min": "8",
    "-sc_threshold": "0",
    "-use_editlist": "0",
    "-movflags": "+faststart+negative_cts_offsets",
    "-fps_mode": "vfr",
}


def encode(folder: Path, source: str = "testsrc2=s=64x48:r=8:d=3", **changes: str | None) -> bytes:
    options = {**GOOD, **{f"-{name}": value for name, value in changes.items()}}
    given = [part for name, value in options.items() if value is not None for part in (name, value)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i", source, *given]
    subprocess.run([*command, str(folder / "clip.mp4")], check=True)
    return (folder / "clip.mp4").read_bytes()


def finding(media: bytes, claim: Claim = CLAIM) -> str:
    with pytest.raises(ClipError) as caught:
        prove(media, claim)
    assert (caught.value.stage, caught.value.reason) == ("prove", "bad output")
    return caught.value.detail


def test_a_good_clip_is_measured(tmp_path: Path) -> None:
    measured = prove(encode(tmp_path), CLAIM)
    assert (measured.num_frames, measured.duration_s, measured.video_fps) == (24, 3.0, 8.0)
    assert (measured.width, measured.height) == (64, 48)


def test_the_header_of_a_good_clip_says_what_decoding_it_shows(tmp_path: Path) -> None:
    for source in ("testsrc2=s=64x48:r=8:d=3", "testsrc2=s=90x70:r=30000/1001:d=1.7", "testsrc2=s=64x48:r=24:d=0.5"):
        raw = tmp_path / "raw.mp4"
        raw.write_bytes(encode(tmp_path, source, vf=None, g=None, keyint_min=None))
        clip = transcode(raw, TranscodeSettings())
        found = measure(clip.media)
        assert found is not None
        assert (found.num_frames, found.duration_s, found.video_fps, found.width, found.height) == (
            clip.num_frames,
            clip.duration_s,
            clip.video_fps,
            clip.width,
            clip.height,
        )


def test_other_bytes_have_no_header_to_trust(tmp_path: Path) -> None:
    uneven = "fps=8,setpts='PTS+if(gte(N,10),0.06/TB,0)',settb=1/1000,scale=64:48"
    assert measure(encode(tmp_path, vf=uneven, fps_mode="vfr")) is None
    assert measure(encode(tmp_path, use_editlist="1")) is None
    media = encode(tmp_path)
    for wrong in (b"", b"hello", media[:200], media.replace(b"avc1", b"hev1"), media.replace(b"stts", b"sttx")):
        assert measure(wrong) is None
    for cut in range(0, len(media) - 1, 37):
        assert measure(media[:cut]) is None


def test_the_decoders_agree_on_what_is_packed(tmp_path: Path) -> None:
    import decord

    raw = tmp_path / "raw.mp4"
    raw.write_bytes(encode(tmp_path, "testsrc2=s=64x48:r=8:d=3,noise=alls=20"))
    for settings in (TranscodeSettings(short_side=32), TranscodeSettings(short_side=32, gop_s=0, jpeg_frames=9)):
        media = transcode(raw, settings).media
        assert b"elst" not in media
        with av.open(io.BytesIO(media)) as container:
            assert container.streams.video[0].start_time == 0
            sequential = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
        reader = decord.VideoReader(io.BytesIO(media), num_threads=1)
        assert len(reader) == len(sequential)
        for number in np.random.default_rng(0).permutation(len(sequential)).tolist():
            fetched = reader.get_batch([number]).asnumpy()[0].astype(int)
            assert np.abs(fetched - sequential[number]).mean() < 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_editlist": "1"}, "edit list"),
        ({"movflags": "+negative_cts_offsets"}, "moov box is not before"),
        ({"movflags": "+frag_keyframe+empty_moov"}, "moov box is not before"),
        ({"g": "12", "keyint_min": "12"}, "key frames are not every 8 frames"),
        ({"g": "24"}, "key frames are not every 8 frames"),
        ({"x264-params": "open-gop=1:bframes=3:b-adapt=0"}, "key frames are not every 8 frames"),
        ({"vf": "fps=8,select='not(eq(n,5))',scale=64:48", "frames:v": "24"}, "23 frames"),
        ({"vf": "scale=48:48"}, "expected 64x48"),
        ({"vf": "fps=4,scale=64:48"}, "12 frames"),
        ({"f": "matroska"}, "does not fit"),
    ],
)
def test_what_decoders_could_disagree_on_is_found(tmp_path: Path, changes: dict[str, str], expected: str) -> None:
    assert expected in finding(encode(tmp_path, **changes))


def test_uneven_time_stamps_are_found(tmp_path: Path) -> None:
    media = encode(tmp_path, vf="fps=8,setpts='PTS+if(gte(N,10),0.06/TB,0)',settb=1/1000,scale=64:48", fps_mode="vfr")
    assert "constant rate" in finding(media)


def test_a_rotation_that_is_left_and_a_second_track_are_found(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    encode(tmp_path)
    base = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    copy = ["-c", "copy", "-use_editlist", "0", "-movflags", GOOD["-movflags"]]
    turned, two = tmp_path / "turned.mp4", tmp_path / "two.mp4"
    subprocess.run([*base, "-display_rotation", "90", "-i", str(path), *copy, str(turned)], check=True)
    subprocess.run([*base, "-i", str(path), "-map", "0:v", "-map", "0:v", *copy, str(two)], check=True)
    assert "rotation" in finding(turned.read_bytes())
    assert "2 tracks" in finding(two.read_bytes())


@pytest.mark.parametrize("claim", [{"num_frames": 23}, {"num_frames": 25}, {"width": 62}, {"gop": 4}])
def test_a_wrong_claim_is_found(tmp_path: Path, claim: dict[str, int]) -> None:
    assert finding(encode(tmp_path), dataclasses.replace(CLAIM, **claim))


def test_a_torn_clip_never_passes(tmp_path: Path) -> None:
    media = encode(tmp_path)
    for length in range(0, len(media), len(media) // 40):
        assert finding(media[:length])


def test_a_damaged_picture_is_found(tmp_path: Path) -> None:
    media = bytearray(encode(tmp_path))
    (start, end) = next((start, end) for kind, start, end in boxes(bytes(media)) if kind == b"mdat")
    media[start + (end - start) // 2 : start + (end - start) // 2 + 300] = bytes(300)
    assert finding(bytes(media))


def test_boxes_are_walked_with_those_inside(tmp_path: Path) -> None:
    media = encode(tmp_path)
    found = list(boxes(media))
    assert [kind for kind, _, end in found if kind in {b"ftyp", b"moov", b"mdat"}] == [b"ftyp", b"moov", b"mdat"]
    assert {b"trak", b"mdia", b"stbl", b"stsz"} <= {kind for kind, _, _ in found}
    wide = b"\0\0\0\1free" + (20).to_bytes(8) + b"1234"
    assert list(boxes(wide)) == [(b"free", 16, 20)]
    for wrong in (b"\0\0\0\7free", b"\0\0\0\xfffree", b"\0\0"):
        with pytest.raises(ValueError, match="box"):
            list(boxes(wrong))


def shifted(media: bytes, picks: list[int], real: object = proof._fetch) -> NDArray[np.uint8]:
    """Fetch as decord does on files it gets wrong: one frame too late."""
    assert callable(real)
    return np.asarray(real(media, [min(pick + 1, CLAIM.num_frames - 1) for pick in picks]), np.uint8)


def test_another_frame_from_the_training_reader_is_found_unless_it_looks_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving, still = encode(tmp_path), encode(tmp_path, "color=red:s=64x48:r=8:d=3")
    monkeypatch.setattr(proof, "_picks", lambda *_: [5, 2])
    monkeypatch.setattr(proof, "_fetch", shifted)
    assert "frame 5 is another one" in finding(moving)
    assert prove(still, CLAIM).num_frames == 24


def test_picks_are_drawn_from_the_content() -> None:
    drawn = {tuple(proof._picks(bytes([i]), 300)) for i in range(50)}
    assert len(drawn) == 50
    assert all(0 <= pick < 300 for picks in drawn for pick in picks)
    assert proof._picks(b"x", 300) == proof._picks(b"x", 300)
    assert proof._picks(b"x", 1) == [0]


def test_preprocessing_is_imported_without_the_training_reader() -> None:
    code = "import sys, preprocessing.transcode; sys.exit('decord' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
