"""On a real GPU: every implementation of the operator against float64, and a whole model against the CPU."""

import copy

import pytest
import torch
from torch import Tensor

from vast.models import create_model
from vast.models.affine_shift import affine_shift
from vast.models.kernels.mixing import AffineWeights, Mixing
from vast.models.kernels.operator import choose_path, why_not_fused

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
STAGES = [(2, 8, 56, 56, 64), (2, 8, 28, 28, 128), (2, 8, 14, 14, 320), (2, 8, 7, 7, 512), (1, 3, 13, 17, 96)]


def relative(x: Tensor, wanted: Tensor) -> float:
    return ((x.double() - wanted).norm() / wanted.norm()).item()


def make_weights(dim: int) -> AffineWeights:
    shapes = [(dim // 4, dim), (dim // 4,), (dim, dim // 4), (dim,), (dim, 1, 3, 3), (dim,)]
    return AffineWeights(*((torch.randn(shape, device="cuda") * 0.3).requires_grad_() for shape in shapes))


@pytest.mark.parametrize("path", ["plain", "eager", "triton"])
@pytest.mark.parametrize("scale_pool", ["clip", "frame"])
@pytest.mark.parametrize("affine_input", ["v", "s"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)], ids=str)
@pytest.mark.parametrize("shape", STAGES, ids=str)
def test_forward_and_gradients_are_near_float64(shape, dtype, tolerance, affine_input, scale_pool, path):
    if path == "triton" and why_not_fused():
        pytest.skip(str(why_not_fused()))
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    weights, mixing = make_weights(shape[-1]), Mixing(shape[-1] // 8, "hwt", "zero", affine_input, scale_pool)
    v = torch.randn(shape, device="cuda").to(dtype).requires_grad_()
    seed = torch.randn(shape, device="cuda").to(dtype)
    exact = AffineWeights(*(w.detach().double().requires_grad_() for w in weights))
    v_exact = v.detach().double().requires_grad_()

    ours, wanted = affine_shift(v, weights, mixing, path), affine_shift(v_exact, exact, mixing, "plain")

    assert relative(ours, wanted) < tolerance
    mine = torch.autograd.grad(ours, [v, *weights], seed)
    theirs = torch.autograd.grad(wanted, [v_exact, *exact], seed.double())
    errors = [relative(a, b) for a, b in zip(mine, theirs, strict=True)]
    assert max(errors) < 4 * tolerance, errors


def test_a_gpu_with_triton_runs_the_fused_kernels():
    v = torch.empty(1, 2, 4, 4, 64, device="cuda")
    weights, mixing = make_weights(64), Mixing(8, "hwt", "zero", "v", "clip")
    assert choose_path(v, weights, mixing) == ("eager" if why_not_fused() else "triton")
    assert choose_path(v, weights, mixing._replace(border="replicate")) == "eager"
    assert choose_path(v.double(), weights, mixing) == "eager"


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_gives_the_same_on_both_devices(compiled):
    torch.manual_seed(0)
    model = create_model("vast_micro", 5)
    clip = torch.randn(2, 3, 4, 64, 64)
    on_gpu = copy.deepcopy(model).cuda()
    runner = torch.compile(on_gpu, fullgraph=True) if compiled else on_gpu
    ours, wanted = runner(clip.cuda()), model(clip)
    torch.testing.assert_close(ours.cpu(), wanted, rtol=1e-3, atol=1e-3)
    ours.square().sum().backward()
    wanted.square().sum().backward()
    for (name, mine), theirs in zip(on_gpu.named_parameters(), model.parameters(), strict=True):
        assert relative(mine.grad.cpu(), theirs.grad.double()) < 1e-2, name
