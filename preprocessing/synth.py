"""Generated video data sets in the published layouts of Something-Something v2 and Kinetics.

The clips are really encoded (VP9 in webm, H.264 in mp4), so everything after them runs as it does on the real thing,
and their labels are told by motion alone (see `preprocessing.synth_scenes`). Each split also holds one video that is
missing, one cut off in the middle and one of zero bytes, as copies of the real data sets do; the returned `SynthSet`
names them. Same seed and sizes give the same bytes, whatever the number of processes.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import av
import numpy as np

from preprocessing.synth_drawing import U8, Canvas, Rng
from preprocessing.synth_scenes import SceneName, render
from vast.errors import UserError

OnProgress = Callable[[int, int], None]
"""Called with (videos done, videos in all) as the videos are written."""

SSV2_SCENES: dict[str, tuple[SceneName, bool]] = {
    "Pushing [something] from left to right": ("push", False),
    "Pushing [something] from right to left": ("push", True),
    "Moving [something] up": ("lift", False),
    "Moving [something] down": ("lift", True),
    "Moving [something] towards the camera": ("approach", False),
    "Moving [something] away from the camera": ("approach", True),
    "Turning the camera left while filming [something]": ("turn", False),
    "Turning the camera right while filming [something]": ("turn", True),
}
"""Something-Something v2 template -> (scene, frames reversed?)."""

KINETICS_SCENES: dict[str, tuple[SceneName, bool]] = {
    "riding a bike": ("ride", False),
    "jogging": ("ride", True),
    "climbing a rope": ("climb", False),
    "abseiling": ("climb", True),
    "motorcycling": ("zoom", False),
    "parasailing": ("zoom", True),
    "spinning poi": ("twirl", False),
    "swinging legs": ("swing", False),
}
"""Kinetics-400 class -> (scene, frames reversed?). Riding goes right and jogging left: pretrain without flips."""

CLASSES_FILE = "classes.txt"
"""Beside the Kinetics lists: the few classes that the generated clips have, for who does not want all 400."""

PLANTED = ("missing", "truncated", "empty")
"""What is wrong with the bad videos of each split: no file, cut off in the middle, zero bytes."""

_SSV2_CANVAS = Canvas(width=320, height=240, num_frames=24, video_fps=12)
_KINETICS_CANVASES = (
    Canvas(width=340, height=256, num_frames=60, video_fps=30),
    Canvas(width=340, height=256, num_frames=50, video_fps=25),
    Canvas(width=320, height=240, num_frames=50, video_fps=25),
    Canvas(width=256, height=340, num_frames=60, video_fps=30),
)
_ID_ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
_THINGS = ("a cup", "a remote", "wallet", "a toy car", "green ball", "a box of tea", "coin", "a spoon")
_SSV2_STREAM, _KINETICS_STREAM = 1, 2  # apart, so that the two sets share no clip even at the same seed


@dataclass(frozen=True)
class SynthSet:
    """Where a generated data set lies, and what is planted in it."""

    annotations: Path
    """Folder of the annotation files."""
    videos: Path
    """Folder of the videos."""
    classes: tuple[str, ...]
    """Class texts as they appear in labels.json or the CSV's label column, in alphabetical order."""
    records: dict[str, int]
    """Split (train, val) -> annotation rows, the planted ones included."""
    planted: dict[str, dict[str, str]]
    """Split -> video id -> what is wrong with it, one of `PLANTED`."""


@dataclass(frozen=True)
class _Job:
    """One video to write. `entropy` seeds everything in it: (seed, data set, split, index)."""

    path: Path
    entropy: tuple[int, ...]
    scene: SceneName
    reverse: bool
    canvas: Canvas
    codec: str
    fault: str = ""


def synth_ssv2(
    out: Path, *, num_train: int, num_val: int, seed: int, num_workers: int, on_progress: OnProgress | None = None
) -> SynthSet:
    """Write a Something-Something v2 look-alike: 8 classes in 4 time-reversed pairs, VP9, 320x240, 12 fps, 2 s.

    Layout: `labels/{labels,train,validation}.json` and `20bn-something-something-v2/{id}.webm`. Class counts differ
    by one at most. About 40 ms of CPU and 30 KB a clip.

    Args:
        out: Folder to create; must be empty if it exists.
        num_train: Good training clips; `len(PLANTED)` bad records come on top.
        num_val: Good validation clips, drawn from other random streams; the same number of bad ones on top.
        seed: Any non-negative integer.
        num_workers: Processes; 1 works in this one.
        on_progress: See `OnProgress`.

    Raises:
        UserError: `out` is not empty, or a size is not positive.
    """
    _prepare(out, num_train, num_val)
    annotations, videos = out / "labels", out / "20bn-something-something-v2"
    classes = sorted(template.replace("[", "").replace("]", "") for template in SSV2_SCENES)
    rng = np.random.default_rng((seed, _SSV2_STREAM))
    sizes = {"train": num_train + len(PLANTED), "val": num_val + len(PLANTED)}
    ids = rng.choice(np.arange(1, 220_848), size=sum(sizes.values()), replace=False)  # the real ids' range
    jobs: list[_Job] = []
    tables: dict[str, list[dict[str, object]]] = {}
    planted: dict[str, dict[str, str]] = {}
    for split_index, (split, size) in enumerate(sizes.items()):
        faults, rows = _place_faults(rng, size), list[dict[str, object]]()
        for index, template in enumerate(_deal(rng, tuple(SSV2_SCENES), size)):
            video_id, (scene, reverse) = str(ids[len(jobs)]), SSV2_SCENES[template]
            things = [str(thing) for thing in rng.choice(_THINGS, size=template.count("[something]"), replace=False)]
            label = template
            for thing in things:
                label = label.replace("[something]", thing, 1)
            rows.append({"id": video_id, "label": label, "template": template, "placeholders": things})
            entropy = (seed, _SSV2_STREAM, split_index, index)
            path, fault = videos / f"{video_id}.webm", faults.get(index, "")
            jobs.append(_Job(path, entropy, scene, reverse, _SSV2_CANVAS, "libvpx-vp9", fault))
        tables[split] = rows
        planted[split] = {str(rows[index]["id"]): fault for index, fault in faults.items()}
    annotations.mkdir(parents=True)
    _write_json_lines(annotations / "train.json", tables["train"])
    _write_json_lines(annotations / "validation.json", tables["val"])
    (annotations / "labels.json").write_text(json.dumps({text: str(i) for i, text in enumerate(classes)}, indent=0))
    _write_videos(videos, jobs, num_workers, on_progress)
    return SynthSet(annotations, videos, tuple(classes), sizes, planted)


def synth_kinetics(
    out: Path, *, num_train: int, num_val: int, seed: int, num_workers: int, on_progress: OnProgress | None = None
) -> SynthSet:
    """Write a Kinetics look-alike: 8 classes told by motion and partly by look, H.264, 25 or 30 fps, 2 s, mixed sizes.

    Layout: `annotations/{train,val}.csv`, `annotations/classes.txt` and `videos/{id}_{start:06d}_{end:06d}.mp4`, ids of
    11 characters of which some start with `-` or hold `_`. `time_end - time_start` is 2, the true length of the clip
    (10 in the real data set). A quarter of the clips stand upright. Arguments, errors and planted records as for
    `synth_ssv2`; about 50 ms of CPU and 90 KB a clip.
    """
    _prepare(out, num_train, num_val)
    annotations, videos = out / "annotations", out / "videos"
    rng = np.random.default_rng((seed, _KINETICS_STREAM))
    sizes = {"train": num_train + len(PLANTED), "val": num_val + len(PLANTED)}
    ids = _youtube_ids(rng, sum(sizes.values()))
    jobs: list[_Job] = []
    planted: dict[str, dict[str, str]] = {}
    annotations.mkdir(parents=True)
    for split_index, (split, size) in enumerate(sizes.items()):
        faults = _place_faults(rng, size)
        lines, planted[split] = ["label,youtube_id,time_start,time_end,split,is_cc"], {}
        for index, label in enumerate(_deal(rng, tuple(KINETICS_SCENES), size)):
            video_id, (scene, reverse) = ids[len(jobs)], KINETICS_SCENES[label]
            start, is_cc = int(rng.integers(0, 600)), int(rng.random() < 0.03)
            quoted = f'"{label}"' if " " in label else label  # as the real Kinetics-400 files do
            lines.append(f"{quoted},{video_id},{start},{start + 2},{split},{is_cc}")
            if fault := faults.get(index, ""):
                planted[split][video_id] = fault
            canvas = _KINETICS_CANVASES[int(rng.integers(len(_KINETICS_CANVASES)))]
            path = videos / f"{video_id}_{start:06d}_{start + 2:06d}.mp4"
            entropy = (seed, _KINETICS_STREAM, split_index, index)
            jobs.append(_Job(path, entropy, scene, reverse, canvas, "libx264", fault))
        (annotations / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_videos(videos, jobs, num_workers, on_progress)
    classes = sorted(KINETICS_SCENES)
    (annotations / CLASSES_FILE).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    return SynthSet(annotations, videos, tuple(classes), sizes, planted)


# --- what is in it ----------------------------------------------------------------------------------------------------


def _prepare(out: Path, num_train: int, num_val: int) -> None:
    for name, value in (("num_train", num_train), ("num_val", num_val)):
        if value < 1:
            raise UserError(f"{name} is {value}; a generated split needs at least 1 clip")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; remove it or give another one")


def _deal(rng: Rng, classes: Sequence[str], size: int) -> list[str]:
    """Classes in random order, each as often as any other up to one."""
    return [classes[i] for i in rng.permutation(np.arange(size) % len(classes))]


def _place_faults(rng: Rng, size: int) -> dict[int, str]:
    """Row index -> fault, one row for each kind."""
    places = rng.choice(size, size=len(PLANTED), replace=False)
    return {int(place): fault for place, fault in zip(places, PLANTED, strict=True)}


def _youtube_ids(rng: Rng, size: int) -> list[str]:
    """Distinct ids of 11 characters; one in ten starts with `-`, one in ten surely holds `_` (3 % and 14 % really)."""
    ids: dict[str, None] = {}  # an ordered set
    while len(ids) < size:
        letters = rng.choice(_ID_ALPHABET, size=11)
        if len(ids) % 10 == 3:
            letters[0] = "-"
        if len(ids) % 10 == 7:
            letters[5] = "_"
        ids["".join(letters)] = None
    return list(ids)


def _write_json_lines(path: Path, rows: list[dict[str, object]]) -> None:
    """A JSON list with one record a line, the look of the published files."""
    path.write_text("[" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "]", encoding="utf-8")


# --- writing videos ---------------------------------------------------------------------------------------------------


def _write_videos(folder: Path, jobs: list[_Job], num_workers: int, on_progress: OnProgress | None) -> None:
    folder.mkdir(parents=True)
    if num_workers <= 1:
        for done, job in enumerate(jobs, 1):
            _write_video(job)
            if on_progress:
                on_progress(done, len(jobs))
        return
    # spawn: a forked child would inherit the caller's threads' locks (torch, boto3, Ray) in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        for done, _ in enumerate(pool.map(_write_video, jobs, chunksize=8), 1):
            if on_progress:
                on_progress(done, len(jobs))


def _write_video(job: _Job) -> None:
    if job.fault == "missing":
        return
    if job.fault == "empty":
        job.path.write_bytes(b"")
        return
    frames = render(job.scene, np.random.default_rng(job.entropy), job.canvas, reverse=job.reverse)
    encode(job.path, frames, job.canvas, job.codec)
    if job.fault == "truncated":
        # H.264: the index at the file's end is gone. VP9: opens, declares 2 s and holds only its first frames.
        data = job.path.read_bytes()
        job.path.write_bytes(data[: len(data) // 2])


_CODEC_OPTIONS = {
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"},
    "libx264": {"preset": "superfast", "crf": "25"},
}


def encode(path: Path, frames: U8, canvas: Canvas, codec: str) -> None:
    """Encode yuv420p frames (see `render`) with one thread and no trace of clock or library version in the file."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = cast(
            av.VideoStream,
            container.add_stream(codec, rate=int(canvas.video_fps), options=_CODEC_OPTIONS[codec]),
        )
        stream.width, stream.height, stream.pix_fmt = canvas.width, canvas.height, "yuv420p"
        stream.thread_count = 1
        to_frame = partial(av.VideoFrame.from_ndarray, format="yuv420p")
        for picture in frames:
            container.mux(stream.encode(to_frame(np.ascontiguousarray(picture))))
        container.mux(stream.encode())
