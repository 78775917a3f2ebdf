"""The canonical class lists, shipped with the package: label ids never depend on what happens to be present.

`classes/<name>.txt` holds one class a line, in the order of the ids. Kinetics' and Something-Something's orders are
alphabetical, as everyone's are but UniFormer's; ImageNet's is that of the sorted WordNet ids.
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path

from preprocessing.records import raise_problems, text_lines
from vast.dataset_format import classes_digest
from vast.errors import UserError

CLASS_LISTS = ("kinetics400", "kinetics600", "kinetics700", "ssv2", "imagenet1k")

# UniFormer and UniFormerV2 count in an order of their own; their Kinetics-400 list begins so.
_UNIFORMER_BEGINNING = ("riding a bike", "marching", "dodgeball")

_NUMBERED = (
    re.compile(r"(?P<name>.+?)[\t,] *(?P<id>[0-9]{1,6})"),
    re.compile(r"(?P<id>[0-9]{1,6})[ \t]+(?P<name>.+)"),
)


@dataclass(frozen=True)
class ClassList:
    """Class names in the order of their ids; no two of them look alike after `normal`."""

    name: str
    """One of `CLASS_LISTS`, or the file the list came from."""
    names: tuple[str, ...]
    """The position is the label id."""

    def __post_init__(self) -> None:
        _ = self._ids_by_normal  # names that look alike must not wait for the first label to be found out

    @property
    def digest(self) -> str:
        """Identifies the list, order included, as manifests and checkpoints do."""
        return classes_digest(self.names)

    def find(self, label: str) -> int | None:
        """Return the id of the class that a label means, however its copy spells it."""
        label_id = self._ids.get(label)
        return self._ids_by_normal.get(normal(label)) if label_id is None else label_id

    def nearest(self, label: str, limit: int = 2) -> list[str]:
        """Return the names that look most like a label, for an error message."""
        close = difflib.get_close_matches(normal(label)[:80], self._ids_by_normal, n=limit, cutoff=0.7)
        return [self.names[self._ids_by_normal[text]] for text in close]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: label_id for label_id, name in enumerate(self.names)}

    @cached_property
    def _ids_by_normal(self) -> dict[str, int]:
        ids: dict[str, int] = {}
        problems = []
        for label_id, name in enumerate(self.names):
            other = ids.setdefault(normal(name), label_id)
            if other != label_id:
                problems.append(f"{self.names[other]!r} and {name!r} differ only in case, spaces or punctuation")
        raise_problems(f"class list {self.name}", problems)
        return ids


def normal(label: str) -> str:
    """Return what all spellings of a label have in common: its letters and digits, in lower case.

    For comparing only. The copies in circulation write `massaging person's head`, `massaging_person's_head`,
    `massaging_persons_head` and `massaging_person-s_head`, round brackets as hyphens or not at all, and K600 has one
    class in another case than K400 and K700.
    """
    return "".join(character for character in label.casefold() if character.isalnum())


@cache
def class_list(name: str) -> ClassList:
    """Return a shipped list.

    Raises:
        UserError: There is none of this name.
    """
    if name not in CLASS_LISTS:
        raise UserError(f"no class list {name!r}; there are {', '.join(CLASS_LISTS)}")
    text = resources.files("preprocessing").joinpath("classes", f"{name}.txt").read_text(encoding="utf-8")
    return ClassList(name, tuple(text.splitlines()))


def read_class_file(path: str | Path, canonical: ClassList | None = None) -> ClassList:
    """Read a list of one's own: one name a line in the order of the ids, with or without the id beside it.

    Raises:
        UserError: The file cannot be read or is empty, its ids are not in order, names collide, or it holds the names
            of `canonical` in another order.
    """
    lines = [line.strip() for line in text_lines(path) if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty; expected one class name a line")
    problems = [f"{line!r} holds a control character" for line in lines if _is_odd(line)]
    raise_problems(str(path), problems)
    found = ClassList(Path(path).name, _without_ids(lines, path))
    if canonical is not None:
        _check_order(found, canonical)
        if _normals(found.names) == _normals(canonical.names):
            return canonical  # one spelling everywhere
    return found


def remap(order: Sequence[str], classes: ClassList) -> tuple[int, ...]:
    """Return for each id that counts in `order` the id of the same class in `classes`.

    Raises:
        UserError: A name is not in `classes`.
    """
    ids = [classes.find(name) for name in order]
    problems = [unknown_label(name, classes) for name, label_id in zip(order, ids, strict=True) if label_id is None]
    raise_problems(f"class list {classes.name}", problems)
    return tuple(label_id for label_id in ids if label_id is not None)


def unknown_label(label: str, classes: ClassList) -> str:
    """Say that a label is not in a list, and which names come near."""
    near = " or ".join(repr(name) for name in classes.nearest(label))
    return f"{label[:80]!r} is not in {classes.name}" + (f"; near: {near}" if near else "")


def lists_with(labels: Sequence[str]) -> list[str]:
    """Return the shipped lists that hold all of these labels."""
    return [name for name in CLASS_LISTS if all(class_list(name).find(label) is not None for label in labels)]


def _is_odd(line: str) -> bool:
    return any(unicodedata.category(character).startswith("C") for character in line if character != "\t")


def _without_ids(lines: Sequence[str], path: str | Path) -> tuple[str, ...]:
    for pattern in _NUMBERED:
        matches = [match for line in lines if (match := pattern.fullmatch(line))]
        ids = [int(match["id"]) for match in matches]
        if len(ids) == len(lines) and sorted(ids) == list(range(len(lines))):
            if ids != sorted(ids):
                raise UserError(f"{path}: its ids begin {ids[:3]}, expected 0, 1, 2 …: sort the lines by id")
            return tuple(match["name"].strip() for match in matches)
    return tuple(lines)


def _check_order(found: ClassList, canonical: ClassList) -> None:
    theirs, ours = _normals(found.names), _normals(canonical.names)
    is_uniformer = theirs[: len(_UNIFORMER_BEGINNING)] == _normals(_UNIFORMER_BEGINNING)
    if theirs == ours or not (is_uniformer or sorted(theirs) == sorted(ours)):
        return
    first = next((i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), 0)
    order = "UniFormer's order, not that of" if is_uniformer else "another order than"
    raise UserError(
        f"{found.name} is in {order} {canonical.name}: id {first} is {found.names[first]!r} there and "
        f"{canonical.names[first]!r} here. "
        "Annotation files give class names, so leave the list out and they get the ids that everyone else's models "
        "have; ids that count in its order become ours by preprocessing.class_lists.remap(order, classes)"
    )


def _normals(names: Sequence[str]) -> list[str]:
    return [normal(name) for name in names]
