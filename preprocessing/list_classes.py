"""The classes of lists and class folders, with ids that agree with everyone else's."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.class_lists import ClassList, class_list, lists_with, normal, read_class_file, remap, unknown_label
from preprocessing.list_lines import Label, Row
from preprocessing.list_matching import Finds, path_parts
from preprocessing.records import raise_problems, spaced
from vast.dataset_format import UNLABELLED
from vast.errors import UserError

MAX_CLASSES = 100_000
# Beyond this share of a published list's names, a folder or list is taken for a copy of that data set.
KNOWN_SHARE = 0.9

# Abseiling, air drumming, answering questions, applauding, applying cream: UniFormer's lists are sorted by class name.
_UNIFORMER_IDS = [341, 158, 189, 16, 398]


@dataclass
class ListClasses:
    """Class names in label-id order, and which of them the lists mean."""

    names: tuple[str, ...]
    ids: dict[Label, int]
    """What the lists say to label ids."""
    notes: list[str] = field(default_factory=list)


def classes_of_list(rows: Sequence[Row], finds: Finds, classes_file: str | os.PathLike[str] | None) -> ListClasses:
    """Find out the classes of lists whose labels are all names or all numbers.

    Args:
        rows: Those of all lists, whichever splits are to be read.
        finds: Where their videos are: class folders may name the numbers.
        classes_file: The class list, one name a line, in the order in which the lists count.

    Raises:
        UserError: There are both names and numbers, a label is not in the class list, or the class list is evidently
            not that of the lists.
    """
    labels = {row.label for row in rows} - {None}
    names = {label for label in labels if isinstance(label, str)}
    if names and len(names) < len(labels):
        number = next(row for row in rows if isinstance(row.label, int))
        text = next(row for row in rows if isinstance(row.label, str))
        raise UserError(f"{number.line} has the label {number.label}, {text.line} {text.label!r}: expected one kind")
    if names or not labels:
        return named_classes(names, classes_file)
    return _numbered_classes(rows, finds, classes_file)


def named_classes(labels: Iterable[str], classes_file: str | os.PathLike[str] | None) -> ListClasses:
    """Give class names their ids: the class list's, those of a published list, or else their ranks.

    Raises:
        UserError: There is neither a label nor a class list, or a label is not in it.
    """
    found = sorted(labels)
    notes = []
    if classes_file is not None:
        classes = read_class_file(Path(classes_file))
        if (same := _published(classes.names, 1.0)) is not None:
            classes = same
    elif not found:
        raise UserError("no line has a label; give the class list (classes_file)")
    elif (known := _published(found, KNOWN_SHARE)) is not None:
        classes = known
        notes.append(f"{len(found)} of the {len(known.names)} names of {known.name} are there: the ids are that list's")
    else:
        classes = ClassList("the class names found", tuple(found))
        notes.append(f"label ids are the ranks of {len(found)} sorted class names; give a class list to fix them")
    ids: dict[Label, int] = {None: UNLABELLED}
    for label in found:
        label_id = classes.find(label)
        ids[label] = UNLABELLED if label_id is None else label_id
    raise_problems("labels", [unknown_label(label, classes) for label in found if ids[label] == UNLABELLED])
    return ListClasses(classes.names, ids, notes)


def _published(names: Sequence[str], share: float) -> ClassList | None:
    """Return the published list that holds all of these names, if they are at least this share of it."""
    known = [class_list(name) for name in lists_with(names)]
    known = [classes for classes in known if len(names) >= share * len(classes.names)]
    return min(known, key=lambda classes: len(classes.names), default=None)


def _numbered_classes(rows: Sequence[Row], finds: Finds, classes_file: str | os.PathLike[str] | None) -> ListClasses:
    """Give numbers their class names, and the ids that those have elsewhere."""
    numbers = sorted({row.label for row in rows if isinstance(row.label, int)})
    folders = _folders_by_number(rows, finds)
    notes: list[str] = []
    if classes_file is not None:
        order, first = _order_of_file(Path(classes_file), numbers)
        if first:
            notes.append(f"the lists count classes from {first}; label ids count from 0")
        _check_folders(order, first, folders)
    else:
        names = _names_of_folders(numbers, folders)
        if (known := _published(list(names.values()), KNOWN_SHARE)) is not None:
            notes.append(f"class names were taken from the class folders, label ids are those of {known.name}")
            by_name = {number: known.find(name) for number, name in names.items()}
            return ListClasses(
                known.names, {None: UNLABELLED, **{n: i for n, i in by_name.items() if i is not None}}, notes
            )
        order, first = _order_without_file(numbers, names, notes)
    firsts = [list(dict.fromkeys(row.label for row in rows if row.split == split))[:5] for split in _splits(rows)]
    if _UNIFORMER_IDS in firsts and len(order) >= 400 and normal(order[341]) != "abseiling":
        _say_uniformer(order[341], classes_file is not None, notes)
    ids: dict[Label, int] = {None: UNLABELLED, **{number: number - first for number in numbers}}
    known = _published(order, 1.0)
    if known is None or len(order) != len(known.names):
        return ListClasses(tuple(order), ids, notes)
    moved = remap(order, known)
    if moved != tuple(range(len(order))):
        if any("[" in text for text in order) and list(order) == sorted(order):
            raise UserError(
                f"{classes_file} is sorted with its square brackets, and no list counts in that order (UniFormer's "
                f"carry the official ids); give the class list of {known.name} without brackets, or its labels.json"
            )
        notes.append(f"the lists count in another order than {known.name}: label ids were moved to that list's")
    return ListClasses(known.names, {label: moved[i] if i >= 0 else i for label, i in ids.items()}, notes)


def _splits(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.split for row in rows))


def _order_of_file(path: Path, numbers: Sequence[int]) -> tuple[Sequence[str], int]:
    order: Sequence[str] = read_class_file(path).names
    num = len(order)
    first = 0
    numbered = [re.fullmatch(r"(\d+)[\s,]+(.+)", text) for text in order]
    if [found and int(found[1]) for found in numbered] == list(range(1, num + 1)):
        order, first = [found[2] for found in numbered if found], 1
    elif (numbers[0], numbers[-1]) == (1, num):
        first = 1
    wrong = [number for number in numbers if not first <= number < first + num]
    if wrong:
        raise UserError(f"{path} has {num} classes, {first}..{first + num - 1}; the lists have label {wrong[-1]}")
    return order, first


def _names_of_folders(numbers: Sequence[int], folders: Mapping[int, Counter[str]]) -> dict[int, str]:
    """Return the folder that belongs to each number and to no other; nothing if it is not so for all of them."""
    names = {number: next(iter(folders[number])) for number in numbers if len(folders.get(number, ())) == 1}
    is_one_to_one = len({normal(name) for name in names.values()}) == len(numbers) > 1
    return names if is_one_to_one else {}


def _order_without_file(
    numbers: Sequence[int], names: Mapping[int, str], notes: list[str]
) -> tuple[Sequence[str], int]:
    if numbers[-1] >= MAX_CLASSES:
        raise UserError(f"the lists have label {numbers[-1]}; expected less than {MAX_CLASSES}")
    # Numbers that leave out 0 count from 1, if they leave out no other; without names, nobody would know.
    first = 1 if names and numbers == list(range(1, len(numbers) + 1)) else 0
    order = [names.get(number, f"class_{number:05d}") for number in range(first, numbers[-1] + 1)]
    if names:
        notes.append("class names were taken from the class folders" + (", the lists count from 1" if first else ""))
    else:
        notes.append("the lists number their classes and nothing names them: they are called class_00000 and so on")
    return order, first


def _folders_by_number(rows: Iterable[Row], finds: Finds) -> dict[int, Counter[str]]:
    folders: dict[int, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if isinstance(row.label, int):
            file = finds.file(row)
            parts = row.path.split("/")[-2:-1] or (path_parts(file.source_name)[-2:-1] if file is not None else [])
            folders[row.label].update(parts)
    return folders


def _check_folders(order: Sequence[str], first: int, folders: Mapping[int, Counter[str]]) -> None:
    """Compare the class list with the folders that the videos lie in.

    Raises:
        UserError: Most videos that lie in a folder named after a class lie in that of another class.
    """
    classes = ClassList("the class list", tuple(order))
    ids = {name: classes.find(name) for name in {name for names in folders.values() for name in names}}
    named = {number: {n: c for n, c in names.items() if ids[n] is not None} for number, names in folders.items()}
    wrong = [(number, n, c) for number, names in named.items() for n, c in names.items() if ids[n] != number - first]
    num_wrong = sum(count for _, _, count in wrong)
    if 2 * num_wrong > sum(sum(names.values()) for names in named.values()):
        number, folder, _ = wrong[0]
        raise UserError(
            f"label {number} is {order[number - first]!r} in the class list, but its videos lie in a folder "
            f"{folder!r}, and so for {spaced(num_wrong)} videos: the lists count in another order; give their own list"
        )


def _say_uniformer(text: str, has_file: bool, notes: list[str]) -> None:
    way_out = "give UniFormer's kinetics_400_categroies.txt as the class list, and they get everyone else's ids"
    if has_file:
        raise UserError(
            f"the lists count in UniFormer's order, where 341 is 'abseiling'; the class list has {text!r} there. "
            f"Models trained so score nothing elsewhere: {way_out}"
        )
    notes.append(f"the lists count in UniFormer's order; {way_out}")
