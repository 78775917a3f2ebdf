"""Tables of what ships: recipes and model sizes, generated, never typed."""

from pipelines.config import shipped_recipes
from vast.models.cost import count_macs, count_params
from vast.models.variants import SIZES, create_model

# One view as each family is usually compared; the micro size has its own.
IMAGE_CLIP, VIDEO_CLIP, MICRO_CLIP = (1, 224), (8, 224), (8, 64)
NUM_CLASSES = {"ast": 1000, "vast": 400}


def recipe_rows() -> list[list[str]]:
    """Name and first comment line of every shipped recipe."""
    rows = []
    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        rows.append([name, first.removeprefix("#").strip()])
    return rows


def model_rows() -> list[list[str]]:
    """Cost and shape of every named size, measured on torch's meta device."""
    import torch

    rows = []
    for name, size in SIZES.items():
        family = name.split("_")[0]
        frames, side = IMAGE_CLIP if family == "ast" else VIDEO_CLIP
        side = MICRO_CLIP[1] if name.endswith("micro") else side
        with torch.device("meta"):
            model = create_model(name, num_classes=NUM_CLASSES[family])
        macs = count_macs(model, (1, 3, frames, side, side))
        rows.append(
            [
                name,
                f"{count_params(model) / 1e6:.2f}",
                f"{macs / 1e9:.2f}",
                f"{frames}x{side}x{side}",
                "/".join(map(str, size.dims)),
                "/".join(map(str, size.depths)),
            ]
        )
    return rows
