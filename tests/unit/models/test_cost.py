"""Parameters, multiply-adds and kept memory against closed formulas, real runs, and the published size table."""

from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vast.models import SIZES, ModelConfig, create_model
from vast.models.cost import count_kept_bytes, count_macs, count_params

MIXERS = get_args(ModelConfig.model_fields["mixer"].annotation)


def meta_model(name: str, num_classes: int, **switches):
    with torch.device("meta"):
        return create_model(name, num_classes, **switches)


def formula(name: str, num_classes: int, frames: int, pixels: int, taps: int, position: bool) -> tuple[int, int]:
    """Parameters and multiply-adds of one clip, stage by stage."""
    size = SIZES[name]
    params = macs = 0
    in_dim, side, patch = 3, pixels, size.patch_size
    for dim, depth in zip(size.dims, size.depths, strict=True):
        side //= patch
        tokens, ratio = frames * side * side, size.mlp_ratio
        params += patch * patch * in_dim * dim + dim + 2 * dim
        macs += tokens * patch * patch * in_dim * dim
        projections, scale, mlp = 2 * (dim * dim + dim), dim * dim // 2 + 5 * dim // 4, 2 * ratio * dim * dim
        params += depth * (projections + scale + (taps + 1) * dim + mlp + (ratio + 1) * dim + 4 * dim)
        params += depth * 10 * dim * position
        macs += depth * (
            tokens * (2 * dim * dim + 2 * ratio * dim * dim + (taps + 9 * position) * dim) + dim * dim // 2
        )
        in_dim, patch = dim, 2
    return params + 2 * in_dim + (in_dim + 1) * num_classes, macs + in_dim * num_classes


@pytest.mark.parametrize(("name", "position"), [*((name, False) for name in SIZES), ("vast_ti", True)])
def test_counts_equal_the_formula(name, position):
    frames = 1 if name.startswith("ast_") else 8
    model = meta_model(name, 400, position_encoding=position)
    params, macs = formula(name, 400, frames, 64, taps=9, position=position)
    assert count_params(model) == params
    assert count_macs(model, (1, 3, frames, 64, 64)) == macs


def test_temporal_bias_kernel_costs_27_taps_but_for_the_end_frames():
    model = meta_model("vast_ti", 400, bias_kernel="3x3x3")
    params, macs = formula("vast_ti", 400, 8, 64, taps=27, position=False)
    assert count_params(model) == params
    # The two end frames lack one neighbour each; their taps on zeros are not computed.
    assert count_macs(model, (1, 3, 8, 64, 64)) == pytest.approx(macs, rel=0.01)
    assert count_macs(model, (1, 3, 8, 64, 64)) < macs


@pytest.mark.parametrize(
    ("size", "params_m", "image_gmacs", "clip_gmacs"),
    [("ti", 13.8, 2.09, 16.7), ("s", 23.5, 3.81, 30.5), ("b", 50.8, 8.32, 66.5)],
)
def test_sizes_equal_the_design_table(size, params_m, image_gmacs, clip_gmacs):
    image_model, video_model = meta_model(f"ast_{size}", 1000), meta_model(f"vast_{size}", 1000)
    assert round(count_params(image_model) / 1e6, 1) == round(count_params(video_model) / 1e6, 1) == params_m
    # The table also counts the product with the scale, 0.05 %.
    assert count_macs(image_model, (1, 3, 1, 224, 224)) / 1e9 == pytest.approx(image_gmacs, rel=3e-3)
    assert count_macs(video_model, (1, 3, 8, 224, 224)) / 1e9 == pytest.approx(clip_gmacs, rel=3e-3)


@pytest.mark.parametrize(("size", "extra"), [("ti", 33_280), ("s", 60_800), ("b", 102_720)])
def test_position_encoding_adds_ten_parameters_a_channel_and_block(size, extra):
    plain, encoded = meta_model(f"vast_{size}", 9), meta_model(f"vast_{size}", 9, position_encoding=True)
    assert count_params(encoded) - count_params(plain) == extra


@pytest.mark.parametrize(
    ("name", "frames", "matched_gmacs"),
    [("ast_ti", 1, 2.1), ("ast_s", 1, 3.9), ("vast_s", 16, 64.2), ("ast_b", 1, 8.5)],
)
def test_sizes_cost_what_their_source_says_they_are_matched_to(name, frames, matched_gmacs):
    assert f"{matched_gmacs} GMACs" in SIZES[name].source
    gmacs = count_macs(meta_model(name, 400), (1, 3, frames, 224, 224)) / 1e9
    assert gmacs == pytest.approx(matched_gmacs, rel=0.06)


@pytest.mark.parametrize("mixer", ["affine_shift", "tsm", "pooling", "conv3d"])
def test_multiply_adds_are_those_of_a_real_run(mixer):
    model = create_model("vast_micro", 5, mixer=mixer).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 4, 32, 32))
    assert count_macs(model, (1, 3, 4, 32, 32)) == counter.get_total_flops() / 2


def test_attention_is_counted_too():
    """Torch's counter does not see its attention in a real run on a CPU; on the meta device it must."""
    size, frames, macs = SIZES["vast_micro"], 4, 0
    in_dim, side, patch = 3, 32, size.patch_size
    for dim, depth in zip(size.dims, size.depths, strict=True):
        side //= patch
        tokens = frames * side * side
        macs += tokens * patch * patch * in_dim * dim
        macs += depth * (tokens * (4 + 2 * size.mlp_ratio) * dim * dim + 2 * tokens * tokens * dim)
        in_dim, patch = dim, 2
    model = meta_model("vast_micro", 5, mixer="joint_attention")
    assert count_macs(model, (1, 3, frames, 32, 32)) == macs + 5 * in_dim


def kept_by_formula(name: str, frames: int, pixels: int) -> int:
    """Bytes of the values that the backward pass needs: 6 + 2 * ratio activations a block, and what is between."""
    size, values = SIZES[name], 0
    in_dim, side, patch = 3, pixels, size.patch_size
    for dim, depth in zip(size.dims, size.depths, strict=True):
        side //= patch
        tokens = frames * side * side
        # LayerNorms keep two statistics a token
        values += tokens * (patch * patch * in_dim + dim + 2)
        block = tokens * ((6 + 2 * size.mlp_ratio) * dim + 4)  # norm, W_v, mixing, W_o, norm, fc1; GELU and fc2 wide
        scale = 2 * dim + 2 * (dim // 4)  # the mean, alpha and the bottleneck
        values += depth * (block + scale)
        in_dim, patch = dim, 2
    return 4 * (values + tokens * (in_dim + 2) + in_dim)


@pytest.mark.parametrize(("name", "frames", "pixels"), [("vast_micro", 8, 64), ("ast_ti", 1, 224), ("vast_b", 8, 224)])
def test_kept_bytes_equal_the_formula(name, frames, pixels):
    assert count_kept_bytes(meta_model(name, 400), (1, 3, frames, pixels, pixels)) == kept_by_formula(
        name, frames, pixels
    )


@pytest.mark.parametrize("mixer", MIXERS)
def test_kept_bytes_are_those_of_a_real_run(mixer):
    model = create_model("vast_micro", 5, mixer=mixer)
    counted = count_kept_bytes(model, (2, 3, 4, 32, 32))
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(torch.randn(2, 3, 4, 32, 32))  # nothing without data was left in a cache
    assert counted == sum(kept.values())
    logits.sum().backward()


def test_counting_leaves_the_model_alone():
    model = create_model("vast_micro", 5).train()
    count_macs(model, (1, 3, 2, 32, 32))
    count_kept_bytes(model.eval(), (1, 3, 2, 32, 32))
    assert not model.training
    assert all(parameter.device.type == "cpu" and parameter.isfinite().all() for parameter in model.parameters())
