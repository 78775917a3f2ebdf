"""What the commands' arguments may be."""

import argparse
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE and key=value, which `cli.parse` also takes between options."""
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file's path or URL")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings, as optim.lr=3e-4")


def address_argument(parser: argparse.ArgumentParser) -> None:
    """The Ray cluster that a command runs on."""
    parser.add_argument("--address", metavar="HOST:PORT", help="Ray cluster (default: RAY_ADDRESS, else this machine)")


def positive(text: str) -> int:
    """1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def positives(text: str) -> tuple[int, ...]:
    """Numbers of 1 or more with commas between."""
    return tuple(positive(part) for part in text.split(","))


def natural(text: str) -> int:
    """0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value


def rate(text: str) -> float:
    """More than 0, and finite."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {value:g}")
    return value


def optional_path(text: str | None) -> Path | None:
    """A path, if one was given."""
    return Path(text) if text else None
