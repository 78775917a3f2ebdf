"""The Affine-Shift operator with a backward of its own, and the choice among its implementations.

To autograd it is one Function. To torch.compile it is a registered operator, `vast::affine_shift`: one opaque node
instead of a graph break, or of code that a compiler makes slower. Both run the same two functions below.

Dimensions: B clips · T frames · H rows · W columns · C channels · R rows of means, one a clip or one a frame.
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from vast.models.kernels import eager, folded
from vast.models.kernels.mixing import AffineWeights, Mixing, wide_type
from vast.models.kernels.scale import Scale


class Kernels(Protocol):
    """What every implementation other than plain offers. Tokens are contiguous, and autocast is off."""

    def forward(self, v_BTHWC: Tensor, weights: AffineWeights, mixing: Mixing) -> tuple[Tensor, Tensor, Tensor, Scale]:
        """z; the tokens that backward needs, v or others; the means; and what the scale's network made of them."""

    def backward(
        self,
        grad_BTHWC: Tensor,
        kept_BTHWC: Tensor,
        pooled_RC: Tensor,
        scale: Scale,
        weights: AffineWeights,
        mixing: Mixing,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients of v and of the six weights, in any floating-point type; none where there is no weight."""


Path = Literal["plain", "eager", "folded", "triton"]

_HAS_TRITON = importlib.util.find_spec("triton") is not None  # looked up once: a compiler cannot trace the search
_FOLD_MIN_VALUES = 1 << 18
"""Values of one clip for each thread from which folding saved time when measured; twice that with u = s in float32."""


def choose_path(v_BTHWC: Tensor, weights: AffineWeights, mixing: Mixing) -> Path:
    """Which implementation runs where nothing else is asked for.

    - plain: torch's own operations under autograd; when exporting, and on the meta device (to count costs)
    - triton: the fused kernels; on a GPU with Triton, for zero borders and a 1x3x3 kernel or none
    - folded: on a CPU, for zero borders, clips pooled whole and a kernel, where clips are not tiny
    - eager: everything else
    """
    if torch.compiler.is_exporting() or v_BTHWC.device.type == "meta":
        return "plain"
    if mixing.border != "zero":
        return "eager"
    if v_BTHWC.device.type == "cpu":
        fits = weights.kernel is not None and mixing.scale_pool == "clip"
        return "folded" if fits and _folding_pays(v_BTHWC, mixing) else "eager"
    fits = (weights.kernel is None or weights.kernel.ndim == 4) and v_BTHWC.dtype != torch.float64
    fits = fits and mixing.axes in ("", "hw", "hwt")  # the kernels tell a channel's direction by its number
    return "triton" if v_BTHWC.is_cuda and fits and why_not_fused() is None else "eager"


def _folding_pays(v_BTHWC: Tensor, mixing: Mixing) -> bool:
    """Whether a clip is large enough for a convolution of its own that feeds every thread."""
    values: int = v_BTHWC.numel() // v_BTHWC.shape[0] // _num_threads()
    cheap = mixing.affine_input == "v" or v_BTHWC.element_size() == 2  # sums in half precision are slow
    return values >= (_FOLD_MIN_VALUES if cheap else 2 * _FOLD_MIN_VALUES)


def _num_threads() -> int:
    return torch.get_num_threads()


# What torch.compiler.assume_constant_result does, which would also import torch._dynamo: a second for each process.
_num_threads._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_not_fused() -> str | None:
    """Why GPUs would run without the fused kernels, in words for people; none if they are there."""
    if not _HAS_TRITON:
        return "Triton is not installed, so the Affine-Shift block runs as separate GPU operations (pip install triton)"
    return None


def mix_tokens(v_BTHWC: Tensor, weights: AffineWeights, mixing: Mixing, path: Path) -> Tensor:
    """Run one of the implementations other than plain on v; differentiable once."""
    if torch.compiler.is_compiling():
        return cast(Tensor, _forward(v_BTHWC, *weights, *mixing, path)[0])
    # The registered operator costs about 0.1 ms a block more, which small models on a CPU would feel.
    return cast(Tensor, _Mix.apply(v_BTHWC, *weights, mixing, _kernels(path)))  # type: ignore[no-untyped-call]  # as torch has it


def _no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    device = x.device.type  # entering autocast costs more than asking, which small models on a CPU would feel
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _kernels(path: str) -> Kernels:
    if path == "triton":
        from vast.models.kernels import affine_shift_triton  # here: Triton is only where GPUs are

        return affine_shift_triton
    return folded if path == "folded" else eager


def _run_forward(
    v_BTHWC: Tensor, weights: AffineWeights, mixing: Mixing, kernels: Kernels
) -> tuple[Tensor, Tensor, Tensor, Scale]:
    """`Kernels.forward` of tokens as they come."""
    with _no_autocast(v_BTHWC):
        z_BTHWC, kept_BTHWC, pooled_RC, scale = kernels.forward(v_BTHWC.contiguous(), weights, mixing)
    return z_BTHWC.contiguous(), kept_BTHWC, pooled_RC, scale


def _run_backward(
    grad_BTHWC: Tensor,
    kept_BTHWC: Tensor,
    pooled_RC: Tensor,
    scale: Scale,
    weights: AffineWeights,
    mixing: Mixing,
    kernels: Kernels,
) -> tuple[Tensor, list[Tensor | None]]:
    """`Kernels.backward` of a gradient as it comes; those of the weights as they are expected."""
    with _no_autocast(grad_BTHWC):
        d_v, d_weights = kernels.backward(grad_BTHWC.contiguous(), kept_BTHWC, pooled_RC, scale, weights, mixing)
    d_weights = [
        None if weight is None or d_weight is None else _laid_out_as(weight, d_weight)
        for weight, d_weight in zip(weights, d_weights, strict=True)
    ]
    return d_v.contiguous(), d_weights


def _laid_out_as(weight: Tensor, d_weight: Tensor) -> Tensor:
    """The gradient in the parameter's type and with its own strides, on axes of length 1 too: DDP asks for them."""
    if d_weight.dtype != weight.dtype:
        d_weight = d_weight.to(weight.dtype)
    return d_weight if d_weight.stride() == weight.stride() else d_weight.reshape(-1).view(weight.shape)


class _Mix(torch.autograd.Function):
    """The operator to autograd, without the registered one's flat arguments."""

    @staticmethod
    def forward(ctx: Any, v_BTHWC: Tensor, *rest: Any) -> Tensor:
        *weights, ctx.mixing, ctx.kernels = rest
        z_BTHWC, kept_BTHWC, pooled_RC, scale = _run_forward(v_BTHWC, AffineWeights(*weights), ctx.mixing, ctx.kernels)
        ctx.save_for_backward(kept_BTHWC, pooled_RC, *scale, *weights)
        return z_BTHWC

    @staticmethod
    def backward(ctx: Any, grad_BTHWC: Tensor) -> tuple[Tensor | None, ...]:
        # Only where second derivatives can be asked for do they have to be refused.
        return (_differentiate_once if torch.is_grad_enabled() else _differentiate)(ctx, grad_BTHWC)


def _differentiate(ctx: Any, grad_BTHWC: Tensor) -> tuple[Tensor | None, ...]:
    kept_BTHWC, pooled_RC, alpha_RC, before, hidden, *weights = ctx.saved_tensors
    scale = Scale(alpha_RC, before, hidden)
    d_v, d_weights = _run_backward(
        grad_BTHWC, kept_BTHWC, pooled_RC, scale, AffineWeights(*weights), ctx.mixing, ctx.kernels
    )
    return d_v, *d_weights, None, None


_differentiate_once = torch.autograd.function.once_differentiable(_differentiate)


# --- registered, for torch.compile: plain values in, tensors out ------------------------------------------------------


def _keeps_more(affine_input: str, path: str) -> bool:
    """Whether backward needs other tokens than v."""
    return affine_input == "s" and path != "triton"


def _flat_forward(
    v_BTHWC: Tensor,
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    kernel: Tensor | None,
    kernel_bias: Tensor | None,
    group_width: int,
    axes: str,
    border: str,
    affine_input: str,
    scale_pool: str,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`_run_forward`; what is not there is an empty tensor."""
    weights = AffineWeights(fc1_weight, fc1_bias, fc2_weight, fc2_bias, kernel, kernel_bias)
    mixing = Mixing(group_width, axes, border, affine_input, scale_pool)  # type: ignore[arg-type]  # schema
    z_BTHWC, kept_BTHWC, pooled_RC, scale = _run_forward(v_BTHWC, weights, mixing, _kernels(path))
    # an operator's results must not be its arguments: an empty tensor stands for v
    return z_BTHWC, kept_BTHWC if _keeps_more(affine_input, path) else v_BTHWC.new_empty(0), pooled_RC, *scale


def _flat_backward(
    grad_BTHWC: Tensor,
    kept_BTHWC: Tensor,
    pooled_RC: Tensor,
    alpha_RC: Tensor,
    before: Tensor,
    hidden: Tensor,
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    kernel: Tensor | None,
    kernel_bias: Tensor | None,
    group_width: int,
    axes: str,
    border: str,
    affine_input: str,
    scale_pool: str,
    path: str,
) -> list[Tensor]:
    """`_run_backward`; what is not there is an empty tensor."""
    weights = AffineWeights(fc1_weight, fc1_bias, fc2_weight, fc2_bias, kernel, kernel_bias)
    mixing = Mixing(group_width, axes, border, affine_input, scale_pool)  # type: ignore[arg-type]  # schema
    scale = Scale(alpha_RC, before, hidden)
    d_v, d_weights = _run_backward(
        grad_BTHWC, kept_BTHWC.contiguous(), pooled_RC, scale, weights, mixing, _kernels(path)
    )
    return [d_v, *(grad_BTHWC.new_empty(0) if d_weight is None else d_weight for d_weight in d_weights)]


_forward = torch.library.custom_op("vast::affine_shift", _flat_forward, mutates_args=())
_backward = torch.library.custom_op("vast::affine_shift_backward", _flat_backward, mutates_args=())


@_forward.register_fake
def _forward_fake(v_BTHWC: Tensor, fc1_weight: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    affine_input, scale_pool, path = rest[-3:]
    B, T, _, _, C = v_BTHWC.shape
    num_rows, wide = B * T if scale_pool == "frame" else B, wide_type(v_BTHWC)
    kept = v_BTHWC.new_empty(v_BTHWC.shape if _keeps_more(affine_input, path) else 0)
    pooled_RC, alpha_RC = (v_BTHWC.new_empty((num_rows, C), dtype=wide) for _ in range(2))
    inner = 0 if fc1_weight is None else (num_rows, fc1_weight.shape[0])
    before, hidden = (v_BTHWC.new_empty(inner, dtype=wide) for _ in range(2))
    return v_BTHWC.new_empty(v_BTHWC.shape), kept, pooled_RC, alpha_RC, before, hidden


@_backward.register_fake
def _backward_fake(grad_BTHWC: Tensor, *rest: Any) -> list[Tensor]:
    weights = rest[5:11]
    d_weights = [grad_BTHWC.new_empty(0) if weight is None else weight.new_empty(weight.shape) for weight in weights]
    return [grad_BTHWC.new_empty(grad_BTHWC.shape), *d_weights]


def _save_registered(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    v_BTHWC, weights, ctx.switches = inputs[0], inputs[1:7], inputs[7:]
    _, kept, *small = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(kept if kept.numel() else v_BTHWC, *small, *weights)


def _differentiate_registered(ctx: Any, grad_BTHWC: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * len(ctx.switches)
    if grad_BTHWC is None:
        return (None,) * 7 + nothing
    saved = ctx.saved_tensors
    d_v, *d_weights = _backward(grad_BTHWC, *saved, *ctx.switches)
    found = [None if weight is None else d_weight for weight, d_weight in zip(saved[-6:], d_weights, strict=True)]
    return d_v, *found, *nothing


def _refuse(ctx: Any, *_: Any) -> None:
    raise RuntimeError("affine_shift is differentiable once; for second derivatives ask for path='plain'")


_forward.register_autograd(_differentiate_registered, setup_context=_save_registered)
_backward.register_autograd(_refuse)
