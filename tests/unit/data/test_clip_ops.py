"""Each operation against Pillow's own, frame by frame."""

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from vast.data import clip_ops
from vast.data.clip_ops import KERNELS, ClipOp

SIZE = 56
MAGNITUDES = (0.0, 0.23, 0.5, 0.77, 1.0)
ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "color": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


def make_clips() -> Tensor:
    """Two clips: noise, a soft picture, a dark one that uses few levels, and one colour only; and their reverse."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    noise = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    flat = np.full_like(noise, (100, 7, 255))
    clip_CTHW = torch.from_numpy(np.stack([noise, soft, soft // 9 + 13, flat])).permute(3, 0, 1, 2)
    return torch.stack([clip_CTHW, clip_CTHW.flip(1, 3)])


def by_pillow(clip_NCTHW: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    out_NCTHW = torch.empty_like(clip_NCTHW)
    for clip_CTHW, out_CTHW in zip(clip_NCTHW, out_NCTHW, strict=True):
        for t in range(clip_CTHW.shape[1]):
            picture = change(Image.fromarray(clip_CTHW[:, t].permute(1, 2, 0).numpy()))
            out_CTHW[:, t] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return out_NCTHW


def carried_out(clip_NCTHW: Tensor, *ops: ClipOp) -> Tensor:
    return KERNELS[ops[0].kind](clip_NCTHW, torch.tensor([op.args for op in ops], dtype=torch.float32))


def affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
    )


def rotation(degrees: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))


EXACT = [
    ("autocontrast", clip_ops.AUTOCONTRAST, ImageOps.autocontrast),
    ("equalize", clip_ops.EQUALIZE, ImageOps.equalize),
    ("invert", clip_ops.invert(), ImageOps.invert),
    *[
        (f"posterize {bits}", clip_ops.posterize(bits), lambda picture, bits=bits: ImageOps.posterize(picture, bits))
        for bits in (1, 2, 4, 8)
    ],
    *[
        (f"solarize {at}", clip_ops.solarize(at), lambda picture, at=at: ImageOps.solarize(picture, at))
        for at in (0, 77, 128, 256)
    ],
    *[
        (
            f"solarize_add {amount}",
            clip_ops.solarize_add(amount),
            lambda picture, amount=amount: picture.point(
                [min(255, v + amount) if v < 128 else v for v in range(256)] * 3
            ),
        )
        for amount in (0, 77, 110)
    ],
    *[
        (
            f"{name} {factor:.3f}",
            getattr(clip_ops, name)(factor),
            lambda picture, name=name, factor=factor: ENHANCE[name](picture).enhance(factor),
        )
        for name in ENHANCE
        for factor in (0.0, *(1 + sign * 0.9 * magnitude for sign in (-1, 1) for magnitude in MAGNITUDES))
    ],
]


@pytest.mark.parametrize(("op", "change"), [case[1:] for case in EXACT], ids=[case[0] for case in EXACT])
def test_operations_on_values_are_pillows_to_the_bit(op: ClipOp, change: Callable[[Image.Image], Image.Image]) -> None:
    clip_NCTHW = make_clips()
    assert torch.equal(carried_out(clip_NCTHW, op, op), by_pillow(clip_NCTHW, change))


MOVES = [
    *[(f"rotate {angle}", clip_ops.rotate(angle, SIZE), rotation(angle)) for angle in (-30, -6.9, 0, 15, 30)],
    *[(f"shear_x {by}", clip_ops.shear_x(by), affine(1, by, 0, 0, 1, 0)) for by in (-0.3, -0.07, 0, 0.15)],
    *[(f"shear_y {by}", clip_ops.shear_y(by), affine(1, 0, 0, by, 1, 0)) for by in (-0.3, -0.07, 0, 0.15)],
    *[(f"right {by}", clip_ops.translate(by, 0), affine(1, 0, by, 0, 1, 0)) for by in (-25.2, -3, 0, 0.5, 17.64)],
    *[(f"down {by}", clip_ops.translate(0, by), affine(1, 0, 0, 0, 1, by)) for by in (-25.2, -3, 0, 0.5, 17.64)],
]


@pytest.mark.parametrize(("op", "change"), [case[1:] for case in MOVES], ids=[case[0] for case in MOVES])
def test_moves_are_pillows_within_one_level(op: ClipOp, change: Callable[[Image.Image], Image.Image]) -> None:
    clip_NCTHW = make_clips()
    moved, expected = carried_out(clip_NCTHW, op, op), by_pillow(clip_NCTHW, change)
    difference = (moved.int() - expected.int()).abs()
    # Pillow truncates a sum of doubles: where it should come out whole, the last bit decides.
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.05
    assert torch.equal(moved[0, :, 3], expected[0, :, 3]), "one colour stays that colour"


def test_hue_turns_as_in_hsv() -> None:
    clip_NCTHW = make_clips()
    for turn in (-0.5, -0.1, 0.0, 0.31):
        turned_PC = (
            carried_out(clip_NCTHW, clip_ops.hue(turn), clip_ops.hue(turn)).permute(0, 2, 3, 4, 1).reshape(-1, 3)
        )
        before_PC = clip_NCTHW.permute(0, 2, 3, 4, 1).reshape(-1, 3)
        for before, turned in zip(before_PC[::41].tolist(), turned_PC[::41].tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            assert np.abs(np.array(expected) - turned).max() <= 0.51
    assert torch.equal(carried_out(clip_NCTHW, clip_ops.hue(0.0), clip_ops.hue(0.0)), clip_NCTHW)


def test_a_sequence_agrees_with_pillow() -> None:
    """What one level of difference becomes when the next operation is a coarse one, on few pixels only."""
    clip_NCTHW = make_clips()[:1]
    steps = [
        (clip_ops.rotate(17.3, SIZE), rotation(17.3)),
        (clip_ops.color(1.6), lambda picture: ImageEnhance.Color(picture).enhance(1.6)),
        (clip_ops.shear_x(-0.21), affine(1, -0.21, 0, 0, 1, 0)),
        (clip_ops.EQUALIZE, ImageOps.equalize),
        (clip_ops.posterize(2), lambda picture: ImageOps.posterize(picture, 2)),
    ]
    ours = expected = clip_NCTHW
    for op, change in steps:
        ours, expected = carried_out(ours, op), by_pillow(expected, change)
    assert (ours != expected).float().mean() < 0.02


@pytest.mark.parametrize("op", [clip_ops.AUTOCONTRAST, clip_ops.EQUALIZE, *(case[1] for case in EXACT[-3:])])
def test_the_smallest_pictures_pass(op: ClipOp) -> None:
    tiny = torch.tensor([3, 200, 90], dtype=torch.uint8).view(1, 3, 1, 1, 1)
    assert carried_out(tiny, op).shape == tiny.shape
