"""How fast the Affine-Shift block is on a CPU: against attention, against its own naive formulation, and in T.

    python benchmarks/block_speed.py            all of it, several minutes
    python benchmarks/block_speed.py --quick    fewer rounds and sizes, about a minute

Blocks have equal width, tokens and MLP (ratio 4); `vast.models.mixers` says how the peers are built. One thread, and
the time that the thread itself ran, so that a busy machine changes little; the candidates of one comparison take turns,
each round in another order, and ratios are medians of the rounds' own ratios. Forward and backward together. With small
clips a turn of the operator is several calls, as the blocks of a stage follow each other: the first call after another
candidate's turn also pays for code and data that the caches lost.

The last line is JSON. Its keys, ratios of times unless said otherwise:

    slowest_ratio_vs_attention  smallest attention / Affine-Shift, over the attention mixers and T
    linear_in_t                 largest time(T) / (T / 8 * time(8)) of Affine-Shift
    operator_vs_naive           largest operator / naive formulation (torch's own slices, pads, NCHW convolution)
    operator_vs_one_function    largest operator / whole operator in one autograd Function, the fastest variant known
                                before `kernels.folded`

The floor: 7 memory passes (a pass reads or writes the activation once), at the speed of a copy measured beside it; in
arithmetic 6 operations a multiply-add, forward and backward together.
"""

import argparse
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vast.models.affine_shift import affine_shift
from vast.models.blocks import Block
from vast.models.cost import count_macs
from vast.models.kernels.mixing import AffineWeights, Mixing
from vast.models.shift import ShiftGroup
from vast.models.variants import ModelConfig
from vast.models.vast import init_weights

# A fresh activation must not cost a page fault for each of its pages: that would be measured instead of the work.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
ATTENTION = ("joint_attention", "divided_attention", "window_attention")
MIXERS = ("affine_shift", *ATTENTION, "conv3d")
NUM_FRAMES = (8, 16, 32, 64)
STAGES = ((2, 8, 56, 56, 64), (2, 8, 28, 28, 128), (2, 8, 14, 14, 320), (2, 8, 7, 7, 512))
"""Two clips of 8 frames of 224x224 pixels in the four stages of ast_ti and vast_ti."""
_ELSEWHERE_BYTES = 1 << 18
_TURN_VALUES = 1 << 21
"""Values that a turn of the operator goes through at least."""
FLOOR_PASSES = 7
"""Memory passes of forward and backward that no implementation goes below: 1 + 2 and 2 + 2."""


def main() -> None:
    """Measure and print tables, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute")
    quick = parser.parse_args().quick
    if any(os.environ.get(key) != value for key, value in MALLOC.items()):  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    figures = {
        "quick": quick,
        "threads": 1,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        **measure_blocks(quick),
        **measure_operator(quick),
    }
    print(json.dumps(figures))


def measure_blocks(quick: bool) -> dict[str, Any]:
    """Whole blocks for growing T, each mixer beside Affine-Shift."""
    rows, columns, dim = (14, 14, 160) if quick else (14, 14, 320)
    table: dict[int, dict[str, float]] = {}
    ratios: dict[int, dict[str, float]] = {}
    for num_frames in NUM_FRAMES:
        blocks = {mixer: make_block(mixer, dim) for mixer in MIXERS}
        x = torch.randn(1, num_frames, rows, columns, dim, requires_grad=True)
        seed = torch.randn_like(x)
        rounds = 3 if quick or num_frames > 16 else 7
        times = take_turns({mixer: partial(run_block, block, x, seed) for mixer, block in blocks.items()}, rounds)
        table[num_frames] = {mixer: statistics.median(spent) for mixer, spent in times.items()}
        ratios[num_frames] = {mixer: ratio(times[mixer], times["affine_shift"]) for mixer in MIXERS[1:]}
        cost = ", ".join(f"{mixer} {1e3 * spent:.0f} ms" for mixer, spent in table[num_frames].items())
        flops = 6 * count_macs(blocks["affine_shift"], (1, num_frames, rows, columns, dim))
        speed = flops / table[num_frames]["affine_shift"] / 1e9
        print(
            f"block {num_frames}x{rows}x{columns}x{dim}: {cost}; Affine-Shift runs at {speed:.0f} GFLOP/s", flush=True
        )
    growth = {t: table[t]["affine_shift"] / (t / 8 * table[8]["affine_shift"]) for t in NUM_FRAMES}
    return {
        "block_shape": [rows, columns, dim],
        "block_seconds": {t: rounded(row) for t, row in table.items()},
        "ratio_to_affine_shift": {t: rounded(row) for t, row in ratios.items()},
        "slowest_ratio_vs_attention": round(min(ratios[t][mixer] for t in NUM_FRAMES for mixer in ATTENTION), 3),
        "linear_in_t": round(max(growth.values()), 3),
        "growth_over_linear": rounded(growth),
    }


def run_block(block: Block, x: Tensor, seed: Tensor) -> None:
    """Forward and backward."""
    torch.autograd.grad(block(x), [x, *block.parameters()], seed)


def make_block(mixer: str, dim: int) -> Block:
    """A block of the second kind of its stage, where windows are moved."""
    block = Block(dim, 4, 0.0, ModelConfig(name="vast_ti", mixer=mixer), index=1)
    block.apply(init_weights)
    return block


def measure_operator(quick: bool) -> dict[str, Any]:
    """The mixing operator alone, from projected tokens to mixed ones, in the four stages."""
    rows: dict[str, dict[str, float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for affine_input in ("v", "s"):
            for shape in STAGES:
                label = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')} {affine_input}"
                rounds = (5 if quick else 15) * (3 if math.prod(shape) < _TURN_VALUES else 1)  # short turns: more
                rows[label] = compare_operators(shape, dtype, affine_input, rounds)
                shown = ", ".join(f"{key} {value:.2f}" for key, value in rows[label].items())
                print(f"operator {label}: {shown}", flush=True)
    defaults = [row for label, row in rows.items() if label.endswith(" v")]
    return {
        "operator_vs_naive": max(row["vs_naive"] for row in defaults),
        "operator_vs_naive_any_input": max(row["vs_naive"] for row in rows.values()),
        "operator_vs_one_function": max(row["vs_function"] for row in rows.values()),
        "operator": rows,
    }


def compare_operators(shape: tuple[int, ...], dtype: torch.dtype, affine_input: Any, rounds: int) -> dict[str, float]:
    """Times of one shape: ours against the naive formulations and the single Function, and against the byte floor."""
    dim = shape[-1]
    mixing = Mixing(dim // 8, "hwt", "zero", affine_input, "clip")
    groups = mixing.groups(shape[1])
    shapes = [(dim // 4, dim), (dim // 4,), (dim, dim // 4), (dim,), (dim, 1, 3, 3), (dim,)]
    weights = AffineWeights(*((torch.randn(size) * size[-1] ** -0.5).requires_grad_() for size in shapes))
    v = torch.randn(shape).to(dtype).requires_grad_()
    seed = torch.randn(shape).to(dtype)
    copy, leaves = torch.empty_like(seed), [v, *weights]
    candidates: dict[str, Callable[[], Any]] = {
        "ours": lambda: torch.autograd.grad(affine_shift(v, weights, mixing), leaves, seed),
        "naive": lambda: torch.autograd.grad(naive_operator(v, weights, groups, affine_input, nchw=True), leaves, seed),
        "naive_channels_last": lambda: torch.autograd.grad(
            naive_operator(v, weights, groups, affine_input, nchw=False), leaves, seed
        ),
        "function": lambda: torch.autograd.grad(OneFunction.apply(v, *weights, groups, affine_input), leaves, seed),
        "copy": lambda: copy.copy_(seed),
    }
    num_calls = max(1, _TURN_VALUES // math.prod(shape))
    times = take_turns({name: partial(repeat, call, num_calls) for name, call in candidates.items()}, rounds)
    return {
        "ms": round(1e3 * statistics.median(times["ours"]) / num_calls, 3),
        "vs_naive": round(ratio(times["ours"], times["naive"]), 3),
        "vs_naive_channels_last": round(ratio(times["ours"], times["naive_channels_last"]), 3),
        "vs_function": round(ratio(times["ours"], times["function"]), 3),
        "times_the_byte_floor": round(ratio(times["ours"], times["copy"]) / (FLOOR_PASSES / 2), 1),
        "copy_gb_per_s": round(2 * num_calls * copy.nbytes / statistics.median(times["copy"]) / 1e9, 1),
    }


def repeat(call: Callable[[], Any], num_calls: int) -> None:
    """Call so many times."""
    for _ in range(num_calls):
        call()


def naive_operator(
    v: Tensor, weights: AffineWeights, groups: tuple[ShiftGroup, ...], affine_input: str, nchw: bool
) -> Tensor:
    """The formula as one would first write it: indexed slices, pads, one cat; a convolution of NCHW frames."""
    B, T, H, W, C = v.shape
    parts = []
    for start, stop, axis, offset in groups:
        piece = v[..., start:stop]
        kept = piece.narrow(axis, max(-offset, 0), piece.shape[axis] - 1)
        parts.append(F.pad(kept, [0, 0] * (4 - axis) + ([1, 0] if offset > 0 else [0, 1])))
    s = torch.cat([*parts, v[..., groups[-1].stop :]], -1)
    u = v if affine_input == "v" else s
    hidden = F.gelu(F.linear(u.mean((1, 2, 3)).float(), weights.fc1_weight, weights.fc1_bias))
    alpha = torch.sigmoid(F.linear(hidden, weights.fc2_weight, weights.fc2_bias)).to(v.dtype)
    frames = u.reshape(B * T, H, W, C).permute(0, 3, 1, 2)
    frames = frames.contiguous() if nchw else frames
    beta = F.conv2d(frames, weights.kernel.to(v.dtype), weights.kernel_bias.to(v.dtype), padding=1, groups=C)
    return alpha[:, None, None, None] * s + beta.permute(0, 2, 3, 1).reshape(v.shape)


def slice_copies(x: Tensor, groups: tuple[ShiftGroup, ...], backward: bool) -> Tensor:
    """The shift or its transpose as one copy a group into an empty tensor, and zeros in one plane of each."""
    out = torch.empty_like(x)
    for start, stop, axis, offset in groups:
        offset = -offset if backward else offset
        piece, moved, last = x[..., start:stop], out[..., start:stop], x.shape[axis] - 1
        moved.narrow(axis, max(offset, 0), last).copy_(piece.narrow(axis, max(-offset, 0), last))
        moved.select(axis, 0 if offset > 0 else last).zero_()
    out[..., groups[-1].stop :].copy_(x[..., groups[-1].stop :])
    return out


class OneFunction(torch.autograd.Function):
    """The whole operator with a hand-written backward in separate torch calls: 8 + 14 memory passes.

    It shares no code with the package.
    """

    @staticmethod
    def forward(ctx, v, fc1, fc1_bias, fc2, fc2_bias, kernel, kernel_bias, groups, affine_input):  # noqa: D102
        s = slice_copies(v, groups, backward=False)
        u = v if affine_input == "v" else s
        mean = u.mean((1, 2, 3), dtype=torch.float32)
        before = F.linear(mean, fc1, fc1_bias)
        hidden = F.gelu(before)
        alpha = torch.sigmoid(F.linear(hidden, fc2, fc2_bias))
        frames = u.flatten(0, 1).permute(0, 3, 1, 2)
        z = F.conv2d(frames, kernel.to(v.dtype), kernel_bias.to(v.dtype), padding=1, groups=v.shape[-1])
        z = z.permute(0, 2, 3, 1).reshape(v.shape)
        ctx.save_for_backward(u, mean, before, hidden, alpha, fc1, fc2, kernel)
        ctx.groups, ctx.affine_input = groups, affine_input
        return z.addcmul_(s, alpha.to(v.dtype)[:, None, None, None])

    @staticmethod
    def backward(ctx, grad):  # noqa: D102
        u, mean, before, hidden, alpha, fc1, fc2, kernel = ctx.saved_tensors
        num_channels = grad.shape[-1]
        frames = [x.flatten(0, 1).permute(0, 3, 1, 2) for x in (grad, u)]
        du, d_kernel, d_kernel_bias = torch.ops.aten.convolution_backward(
            *(*frames, kernel.to(grad.dtype), [num_channels], [1, 1], [1, 1], [1, 1], False, [0, 0], num_channels),
            [True, True, True],
        )
        du = du.permute(0, 2, 3, 1).reshape(grad.shape)
        from_s = slice_copies(grad, ctx.groups, backward=True) if ctx.affine_input == "v" else grad
        d_out = (from_s * u).sum((1, 2, 3), dtype=torch.float32) * alpha * (1 - alpha)
        d_before = torch.ops.aten.gelu_backward(d_out @ fc2, before)
        d_mean = (d_before @ fc1 / u[0, ..., 0].numel()).to(grad.dtype)[:, None, None, None]
        du.addcmul_(from_s, alpha.to(grad.dtype)[:, None, None, None]).add_(d_mean)
        if ctx.affine_input == "s":
            du = slice_copies(du, ctx.groups, backward=True)
        d_scale = (d_before.T @ mean, d_before.sum(0), d_out.T @ hidden, d_out.sum(0))
        return du, *d_scale, d_kernel.float(), d_kernel_bias.float(), None, None


def take_turns(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every candidate in every round, after one round to warm up; each round in another order.

    What a turn allocates lies elsewhere in memory each time: fixed places favoured one candidate or the other by
    up to a tenth for the whole of a process, by which addresses happened to compete for the same sets of the caches.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name in random.sample(list(candidates), len(candidates)):
            elsewhere = torch.empty(random.randrange(1, _ELSEWHERE_BYTES), dtype=torch.uint8)
            begun = time.thread_time()
            candidates[name]()
            spent = time.thread_time() - begun
            del elsewhere
            if number:
                times[name].append(spent)
    return times


def ratio(times: list[float], others: list[float]) -> float:
    """Median over the rounds of time over time."""
    return statistics.median(mine / theirs for mine, theirs in zip(times, others, strict=True))


def rounded(row: dict[Any, float]) -> dict[Any, float]:
    """Return the figures short enough to read."""
    return {key: round(value, 4) for key, value in row.items()}


if __name__ == "__main__":
    main()
