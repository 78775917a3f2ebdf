"""The recipe, read in spite of its mistakes: each is a problem, and what is left is checked further."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from pipelines.config import Tree, explain, merge, parse_overrides, read_recipe, with_absolute_urls, wrong_booleans
from pipelines.preflight.findings import Problem
from vast.errors import UserError
from vast.train.config import TrainConfig

_MOST_ROUNDS = 5


def read_in_spite(recipe: str, overrides: Sequence[str]) -> tuple[TrainConfig | None, list[Problem]]:
    """The config with what is wrong in it left out, and what is wrong.

    The config is None where nothing valid can be made of the recipe.
    """
    tree, problems = _tree(recipe, overrides)
    if tree is None:
        return None, problems
    found = wrong_booleans(tree, TrainConfig)
    for _ in range(_MOST_ROUNDS):  # what is left out may let something else be seen
        try:
            config = TrainConfig.model_validate(tree)
        except ValidationError as error:
            details = error.errors()
            found += [explain(detail, TrainConfig) for detail in details]
            smaller = tree
            for detail in details:
                smaller = _without(smaller, detail["loc"])
            if smaller == tree:
                break
            tree = smaller
            continue
        return config, problems + [_problem(text) for text in dict.fromkeys(found)]
    return None, problems + [_problem(text) for text in dict.fromkeys(found)]


def _tree(recipe: str, overrides: Sequence[str]) -> tuple[Tree | None, list[Problem]]:
    problems: list[Problem] = []
    changes: Tree = {}
    for word in overrides:
        try:
            changes = merge(changes, parse_overrides([word]))
        except UserError as error:
            problems.append(_problem(str(error)))
    try:
        tree = merge(read_recipe(recipe), changes)
    except UserError as error:
        return None, [_problem(str(error)), *problems]
    tree.pop("search", None)
    return with_absolute_urls(tree), problems


def _problem(text: str) -> Problem:
    subject, _, found = text.partition(": ")
    return Problem("recipe", subject, found or text, "Correct it in the recipe or on the command line")


def _without(tree: Any, path: Sequence[Any]) -> Any:
    """A copy of a tree without one entry; the part of the path that is there counts."""
    if not isinstance(tree, dict) or not path or path[0] not in tree:
        return tree
    head, *rest = path
    if rest and isinstance(tree[head], dict) and rest[0] in tree[head]:
        return {**tree, head: _without(tree[head], rest)}
    return {key: value for key, value in tree.items() if key != head}
