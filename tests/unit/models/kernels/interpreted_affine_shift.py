"""The fused kernels against the plain path in float64; `test_affine_shift_triton` runs this in the interpreter."""

import pytest
import torch
from torch import Tensor

from vast.models.affine_shift import affine_shift
from vast.models.kernels import affine_shift_triton as kernels
from vast.models.kernels.mixing import AffineWeights, Mixing


def relative(x: Tensor, wanted: Tensor) -> float:
    return ((x.double() - wanted).norm() / wanted.norm()).item()


def compare(v: Tensor, weights: AffineWeights, mixing: Mixing, tolerance: float) -> None:
    """Forward and every gradient, relative to float64."""
    exact = AffineWeights(*(None if w is None else w.detach().double().requires_grad_() for w in weights))
    v_exact = v.detach().double().requires_grad_()
    seed = torch.randn(v.shape).to(v.dtype)
    ours, wanted = affine_shift(v, weights, mixing, "triton"), affine_shift(v_exact, exact, mixing, "plain")
    assert relative(ours, wanted) < tolerance
    mine = torch.autograd.grad(ours, [v, *(w for w in weights if w is not None)], seed)
    theirs = torch.autograd.grad(wanted, [v_exact, *(w for w in exact if w is not None)], seed.double())
    errors = [relative(a, b) for a, b in zip(mine, theirs, strict=True)]
    assert max(errors) < 4 * tolerance, errors


def make_weights(dim: int, scale: bool = True, kernel: bool = True) -> AffineWeights:
    shapes = [(dim // 4, dim), (dim // 4,), (dim, dim // 4), (dim,), (dim, 1, 3, 3), (dim,)]
    made = [(torch.randn(shape) * 0.5).requires_grad_() for shape in shapes]
    return AffineWeights(*(made[:4] if scale else [None] * 4), *(made[4:] if kernel else [None] * 2))


@pytest.mark.parametrize("affine_input", ["v", "s"])
@pytest.mark.parametrize(
    ("shape", "width", "axes", "scale_pool"),
    [
        ((2, 2, 4, 6, 16), 2, "hwt", "clip"),  # ragged tiles
        ((2, 3, 2, 2, 16), 2, "hwt", "frame"),
        ((1, 1, 2, 17, 13), 2, "hwt", "clip"),  # one frame, two tiles of columns, odd channels
        ((1, 2, 1, 1, 8), 1, "hwt", "clip"),  # a single token a frame
        ((2, 2, 2, 3, 9), 2, "hw", "clip"),
    ],
    ids=str,
)
def test_float32_equals_the_plain_path(shape, width, axes, affine_input, scale_pool):
    torch.manual_seed(0)
    v = torch.randn(shape).requires_grad_()
    compare(v, make_weights(shape[-1]), Mixing(width, axes, "zero", affine_input, scale_pool), 2e-6)


@pytest.mark.parametrize("affine_input", ["v", "s"])
@pytest.mark.parametrize(("scale", "kernel", "width"), [(False, True, 0), (True, False, 2)])
def test_switched_off_parts(scale, kernel, width, affine_input):
    torch.manual_seed(0)
    v = torch.randn(2, 2, 4, 3, 13).requires_grad_()
    compare(
        v, make_weights(13, scale, kernel), Mixing(width, "hwt" if width else "", "zero", affine_input, "clip"), 2e-6
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("affine_input", ["v", "s"])
def test_half_precision_rounds_only_at_the_ends(affine_input, dtype):
    torch.manual_seed(0)
    v = torch.randn(1, 2, 3, 18, 64).to(dtype).requires_grad_()
    compare(v, make_weights(64), Mixing(8, "hwt", "zero", affine_input, "clip"), 5e-3)


def test_work_cut_into_many_programs_gives_the_same():
    """Several row chunks, column tiles and channel blocks, and sums over several frames."""
    torch.manual_seed(0)
    v, grad = torch.randn(1, 2, 5, 6, 20), torch.randn(1, 2, 5, 6, 20)
    weights, mixing, alpha = make_weights(20), Mixing(3, "hwt", "zero", "v", "clip"), torch.rand(1, 20)
    kernel, bias = weights.kernel.detach(), weights.kernel_bias.detach()
    results = []
    for tiles in [kernels.Tiles(8, 32, 5, 1, 4), kernels.Tiles(4, 16, 2, 2, 4)]:
        z = kernels.mix(v, alpha, kernel, bias, mixing, tiles)
        results.append((z, *kernels.weight_grads(v, grad, kernel, mixing, tiles)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_tiles_suit_the_sizes():
    for shape in [(32, 8, 56, 56, 64), (2, 8, 56, 56, 96), (1, 1, 14, 14, 320), (3, 5, 7, 7, 512), (1, 1, 1, 1, 13)]:
        for per_frame in (False, True):
            tiles = kernels.choose_tiles(torch.Size(shape), per_frame)
            assert shape[1] % tiles.frames == 0
            assert not per_frame or tiles.frames == 1
            assert 1 <= tiles.rows <= shape[2]
