"""A recipe as a table, what differs from the defaults first."""

import ast
from collections.abc import Mapping
from typing import Any

from pipelines.report.page import Html, folded, section, table
from pipelines.report.run_facts import default_settings
from pipelines.report.words import setting


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of a config as JSON, of this version of the program or another."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def tracked_settings(params: Mapping[str, str]) -> dict[str, Any]:
    """The same from MLflow's parameters, which are strings."""
    return {path: _typed(text) for path, text in params.items()}


def _typed(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def settings_section(settings: dict[str, Any], heading: str = "Settings") -> Html:
    """All settings, those that are not the defaults apart and marked."""
    defaults = default_settings()
    nothing = object()
    changed = [path for path, value in settings.items() if defaults.get(path, nothing) != value]
    rows = [
        (path, setting(settings[path]), setting(defaults[path]) if path in defaults else "none: always given")
        for path in changed
    ]
    every = [(path, setting(value)) for path, value in settings.items()]
    marked = [number for number, path in enumerate(settings) if path in changed]
    few = f"{len(changed)} of {len(settings)} settings differ from the defaults"
    whole = table("Those that differ are marked", ["setting", "value"], every, marked=marked)
    return section(
        heading,
        table(few, ["setting", "here", "default"], rows),
        folded(f"All {len(settings)} settings", whole),
    )
