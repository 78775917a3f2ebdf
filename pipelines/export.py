"""`vast export`: a trained model as one file that runs without this code, torch.export's (pt2) or ONNX.

Input `clip_BCTHW` is uint8, RGB, the bytes that evaluation feeds the model; the division by 255, mean and standard
deviation are inside the file. A forgotten or doubled normalisation lowers accuracy without a word; a clip of another
type is refused by both runtimes. Output `logits_BK`, before softmax. B is free; frames, rows and columns are the
recipe's. What a caller has to do before (sampling, resizing, cropping) and the class names travel inside, see
`describe`: pt2 as the extra file `vast.json`, ONNX as metadata properties of which each value is JSON.

Exported is the plain path of torch's own operations, so no custom operator is needed to load the file. It is loaded
again and run before it appears under its name: it is complete and agrees with the model, or it is absent.

Dimensions: B clips · C channels · T frames · H rows · W columns · K classes.
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pipelines.find_model import find_model
from pipelines.terminal import Terminal
from vast import __version__
from vast.data.augment import normalise
from vast.data.protocols import FUSION, resolve_protocol
from vast.errors import UserError
from vast.storage import open_store
from vast.train.checkpoint import ModelCard, load_model

Format = Literal["pt2", "onnx"]
Loaded = Callable[[Tensor], Tensor]

INPUT, OUTPUT, EXTRA_FILE = "clip_BCTHW", "logits_BK", "vast.json"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHECKED_BATCHES = (1, 3)
TOLERANCE = 1e-4
"""Largest difference of a logit, in units of the largest logit or of 1, whichever is more."""


class ServedModel(nn.Module):
    """The model behind its normalisation: uint8 clips in, logits out."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """logits_BK of bytes."""
        logits_BK: Tensor = self.model(normalise(clip_BCTHW, self.mean, self.std))
        return logits_BK


@dataclass(frozen=True)
class Exported:
    """A file that was written and what its check found."""

    url: str
    size_bytes: int
    difference: float
    """Largest absolute difference of a logit from the model's."""


def export(model_name: str, form: Format, out: str, terminal: Terminal) -> Exported:
    """Write a model as one file.

    Args:
        model_name: what `find_model` takes.
        form: kind of the file.
        out: path or URL of the file; empty: named after the recipe, in the current folder.
        terminal: where to tell what is done.

    Raises:
        UserError: no such model, packages that ONNX needs are missing, or `out` names no file.
        RuntimeError: the written file does not compute what the model does; what was at `out` is as it was.
    """
    _check_packages(form)
    found = find_model(model_name)
    model, card = load_model(found.url)
    about = describe(card)
    shape = tuple(about["input"]["shape"][1:])
    config = card.train_config()
    out = out or f"{config.name}.{form}"
    folder, name = _split(out)
    served = ServedModel(model, config.data.mean, config.data.std).eval()
    terminal.say(f"{config.model.name} of {found.url}, step {card.step}")
    with tempfile.TemporaryDirectory(prefix="vast-export-") as scratch:
        path = Path(scratch) / name
        program = trace(served, shape)
        write, load = (write_pt2, load_pt2) if form == "pt2" else (write_onnx, load_onnx)
        write(program, about, path)
        loaded, read_back = load(path)
        if read_back != about:
            raise RuntimeError(f"the {form} file gives back other metadata than were written; nothing was exported")
        difference = largest_difference(loaded, served, shape)
        open_store(folder).put_file(name, path)
        return Exported(out, path.stat().st_size, difference)


def trace(served: ServedModel, shape: tuple[int, ...]) -> ExportedProgram:
    """The model as a program for any number of clips [C, T, H, W]."""
    with torch.no_grad():
        return torch.export.export(served, (_random_clips(2, shape),), dynamic_shapes=({0: Dim("B")},))


def describe(card: ModelCard) -> dict[str, Any]:
    """What someone needs beside the file to feed it and to read its answer; JSON values by name."""
    config = card.train_config()
    data, protocol = config.data, resolve_protocol(config.eval.protocol, config.data)
    shape = [3, data.num_frames, protocol.crop_size, protocol.crop_size]
    return {
        "input": {"name": INPUT, "type": "uint8", "shape": ["B", *shape], "colours": "RGB", "values": "0..255"},
        "output": {"name": OUTPUT, "type": "float32", "shape": ["B", len(card.classes)], "values": "logits"},
        "classes": card.classes,
        "preprocessing": {
            "num_frames": data.num_frames,
            "sampling": data.sampling,
            "frame_stride": data.frame_stride if data.sampling == "dense" else None,
            "short_side": protocol.short_side,
            "crop_size": protocol.crop_size,
            "resize": "bilinear, antialiased",
            "protocol": protocol.name,
            "fusion": FUSION,
        },
        "normalisation_inside": {"divide_by": 255, "mean": list(data.mean), "std": list(data.std)},
        "model": config.model.model_dump(mode="json"),
        "run": {"name": config.run_name(), "step": card.step, "figures": card.figures},
        "dataset_digest": card.dataset_digest,
        "software": {"vast": __version__, "torch": torch.__version__},
    }


def write_pt2(program: ExportedProgram, about: dict[str, Any], path: Path) -> None:
    """The program as a PT2 archive."""
    torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(about, indent=1)})


def load_pt2(path: Path) -> tuple[Loaded, dict[str, Any]]:
    """The program of a PT2 archive as a function, and what it says of itself."""
    extra = {EXTRA_FILE: ""}
    program = torch.export.load(path, extra_files=extra)
    return cast(Loaded, program.module()), json.loads(extra[EXTRA_FILE])


def write_onnx(program: ExportedProgram, about: dict[str, Any], path: Path) -> None:
    """The program as one ONNX file, weights inside."""
    made = torch.onnx.export(
        program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, external_data=False, verbose=False
    )
    if made is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    made.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    made.save(path, external_data=False)


def load_onnx(path: Path) -> tuple[Loaded, dict[str, Any]]:
    """The ONNX file as a function that runs in onnxruntime on the CPU, and what it says of itself."""
    import onnxruntime  # an extra of the package

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    return lambda clip_BCTHW: torch.from_numpy(session.run([OUTPUT], {INPUT: clip_BCTHW.numpy()})[0]), about


def largest_difference(loaded: Loaded, served: ServedModel, shape: tuple[int, ...]) -> float:
    """Run both on random clips [C, T, H, W] in batches of several sizes; largest absolute difference of a logit.

    Raises:
        RuntimeError: they disagree.
    """
    largest = 0.0
    for num_clips in CHECKED_BATCHES:
        clip_BCTHW = _random_clips(num_clips, shape)
        with torch.no_grad():
            wanted_BK, found_BK = served(clip_BCTHW), loaded(clip_BCTHW)
        if found_BK.shape != wanted_BK.shape:
            raise RuntimeError(
                f"the exported file gives {list(found_BK.shape)} for {num_clips} clip(s), the model "
                f"{list(wanted_BK.shape)}; nothing was exported"
            )
        difference = float((found_BK - wanted_BK).abs().max())
        allowed = TOLERANCE * max(1.0, float(wanted_BK.abs().max()))
        if not difference <= allowed:  # not a number differs too
            raise RuntimeError(
                f"the exported file disagrees with the model for {num_clips} clip(s): logits differ by "
                f"{difference:.1e}, allowed is {allowed:.1e}; nothing was exported"
            )
        largest = max(largest, difference)
    return largest


def _random_clips(num_clips: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(num_clips)
    return torch.randint(0, 256, (num_clips, *shape), dtype=torch.uint8, generator=generator)


def _check_packages(form: Format) -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None] if form == "onnx" else []
    if missing:
        raise UserError(
            f"--format onnx: not installed: {', '.join(missing)}; pip install 'vast-video[export]', or take pt2, "
            "which needs nothing more"
        )


def _split(out: str) -> tuple[str, str]:
    """Folder and name of a path or URL."""
    folder, _, name = out.rpartition("/")
    if not name or Path(out).is_dir():
        raise UserError(f"--out: {out!r} is a folder; give the name of a file, as {out.rstrip('/')}/model.pt2")
    return folder or ("/" if out.startswith("/") else "."), name
