"""Scenes whose label only the order of their frames can tell, drawn as yuv420p frames with numpy alone.

A scene has two classes: the clip as drawn, and the clip with its frames reversed. The motion runs along a cycle whose
phase starts uniformly at random, so at *every* frame index position and size have the same law in both classes: no
single frame, no first frame and no bag of frames tells the two apart. At the ends of the cycle the moving thing
dissolves and starts over, because a motion that never starts over cannot have the same law at its first and its last
frame. What tells one scene from another (where an arm comes from, how many things there are) can be seen in single
frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from preprocessing.synth_drawing import F32, U8, Background, Canvas, Layer, Rng, add_noise, blend, make_arm, make_thing

SceneName = Literal["push", "lift", "approach", "turn", "ride", "climb", "zoom", "twirl", "swing"]

_DISSOLVE = 0.07  # part of the cycle in which the moving thing fades in, and again fades out
_CYCLES_PER_S = (0.30, 0.45)  # of 2 s clips: three fifths of a cycle to nine tenths of one
_NUM_TURN_THINGS = 8

Layers = Iterator[list[Layer]]
"""The layers of each frame, back to front."""


@dataclass(frozen=True)
class _Scene:
    """Layers over a background that moves to the right at a given speed, pixels a second."""

    layers: Layers
    background_speed: float


def render(scene: SceneName, rng: Rng, canvas: Canvas, *, reverse: bool) -> U8:
    """Draw one clip; `reverse` gives the twin class: the very same draw with its frames in reverse order.

    Returns:
        frames of shape (T, 3 * H // 2, W), the planes of yuv420p below each other as PyAV wants them.
    """
    drawn = _SCENES[scene](rng, canvas)
    layers, speed = (drawn.layers, drawn.background_speed) if isinstance(drawn, _Scene) else (drawn, None)
    frames = np.empty((canvas.num_frames, canvas.height * 3 // 2, canvas.width), np.uint8)
    background = Background(rng, canvas, speed)
    for frame, time_s in zip(frames, canvas.times_s(), strict=True):
        background.draw(frame, float(time_s))
        for layer in next(layers):
            blend(frame, layer, canvas)
        add_noise(frame, rng, canvas)
    return frames[::-1] if reverse else frames


def _cycle(rng: Rng, canvas: Canvas) -> F32:
    """Phase in [0, 1) of every frame: uniform start, random speed, and an ease that never turns the motion round."""
    times = canvas.times_s()
    speed = rng.uniform(*_CYCLES_PER_S)
    ease = rng.uniform(0, 0.5) * speed / (2 * np.pi) * np.sin(2 * np.pi * times + rng.uniform(0, 2 * np.pi))
    phase: F32 = ((rng.random() + speed * times + ease) % 1.0).astype(np.float32)
    return phase


def _visibility(phase: float) -> float:
    return float(min(1.0, min(phase, 1 - phase) / _DISSOLVE))


def _centre(rng: Rng, canvas: Canvas, spread: tuple[float, float]) -> tuple[float, float]:
    """A random place near the middle of the frame: uniform within ± spread (in short sides) along x and y."""
    dx, dy = rng.uniform(-1, 1, size=2) * spread * canvas.short
    return canvas.width / 2 + float(dx), canvas.height / 2 + float(dy)


def _push(rng: Rng, canvas: Canvas) -> Layers:
    """Left to right along a line, under an arm that reaches in from above (so the arm shows no direction)."""
    short, thing, arm = canvas.short, make_thing(rng), make_arm(rng, "top")
    size, travel = rng.uniform(0.28, 0.40) * short, rng.uniform(0.70, 0.85) * short
    x, y = _centre(rng, canvas, (0.08, 0.12))
    y += 0.1 * short
    arm_width, arm_height = 0.6 * size, 2.4 * size
    for phase in _cycle(rng, canvas):
        at, seen = x + travel * (phase - 0.5), _visibility(phase)
        tip = y - 0.2 * size
        yield [
            Layer(thing, at, y, size, size, seen),
            Layer(arm, at, tip - arm_height / 2, arm_width, arm_height, seen),
        ]


def _lift(rng: Rng, canvas: Canvas) -> Layers:
    """Upwards along a line, held by an arm that reaches in from the left or the right."""
    short, thing = canvas.short, make_thing(rng)
    side: Literal["left", "right"] = "left" if rng.random() < 0.5 else "right"
    outwards = -1 if side == "left" else 1
    arm = make_arm(rng, side)
    size, travel = rng.uniform(0.28, 0.40) * short, rng.uniform(0.58, 0.70) * short
    x, y = _centre(rng, canvas, (0.14, 0.05))
    arm_width, arm_height = 3.0 * size, 0.6 * size
    for phase in _cycle(rng, canvas):
        at, seen = y - travel * (phase - 0.5), _visibility(phase)
        tip = x + outwards * 0.2 * size
        yield [
            Layer(thing, x, at, size, size, seen),
            Layer(arm, tip + outwards * arm_width / 2, at, arm_width, arm_height, seen),
        ]


def _approach(rng: Rng, canvas: Canvas) -> Layers:
    """A round thing grows, evenly in the logarithm of its size."""
    thing = make_thing(rng, round_shape=True)
    size, ratio = rng.uniform(0.36, 0.46) * canvas.short, rng.uniform(4.5, 7.0)
    x, y = _centre(rng, canvas, (0.14, 0.10))
    for phase in _cycle(rng, canvas):
        now = size * ratio ** (phase - 0.5)
        yield [Layer(thing, x, y, now, now, _visibility(phase))]


def _turn(rng: Rng, canvas: Canvas) -> _Scene:
    """The camera turns left over a wall of things, so that all of them and the wall slide to the right."""
    short, count = canvas.short, _NUM_TURN_THINGS
    things = [make_thing(rng) for _ in range(count)]
    sizes = rng.uniform(0.20, 0.32, size=count) * short
    # A torus one thing wider than the frame: what leaves on one side comes back on the other unseen.
    margin = 0.32 * short
    width, height = canvas.width + margin, canvas.height + margin
    columns = (rng.random() + (np.arange(count) + rng.uniform(-0.25, 0.25, count)) / count) * width
    rows = (rng.random() + (rng.permutation(count) + rng.uniform(-0.3, 0.3, count)) / count) * height % height
    speed = rng.uniform(0.22, 0.38) * short

    def layers() -> Layers:
        for time_s in canvas.times_s():
            now = (columns + speed * time_s) % width
            yield [
                Layer(thing, x - margin / 2, y - margin / 2, size, size)
                for thing, x, y, size in zip(things, now, rows, sizes, strict=True)
            ]

    return _Scene(layers(), background_speed=speed)


def _ride(rng: Rng, canvas: Canvas) -> Layers:
    """Left to right on two wheels."""
    short, body, wheel = canvas.short, make_thing(rng), make_thing(rng, round_shape=True)
    size, travel = rng.uniform(0.20, 0.30) * short, rng.uniform(0.70, 0.85) * short
    x, y = _centre(rng, canvas, (0.08, 0.14))
    for phase in _cycle(rng, canvas):
        at, seen = x + travel * (phase - 0.5), _visibility(phase)
        yield [
            Layer(body, at, y, 1.2 * size, size, seen),
            Layer(wheel, at - 0.42 * size, y + 0.5 * size, 0.5 * size, 0.5 * size, seen),
            Layer(wheel, at + 0.42 * size, y + 0.5 * size, 0.5 * size, 0.5 * size, seen),
        ]


def _climb(rng: Rng, canvas: Canvas) -> Layers:
    """Upwards along a rope that spans the frame."""
    short, body, rope = canvas.short, make_thing(rng), make_thing(rng)
    rope.alpha = np.full_like(rope.alpha, 255)
    size, travel = rng.uniform(0.28, 0.40) * short, rng.uniform(0.58, 0.70) * short
    x, y = _centre(rng, canvas, (0.14, 0.05))
    for phase in _cycle(rng, canvas):
        at = y - travel * (phase - 0.5)
        yield [
            Layer(rope, x, canvas.height / 2, 0.04 * short, canvas.height),
            Layer(body, x, at, 0.7 * size, 1.2 * size, _visibility(phase)),
        ]


def _zoom(rng: Rng, canvas: Canvas) -> Layers:
    """Something of any outline grows, with a second, smaller thing riding on it."""
    big, small = make_thing(rng), make_thing(rng, round_shape=True)
    size, ratio = rng.uniform(0.36, 0.46) * canvas.short, rng.uniform(4.5, 7.0)
    x, y = _centre(rng, canvas, (0.14, 0.10))
    for phase in _cycle(rng, canvas):
        now, seen = size * ratio ** (phase - 0.5), _visibility(phase)
        yield [Layer(big, x, y, now, now, seen), Layer(small, x, y - 0.5 * now, 0.4 * now, 0.4 * now, seen)]


def _tethered(rng: Rng, canvas: Canvas, angles: F32) -> Layers:
    """A ball at the end of a chain of beads; `angles` in radians from straight down."""
    short, ball, bead = canvas.short, make_thing(rng, round_shape=True), make_thing(rng, round_shape=True)
    size, length = rng.uniform(0.16, 0.24) * short, rng.uniform(0.24, 0.30) * short
    x, y = _centre(rng, canvas, (0.10, 0.06))
    for angle in angles:
        dx, dy = length * np.sin(angle), length * np.cos(angle)
        beads = [Layer(bead, x + part * dx, y + part * dy, 0.06 * short, 0.06 * short) for part in (0, 0.25, 0.5, 0.75)]
        yield [*beads, Layer(ball, x + dx, y + dy, size, size)]


def _twirl(rng: Rng, canvas: Canvas) -> Layers:
    """A ball on a chain goes round and round, either way."""
    turns = rng.uniform(0.5, 0.9) * canvas.times_s() + rng.random()
    return _tethered(rng, canvas, (rng.choice((-1, 1)) * 2 * np.pi * turns).astype(np.float32))


def _swing(rng: Rng, canvas: Canvas) -> Layers:
    """A ball on a chain swings to and fro about a random direction, so that one frame looks like a twirl's."""
    turns = rng.uniform(0.5, 0.9) * canvas.times_s() + rng.random()
    middle = rng.uniform(0, 2 * np.pi)
    return _tethered(rng, canvas, (middle + rng.uniform(0.7, 1.1) * np.sin(2 * np.pi * turns)).astype(np.float32))


_SCENES: dict[SceneName, Callable[[Rng, Canvas], Layers | _Scene]] = {
    "push": _push,
    "lift": _lift,
    "approach": _approach,
    "turn": _turn,
    "ride": _ride,
    "climb": _climb,
    "zoom": _zoom,
    "twirl": _twirl,
    "swing": _swing,
}
