"""`vast recipes`: what ships, each with its clips, its cost and what the head of its file says."""

import re
from pathlib import Path

from pipelines.config import merge, read_recipe, shipped_recipes
from pipelines.terminal import Terminal
from vast.train.config import TrainConfig

HEAD_WORDS = ("Source", "Command", "Hardware", "Cost", "Expected score")
"""What the comment on top of every shipped recipe states, in this order, below the line that says what it is."""
COLUMNS = ["recipe", "clip", "epochs", "batch", "GPU-hours", "what it is"]

_WORD = re.compile(rf"({'|'.join(HEAD_WORDS)}): ")
_HOURS = re.compile(r"([\d.]+) GPU-hours")


def read_head(path: Path) -> dict[str, str]:
    """The comment on top of a recipe: "" to its first line, and each of HEAD_WORDS to its text, in the file's order.

    A line that is indented goes on with the text before it; a backslash at its end belongs to the shell.
    """
    head: dict[str, str] = {}
    word = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        text = line.removeprefix("# ")
        found = _WORD.match(text)
        if found:
            word = found[1]
            text = text[found.end() :]
        elif head:
            text = f"{head[word].removesuffix(chr(92)).rstrip()} {text.strip()}"
        head[word] = text
    return head


def shipped_config(name: str) -> TrainConfig:
    """The config of a shipped recipe without its data set."""
    tree = merge(read_recipe(name), {"data": {"url": "given on the command line"}})
    tree.pop("search", None)
    return TrainConfig.model_validate(tree)


def recipe_rows() -> list[list[str]]:
    """One row of COLUMNS for each shipped recipe. Nothing is computed, so that the table is there at once."""
    rows = []
    for name, path in shipped_recipes().items():
        config, head = shipped_config(name), read_head(path)
        frames, side = config.data.num_frames, config.data.crop_size
        hours = _HOURS.search(head["Cost"])
        sizes = [f"{frames}x{side}x{side}", str(config.optim.epochs), str(config.optim.global_batch)]
        rows.append([name, *sizes, hours[1] if hours else "-", head[""].removesuffix(".")])
    return rows


def show_recipes(terminal: Terminal) -> None:
    """Print the shipped recipes."""
    terminal.table("Recipes", COLUMNS, recipe_rows())
    terminal.say("GPU-hours: at an assumed speed, not measured; how it is computed stands in the head of each file:")
    terminal.say(f"  {next(iter(shipped_recipes().values())).parent}")
    terminal.say("`vast check RECIPE data.url=URL` prints a recipe in full and lists what does not fit together")
