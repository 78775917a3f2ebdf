"""A clip of equal frames gives an inflated model the features of its image model: where that holds, and where not."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vast.models import SIZES, create_model
from vast.models.inflate import inflate

SHARED = {
    "shift_fraction": st.sampled_from([0.0, 0.05, 0.125, 1 / 6]),
    "vertical_shift": st.booleans(),
    "horizontal_shift": st.booleans(),
    "shift_border": st.sampled_from(["zero", "replicate"]),
    "scale": st.booleans(),
    "scale_pool": st.sampled_from(["clip", "frame"]),
    "bias": st.booleans(),
    "affine_input": st.sampled_from(["v", "s"]),
    "output_projection": st.booleans(),
    "position_encoding": st.booleans(),
    "layer_scale": st.sampled_from([None, 0.5]),
}
OF_VIDEO = {"temporal_shift": st.booleans(), "bias_kernel": st.sampled_from(["1x3x3", "3x3x3"])}


def departure(size: str, shared: dict[str, Any], of_video: dict[str, Any], num_frames: int = 4) -> float:
    """Largest difference of a feature between a picture and a clip that repeats it."""
    image_model = create_model(f"ast_{size}", 5, **shared).eval()
    video_model = create_model(f"vast_{size}", 5, **shared, **of_video).eval()
    for name, parameter in image_model.named_parameters():
        if parameter.ndim == 1 and "norm" not in name and "gamma" not in name:
            torch.nn.init.normal_(parameter, std=0.2)  # trained biases are not zero
    report = inflate(image_model.state_dict(), video_model)
    assert (report.unexpected, report.reinitialised) == ((), ())
    pixels = SIZES[f"ast_{size}"].total_stride * 2
    image = torch.randn(2, 3, pixels, pixels)
    with torch.no_grad():
        wanted = image_model.forward_features(image)
        ours = video_model.forward_features(image.unsqueeze(2).expand(-1, -1, num_frames, -1, -1))
    assert ours.shape == (2, num_frames, *wanted.shape[2:])
    assert wanted.abs().max() > 1
    return float((ours - wanted).abs().max())


@settings(max_examples=60)
@given(shared=st.fixed_dictionaries(SHARED), of_video=st.fixed_dictionaries(OF_VIDEO), num_frames=st.integers(1, 5))
def test_it_holds_for_every_switch_but_a_zero_border_in_time(shared, of_video, num_frames):
    if shared["shift_border"] == "zero":
        of_video["temporal_shift"] = False
    assert departure("micro", shared, of_video, num_frames) <= 1e-5


@pytest.mark.parametrize("size", ["ti", "s", "b"])
def test_it_holds_for_every_size(size):
    assert departure(size, {"shift_border": "replicate"}, {"bias_kernel": "3x3x3"}, 3) <= 1e-5


@pytest.mark.parametrize("mixer", ["pooling", "conv3d"])
def test_it_holds_for_peers_that_average_or_convolve(mixer):
    assert departure("micro", {"mixer": mixer}, {}) <= 1e-5


@pytest.mark.parametrize("mixer", ["joint_attention", "divided_attention", "window_attention", "tsm"])
def test_it_cannot_hold_for_peers_that_tell_frames_apart(mixer):
    """Attention encodes the time of a frame, divided attention has weights of its own for time; TSM shifts in zeros."""
    assert departure("micro", {"mixer": mixer}, {}) > 1e-3


def test_it_cannot_hold_where_zeros_are_shifted_in_from_beyond_the_clip():
    assert departure("micro", {"shift_border": "zero"}, {}) > 1e-3
