"""What a horizontal flip does to labels."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vast.errors import UserError

_SIDE_WORD = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def flip_table(classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the label that each label turns into when the picture is mirrored.

    A class that has the words left or right in its name becomes the class with these words swapped; all others stay.
    On Something-Something v2 these are the three official pairs.

    Raises:
        UserError: A class names left or right, and the list has no such twin.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    table = np.arange(len(classes))
    orphans = []
    for label, name in enumerate(classes):
        if not _SIDE_WORD.search(name):
            continue
        twin = label_of.get(_SIDE_WORD.sub(_other_side, name))
        if twin is None:
            orphans.append(name)
        else:
            table[label] = twin
    if orphans:
        shown = ", ".join(repr(name) for name in orphans[:5]) + (", …" if len(orphans) > 5 else "")
        raise UserError(
            f"data.flip: label_aware cannot mirror {len(orphans)} of {len(classes)} classes, as no class is their name "
            f"with left and right swapped: {shown}; use flip=none, or flip=plain if their sides do not matter"
        )
    return table


def _other_side(match: re.Match[str]) -> str:
    word = match[0]
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
