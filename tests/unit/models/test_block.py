"""A block against a float64 reference written from the formula alone, forward and gradients, for every switch."""

import pytest
import torch
from torch import Tensor

from vast.models.affine_shift import affine_shift
from vast.models.blocks import Block, Branch
from vast.models.kernels.mixing import AffineWeights
from vast.models.variants import ModelConfig

SWITCHES = [
    {},
    {"temporal_shift": False},
    {"shift_fraction": 0.0},
    {"shift_fraction": 1 / 6},
    {"shift_border": "replicate"},
    {"scale": False},
    {"scale_pool": "frame"},
    {"bias": False},
    {"scale": False, "bias": False},
    {"bias_kernel": "3x3x3"},
    {"affine_input": "s"},
    {"affine_input": "s", "bias_kernel": "3x3x3", "scale_pool": "frame", "shift_border": "replicate"},
    {"output_projection": False},
    {"position_encoding": True},
    {"layer_scale": 0.5},
]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def neighbour(x: Tensor, axis: int, step: int, border: str) -> Tensor:
    """The value `step` positions before, by roll and mask."""
    length = x.shape[axis]
    index = torch.arange(length).view([-1 if i == axis else 1 for i in range(5)])
    outside = (index - step < 0) | (index - step >= length)
    return torch.where(outside, x if border == "replicate" else torch.zeros_like(x), x.roll(step, axis))


def shifted(v: Tensor, config: ModelConfig) -> Tensor:
    width = int(v.shape[-1] * config.shift_fraction + 1e-9)
    directions = [(2, 1), (2, -1), (3, 1), (3, -1)] + ([(1, 1), (1, -1)] if config.temporal_shift else [])
    parts = [
        neighbour(v[..., i * width : (i + 1) * width], axis, step, config.shift_border)
        for i, (axis, step) in enumerate(directions)
    ]
    return torch.cat([*parts, v[..., len(directions) * width :]], -1)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.ndim == 4:
        weight = weight.unsqueeze(2)
    out = bias.expand_as(x)
    for t in range(weight.shape[2]):
        for h in range(3):
            for w in range(3):
                tap = x
                for axis, offset in ((1, t - weight.shape[2] // 2), (2, h - 1), (3, w - 1)):
                    tap = neighbour(tap, axis, -offset, "zero") if offset else tap
                out = out + tap * weight[:, 0, t, h, w]
    return out


def reference_block(x: Tensor, p: dict[str, Tensor], config: ModelConfig) -> Tensor:
    if config.position_encoding:
        x = x + depthwise(x, p["position.conv.weight"], p["position.conv.bias"])
    v = layer_norm(x, p["norm1.weight"], p["norm1.bias"]) @ p["mixer.value.weight"].T + p["mixer.value.bias"]
    s = shifted(v, config)
    u = v if config.affine_input == "v" else s
    z = s
    if config.scale:
        mean = u.mean((2, 3) if config.scale_pool == "frame" else (1, 2, 3), keepdim=True)
        hidden = gelu(mean @ p["mixer.scale.fc1.weight"].T + p["mixer.scale.fc1.bias"])
        z = z / (1 + torch.exp(-(hidden @ p["mixer.scale.fc2.weight"].T + p["mixer.scale.fc2.bias"])))
    if config.bias:
        z = z + depthwise(u, p["mixer.bias.weight"], p["mixer.bias.bias"])
    if config.output_projection:
        z = z @ p["mixer.output.weight"].T + p["mixer.output.bias"]
    y = x + z * p.get("branch1.gamma", torch.ones(()))
    hidden = gelu(layer_norm(y, p["norm2.weight"], p["norm2.bias"]) @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"])
    return y + (hidden @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]) * p.get("branch2.gamma", torch.ones(()))


def make_block(dim: int = 24, drop_path: float = 0.0, **switches) -> tuple[Block, ModelConfig]:
    config = ModelConfig(name="vast_micro", **switches)
    block = Block(dim, 2, drop_path, config)
    for name, parameter in block.named_parameters():
        generator = torch.Generator().manual_seed(sum(name.encode()))
        with torch.no_grad():
            # Far from the initial zeros and ones, so that no term of the formula can hide.
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4 + (parameter.ndim == 1) * 0.3)
    return block, config


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 1, 3)], ids=str)
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_block_equals_the_formula(switches, shape):
    block, config = make_block(**switches)
    block = block.double()
    parameters = dict(block.named_parameters())
    x = torch.randn(*shape, 24, dtype=torch.float64, requires_grad=True)
    wanted_grad = torch.randn(*shape, 24, dtype=torch.float64)
    inputs = [x, *parameters.values()]

    ours, wanted = block(x), reference_block(x, parameters, config)

    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)
    our_grads = torch.autograd.grad(ours, inputs, wanted_grad)
    for name, mine, theirs in zip(
        ["x", *parameters], our_grads, torch.autograd.grad(wanted, inputs, wanted_grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("switches", [{}, {"bias_kernel": "3x3x3"}, {"affine_input": "s"}], ids=str)
def test_single_precision_is_close_to_the_formula(switches):
    block, config = make_block(**switches)
    x = torch.randn(2, 4, 5, 6, 24)
    wanted = reference_block(x.double(), {k: p.double() for k, p in block.named_parameters()}, config)
    torch.testing.assert_close(block(x).double(), wanted, rtol=1e-4, atol=1e-4)


def test_one_frame_leaves_the_temporal_groups_in_place():
    video, _ = make_block(temporal_shift=True)
    image, _ = make_block(temporal_shift=False)
    x = torch.randn(2, 1, 4, 4, 24)
    assert torch.equal(video(x), image(x))


@pytest.mark.parametrize("path", ["plain", "eager", "folded"])
def test_scale_is_computed_in_float32_under_autocast(path):
    block, _ = make_block()
    mixer = block.mixer
    weights = mixer.weights()._replace(kernel=torch.zeros(24, 1, 3, 3), kernel_bias=torch.zeros(24))
    mixing = mixer.mixing._replace(group_width=0)
    # 4096 equal values: a bfloat16 running sum would stop growing long before the end.
    v = torch.full((1, 16, 16, 16, 24), 1.01, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alpha_v = affine_shift(v, weights, mixing, path)
    exact = affine_shift(v.double(), AffineWeights(*(w.double() for w in weights)), mixing, "plain")
    torch.testing.assert_close(alpha_v.double(), exact, rtol=8e-3, atol=0)
    assert alpha_v.dtype == torch.bfloat16


def test_bfloat16_autocast_block_is_close():
    block, _ = make_block()
    x = torch.randn(2, 4, 8, 8, 24)
    exact = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = block(x)
    assert (rounded - exact).norm() / exact.norm() < 1e-2


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    branch = Branch(3, None, drop_path=0.25)
    y = branch(torch.ones(4000, 2, 1, 1, 3))
    per_sample = y.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(branch.eval()(torch.ones(2, 1, 1, 1, 3)), torch.ones(2, 1, 1, 1, 3))
