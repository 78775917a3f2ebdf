"""Which implementation of the Affine-Shift operator a recipe's model will run, in words for people.

Asked of the library itself, `choose_path`, with the shapes that the recipe's clips have in each stage.
"""

from itertools import groupby

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vast.models.affine_shift import AffineShift
from vast.models.kernels.operator import Path, choose_path, why_not_fused
from vast.models.variants import ModelConfig

WORDS: dict[Path, str] = {
    "plain": "torch's own operations under autograd",
    "eager": "separate operations with a backward of their own",
    "folded": "scale and shift folded into the convolution",
    "triton": "fused Triton kernels",
}
FUSED_RULE = "the fused kernels take zero borders, a 1x3x3 bias or none, and shifts along both height and width"


def kernel_lines(config: ModelConfig, num_frames: int, crop_size: int) -> list[str]:
    """One line for a GPU and one for this machine's CPU; both, because the ranks may run elsewhere."""
    if config.mixer != "affine_shift":
        return [f"not in this model; {config.mixer} runs as torch's own operations on every device"]
    if not (config.scale or config.bias):
        return ["the shift alone: one slice copy for each group of channels, on every device"]
    on_gpu = _paths(config, num_frames, crop_size, "cuda")
    gpu = _in_words(on_gpu)
    if set(on_gpu) != {"triton"}:
        gpu += "; " + "; ".join(filter(None, [why_not_fused(), FUSED_RULE]))
    cpu = _in_words(_paths(config, num_frames, crop_size, "cpu"))
    return [f"on a GPU with what is installed here: {gpu}", f"on a CPU with {torch.get_num_threads()} threads: {cpu}"]


def _paths(config: ModelConfig, num_frames: int, crop_size: int, device: str) -> list[Path]:
    """The path of each stage; how many clips there are makes no difference."""
    paths: list[Path] = []
    side = crop_size // config.size.patch_size
    for dim in config.size.dims:
        with torch.device("meta"):
            mixer = AffineShift(dim, config)
        with FakeTensorMode():  # tensors of a device that need not be there
            v_BTHWC = torch.empty(1, num_frames, side, side, dim, device=device)
        paths.append(choose_path(v_BTHWC, mixer.weights(), mixer.mixing))
        side //= 2
    return paths


def _in_words(paths: list[Path]) -> str:
    if len(set(paths)) == 1:
        return WORDS[paths[0]]
    parts, first = [], 1
    for path, stages in groupby(paths):
        last = first + len(list(stages)) - 1
        parts.append(f"{WORDS[path]} in stage{f' {first}' if first == last else f's {first} to {last}'}")
        first = last + 1
    return ", ".join(parts)
