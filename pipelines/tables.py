"""`vast models`: the model sizes and what each costs, generated, never typed."""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipelines.terminal import Terminal
from vast.data.protocols import NAMED
from vast.models.cost import count_kept_bytes, count_macs, count_params
from vast.models.speed import Speed, describe_hardware, measure_speed
from vast.models.variants import SIZES, create_model

# One view as each family is usually compared; the micro size has its own crop.
CLIP_FRAMES, CROP, MICRO_CROP = 8, 224, 64
IMAGE_CLASSES, VIDEO_CLASSES = 1000, 400
FRAMES_PER_PASS = {"cpu": 8, "cuda": 128}
"""Frames in one measured pass, as whole clips; fewer would leave a GPU idle."""
COLUMNS = ["model", "clip", "params M", "GMACs/frame", "GMACs/view", "GFLOPs/view", "kept MB/clip", "widths", "depths"]
SPEED_COLUMNS = ["forward clips/s", "training clips/s"]
LEGEND = (
    "clip: frames x rows x columns of one view; params: with 1000 classes (ast) or 400 (vast)",
    "MACs: multiply-adds of products and convolutions, which papers often call FLOPs; FLOPs: two for each of them",
    "kept: float32 activations of one clip that autograd keeps for the backward pass, 1e6 bytes, counted on tensors "
    "without data",
)


@dataclass(frozen=True)
class ModelCost:
    """What one named size costs for one view; its switches have their defaults."""

    name: str
    frames: int
    crop: int
    num_classes: int
    params: int
    macs_per_frame: int
    macs_per_view: int
    flops_per_view: int
    kept_bytes_per_clip: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    source: str
    speed: Speed | None

    def row(self) -> list[str]:
        """Its line of the table: `COLUMNS`, then `SPEED_COLUMNS` if it was measured."""
        return [
            self.name,
            f"{self.frames}x{self.crop}x{self.crop}",
            f"{self.params / 1e6:.2f}",
            *(f"{n / 1e9:.4g}" for n in (self.macs_per_frame, self.macs_per_view, self.flops_per_view)),
            f"{self.kept_bytes_per_clip / 1e6:.1f}",
            "/".join(map(str, self.dims)),
            "/".join(map(str, self.depths)),
            *([f"{self.speed.forward:.2f}", f"{self.speed.training:.2f}"] if self.speed else []),
        ]

    def to_json(self) -> dict[str, Any]:
        """All of it; without `speed` where nothing was measured."""
        plain = asdict(self)
        if self.speed is None:
            del plain["speed"]
        return plain


def model_cost(name: str, frames: int = 0, crop: int = 0, measure_on: torch.device | None = None) -> ModelCost:
    """Cost of a named size.

    Args:
        name: key of the size table.
        frames: of a clip; 0 takes the usual number. Image models have one.
        crop: side of a clip in pixels; 0 takes the usual one.
        measure_on: also time the model there.

    Raises:
        UserError: an unknown name, or a crop that the model cannot take.
    """
    num_classes = IMAGE_CLASSES if name.startswith("ast_") else VIDEO_CLASSES
    with torch.device("meta"):
        model = create_model(name, num_classes)
    frames = 1 if model.config.is_image_model else frames or CLIP_FRAMES
    crop = crop or (MICRO_CROP if name.endswith("micro") else CROP)
    clip_shape = (1, 3, frames, crop, crop)
    macs = count_macs(model, clip_shape)
    return ModelCost(
        name=name,
        frames=frames,
        crop=crop,
        num_classes=num_classes,
        params=count_params(model),
        macs_per_frame=macs // frames,
        macs_per_view=macs,
        flops_per_view=2 * macs,
        kept_bytes_per_clip=count_kept_bytes(model, clip_shape),
        dims=model.config.size.dims,
        depths=model.config.size.depths,
        source=model.config.size.source,
        speed=None if measure_on is None else _speed(name, clip_shape, num_classes, measure_on),
    )


def _speed(name: str, clip_shape: tuple[int, ...], num_classes: int, device: torch.device) -> Speed:
    batch = max(1, FRAMES_PER_PASS[device.type] // clip_shape[2])
    autocast = torch.bfloat16 if device.type == "cuda" else None
    return measure_speed(create_model(name, num_classes), (batch, *clip_shape[1:]), num_classes, device, autocast)


def show_models(
    terminal: Terminal, names: Sequence[str], *, frames: int, crop: int, measure: bool, as_json: bool
) -> None:
    """Print the cost of the named sizes, or of all, as a table or as JSON; see `model_cost`."""
    names = list(names or SIZES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = os.getloadavg()[0]  # before our own work raises it
    costs: list[ModelCost] = []
    # JSON is for programs: nothing else may stand on stdout
    with contextlib.nullcontext() if as_json else terminal.progress("models", len(names)) as bar:
        for name in names:
            costs.append(model_cost(name, frames, crop, device if measure else None))
            if bar:
                bar.set(len(costs), len(names))
    how = _measured_how(costs, device, load) if measure else ""
    if as_json:
        table: dict[str, Any] = {"models": [cost.to_json() for cost in costs]}
        terminal.say(json.dumps(table | ({"measured": how} if how else {}), indent=1))
        return
    columns = COLUMNS + (SPEED_COLUMNS if measure else [])
    terminal.table("Models", columns, [cost.row() for cost in costs])
    for line in [*LEGEND, *([how] if how else [])]:
        terminal.say(line)
    for source in dict.fromkeys(cost.source for cost in costs):  # ast_* and vast_* share a size
        sharing = ", ".join(cost.name for cost in costs if cost.source == source)
        terminal.say(f"{sharing}: {source}")


def _measured_how(costs: Sequence[ModelCost], device: torch.device, load: float) -> str:
    """Where and how the speeds were measured."""
    precision = "bfloat16 autocast" if device.type == "cuda" else "float32"
    batches = sorted({cost.speed.batch for cost in costs if cost.speed})
    return (
        f"clips/s: measured just now on this machine: {describe_hardware(device)}, torch {torch.__version__}, "
        f"{precision}, not compiled, passes of {' or '.join(map(str, batches))} random clips; forward: evaluation; "
        "training: forward, loss, backward and AdamW, no data loading; "
        f"load average before {load:.1f}" + (", so other programs took their share" if load > 1 else "")
    )


def protocol_rows() -> list[list[str]]:
    """One row a named protocol: its views, its sides, how its models draw frames, who reports with it."""
    return [
        [name, str(one.views), str(one.short_side), str(one.crop), one.sampling, one.used_by]
        for name, one in NAMED.items()
    ]
