"""The law of the generated scenes: a class is its twin with time reversed, and no frame index tells them apart."""

from typing import get_args

import numpy as np
import pytest

from preprocessing.synth import KINETICS_SCENES, SSV2_SCENES
from preprocessing.synth_drawing import U8, Canvas
from preprocessing.synth_scenes import SceneName, render

CANVAS = Canvas(width=128, height=96, num_frames=8, video_fps=4)
ENDS = Canvas(width=128, height=96, num_frames=2, video_fps=0.5)  # first and last frame, 2 s apart
SCENES: tuple[SceneName, ...] = get_args(SceneName)
TWINS: tuple[SceneName, ...] = ("push", "lift", "approach", "turn", "ride", "climb", "zoom")


def bright_centre(frames: U8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column, row and amount of what is much brighter than the background, for each frame."""
    luma = frames[:, : CANVAS.height].astype(float)
    mask = luma > 135
    amount = mask.sum(axis=(1, 2))
    safe = np.maximum(amount, 1)
    columns, rows = np.arange(CANVAS.width), np.arange(CANVAS.height)
    return (mask.sum(axis=1) @ columns) / safe, (mask.sum(axis=2) @ rows) / safe, amount


def clips(scene: SceneName, reverse: bool, count: int, first_seed: int = 0, canvas: Canvas = CANVAS) -> list[U8]:
    return [render(scene, np.random.default_rng(first_seed + i), canvas, reverse=reverse) for i in range(count)]


@pytest.mark.parametrize("scene", SCENES)
def test_the_twin_is_the_same_draw_backwards(scene: SceneName) -> None:
    for forward, backward in zip(clips(scene, False, 3), clips(scene, True, 3), strict=True):
        np.testing.assert_array_equal(forward[::-1], backward)
        assert not np.array_equal(forward, backward)


@pytest.mark.parametrize("scene", SCENES)
def test_a_clip_is_a_function_of_its_generator(scene: SceneName) -> None:
    np.testing.assert_array_equal(clips(scene, False, 1)[0], clips(scene, False, 1)[0])
    assert not np.array_equal(clips(scene, False, 1)[0], clips(scene, False, 1, first_seed=1)[0])


def test_every_ssv2_class_has_its_twin_and_every_scene_is_used() -> None:
    pairs: dict[str, set[bool]] = {}
    for scene, reverse in SSV2_SCENES.values():
        pairs.setdefault(scene, set()).add(reverse)
    assert all(members == {False, True} for members in pairs.values())
    assert {scene for scene, _ in (*SSV2_SCENES.values(), *KINETICS_SCENES.values())} == set(SCENES)


@pytest.mark.parametrize(("scene", "axis", "sign"), [("push", 0, 1), ("ride", 0, 1), ("lift", 1, -1), ("climb", 1, -1)])
def test_things_move_the_way_the_class_says(scene: SceneName, axis: int, sign: int) -> None:
    """Right is +column, up is -row; the step at which a motion starts over is the one against the median."""
    agree = 0
    for clip in clips(scene, False, 24):
        agree += np.median(np.diff(bright_centre(clip)[axis])) * sign > 0
    assert agree >= 22


def test_what_is_filmed_slides_to_the_right_when_the_camera_turns_left() -> None:
    """Of all moves along an axis, the one that explains the next frame best."""
    moves = [(step * down, step * right) for step in range(3, 12) for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0))]
    for clip in clips("turn", False, 8):
        one, other = clip[:2, : CANVAS.height].astype(float)
        left = [np.abs(np.roll(one, move, (0, 1)) - other).mean() for move in moves]
        down, right = moves[int(np.argmin(left))]
        assert down == 0 < right


@pytest.mark.parametrize("scene", ["approach", "zoom"])
def test_things_grow_when_they_come_towards_the_camera(scene: SceneName) -> None:
    agree = sum(np.median(np.diff(bright_centre(clip)[2])) > 0 for clip in clips(scene, False, 24))
    assert agree >= 22


@pytest.mark.parametrize("scene", TWINS)
def test_first_and_last_frame_tell_nothing_about_the_twin(scene: SceneName) -> None:
    """Forward and backward clips of different draws: their frames at one index follow one law (Kolmogorov-Smirnov)."""
    count = 100
    sides = clips(scene, False, count, canvas=ENDS), clips(scene, True, count, first_seed=1000, canvas=ENDS)
    forward, backward = (np.array([bright_centre(clip) for clip in side]) for side in sides)  # (count, 3, 2)
    for statistic, index in np.ndindex(3, 2):
        a, b = np.sort(forward[:, statistic, index]), np.sort(backward[:, statistic, index])
        grid = np.concatenate([a, b])
        distance = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max() / count
        # 0.276 is the 0.1 % point for 100 against 100; a centred motion that never starts over gives 0.5 and more.
        assert distance < 0.276, (statistic, index, distance)


def test_luma_leaves_room_for_the_noise() -> None:
    for scene in SCENES:
        luma = clips(scene, False, 1)[0][:, : CANVAS.height]
        assert luma.min() >= 12
        assert luma.max() <= 244
