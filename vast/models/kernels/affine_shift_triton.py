"""The operator as four fused GPU kernels: the shift is never written to memory, and sums are in float32.

    pool          sums of u, straight from v                               reads v                   1 memory pass
    mix           the 3x3 stencil, with alpha on one of its taps           reads v, writes z         2
    weight_grads  the sums behind the gradients of kernel, bias, alpha     reads v and dz            2
    value_grad    the same stencil, mirrored, of dz                        reads dz, writes dv       2

Forward and backward take 7 passes in all, against 22 of `eager`. As in `folded`, alpha * s is one more weight on one
tap: the centre where u = s, and else the neighbour that the channel's group comes from; only the temporal groups of v
are read once more, from the next frame. Where u = s each load is displaced by its channel's own offset, under two
masks: the token must be inside the grid (padding of the convolution) and so must the token it came from (zeros of the
shift).

A program of `_stencil` owns some columns and channels of a frame and walks down its rows with three rows of sums, so
that a row is loaded for its three columns but not again for its neighbour rows. Zero borders, a 1x3x3 kernel, and
float32 or half precision only; `operator.choose_path` knows.

Dimensions: B clips · T frames (or 1) · H rows · W columns · C channels · R rows of means · K taps · P programs.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]  # installed where GPUs are
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from vast.models.kernels.mixing import AffineWeights, Mixing
from vast.models.kernels.scale import Scale, scale_grads, scale_of
from vast.models.shift import T_AXIS

_NUM_TAPS = 9
_WANTED_PROGRAMS = 528  # four for each of the 132 multiprocessors of a Hopper GPU


class Tiles(NamedTuple):
    """How the work is cut into programs."""

    columns: int
    """Columns of a program; a power of two."""
    channels: int
    """Channels of a program; a power of two."""
    rows: int
    """Rows that a program walks down; each program reads one more above and below."""
    frames: int
    """Frames whose sums one program of weight_grads adds up."""
    num_warps: int


def choose_tiles(shape: torch.Size, per_frame: bool) -> Tiles:
    """Tiles by the arithmetic of instructions and padding, not yet by measurement: see `benchmarks/gpu_speed.py`."""
    B, T, H, W, C = shape
    columns = 16 if W > 8 else 8
    channels = 64 if C % 64 == 0 else 32
    across = triton.cdiv(C, channels) * triton.cdiv(W, columns)
    rows = min(H, 28)
    while rows > 7 and B * T * across * triton.cdiv(H, rows) < _WANTED_PROGRAMS:
        rows = triton.cdiv(rows, 2)
    frames = 1
    whole = B * T * triton.cdiv(C, channels) * triton.cdiv(H, rows)
    while not per_frame and frames < 4 and T % (2 * frames) == 0 and whole // (2 * frames) >= _WANTED_PROGRAMS:
        frames *= 2
    return Tiles(columns, channels, rows, frames, num_warps=4)


@triton.jit
def _offsets(c, GROUP: tl.constexpr, DIRECTIONS: tl.constexpr):
    """Frame, row and column that each channel moves by, by the fixed order H+ H- W+ W- T+ T-."""
    group = c // GROUP
    rows = tl.where(group == 0, 1, 0) - tl.where(group == 1, 1, 0)
    columns = tl.where(group == 2, 1, 0) - tl.where(group == 3, 1, 0)
    frames = tl.where(group == 4, 1, 0) - tl.where(group == 5, 1, 0)
    moves = group < DIRECTIONS
    return tl.where(moves, frames, 0), tl.where(moves, rows, 0), tl.where(moves, columns, 0)


@triton.jit
def _load(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _row(
    x, t, r, w, c, dt, dr, dw, inside, T, H, W, C,
    DISPLACED: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Row r of one frame at columns w and channels c, each channel displaced by its own offset if asked for."""
    if DISPLACED:
        from_t, from_r, from_w = t - dt, r - dr, w - dw
        mask = inside & (from_t >= 0) & (from_t < T) & (from_r >= 0) & (from_r < H) & (from_w >= 0) & (from_w < W)
        if PADDED:
            mask = mask & (r >= 0) & (r < H) & (w >= 0) & (w < W)
    else:
        from_t, from_r, from_w = t, r, w
        mask = inside & (r >= 0) & (r < H) & (w >= 0) & (w < W)
    return _load(x + ((from_t * H + from_r) * W + from_w) * C + c, mask)


@triton.jit
def _fold(weight, alpha, tap, number: tl.constexpr):
    """One tap's weight, with alpha on it where it is the channel's own."""
    return weight + tl.where(tap == number, alpha, 0.0)


@triton.jit
def _pool(
    v_ptr, sums_ptr, H, W, C, num_tokens,
    GROUP: tl.constexpr, DIRECTIONS: tl.constexpr, FROM_SHIFTED: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """sums_PC: of some tokens of a frame; those that the shift in space pushes out do not count."""
    frame, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    frame_ptr = v_ptr + frame.to(tl.int64) * (H * W * C)
    _, dr, dw = _offsets(c, GROUP, DIRECTIONS)
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for start in range(part * num_tokens, (part + 1) * num_tokens, TOKENS):
        n = start + tl.arange(0, TOKENS)[:, None]
        mask = (n < tl.minimum((part + 1) * num_tokens, H * W)) & (c < C)
        if FROM_SHIFTED:
            to_r, to_w = n // W + dr, n % W + dw
            mask = mask & (to_r >= 0) & (to_r < H) & (to_w >= 0) & (to_w < W)
        total += _load(frame_ptr + n * C + c, mask)
    row = sums_ptr + (frame * parts + part) * C
    tl.store(row + c, tl.sum(total, axis=0)[None, :], mask=c < C)


@triton.jit
def _stencil(
    x_ptr, out_ptr, weight_ptr, alpha_ptr, bias_ptr, T, H, W, C,
    alpha_clip_stride, alpha_frame_stride, bias_clip_stride, bias_frame_stride,
    GROUP: tl.constexpr, DIRECTIONS: tl.constexpr, FROM_SHIFTED: tl.constexpr, BACKWARD: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Bias + stencil of x with 9 weights a channel and alpha on one of them; see the top of the file.

    Backward, x is the gradient of z, the weights are mirrored, the bias is the gradient of the mean, and tokens are
    taken from where they went.
    """
    clip, t = tl.program_id(0) // T, tl.program_id(0) % T
    column_tiles = tl.cdiv(W, COLUMNS)
    first_row = (tl.program_id(1) // column_tiles) * ROWS
    w = (tl.program_id(1) % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (c < C) & (w < W)
    x = x_ptr + clip.to(tl.int64) * T * (H * W * C)
    out = out_ptr + (clip.to(tl.int64) * T + t) * (H * W * C)

    dt, dr, dw = _offsets(c, GROUP, DIRECTIONS)
    if BACKWARD:
        dt, dr, dw = -dt, -dr, -dw
    source_t = tl.minimum(tl.maximum(t - dt, 0), T - 1)
    # Forward, alpha belongs to the frame it is used in; backward, to the frame the gradient comes from.
    alpha_t = source_t if BACKWARD else t + dt * 0
    bias_t = source_t if BACKWARD and FROM_SHIFTED else t + dt * 0
    alpha = _load(alpha_ptr + clip * alpha_clip_stride + alpha_t * alpha_frame_stride + c, c < C)
    bias = _load(bias_ptr + clip * bias_clip_stride + bias_t * bias_frame_stride + c, c < C)
    tap = 4 + dt * 0 if FROM_SHIFTED else tl.where(dt == 0, 4 - 3 * dr - dw, -1)
    w0 = _fold(_load(weight_ptr + 0 * C + c, c < C), alpha, tap, 0)
    w1 = _fold(_load(weight_ptr + 1 * C + c, c < C), alpha, tap, 1)
    w2 = _fold(_load(weight_ptr + 2 * C + c, c < C), alpha, tap, 2)
    w3 = _fold(_load(weight_ptr + 3 * C + c, c < C), alpha, tap, 3)
    w4 = _fold(_load(weight_ptr + 4 * C + c, c < C), alpha, tap, 4)
    w5 = _fold(_load(weight_ptr + 5 * C + c, c < C), alpha, tap, 5)
    w6 = _fold(_load(weight_ptr + 6 * C + c, c < C), alpha, tap, 6)
    w7 = _fold(_load(weight_ptr + 7 * C + c, c < C), alpha, tap, 7)
    w8 = _fold(_load(weight_ptr + 8 * C + c, c < C), alpha, tap, 8)

    has_temporal = (tl.program_id(2) * CHANNELS < 6 * GROUP) & ((tl.program_id(2) + 1) * CHANNELS > 4 * GROUP)
    above = tl.zeros((COLUMNS, CHANNELS), tl.float32)  # sums of output row r - 1, complete after input row r
    here = tl.zeros((COLUMNS, CHANNELS), tl.float32) + bias
    for r in range(first_row - 1, tl.minimum(first_row + ROWS, H) + 1):
        left = _row(x, t, r, w - 1, c, dt, dr, dw, inside, T, H, W, C, FROM_SHIFTED, not BACKWARD)
        middle = _row(x, t, r, w, c, dt, dr, dw, inside, T, H, W, C, FROM_SHIFTED, not BACKWARD)
        right = _row(x, t, r, w + 1, c, dt, dr, dw, inside, T, H, W, C, FROM_SHIFTED, not BACKWARD)
        above = tl.fma(left, w6, tl.fma(middle, w7, tl.fma(right, w8, above)))
        here = tl.fma(left, w3, tl.fma(middle, w4, tl.fma(right, w5, here)))
        below = tl.fma(left, w0, tl.fma(middle, w1, tl.fma(right, w2, bias)))
        row = r - 1
        # The temporal groups of v come from the neighbouring frame. The first condition is decided when compiling.
        if DIRECTIONS == 6 and not FROM_SHIFTED:  # noqa: SIM102
            if has_temporal:
                temporal = inside & (dt != 0) & (t - dt >= 0) & (t - dt < T) & (row >= first_row)
                above = tl.fma(_load(x + (((t - dt) * H + row) * W + w) * C + c, temporal), alpha, above)
        stored = inside & (row >= first_row)
        if BACKWARD and FROM_SHIFTED:  # what the shift pushed out of the grid gets no gradient
            arrived = (row - dr >= 0) & (row - dr < H) & (w - dw >= 0) & (w - dw < W) & (t - dt >= 0) & (t - dt < T)
            above = tl.where(arrived, above, 0.0)
        tl.store(out + (row * W + w) * C + c, above.to(out_ptr.dtype.element_ty), mask=stored)
        above, here = here, below


@triton.jit
def _tap_sums(
    x_ptr, grad_ptr, sums_ptr, T, H, W, C,
    GROUP: tl.constexpr, DIRECTIONS: tl.constexpr, FROM_SHIFTED: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, FRAMES: tl.constexpr,
):  # fmt: skip
    """sums_PKC over some rows of some frames: of grad * u at the 9 taps, of grad, and of grad * moved frames."""
    first_frame = tl.program_id(0) * FRAMES
    clip = first_frame // T
    first_row = tl.program_id(1) * ROWS
    last_row = tl.minimum(first_row + ROWS, H)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    x = x_ptr + clip.to(tl.int64) * T * (H * W * C)
    grad = grad_ptr + clip.to(tl.int64) * T * (H * W * C)
    dt, dr, dw = _offsets(c, GROUP, DIRECTIONS)
    has_temporal = (tl.program_id(2) * CHANNELS < 6 * GROUP) & ((tl.program_id(2) + 1) * CHANNELS > 4 * GROUP)
    zero = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7, s8, total, moved = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    for tile in range(FRAMES * tl.cdiv(W, COLUMNS)):
        t = first_frame % T + tile % FRAMES
        w = (tile // FRAMES) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
        inside = (c < C) & (w < W)
        above = zero  # the gradient at row r - 1
        here = zero
        for r in range(first_row - 1, last_row + 1):
            below = _load(grad + ((t * H + r + 1) * W + w) * C + c, inside & (r + 1 >= first_row) & (r + 1 < last_row))
            left = _row(x, t, r, w - 1, c, dt, dr, dw, inside, T, H, W, C, FROM_SHIFTED, True)
            middle = _row(x, t, r, w, c, dt, dr, dw, inside, T, H, W, C, FROM_SHIFTED, True)
            right = _row(x, t, r, w + 1, c, dt, dr, dw, inside, T, H, W, C, FROM_SHIFTED, True)
            s0, s1, s2 = tl.fma(left, below, s0), tl.fma(middle, below, s1), tl.fma(right, below, s2)
            s3, s4, s5 = tl.fma(left, here, s3), tl.fma(middle, here, s4), tl.fma(right, here, s5)
            s6, s7, s8 = tl.fma(left, above, s6), tl.fma(middle, above, s7), tl.fma(right, above, s8)
            total += below
            if DIRECTIONS == 6 and not FROM_SHIFTED:  # noqa: SIM102
                if has_temporal:
                    temporal = inside & (dt != 0) & (t - dt >= 0) & (t - dt < T) & (r >= first_row) & (r < last_row)
                    moved = tl.fma(_load(x + (((t - dt) * H + r) * W + w) * C + c, temporal), here, moved)
            above, here = here, below
    row = sums_ptr + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * 11 * C + c
    tl.store(row + 0 * C, tl.sum(s0, axis=0)[None, :], mask=c < C)
    tl.store(row + 1 * C, tl.sum(s1, axis=0)[None, :], mask=c < C)
    tl.store(row + 2 * C, tl.sum(s2, axis=0)[None, :], mask=c < C)
    tl.store(row + 3 * C, tl.sum(s3, axis=0)[None, :], mask=c < C)
    tl.store(row + 4 * C, tl.sum(s4, axis=0)[None, :], mask=c < C)
    tl.store(row + 5 * C, tl.sum(s5, axis=0)[None, :], mask=c < C)
    tl.store(row + 6 * C, tl.sum(s6, axis=0)[None, :], mask=c < C)
    tl.store(row + 7 * C, tl.sum(s7, axis=0)[None, :], mask=c < C)
    tl.store(row + 8 * C, tl.sum(s8, axis=0)[None, :], mask=c < C)
    tl.store(row + 9 * C, tl.sum(total, axis=0)[None, :], mask=c < C)
    tl.store(row + 10 * C, tl.sum(moved, axis=0)[None, :], mask=c < C)


def forward(v_BTHWC: Tensor, weights: AffineWeights, mixing: Mixing) -> tuple[Tensor, Tensor, Tensor, Scale]:
    """See `Kernels`; keeps v, since every kernel displaces its own loads."""
    pooled_RC = pool(v_BTHWC, mixing)
    scale = scale_of(pooled_RC, weights)
    z_BTHWC = mix(v_BTHWC, scale.alpha_RC, weights.kernel, weights.kernel_bias, mixing)
    return z_BTHWC, v_BTHWC, pooled_RC, scale


def backward(
    grad_BTHWC: Tensor, v_BTHWC: Tensor, pooled_RC: Tensor, scale: Scale, weights: AffineWeights, mixing: Mixing
) -> tuple[Tensor, list[Tensor | None]]:
    """See `Kernels`."""
    d_alpha_RC, d_kernel, d_bias = weight_grads(v_BTHWC, grad_BTHWC, weights.kernel, mixing)
    d_mean_RC, d_scale = scale_grads(pooled_RC, scale, d_alpha_RC, weights, grad_BTHWC.numel() // pooled_RC.numel())
    d_BTHWC = value_grad(grad_BTHWC, scale.alpha_RC, d_mean_RC, weights.kernel, mixing)
    return d_BTHWC, [*d_scale, d_kernel, d_bias]


def pool(v_BTHWC: Tensor, mixing: Mixing) -> Tensor:
    """pooled_RC, the mean of u over the tokens of each clip or frame."""
    B, T, H, W, C = v_BTHWC.shape
    channels = 64 if C % 64 == 0 else 32
    tokens = 32
    parts = min(triton.cdiv(H * W, tokens), max(1, triton.cdiv(_WANTED_PROGRAMS, B * T * triton.cdiv(C, channels))))
    num_tokens = triton.cdiv(triton.cdiv(H * W, parts), tokens) * tokens
    parts = triton.cdiv(H * W, num_tokens)
    sums_BTPC = v_BTHWC.new_empty((B, T, parts, C), dtype=torch.float32)
    with _device_of(v_BTHWC):
        _pool[(B * T, parts, triton.cdiv(C, channels))](
            *(v_BTHWC, sums_BTPC, H, W, C, num_tokens),
            **_shift_constants(mixing, T), FROM_SHIFTED=mixing.affine_input == "s", TOKENS=tokens, CHANNELS=channels,
            num_warps=4,
        )  # fmt: skip
    sums_BTC = sums_BTPC.sum(2)
    if mixing.affine_input == "s":
        sums_BTC = _move_frames(sums_BTC, mixing)
    if mixing.scale_pool == "frame":
        return sums_BTC.flatten(0, 1) / (H * W)
    return sums_BTC.sum(1) / (T * H * W)


def mix(
    v_BTHWC: Tensor,
    alpha_RC: Tensor,
    kernel: Tensor | None,
    kernel_bias: Tensor | None,
    mixing: Mixing,
    tiles: Tiles | None = None,
) -> Tensor:
    """z_BTHWC."""
    C = v_BTHWC.shape[-1]
    bias_C = alpha_RC.new_zeros(C) if kernel_bias is None else kernel_bias.to(alpha_RC.dtype)
    return _run_stencil(v_BTHWC, _taps(kernel, alpha_RC), alpha_RC, bias_C.view(1, 1, C), mixing, False, tiles)


def weight_grads(
    v_BTHWC: Tensor,
    grad_BTHWC: Tensor,
    kernel: Tensor | None,
    mixing: Mixing,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of alpha, kernel and bias from that of z."""
    B, T, H, W, C = v_BTHWC.shape
    per_frame = mixing.scale_pool == "frame"
    tiles = tiles or choose_tiles(v_BTHWC.shape, per_frame)
    parts = triton.cdiv(H, tiles.rows)
    sums = v_BTHWC.new_empty((B, T // tiles.frames, parts, _NUM_TAPS + 2, C), dtype=torch.float32)
    with _device_of(v_BTHWC):
        _tap_sums[(B * T // tiles.frames, parts, triton.cdiv(C, tiles.channels))](
            *(v_BTHWC, grad_BTHWC, sums, T, H, W, C),
            **_shift_constants(mixing, T), FROM_SHIFTED=mixing.affine_input == "s",
            COLUMNS=tiles.columns, CHANNELS=tiles.channels, ROWS=tiles.rows, FRAMES=tiles.frames,
            num_warps=tiles.num_warps,
        )  # fmt: skip
    sums_BTKC = sums.sum(2) if per_frame else sums.sum((1, 2)).unsqueeze(1)
    d_alpha_BTC = sums_BTKC[:, :, _NUM_TAPS // 2].clone()
    if mixing.affine_input == "v":
        for start, stop, axis, offset in mixing.groups(T):
            tap = _NUM_TAPS + 1 if axis == T_AXIS else _NUM_TAPS // 2 - offset * 3 ** (3 - axis)
            d_alpha_BTC[..., start:stop] = sums_BTKC[:, :, tap, start:stop]
    if kernel is None:
        return d_alpha_BTC.flatten(0, 1), None, None
    sums_KC = sums_BTKC.sum((0, 1))
    return d_alpha_BTC.flatten(0, 1), sums_KC[:_NUM_TAPS].T.reshape(kernel.shape), sums_KC[_NUM_TAPS]


def value_grad(
    grad_BTHWC: Tensor,
    alpha_RC: Tensor,
    d_mean_RC: Tensor,
    kernel: Tensor | None,
    mixing: Mixing,
    tiles: Tiles | None = None,
) -> Tensor:
    """Gradient of v."""
    mirrored = _taps(kernel, alpha_RC).flip(0)
    d_mean_BTC = d_mean_RC.view(grad_BTHWC.shape[0], -1, grad_BTHWC.shape[-1])
    return _run_stencil(grad_BTHWC, mirrored, alpha_RC, d_mean_BTC, mixing, True, tiles)


def _run_stencil(
    x_BTHWC: Tensor,
    taps_KC: Tensor,
    alpha_RC: Tensor,
    bias_BTC: Tensor,
    mixing: Mixing,
    backward: bool,
    tiles: Tiles | None,
) -> Tensor:
    B, T, H, W, C = x_BTHWC.shape
    tiles = tiles or choose_tiles(x_BTHWC.shape, mixing.scale_pool == "frame")
    out_BTHWC = torch.empty_like(x_BTHWC)
    grid = (B * T, triton.cdiv(H, tiles.rows) * triton.cdiv(W, tiles.columns), triton.cdiv(C, tiles.channels))
    alpha_BTC, bias_BTC = alpha_RC.contiguous().view(B, -1, C), bias_BTC.contiguous()
    with _device_of(x_BTHWC):
        _stencil[grid](
            *(x_BTHWC, out_BTHWC, taps_KC.contiguous(), alpha_BTC, bias_BTC, T, H, W, C),
            *(*_row_strides(alpha_BTC), *_row_strides(bias_BTC)),
            **_shift_constants(mixing, T), FROM_SHIFTED=mixing.affine_input == "s", BACKWARD=backward,
            COLUMNS=tiles.columns, CHANNELS=tiles.channels, ROWS=tiles.rows, num_warps=tiles.num_warps,
        )  # fmt: skip
    return out_BTHWC


def _device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whichever the tensors are on."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()  # on a CPU: the interpreter


def _taps(kernel: Tensor | None, like: Tensor) -> Tensor:
    """The kernel as [9, C] in float32: channels last, so that a program loads whole vectors."""
    if kernel is None:
        return like.new_zeros((_NUM_TAPS, like.shape[-1]))
    return kernel.flatten(1).T.to(like.dtype).contiguous()


def _row_strides(x_BTC: Tensor) -> tuple[int, int]:
    """Steps from clip to clip and from frame to frame, 0 where one row serves them all."""
    num_clips, num_frames, _ = x_BTC.shape
    return 0 if num_clips == 1 else x_BTC.stride(0), 0 if num_frames == 1 else x_BTC.stride(1)


def _shift_constants(mixing: Mixing, num_frames: int) -> dict[str, int]:
    groups = mixing.groups(num_frames)
    return {"GROUP": max(mixing.group_width, 1), "DIRECTIONS": len(groups)}


def _move_frames(sums_BTC: Tensor, mixing: Mixing) -> Tensor:
    """Sums of frames after the temporal shift, which moves frames as a whole."""
    last = sums_BTC.shape[1] - 1
    moved_BTC = sums_BTC.clone()
    for start, stop, axis, offset in mixing.groups(last + 1):
        if axis == T_AXIS:
            moved_BTC[:, 0 if offset > 0 else last, start:stop] = 0
            source = sums_BTC[..., start:stop].narrow(1, max(-offset, 0), last)
            moved_BTC[..., start:stop].narrow(1, max(offset, 0), last).copy_(source)
    return moved_BTC
