import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vast.data.flip import flip_table
from vast.errors import UserError

SSV2_PAIRS = [
    ("Pulling something from left to right", "Pulling something from right to left"),
    ("Pushing something from left to right", "Pushing something from right to left"),
    ("Turning the camera left while filming something", "Turning the camera right while filming something"),
]


def test_flip_table_finds_the_pairs_of_something_something() -> None:
    others = ["Holding something", "Covering something with something", "Moving something up"]
    classes = [others[0], *[text for pair in SSV2_PAIRS for text in pair], *others[1:]]
    assert flip_table(classes).tolist() == [0, 2, 1, 4, 3, 6, 5, 7, 8]


@given(st.permutations([text for pair in SSV2_PAIRS for text in pair] + ["a", "b", "c", "leftovers", "upright"]))
def test_flip_table_undoes_itself_in_any_order(classes: list[str]) -> None:
    table = flip_table(classes)
    assert np.array_equal(table[table], np.arange(len(classes)))
    assert {frozenset({classes[i], classes[j]}) for i, j in enumerate(table) if i != j} == {
        frozenset(pair) for pair in SSV2_PAIRS
    }


def test_words_are_swapped_whole_and_keep_their_case() -> None:
    assert flip_table(["Left turn", "Right turn", "RIGHT", "LEFT", "leftover"]).tolist() == [1, 0, 3, 2, 4]


def test_a_class_without_its_twin_is_refused() -> None:
    with pytest.raises(UserError, match=r"1 of 2 classes.*'turning left'.*use flip=none"):
        flip_table(["turning left", "jumping"])
