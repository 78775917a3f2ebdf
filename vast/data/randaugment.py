"""RandAugment and colour jitter: which operations a clip gets, and how strong.

RandAugment (Cubuk et al., https://arxiv.org/abs/1909.13719) as timm's `rand-m7-n4-mstd0.5-inc1` means it, which the
video recipes share: the operations whose effect grows with the magnitude, each carried out with a probability, with a
magnitude of its own. One thing differs: ours come after the crop, so a translation is a share of the crop.
"""

from collections.abc import Callable

import numpy as np

from vast.data import clip_ops
from vast.data.clip_ops import ClipOp
from vast.data.config import AugmentConfig, RandAugmentOp

_MAX_MAGNITUDE = 10.0


def draw_randaugment(config: AugmentConfig, size: int, rng: np.random.Generator) -> list[ClipOp]:
    """Draw one clip's operations, in order.

    Args:
        config: The fields that begin with `rand_` count.
        size: Side of the clip, pixels.
        rng: Where all randomness comes from.
    """
    ops = []
    for _ in range(config.rand_num_layers):
        name = config.rand_ops[rng.integers(len(config.rand_ops))]
        if rng.random() < config.rand_prob:
            magnitude = rng.normal(config.rand_magnitude, config.rand_magnitude_std)
            level = min(max(magnitude / _MAX_MAGNITUDE, 0.0), 1.0)
            ops.append(_OPS[name](level, -1 if rng.random() < 0.5 else 1, size))
    return ops


def draw_color_jitter(config: AugmentConfig, rng: np.random.Generator) -> list[ClipOp]:
    """Draw one clip's changes of brightness, contrast, saturation and hue, in random order."""
    if not (config.brightness or config.contrast or config.saturation or config.hue):
        return []
    if rng.random() >= config.color_jitter_prob:
        return []
    factors: list[tuple[Callable[[float], ClipOp], float]] = [
        (clip_ops.brightness, config.brightness),
        (clip_ops.contrast, config.contrast),
        (clip_ops.color, config.saturation),
    ]
    ops = [op(rng.uniform(1 - strength, 1 + strength)) for op, strength in factors if strength]
    if config.hue:
        ops.append(clip_ops.hue(rng.uniform(-config.hue, config.hue)))
    return [ops[place] for place in rng.permutation(len(ops))]


def _factor(level: float, sign: int) -> float:
    """Strength of an enhancement: 1 changes nothing; 0.1 and 1.9 are the ends."""
    return 1 + sign * 0.9 * level


# Each from a level in 0..1, a sign and the side of the clip.
_OPS: dict[RandAugmentOp, Callable[[float, int, int], ClipOp]] = {
    "AutoContrast": lambda level, sign, size: clip_ops.AUTOCONTRAST,
    "Equalize": lambda level, sign, size: clip_ops.EQUALIZE,
    "Invert": lambda level, sign, size: clip_ops.invert(),
    "Rotate": lambda level, sign, size: clip_ops.rotate(sign * 30 * level, size),
    # timm's formula ends at no bits, a black clip, which Pillow itself refuses.
    "Posterize": lambda level, sign, size: clip_ops.posterize(max(1, 4 - int(4 * level))),
    "Solarize": lambda level, sign, size: clip_ops.solarize(256 - int(256 * level)),
    "SolarizeAdd": lambda level, sign, size: clip_ops.solarize_add(int(110 * level)),
    "Color": lambda level, sign, size: clip_ops.color(_factor(level, sign)),
    "Contrast": lambda level, sign, size: clip_ops.contrast(_factor(level, sign)),
    "Brightness": lambda level, sign, size: clip_ops.brightness(_factor(level, sign)),
    "Sharpness": lambda level, sign, size: clip_ops.sharpness(_factor(level, sign)),
    "ShearX": lambda level, sign, size: clip_ops.shear_x(sign * 0.3 * level),
    "ShearY": lambda level, sign, size: clip_ops.shear_y(sign * 0.3 * level),
    "TranslateXRel": lambda level, sign, size: clip_ops.translate(sign * 0.45 * level * size, 0),
    "TranslateYRel": lambda level, sign, size: clip_ops.translate(0, sign * 0.45 * level * size),
}
