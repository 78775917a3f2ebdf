"""How fast the fused Affine-Shift kernels and a whole VAST are on a GPU.

    python benchmarks/gpu_speed.py              the operator in four stages, then whole models
    python benchmarks/gpu_speed.py --quick      the operator in the first two stages, as it is used by default
    python benchmarks/gpu_speed.py --operator   the operator alone
    python benchmarks/gpu_speed.py --models     whole models alone
    python benchmarks/gpu_speed.py --tune       tries other tiles for each kernel first, and prints the best

Needs a CUDA device and Triton, and for the peers torchvision; what is missing is named and left out, never guessed.
Times are medians of CUDA events, after a warm-up. Operator: bfloat16, 32 clips of 8 frames of 224x224 pixels. Its
floor is 3 memory passes forward and 4 backward (a pass reads or writes the activation once) at the speed of a copy of
the same tensor, measured in the same run; a fraction is floor / time. The kernels' fractions leave out the scale's
network and the launches around them; the times of calls include both. Models: a training step (forward, loss,
backward, AdamW) under bfloat16 autocast, equal frames and batch, all compiled alike.

The last line is JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from block_speed import OneFunction, naive_operator
from torch import Tensor, nn

from vast.models import create_model
from vast.models.affine_shift import affine_shift
from vast.models.kernels.mixing import AffineWeights, Mixing
from vast.models.kernels.operator import why_not_fused
from vast.models.kernels.scale import scale_of

STAGES = ((32, 8, 56, 56, 64), (32, 8, 28, 28, 128), (32, 8, 14, 14, 320), (32, 8, 7, 7, 512))
FORWARD_PASSES, BACKWARD_PASSES = 3, 4
NUM_FRAMES, SIDE, NUM_CLASSES = 16, 224, 400
DEVICE = "cuda"


def main() -> None:
    """Measure what is asked for and what is there; print lines for people, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the operator in two stages, about a minute")
    for flag in ("operator", "models", "tune"):
        parser.add_argument(f"--{flag}", action="store_true", help="see above")
    parser.add_argument("--batch", type=int, default=16, help="clips in a training step of the whole models")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; nothing was measured")
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "fused": why_not_fused() or "yes",
    }
    torch.manual_seed(0)
    operator_alone = chosen.quick or chosen.operator or chosen.tune
    if (operator_alone or not chosen.models) and why_not_fused() is None:
        figures["operator"] = measure_operator(chosen.tune, chosen.quick)
        large = [figures["operator"][label(shape)] for shape in STAGES[:2]]
        for key in ("forward", "backward"):
            figures[f"{key}_fraction_of_floor"] = min(row[f"{key}_kernels_fraction"] for row in large)
        figures["times_faster_than_eager"] = min(row["vs_eager"] for row in large)
        figures["times_faster_than_naive"] = min(row["vs_naive"] for row in large)
    if chosen.models or not operator_alone:
        figures["models"] = measure_models(chosen.batch)
    print(json.dumps(figures))


def measure_operator(tune: bool, quick: bool) -> dict[str, Any]:
    """Kernels one by one and whole calls, for both inputs of scale and bias."""
    rows: dict[str, Any] = {}
    for affine_input, shape in product(("v",) if quick else ("v", "s"), STAGES[:2] if quick else STAGES):
        mixing = Mixing(shape[-1] // 8, "hwt", "zero", affine_input, "clip")  # type: ignore[arg-type]
        name = label(shape) + ("" if affine_input == "v" else " s")
        rows[name] = {**time_kernels(shape, mixing, tune), **time_calls(shape, mixing)}
        shown = ", ".join(f"{key} {value}" for key, value in rows[name].items())
        print(f"{name}: {shown}", flush=True)
    return rows


def time_kernels(shape: tuple[int, ...], mixing: Mixing, tune: bool) -> dict[str, Any]:
    """The four kernels alone, in microseconds, and their fraction of the copy floor."""
    from vast.models.kernels import affine_shift_triton as kernels

    v, grad = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    weights = make_weights(shape[-1])
    alpha = scale_of(kernels.pool(v, mixing), weights).alpha_RC.detach()
    kernel, bias = weights.kernel.detach(), weights.kernel_bias.detach()
    steps: dict[str, Callable[[Any], Any]] = {
        "mix": lambda tiles: kernels.mix(v, alpha, kernel, bias, mixing, tiles),
        "weight_grads": lambda tiles: kernels.weight_grads(v, grad, kernel, mixing, tiles),
        "value_grad": lambda tiles: kernels.value_grad(grad, alpha, alpha, kernel, mixing, tiles),
    }
    times = {"pool": microseconds(lambda: kernels.pool(v, mixing))}
    for name, run in steps.items():
        times[name] = microseconds(lambda run=run: run(None))
        if tune:
            report_tiles(name, run, times[name], shape, kernels)
    target = torch.empty_like(v)
    copy = microseconds(lambda: target.copy_(v))
    forward, backward = times["pool"] + times["mix"], times["weight_grads"] + times["value_grad"]
    return {
        **{f"{name}_us": round(spent, 1) for name, spent in times.items()},
        "copy_gb_per_s": round(2 * v.nbytes / copy / 1e3),
        "forward_kernels_fraction": round(FORWARD_PASSES / 2 * copy / forward, 3),
        "backward_kernels_fraction": round(BACKWARD_PASSES / 2 * copy / backward, 3),
    }


def report_tiles(name: str, run: Callable[[Any], Any], default_us: float, shape: tuple[int, ...], kernels: Any) -> None:
    """Print the three fastest tiles of a kernel beside the default."""
    found = []
    for tiles in candidate_tiles(shape, kernels):
        try:
            found.append((microseconds(lambda tiles=tiles: run(tiles), repeats=10), tiles))
        except Exception as error:  # a tile that does not fit is no failure of the search
            print(f"  {name} {tiles}: {type(error).__name__}")
    default = kernels.choose_tiles(torch.Size(shape), False)
    print(f"  {name}: default {default} {default_us:.1f} us")
    for spent, tiles in sorted(found)[:3]:
        print(f"  {name}: {tiles} {spent:.1f} us", flush=True)


def candidate_tiles(shape: tuple[int, ...], kernels: Any) -> Iterator[Any]:
    """Yield tiles worth a try at this shape."""
    _, T, H, W, C = shape
    for columns, channels, rows, frames, warps in product(
        (4, 8, 16), (32, 64, 128), (7, 14, 28, 56), (1, 4), (2, 4, 8)
    ):
        values_a_thread = columns * channels // (32 * warps)
        if columns < 2 * W and channels <= C and rows <= H and T % frames == 0 and 2 <= values_a_thread <= 16:
            yield kernels.Tiles(columns, channels, rows, frames, warps)


def time_calls(shape: tuple[int, ...], mixing: Mixing) -> dict[str, Any]:
    """Forward and backward of whole calls, in microseconds: fused, eager, one Function, plain and naive."""
    weights = make_weights(shape[-1])
    v = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    seed = torch.randn_like(v)
    leaves, groups = [v, *weights], mixing.groups(shape[1])
    calls: dict[str, Callable[[], Tensor]] = {
        "fused": lambda: affine_shift(v, weights, mixing, "triton"),
        "eager": lambda: affine_shift(v, weights, mixing, "eager"),
        "one_function": lambda: OneFunction.apply(v, *weights, groups, mixing.affine_input),
        "plain": lambda: affine_shift(v, weights, mixing, "plain"),
        "naive": lambda: naive_operator(v, weights, groups, mixing.affine_input, nchw=True),
    }
    times = {
        name: microseconds(lambda call=call: torch.autograd.grad(call(), leaves, seed), repeats=20)
        for name, call in calls.items()
    }
    best_eager = min(times[name] for name in ("eager", "one_function", "plain"))
    return {
        **{f"{name}_call_us": round(spent, 1) for name, spent in times.items()},
        "vs_eager": round(best_eager / times["fused"], 2),
        "vs_naive": round(times["naive"] / times["fused"], 2),
    }


def make_weights(dim: int) -> AffineWeights:
    """Return float32 weights, as under autocast."""
    shapes = [(dim // 4, dim), (dim // 4,), (dim, dim // 4), (dim,), (dim, 1, 3, 3), (dim,)]
    return AffineWeights(*((torch.randn(size, device=DEVICE) * size[-1] ** -0.5).requires_grad_() for size in shapes))


def measure_models(batch: int) -> dict[str, Any]:
    """Training steps of VAST-Ti and its peers, eager and compiled."""
    rows: dict[str, Any] = {}
    for name, make in model_makers().items():
        for compiled in (False, True):
            key = f"{name} {'compiled' if compiled else 'eager'}"
            try:
                rows[key] = time_training(make(), batch, compiled)
            except torch.cuda.OutOfMemoryError:
                rows[key] = {"error": f"{batch} clips do not fit into memory"}
            torch.cuda.empty_cache()
            print(f"{key}: {rows[key]}", flush=True)
    ours = rows["vast_ti compiled"].get("clips_per_s")
    for name in ("swin3d_t", "mvit_v2_s"):
        peer = rows.get(f"{name} compiled", {}).get("clips_per_s")
        if ours and peer:
            rows[f"times_faster_than_{name}"] = round(ours / peer, 2)
    return rows


def model_makers() -> dict[str, Callable[[], nn.Module]]:
    """Return what can be built here: ours, and torchvision's if it is installed."""
    makers: dict[str, Callable[[], nn.Module]] = {"vast_ti": lambda: create_model("vast_ti", NUM_CLASSES)}
    try:
        from torchvision.models import video
    except ImportError:
        print("torchvision is not installed, so its models were not measured")
        return makers
    makers["swin3d_t"] = lambda: video.swin3d_t(num_classes=NUM_CLASSES)
    makers["mvit_v2_s"] = lambda: video.mvit_v2_s(num_classes=NUM_CLASSES)
    return makers


def time_training(model: nn.Module, batch: int, compiled: bool) -> dict[str, float]:
    """Clips a second and peak memory of a training step."""
    torch._dynamo.reset()
    model = model.to(DEVICE).train()
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    clip = torch.randn(batch, 3, NUM_FRAMES, SIDE, SIDE, device=DEVICE)
    labels = torch.randint(NUM_CLASSES, (batch,), device=DEVICE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(run(clip), labels)
        loss.backward()
        optimizer.step()

    step()
    torch.cuda.reset_peak_memory_stats()
    spent = microseconds(step, warmup=5, repeats=20)
    return {
        "clips_per_s": round(1e6 * batch / spent, 1),
        "ms_per_step": round(spent / 1e3, 2),
        "peak_mb_per_clip": round(torch.cuda.max_memory_allocated() / batch / 2**20, 1),
    }


def microseconds(run: Callable[[], Any], warmup: int = 10, repeats: int = 50) -> float:
    """Median time on the device."""
    for _ in range(warmup):
        run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begun, done in events:
        begun.record()
        run()
        done.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(begun.elapsed_time(done) for begun, done in events)


def label(shape: tuple[int, ...]) -> str:
    """Return a shape as people write it."""
    return "x".join(map(str, shape))


if __name__ == "__main__":
    main()
