"""The contract that every registered model keeps, and which paths connect frames."""

import copy
import hashlib
import json
import re
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch

import vast.models
from vast.errors import UserError
from vast.models import SIZES, ModelConfig, create_model
from vast.models.affine_shift import affine_shift
from vast.models.shift import plain_shift

MIXERS = get_args(ModelConfig.model_fields["mixer"].annotation)
IMAGE_MODELS = [name for name in SIZES if name.startswith("ast_")]
VIDEO_MODELS = [name for name in SIZES if name.startswith("vast_")]


def tiny_clip(name: str, num_clips: int = 2) -> torch.Tensor:
    """The smallest clip that leaves more than one token at the end; one frame for an image model."""
    pixels = SIZES[name].total_stride * (2 if "micro" in name else 1)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_clips, 3, 1 if name in IMAGE_MODELS else 2, pixels, pixels, generator=generator)


# With the peers' mixers the larger sizes are only deeper.
@pytest.mark.parametrize(
    ("name", "mixer"),
    [*((name, "affine_shift") for name in SIZES), *product(("ast_micro", "vast_micro"), MIXERS[1:])],
)
def test_every_model_has_its_shape_and_a_gradient_for_each_parameter(name, mixer):
    with torch.device("meta"):
        model = create_model(name, num_classes=5, recompute=True, mixer=mixer)
        logits = model(tiny_clip(name).to("meta"))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None]
    assert not without, f"no gradient: {without}"


# s and b: deeper, not different
COMPUTED = [("ast_micro", "affine_shift"), ("vast_ti", "affine_shift"), *(("vast_micro", mixer) for mixer in MIXERS)]


@pytest.mark.parametrize(("name", "mixer"), COMPUTED)
def test_contract_of_models_that_compute(name, mixer):
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, mixer=mixer).train()
    clip = tiny_clip(name)

    logits = model(clip)
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()

    logits.square().sum().backward()
    grads = {key: p.grad for key, p in model.named_parameters()}
    without = [key for key, grad in grads.items() if grad is None or not grad.isfinite().all() or not grad.any()]
    assert not without, f"no gradient: {without}"

    model.zero_grad()
    model.set_recompute(True)
    again = model(clip)
    again.square().sum().backward()
    assert torch.equal(again, logits)
    differing = [key for key, p in model.named_parameters() if not torch.equal(p.grad, grads[key])]
    assert not differing, f"recompute changes the gradient of {differing}"

    with torch.no_grad():
        features = model.forward_features(clip)
        assert torch.equal(model.forward_head(features), logits)
        assert model.forward_head(features, pre_logits=True).shape == (2, SIZES[name].dims[-1])
    model.reset_classifier(7)
    assert model.num_classes == model.get_classifier().out_features == 7
    assert model(clip).shape == (2, 7)


@pytest.mark.parametrize(("name", "mixer"), COMPUTED)
def test_half_precision_is_finite_and_near(name, mixer):
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, mixer=mixer).eval()
    clip = tiny_clip(name)
    with torch.no_grad():
        exact = model.forward_features(clip)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = {"autocast": model.forward_features(clip)}
        for dtype in (torch.bfloat16, torch.float16):
            half = copy.deepcopy(model).to(dtype)
            rounded[str(dtype)] = half.forward_features(clip.to(dtype))
            assert half(clip.to(dtype)).dtype == dtype
    for kind, features in rounded.items():
        assert features.isfinite().all(), kind
        assert (features.float() - exact).norm() / exact.norm() < 0.05, kind


@pytest.mark.parametrize("shape", [(1, 1, 32, 96), (2, 3, 48, 16), (1, 5, 16, 16)], ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_any_frames_rows_and_columns_that_the_pyramid_divides(mixer, shape):
    model = create_model("vast_micro", 5, mixer=mixer).eval()
    num_clips, num_frames, height, width = shape
    with torch.no_grad():
        features = model.forward_features(torch.randn(num_clips, 3, num_frames, height, width))
    assert features.shape == (num_clips, num_frames, height // 16, width // 16, 96)
    assert features.isfinite().all()


def test_a_head_of_no_classes_passes_the_pooled_features_on():
    model = create_model("vast_micro", 5).eval()
    clip = tiny_clip("vast_micro")
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(clip), pre_logits=True)
        model.reset_classifier(0)
        assert torch.equal(model(clip), pooled)
        model.reset_classifier(4)
        assert model(clip).shape == (2, 4)


def test_recompute_repeats_the_same_drop_path():
    model = create_model("vast_micro", 5, drop_path=0.5).train()
    clip, grads = tiny_clip("vast_micro", 4), []
    for enabled in (False, True):
        model.set_recompute(enabled)
        model.zero_grad()
        torch.manual_seed(3)
        model(clip).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*grads)


def test_drop_path_grows_linearly_to_the_last_block():
    model = create_model("vast_micro", 5, drop_path=0.5)
    rates = [block.branch1.drop_path for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.5 * i / (len(rates) - 1) for i in range(len(rates))])


def double_micro(**switches):
    torch.manual_seed(0)
    return create_model("vast_micro", 5, **switches).double().eval()


BAG = {"temporal_shift": False, "bias_kernel": "1x3x3"}


@pytest.mark.parametrize("changes", [{}, {"scale_pool": "frame"}, {"affine_input": "s"}, {"position_encoding": True}])
def test_without_temporal_paths_frames_are_an_unordered_bag(changes):
    model = double_micro(**BAG, **changes)
    clip = torch.randn(1, 3, 5, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(clip[:, :, [3, 0, 4, 2, 1]]), model(clip), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"temporal_shift": False, "bias_kernel": "3x3x3"}])
def test_a_temporal_path_sees_the_order_of_frames(changes):
    model = double_micro(**changes)
    clip = torch.randn(1, 3, 5, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert (model(clip.flip(2)) - model(clip)).norm() > 0.01 * model(clip).norm()


def test_frames_pooled_by_themselves_do_not_see_each_other():
    model = double_micro(**BAG, scale_pool="frame")
    clip = torch.randn(1, 3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        apart = torch.cat([model.forward_features(clip[:, :, t : t + 1]) for t in range(3)], dim=1)
        torch.testing.assert_close(model.forward_features(clip), apart, rtol=1e-9, atol=1e-9)


def test_the_temporal_shift_reaches_one_frame_a_block():
    model = double_micro(scale=False)
    clip = torch.zeros(1, 3, 17, 32, 32, dtype=torch.float64)
    touched = clip.clone()
    touched[:, :, 8] = 1.0
    with torch.no_grad():
        change = (model.forward_features(touched) - model.forward_features(clip)).abs().amax((0, 2, 3, 4))
    assert change.nonzero().flatten().tolist() == list(range(2, 15))  # 6 blocks, one frame each way


def test_image_model_takes_images_as_clips_of_one_frame():
    model = create_model("ast_micro", 5)
    images = torch.randn(2, 3, 32, 48)
    assert torch.equal(model(images), model(images.unsqueeze(2)))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vast_micro", (1, 3, 2, 60, 64), r"multiples of 16 pixels.*found 60x64.*H 64, W 64"),
        ("vast_ti", (1, 3, 2, 64, 50), r"multiples of 32 pixels.*3 halvings.*found 64x50.*H 64, W 64"),
        ("vast_micro", (3, 2, 32, 32), r"clips \[B, 3, T, H, W\].*\[3, 2, 32, 32\]"),
        ("vast_micro", (1, 2, 3, 32, 32), r"clips \[B, 3, T, H, W\].*\[1, 2, 3, 32, 32\]"),
        ("vast_micro", (1, 3, 0, 32, 32), r"found shape \[1, 3, 0, 32, 32\]"),
        ("ast_micro", (1, 3, 2, 32, 32), r"found 2 frames; use vast_micro"),
        ("ast_micro", (3, 32, 32), r"images \[B, 3, H, W\].*\[3, 32, 32\]"),
    ],
)
def test_impossible_inputs_are_explained(name, shape, message):
    with torch.device("meta"):
        model = create_model(name, 5)
    with pytest.raises(UserError, match=message):
        model(torch.zeros(shape, device="meta"))


def test_bytes_are_refused():
    with pytest.raises(UserError, match=r"torch\.uint8; normalise first"):
        create_model("vast_micro", 5)(torch.zeros(1, 3, 2, 32, 32, dtype=torch.uint8))


def test_fresh_weights_follow_the_fan_in():
    model = create_model("vast_micro", 5, bias_kernel="3x3x3", position_encoding=True)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            wanted = 3.0 if "scale.fc2" in name else float("norm" in name and "weight" in name)
            assert torch.equal(parameter, torch.full_like(parameter, wanted)), name
        else:
            small = name == "head.weight" or ".position." in name or "mixer.bias." in name
            wanted = 0.02 if small else parameter[0].numel() ** -0.5
            assert parameter.std().item() == pytest.approx(wanted, rel=0.2), name


def test_fresh_blocks_start_near_the_shift_alone():
    torch.manual_seed(0)
    mixer = create_model("vast_micro", 5).stages[1].blocks[1].mixer
    v = torch.randn(2, 4, 8, 8, 64)
    shifted = plain_shift(v, mixer.mixing.groups(4))
    z = affine_shift(v, mixer.weights(), mixer.mixing)
    assert (z - 0.95 * shifted).std() < 0.1 * shifted.std()


def test_parameter_names_are_pinned():
    names = set(create_model("vast_micro", 5, layer_scale=1e-2, position_encoding=True).state_dict())
    assert names >= {
        "stages.0.embed.proj.weight",
        "stages.0.embed.norm.weight",
        "stages.2.blocks.1.position.conv.weight",
        "stages.0.blocks.0.norm1.weight",
        "stages.0.blocks.0.mixer.value.weight",
        "stages.0.blocks.0.mixer.scale.fc1.weight",
        "stages.0.blocks.0.mixer.scale.fc2.bias",
        "stages.0.blocks.0.mixer.bias.weight",
        "stages.0.blocks.0.mixer.output.weight",
        "stages.0.blocks.0.branch1.gamma",
        "stages.0.blocks.0.norm2.bias",
        "stages.0.blocks.0.mlp.fc1.weight",
        "stages.0.blocks.0.mlp.fc2.weight",
        "norm.weight",
        "head.weight",
        "head.bias",
    }
    assert len(names) == 3 * 4 + 6 * 22 + 4


def state_dict_digests() -> dict[str, str]:
    """A digest of the names and shapes of each model's parameters, in order."""
    digests = {}
    variants = [(name, {}) for name in SIZES] + [("vast_micro", {"mixer": mixer}) for mixer in MIXERS]
    everything = {"bias_kernel": "3x3x3", "layer_scale": 0.1, "position_encoding": True}
    for name, switches in [*variants, ("vast_micro", everything)]:
        with torch.device("meta"):
            model = create_model(name, 5, **switches)
        lines = [f"{key} {list(value.shape)}" for key, value in model.state_dict().items()]
        label = " ".join([name, *(f"{key}={value}" for key, value in switches.items())])
        digests[label] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return digests


def test_names_and_shapes_of_all_parameters_are_pinned():
    """A difference here means that checkpoints no longer load; only then write the new digests into the file."""
    pinned = json.loads((Path(__file__).parent / "state_dict_digests.json").read_text())
    assert state_dict_digests() == pinned


def test_weight_decay_spares_vectors_and_position_only():
    model = create_model("vast_micro", 5, layer_scale=1e-2, position_encoding=True)
    spared = model.no_weight_decay()
    decayed = {name for name, _ in model.named_parameters()} - spared
    assert spared <= set(dict(model.named_parameters()))
    assert {re.sub(r"\d+", "0", name) for name in decayed} == {
        "stages.0.embed.proj.weight",
        "stages.0.blocks.0.mixer.value.weight",
        "stages.0.blocks.0.mixer.scale.fc0.weight",
        "stages.0.blocks.0.mixer.bias.weight",
        "stages.0.blocks.0.mixer.output.weight",
        "stages.0.blocks.0.mlp.fc0.weight",
        "head.weight",
    }


@pytest.mark.parametrize("path", sorted(Path(vast.models.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_every_suffix_is_in_the_legend_of_its_file(path):
    text = path.read_text()
    suffixes = set(re.findall(r"\b[a-z][a-z0-9_]*_([A-Z]{1,6})\b", text))
    legend = re.search(r"^Dimensions: (.*?)\.$", text, re.MULTILINE)
    letters = set(re.findall(r"\b([A-Z]) [a-z]", legend.group(1))) if legend else set()
    assert {letter for suffix in suffixes for letter in suffix} <= letters
