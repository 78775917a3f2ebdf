"""Every implementation of the operator against its formula, by index arithmetic in float64, and what it promises."""

from itertools import product

import pytest
import torch
from torch import Tensor

from vast.models import create_model
from vast.models.affine_shift import affine_shift
from vast.models.kernels import operator
from vast.models.kernels.mixing import AffineWeights, Mixing
from vast.models.kernels.operator import choose_path

C = 13  # six groups of 2, and one channel that stays
PATHS = ["plain", "eager", "folded"]


def seen_from(x: Tensor, frames: int, rows: int, columns: int, border: str) -> Tensor:
    """out[t, h, w] = x[t + frames, h + rows, w + columns]; outside there is zero, or the nearest token."""
    where, inside = [], torch.ones(x.shape[1:4], dtype=torch.bool)
    for axis, step in enumerate((frames, rows, columns)):
        length = x.shape[axis + 1]
        index = [i + step for i in range(length)]
        shape = [length if i == axis else 1 for i in range(3)]
        inside &= torch.tensor([0 <= i < length for i in index]).view(shape)
        where.append(torch.tensor([min(max(i, 0), length - 1) for i in index]).view(shape))
    seen = x[:, where[0], where[1], where[2]]
    return seen if border == "replicate" else seen * inside[None, ..., None]


def formula(v: Tensor, weights: AffineWeights, mixing: Mixing) -> Tensor:
    sources = [(0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1), (-1, 0, 0), (1, 0, 0)]  # H+ H- W+ W- T+ T-
    s = v.clone()
    for number in range(6):
        if "hwt"[number // 2] in mixing.axes and (v.shape[1] > 1 or number < 4):
            channels = slice(number * mixing.group_width, (number + 1) * mixing.group_width)
            s[..., channels] = seen_from(v[..., channels], *sources[number], mixing.border)
    u = v if mixing.affine_input == "v" else s
    z = s
    if weights.fc1_weight is not None:
        count = u.shape[2] * u.shape[3] * (u.shape[1] if mixing.scale_pool == "clip" else 1)
        total = torch.einsum("bthwc->btc", u)
        mean = (total.sum(1, keepdim=True) if mixing.scale_pool == "clip" else total) / count
        hidden = torch.einsum("btc,dc->btd", mean, weights.fc1_weight) + weights.fc1_bias
        hidden = hidden * 0.5 * torch.erfc(-hidden * 0.5**0.5)
        alpha = torch.einsum("btd,cd->btc", hidden, weights.fc2_weight) + weights.fc2_bias
        z = z * (1 / (1 + (-alpha).exp()))[:, :, None, None]
    if weights.kernel is not None:
        kernel = weights.kernel if weights.kernel.ndim == 5 else weights.kernel.unsqueeze(2)
        z = z + weights.kernel_bias
        reach = kernel.shape[2] // 2
        for t, h, w in product(range(-reach, reach + 1), (-1, 0, 1), (-1, 0, 1)):
            z = z + seen_from(u, t, h, w, "zero") * kernel[:, 0, t + reach, h + 1, w + 1]
    return z


def make_weights(scale: bool, kernel: str | None, dtype: torch.dtype = torch.float64, dim: int = C) -> AffineWeights:
    generator = torch.Generator().manual_seed(1)
    taps = () if kernel is None else (3, 3, 3) if kernel == "3x3x3" else (3, 3)
    shapes = [(dim // 4, dim), (dim // 4,), (dim, dim // 4), (dim,), (dim, 1, *taps), (dim,)]
    made = [(torch.randn(shape, generator=generator) * 0.6).to(dtype).requires_grad_() for shape in shapes]
    none = (None, None)
    return AffineWeights(*(made[:4] if scale else none * 2), *(made[4:] if kernel else none))


def fits(path: str, weights: AffineWeights, mixing: Mixing) -> bool:
    return path != "folded" or (weights.kernel is not None and mixing.border == "zero" and mixing.scale_pool == "clip")


def grads_of(z: Tensor, v: Tensor, weights: AffineWeights) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = [v, *(weight for weight in weights if weight is not None)]
    return list(torch.autograd.grad(z, inputs, torch.randn(z.shape, generator=generator).to(z.dtype)))


@pytest.mark.parametrize("kernel", [None, "1x3x3", "3x3x3"])
@pytest.mark.parametrize("affine_input", ["v", "s"])
@pytest.mark.parametrize("path", PATHS)
def test_forward_and_gradients_equal_the_formula(path, affine_input, kernel):
    generator = torch.Generator().manual_seed(0)
    for shape, axes, border, scale, pool in product(
        [(2, 3, 4, 2), (1, 1, 3, 2), (2, 2, 1, 1)],
        ("hwt", "hw", "wt", ""),
        ("zero", "replicate"),
        (True, False),
        ("clip", "frame"),
    ):
        weights, mixing = make_weights(scale, kernel), Mixing(2, axes, border, affine_input, pool)
        if not fits(path, weights, mixing) or (not axes and border != "zero") or (not scale and pool != "clip"):
            continue
        v = torch.randn(*shape, C, dtype=torch.float64, generator=generator, requires_grad=True)
        if path != "plain" and not axes and not scale and kernel is None:
            assert affine_shift(v, weights, mixing, path) is v
            continue
        ours, wanted = affine_shift(v, weights, mixing, path), formula(v, weights, mixing)
        case = f"{shape} axes={axes!r} {border} scale={scale} {pool}"
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10, msg=lambda text, case=case: f"{case}: {text}")
        for number, (mine, theirs) in enumerate(
            zip(grads_of(ours, v, weights), grads_of(wanted, v, weights), strict=True)
        ):
            torch.testing.assert_close(
                *(mine, theirs),
                rtol=1e-9,
                atol=1e-9,
                msg=lambda text, case=case, n=number: f"{case}, input {n}: {text}",
            )


@pytest.mark.parametrize(("axes", "taps"), [("wt", {0: (0, 1), 1: (2, 1)}), ("ht", {2: (1, 0), 3: (1, 2)})])
def test_where_the_scale_is_constant_the_bias_s_kernel_can_do_what_a_spatial_shift_does(axes, taps):
    weights = make_weights(scale=True, kernel="1x3x3")
    weights = weights._replace(fc2_weight=torch.zeros_like(weights.fc2_weight))  # alpha depends on no clip
    alpha, kernel = weights.fc2_bias.sigmoid(), weights.kernel.detach().clone()
    for number, (row, column) in taps.items():
        channels = slice(2 * number, 2 * number + 2)
        kernel[channels, 0, row, column] += alpha[channels]
        kernel[channels, 0, 1, 1] -= alpha[channels]
    v = torch.randn(2, 3, 4, 5, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = affine_shift(v, weights, Mixing(2, "hwt", "zero", "v", "clip"))
    without = Mixing(2, axes, "zero", "v", "clip")
    torch.testing.assert_close(affine_shift(v, weights._replace(kernel=kernel), without), whole)
    assert not torch.allclose(affine_shift(v, weights, without), whole)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("width", [2, 40])  # narrow and wide groups of folded in half precision
@pytest.mark.parametrize("affine_input", ["v", "s"])
@pytest.mark.parametrize("path", PATHS)
def test_rounding_stays_in_its_type(path, affine_input, width, dtype, tolerance):
    dim = 6 * width + 4
    mixing = Mixing(width, "hwt", "zero", affine_input, "clip")
    weights = make_weights(True, "1x3x3", torch.float32, dim)
    v = torch.randn(2, 4, 6, 6, dim).to(dtype).requires_grad_()
    exact = AffineWeights(*(weight.detach().double().requires_grad_() for weight in weights))
    v_exact = v.detach().double().requires_grad_()

    ours, wanted = affine_shift(v, weights, mixing, path), formula(v_exact, exact, mixing)

    assert ours.dtype == dtype
    assert relative(ours, wanted) < tolerance
    for weight, mine, theirs in zip(
        [v, *weights], grads_of(ours, v, weights), grads_of(wanted, v_exact, exact), strict=True
    ):
        assert mine.dtype == weight.dtype
        assert relative(mine, theirs) < 2 * tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("affine_input", ["v", "s"])
@pytest.mark.parametrize("shape", [(2, 4, 6, 6, 24), (2, 8, 16, 16, 64)], ids=["tiny clips", "clips summed one by one"])
def test_the_scale_s_gradients_sum_unrounded_products(shape, affine_input, dtype):
    """Products rounded to bfloat16 before their sum would be off by 2e-3."""
    dim = shape[-1]
    weights, mixing = make_weights(True, "1x3x3", torch.float32, dim), Mixing(4, "hwt", "zero", affine_input, "clip")
    exact = AffineWeights(*(weight.detach().double().requires_grad_() for weight in weights))
    v, seed = (torch.randn(shape).to(dtype) for _ in range(2))

    mine = torch.autograd.grad(affine_shift(v, weights, mixing, "eager"), weights, seed)
    theirs = torch.autograd.grad(formula(v.double(), exact, mixing), exact, seed.double())

    off = [relative(*pair) for pair in zip(mine, theirs, strict=True)]
    assert max(off[:4]) < 1e-5
    assert max(off[4:]) < 5e-3


def relative(x: Tensor, wanted: Tensor) -> float:
    return ((x.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("path", PATHS)
def test_input_may_be_strided_and_gradient_expanded(path):
    weights, mixing = make_weights(True, "1x3x3"), Mixing(2, "hwt", "zero", "v", "clip")
    v = torch.randn(2, C, 3, 4, 2, dtype=torch.float64).permute(0, 2, 3, 4, 1).requires_grad_()
    z = affine_shift(v, weights, mixing, path)
    assert z.is_contiguous()
    inputs = [v, *weights]
    ours = torch.autograd.grad(z.sum(), inputs)  # sum gives an expanded gradient of stride 0
    for mine, theirs in zip(ours, torch.autograd.grad(formula(v, weights, mixing).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_frozen_weights_and_no_grad(path):
    weights, mixing = make_weights(True, "1x3x3"), Mixing(2, "hwt", "zero", "v", "clip")
    v = torch.randn(1, 2, 3, 3, C, dtype=torch.float64, requires_grad=True)
    frozen = AffineWeights(*(weight.detach() for weight in weights))
    (alone,) = torch.autograd.grad(affine_shift(v, frozen, mixing, path).square().sum(), v)
    (together,) = torch.autograd.grad(affine_shift(v, weights, mixing, path).square().sum(), v)
    torch.testing.assert_close(alone, together, rtol=0, atol=0)
    with torch.inference_mode():
        assert not affine_shift(v, weights, mixing, path).requires_grad


@pytest.mark.parametrize("kernel", ["1x3x3", "3x3x3"])
@pytest.mark.parametrize("path", PATHS)
def test_gradients_have_the_strides_of_their_parameters(path, kernel):
    """Or DDP copies them at each step, with a warning."""
    weights, mixing = make_weights(True, kernel), Mixing(2, "hwt", "zero", "v", "clip")
    v = torch.randn(2, 2, 3, 3, C, dtype=torch.float64, requires_grad=True)
    grads = torch.autograd.grad(affine_shift(v, weights, mixing, path).square().sum(), weights)
    assert [grad.stride() for grad in grads] == [weight.stride() for weight in weights]


def test_second_derivatives_are_refused_but_for_the_plain_path():
    weights, mixing = make_weights(True, "1x3x3"), Mixing(2, "hwt", "zero", "v", "clip")
    v = torch.randn(1, 2, 3, 3, C, dtype=torch.float64, requires_grad=True)
    for path in ("eager", "folded"):
        (grad,) = torch.autograd.grad(affine_shift(v, weights, mixing, path).square().sum(), v, create_graph=True)
        with pytest.raises(RuntimeError, match="twice"):
            grad.sum().backward()
    assert torch.autograd.gradgradcheck(lambda v: affine_shift(v, weights, mixing, "plain"), (v,), atol=1e-4)


def test_the_registered_operator_keeps_torch_s_rules():
    """Schema, fake tensors, autograd registration and ahead-of-time tracing agree with what runs."""
    for path, affine_input, kernel, scale in [("eager", "s", "3x3x3", True), ("folded", "v", "1x3x3", False)]:
        weights, mixing = make_weights(scale, kernel), Mixing(2, "hwt", "zero", affine_input, "clip")
        v = torch.randn(2, 3, 3, 2, C, dtype=torch.float64, requires_grad=True)
        torch.library.opcheck(operator._forward, (v, *weights, *mixing, path))


def test_the_registered_operator_refuses_second_derivatives():
    weights, mixing = make_weights(True, "1x3x3"), Mixing(2, "hwt", "zero", "v", "clip")
    v = torch.randn(1, 2, 3, 3, C, dtype=torch.float64, requires_grad=True)
    z = operator._forward(v, *weights, *mixing, "eager")[0]
    (grad,) = torch.autograd.grad(z.square().sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()


def test_the_model_compiles_without_a_graph_break():
    torch.manual_seed(0)
    model = create_model("vast_micro", 5)
    clip, graphs = torch.randn(1, 3, 8, 128, 128), []  # large enough for the folded path in the first stage

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    try:
        compiled = torch.compile(model, fullgraph=True, backend=keep)
        torch.testing.assert_close(compiled(clip), model(clip))
    finally:
        torch._dynamo.reset()
    assert len(graphs) == 1
    mixers = [node for node in graphs[0].graph.nodes if "vast.affine_shift" in str(node.target)]
    assert [node.args[-1] for node in mixers] == ["folded"] + ["eager"] * 5


def test_compiled_gradients_equal_eager_ones():
    torch.manual_seed(0)
    block = create_model("vast_micro", 5, affine_input="s", bias_kernel="3x3x3").stages[0].blocks[0]
    x = torch.randn(2, 3, 4, 4, 32)
    torch._dynamo.reset()
    try:
        outputs = [torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x)]
    finally:
        torch._dynamo.reset()
    grads = [torch.autograd.grad(y.square().sum(), list(block.parameters())) for y in outputs]
    torch.testing.assert_close(grads[0], grads[1])


def test_each_place_has_its_path():
    weights, mixing = make_weights(True, "1x3x3", torch.float32, 64), Mixing(8, "hwt", "zero", "v", "clip")
    large, small = torch.empty(2, 8, 56, 28, 64), torch.empty(2, 8, 14, 28, 64)  # one thread, see conftest
    assert choose_path(large, weights, mixing) == "folded"
    assert choose_path(small, weights, mixing) == "eager"
    shifted, between = mixing._replace(affine_input="s"), torch.empty(2, 8, 28, 28, 64)
    assert choose_path(between, weights, shifted) == "eager"
    assert choose_path(between.bfloat16(), weights, shifted) == "folded"
    assert choose_path(large, weights._replace(kernel=None, kernel_bias=None), mixing) == "eager"
    assert choose_path(large, weights, mixing._replace(border="replicate")) == "eager"
    assert choose_path(large, weights, mixing._replace(scale_pool="frame")) == "eager"
    assert choose_path(large.to("meta"), weights, mixing) == "plain"


def test_exports_to_torch_s_own_operations():
    model = create_model("vast_micro", 5).eval()
    clip = torch.randn(2, 3, 2, 32, 32)
    program = torch.export.export(model, (clip,), dynamic_shapes=({0: torch.export.Dim("clips", min=1, max=8)},))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if "vast" in name or "autocast" in name]
    more = torch.randn(3, 3, 2, 32, 32)
    torch.testing.assert_close(program.module()(more), model(more), rtol=1e-5, atol=1e-5)
