"""Drawing for generated clips: textures, textured cut-outs and backgrounds, blended into planes of yuv420p.

Everything is drawn in the encoder's own colour space from a given generator, one texture value a pixel: 24 frames of
320x240 cost about 8 ms. Things are always brighter than the background, so that a small model finds them quickly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Rng = np.random.Generator

_SPRITE_PX = 128
_NOISE_PX = 512


@dataclass(frozen=True)
class Canvas:
    """The size and clock of one clip; lengths in the drawing code are in units of the short side."""

    width: int
    height: int
    num_frames: int
    video_fps: float

    @property
    def short(self) -> int:
        """Short side in pixels."""
        return min(self.width, self.height)

    def times_s(self) -> F32:
        """Time of each frame, shape (T,)."""
        return (np.arange(self.num_frames) / self.video_fps).astype(np.float32)


@dataclass
class Sprite:
    """A textured cut-out: three colour planes and an opacity, all (H, W) uint8 at a canonical size."""

    planes: tuple[U8, U8, U8]
    alpha: U8
    _sized: dict[tuple[int, int], list[tuple[NDArray[np.uint16], NDArray[np.uint16]]]] = field(default_factory=dict)

    def sized(self, width: int, height: int) -> list[tuple[NDArray[np.uint16], NDArray[np.uint16]]]:
        """Colour and opacity of each plane at a size in pixels; chroma planes come at half of it."""
        found = self._sized.get((width, height))
        if found is None:
            found = [self._resample(plane, width, height, 1 if i == 0 else 2) for i, plane in enumerate(self.planes)]
            self._sized = {(width, height): found}  # one size is enough: it is constant, or changes with every frame
        return found

    def _resample(self, plane: U8, width: int, height: int, step: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        num_rows, num_cols = max(1, height // step), max(1, width // step)
        rows = (np.arange(num_rows) * plane.shape[0] // num_rows)[:, None]
        cols = (np.arange(num_cols) * plane.shape[1] // num_cols)[None, :]
        return plane[rows, cols].astype(np.uint16), self.alpha[rows, cols].astype(np.uint16)


@dataclass(frozen=True)
class Layer:
    """One sprite in one frame: centre and size in pixels."""

    sprite: Sprite
    x: float
    y: float
    width: float
    height: float
    opacity: float = 1.0


# --- textures ---------------------------------------------------------------------------------------------------------


def _field(rng: Rng, height: int, width: int, cells: tuple[int, ...]) -> F32:
    """Value noise on a torus, in [0, 1]: random grids of `cells` cells a side, enlarged bilinearly and summed."""
    total = np.zeros((height, width), np.float32)
    for octave, num_cells in enumerate(cells):
        grid = rng.random((num_cells, num_cells), dtype=np.float32)
        total += _enlarge(_enlarge(grid, height).T, width).T * np.float32(0.6**octave)
    total -= total.min()
    total /= total.max()
    return total


def _enlarge(grid: F32, size: int) -> F32:
    position = np.arange(size, dtype=np.float32) * np.float32(len(grid) / size)
    low = position.astype(np.intp)
    weight = (position - low)[:, None]
    return grid[low] * (1 - weight) + grid[(low + 1) % len(grid)] * weight


def _pattern(rng: Rng, size: int) -> F32:
    """A texture in [0, 1] with structure: stripes, checks, dots or clouds, always a little cloudy."""
    cloud = _field(rng, size, size, (3, 7, 19))
    kind = rng.integers(4)
    if kind == 3:
        return cloud
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / np.float32(size)
    angle, waves = rng.uniform(0, np.pi), rng.uniform(2.5, 5.0)
    along = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6.3))
    across = np.sin(2 * np.pi * waves * (y * np.cos(angle) - x * np.sin(angle)) + rng.uniform(0, 6.3))
    wave = (along, along * across, np.maximum(along, across))[kind]
    texture: F32 = np.clip(0.5 + 0.9 * wave, 0, 1).astype(np.float32) * np.float32(0.7) + cloud * np.float32(0.3)
    return texture


def _colour(rng: Rng, luma: tuple[float, float], chroma: float) -> NDArray[np.float64]:
    """A random (Y, U, V) with the given range of brightness and strength of colour."""
    angle = rng.uniform(0, 2 * np.pi)
    strength = chroma * rng.uniform(0.5, 1.0)
    return np.array([rng.uniform(*luma), 128 + strength * np.cos(angle), 128 + strength * np.sin(angle)])


def _paint(texture: F32, dark: NDArray[np.float64], bright: NDArray[np.float64]) -> tuple[U8, U8, U8]:
    """Colour a texture from one colour (0) to another (1)."""
    y, u, v = (np.float32(d) + np.float32(b - d) * texture for d, b in zip(dark, bright, strict=True))
    return y.astype(np.uint8), u.astype(np.uint8), v.astype(np.uint8)


class Background:
    """A textured surface that slides under the camera: with a random velocity, symmetric about zero, or a given one."""

    def __init__(self, rng: Rng, canvas: Canvas, speed: float | None) -> None:
        size = 2 * round(0.9 * canvas.short)
        texture = _field(rng, size, size, (5, 13, 37))
        planes = _paint(texture, _colour(rng, (35, 60), 14), _colour(rng, (75, 115), 14))
        self._canvas = canvas
        self._velocity = rng.normal(0.0, 0.03 * canvas.short, size=2)  # pixels a second, rows and columns
        if speed is not None:
            self._velocity = np.array([0.0, -speed])  # the window moves against its content
        self._start = rng.uniform(0, size, size=2)
        self._jitter = rng.normal(0.0, 0.002 * canvas.short, size=(canvas.num_frames, 2))
        self._planes = (planes[0], planes[1][::2, ::2], planes[2][::2, ::2])

    def draw(self, frame: U8, time_s: float) -> None:
        """Fill a frame with the surface as it lies at a time."""
        step = round(time_s * self._canvas.video_fps)
        top, left = (self._start + self._velocity * time_s + self._jitter[step]).round().astype(int)
        for plane, target, scale in zip(self._planes, _planes(frame, self._canvas), (1, 2, 2), strict=True):
            rows = (top // scale + np.arange(target.shape[0])) % len(plane)
            cols = (left // scale + np.arange(target.shape[1])) % len(plane)
            np.take(plane[rows], cols, axis=1, out=target, mode="clip")


def _planes(frame: U8, canvas: Canvas) -> tuple[U8, U8, U8]:
    """Views of the Y, U and V planes of one yuv420p frame."""
    height, width = canvas.height, canvas.width
    chroma = frame[height:].reshape(2, height // 2, width // 2)
    return frame[:height], chroma[0], chroma[1]


@lru_cache(maxsize=1)
def _noise_tile() -> U8:
    noise = np.random.default_rng(0).normal(0.0, 3.0, size=(2 * _NOISE_PX, 2 * _NOISE_PX))
    return np.clip(noise.round(), -12, 12).astype(np.int8).view(np.uint8)


def add_noise(frame: U8, rng: Rng, canvas: Canvas) -> None:
    """Sensor noise on the luma plane: another window of one big tile for each frame (drawing it anew costs 20 ms)."""
    top, left = rng.integers(0, _NOISE_PX, size=2)
    # Luma stays within [24, 232] and noise within ±12, so that adding modulo 256 never wraps.
    frame[: canvas.height] += _noise_tile()[top : top + canvas.height, left : left + canvas.width]


def blend(frame: U8, layer: Layer, canvas: Canvas) -> None:
    """Draw a layer over a frame, cut off at the frame's border."""
    width, height = 2 * max(1, round(layer.width / 2)), 2 * max(1, round(layer.height / 2))
    left, top = 2 * round((layer.x - width / 2) / 2), 2 * round((layer.y - height / 2) / 2)
    weight = np.uint16(round(256 * layer.opacity))
    if weight == 0:
        return
    sized = layer.sprite.sized(width, height)
    for target, (colour, alpha), scale in zip(_planes(frame, canvas), sized, (1, 2, 2), strict=True):
        x, y = left // scale, top // scale
        x0, y0 = max(0, x), max(0, y)
        x1, y1 = min(target.shape[1], x + colour.shape[1]), min(target.shape[0], y + colour.shape[0])
        if x0 >= x1 or y0 >= y1:
            continue
        window = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
        opacity = alpha[window] if weight == 256 else alpha[window] * weight >> 8
        place = target[y0:y1, x0:x1]
        place[...] = (place * (255 - opacity) + colour[window] * opacity + 127) // 255


# --- sprites ----------------------------------------------------------------------------------------------------------


def make_thing(rng: Rng, *, round_shape: bool = False) -> Sprite:
    """A thing with a random texture, two colours and a random outline (a disc when `round_shape`)."""
    y, x = (np.mgrid[0:_SPRITE_PX, 0:_SPRITE_PX].astype(np.float32) + 0.5) / (_SPRITE_PX / 2) - 1
    radius, angle = np.hypot(x, y), np.arctan2(y, x) + np.float32(rng.uniform(0, 2 * np.pi))
    outline = np.full_like(radius, 0.93)
    if not round_shape:
        sides, kind = rng.integers(3, 7), rng.integers(3)
        if kind == 0:  # polygon
            part = np.float32(2 * np.pi / sides)
            outline = np.float32(0.95 * np.cos(np.pi / sides)) / np.cos((angle % part) - part / 2)
        elif kind == 1:  # flower
            outline = 0.78 + np.float32(0.15) * np.cos(sides * angle)
        else:  # ellipse
            stretch = np.float32(rng.uniform(0.6, 0.9))
            outline = stretch / np.sqrt((stretch * np.cos(angle)) ** 2 + np.sin(angle) ** 2)
            outline *= np.float32(0.95)
    alpha = np.clip((outline - radius) * (_SPRITE_PX / 6), 0, 1) * 255
    shade = np.float32(0.85) + np.float32(0.15) * (1 - radius)
    texture = np.clip(_pattern(rng, _SPRITE_PX) * shade, 0, 1)
    return Sprite(_paint(texture, _colour(rng, (110, 150), 60), _colour(rng, (180, 228), 40)), alpha.astype(np.uint8))


_SKIN_YUV = ((200.0, 112.0, 150.0), (185.0, 108.0, 154.0), (165.0, 108.0, 156.0), (145.0, 110.0, 154.0))


def make_arm(rng: Rng, side: Literal["top", "left", "right"]) -> Sprite:
    """An arm with a sleeve that reaches in from a side of the frame and ends in a hand with fingers."""
    height, width = 2 * _SPRITE_PX, _SPRITE_PX // 2
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x = (x + 0.5) / (width / 2) - 1
    from_tip = height - y
    fingers = 16 + 10 * np.abs(np.cos(x * np.float32(2 * np.pi)))  # four finger tips, uneven ends of the hand
    hand = (np.abs(x) < 0.92) & (from_tip > 34 - fingers) & (from_tip < 74)
    forearm = (np.abs(x) < 0.62) & (from_tip >= 74)
    tone = np.array(_SKIN_YUV[rng.integers(len(_SKIN_YUV))])
    shade = np.clip(1 - np.abs(x) * np.float32(0.5) + _field(rng, height, width, (9,)) * np.float32(0.15), 0, 1)
    skin = _paint(shade, tone * (0.7, 1, 1), tone)
    sleeve_texture = _field(rng, height, width, (5, 17)) * shade
    sleeve = _paint(sleeve_texture, _colour(rng, (90, 120), 50), _colour(rng, (140, 200), 50))
    is_sleeve = from_tip > rng.uniform(100, 150)
    planes = [np.where(is_sleeve, cloth, bare) for cloth, bare in zip(sleeve, skin, strict=True)]
    alpha = np.where(hand | forearm, 255, 0).astype(np.uint8)
    if side != "top":
        planes, alpha = [plane.T for plane in planes], alpha.T
        if side == "right":
            planes, alpha = [plane[:, ::-1] for plane in planes], alpha[:, ::-1]
    return Sprite((planes[0], planes[1], planes[2]), alpha)
