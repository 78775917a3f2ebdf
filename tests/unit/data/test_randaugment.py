from collections import Counter
from typing import get_args

import numpy as np
import pytest

from vast.data import clip_ops
from vast.data.clip_ops import ClipOp
from vast.data.config import AugmentConfig, RandAugmentOp
from vast.data.randaugment import draw_color_jitter, draw_randaugment

SIZE = 100
NAMES = get_args(RandAugmentOp)


def draws(config: AugmentConfig, count: int) -> list[list[ClipOp]]:
    return [draw_randaugment(config, SIZE, np.random.default_rng(seed)) for seed in range(count)]


def only(name: str, magnitude: float, std: float = 0.0) -> set[ClipOp]:
    """All that one operation turns into at a magnitude."""
    config = AugmentConfig(
        rand_num_layers=1, rand_prob=1, rand_ops=(name,), rand_magnitude=magnitude, rand_magnitude_std=std
    )
    return {op for ops in draws(config, 60) for op in ops}


def test_as_many_as_asked_and_half_of_them_carried_out() -> None:
    counts = Counter(len(ops) for ops in draws(AugmentConfig(rand_num_layers=4), 2000))
    for number, share in enumerate((1, 4, 6, 4, 1)):
        assert counts[number] / 2000 == pytest.approx(share / 16, abs=0.04)
    assert {len(ops) for ops in draws(AugmentConfig(rand_num_layers=4, rand_prob=1), 50)} == {4}
    assert draws(AugmentConfig(rand_num_layers=4, rand_prob=0), 50) == [[]] * 50


def test_all_operations_are_equally_likely() -> None:
    config = AugmentConfig(rand_num_layers=15, rand_prob=1, rand_ops=("Equalize", "AutoContrast", "Sharpness"))
    kinds = Counter(op.kind for ops in draws(config, 300) for op in ops)
    assert set(kinds) == {"equalize", "autocontrast", "sharpness"}
    assert all(count / 4500 == pytest.approx(1 / 3, abs=0.03) for count in kinds.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_an_operation(name: str) -> None:
    assert len(only(name, 7.0)) in (1, 2)


@pytest.mark.parametrize(
    ("name", "magnitude", "expected"),
    [
        ("Rotate", 7, {clip_ops.rotate(21, SIZE), clip_ops.rotate(-21, SIZE)}),
        ("Rotate", 10, {clip_ops.rotate(30, SIZE), clip_ops.rotate(-30, SIZE)}),
        ("ShearX", 5, {clip_ops.shear_x(0.15), clip_ops.shear_x(-0.15)}),
        ("ShearY", 10, {clip_ops.shear_y(0.3), clip_ops.shear_y(-0.3)}),
        ("TranslateXRel", 10, {clip_ops.translate(45, 0), clip_ops.translate(-45, 0)}),
        ("TranslateYRel", 5, {clip_ops.translate(0, 22.5), clip_ops.translate(0, -22.5)}),
        ("Posterize", 0, {clip_ops.posterize(4)}),
        ("Posterize", 7, {clip_ops.posterize(2)}),
        ("Posterize", 10, {clip_ops.posterize(1)}),
        ("Solarize", 0, {clip_ops.solarize(256)}),
        ("Solarize", 7, {clip_ops.solarize(256 - 179)}),
        ("SolarizeAdd", 7, {clip_ops.solarize_add(77)}),
        ("Color", 10, {clip_ops.color(1.9), clip_ops.color(0.1)}),
        ("Contrast", 0, {clip_ops.contrast(1)}),
        ("Brightness", 5, {clip_ops.brightness(1.45), clip_ops.brightness(0.55)}),
        ("Sharpness", 5, {clip_ops.sharpness(1.45), clip_ops.sharpness(0.55)}),
        ("Invert", 3, {clip_ops.invert()}),
    ],
)
def test_levels_are_timms(name: str, magnitude: float, expected: set[ClipOp]) -> None:
    def rounded(ops: set[ClipOp]) -> set[tuple[object, ...]]:
        return {(op.kind, *np.round(op.args, 9).tolist()) for op in ops}

    assert rounded(only(name, magnitude)) == rounded(expected)


def test_the_magnitude_varies_and_is_cut_off() -> None:
    factors = [op.args[0] for op in only("Color", 10, std=2.0)]
    assert max(factors) == pytest.approx(1.9)
    assert min(factors) == pytest.approx(0.1)
    assert len(set(factors)) > 10


def test_no_operation_mirrors() -> None:
    """A mirrored clip may have another label, which only the reader's flip can give it."""
    for name in NAMES:
        for op in only(name, 10.0):
            if op.kind == "affine":
                assert np.linalg.det(np.reshape(op.args, (2, 3))[:, :2]) > 0.9


def test_colour_jitter_draws_what_is_on_in_any_order() -> None:
    config = AugmentConfig(contrast=0.4, saturation=0.2, hue=0.1, color_jitter_prob=0.5)
    drawn = [draw_color_jitter(config, np.random.default_rng(seed)) for seed in range(600)]
    assert np.mean([bool(ops) for ops in drawn]) == pytest.approx(0.5, abs=0.06)
    orders = {tuple(op.kind for op in ops) for ops in drawn if ops}
    assert len(orders) == 6
    assert all(set(order) == {"contrast", "color", "hue"} for order in orders)
    for kind, low, high in (("contrast", 0.6, 1.4), ("color", 0.8, 1.2), ("hue", -0.1, 0.1)):
        values = [op.args[0] for ops in drawn for op in ops if op.kind == kind]
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high >= max(values) > high - 0.1 * (high - low)
    assert draw_color_jitter(AugmentConfig(), np.random.default_rng(0)) == []
