"""The shipped lists are the published ones (each property below was counted on those), and labels find their class."""

import re
from pathlib import Path

import pytest

from preprocessing.class_lists import CLASS_LISTS, ClassList, class_list, lists_with, normal, read_class_file, remap
from vast.errors import UserError

DIGESTS = {
    "kinetics400": "sha256:3c9ba1c604ab056b3e985ce4ad89cab159de87cbb7dab2ee7844472c58334d94",
    "kinetics600": "sha256:68ef60f95385a0db955f214159e575da2293ceae684fc57e19f3d059bec698bf",
    "kinetics700": "sha256:09ea31b87ded89a17f18d9da3ab3afb5cef8925fcd890bbb3bb39129811e54e0",
    "ssv2": "sha256:e8c0dd74d8f999fc99865b5e62466f82358d3006114f540e67f396926e9d7021",
    "imagenet1k": "sha256:624954f06d059ddd477ab500dc059cf2628ac01e441d8a648d1dc6fbfe504c5a",
}
K400, K600, K700 = (class_list(name).names for name in ("kinetics400", "kinetics600", "kinetics700"))
SSV2 = class_list("ssv2").names
# The forms in which folders and lists write one class: mmaction2's, TSM's, gluoncv's, and a CSV's quotes.
SPELLINGS = (
    lambda name: name.replace(" ", "_"),
    lambda name: re.sub(r"[()']", "", name).replace(" ", "_"),
    lambda name: name.replace(" ", "_").replace("'", "-").replace("(", "-").replace(")", "-"),
    lambda name: f'"{name}"',
    str.upper,
)


def punctuated(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if re.search("[^A-Za-z0-9 ]", name)]


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_a_shipped_list_never_changes(name: str) -> None:
    assert class_list(name).digest == DIGESTS[name]


@pytest.mark.parametrize(("name", "size"), list(zip(CLASS_LISTS, (400, 600, 700, 174, 1000), strict=True)))
def test_ids_are_those_of_alphabetical_order(name: str, size: int) -> None:
    names = class_list(name).names
    assert len(set(names)) == len(names) == size
    assert list(names) == sorted(names)
    if name.startswith("kinetics"):
        assert list(names) == sorted(names, key=str.lower) == sorted(names, key=lambda text: text.replace(" ", "_"))


def test_the_kinetics_lists_differ_as_the_published_ones_do() -> None:
    assert [len(punctuated(names)) for names in (K400, K600, K700)] == [10, 19, 21]
    assert punctuated(K400) == [
        "hurling (sport)",
        "massaging person's head",
        "passing American football (in game)",
        "passing American football (not in game)",
        "petting animal (not cat)",
        "punching person (boxing)",
        "shooting goal (soccer)",
        "skiing (not slalom or crosscountry)",
        "tying knot (not on a tie)",
        "using remote controller (not gaming)",
    ]
    assert len(set(K400) - set(K600)) == 32
    assert len(set(K400) - set(K700)) == 22
    lower = "passing american football (not in game)"
    assert set(K600) - set(K700) == {"bull fighting", "chopping vegetables", "picking fruit", lower}
    assert "passing American football (in game)" in K600
    renamed = ("hugging", "hugging (not baby)"), ("changing wheel", "changing wheel (not on bike)")
    for old, new in (*renamed, ("opening bottle", "opening bottle (not wine)")):
        assert old in K400
        assert new in K700
        assert not {new} & set(K400)


def test_the_something_list_is_in_the_order_without_brackets() -> None:
    assert (SSV2[0], SSV2[1]) == ("Approaching something with your camera", "Attaching something to something")
    assert (SSV2[57], SSV2[173]) == ("Poking something so that it falls over", "Wiping something off of something")
    for left, right, there in ((86, 87, "from left to right"), (93, 94, "from left to right")):
        assert there in SSV2[left]
        assert "from right to left" in SSV2[right]
    assert [SSV2[index].split()[3] for index in (166, 167)] == ["left", "right"]
    counts = [sum(mark in text for text in SSV2) for mark in (",", "'", "(")]
    assert counts == [12, 7, 2]


def test_imagenet_ids_are_ranks_of_wordnet_ids() -> None:
    names = class_list("imagenet1k").names
    assert names[0] == "n01440764"
    assert all(re.fullmatch(r"n\d{8}", name) for name in names)


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_every_spelling_in_circulation_finds_its_class(name: str) -> None:
    classes = class_list(name)
    for spell in SPELLINGS:
        wrong = [text for label_id, text in enumerate(classes.names) if classes.find(spell(text)) != label_id]
        assert wrong == []


def test_a_renamed_class_is_not_taken_for_the_older_one() -> None:
    assert class_list("kinetics400").find("hugging (not baby)") is None
    assert class_list("kinetics700").find("hugging") is None
    assert class_list("kinetics600").find("passing American football (not in game)") == K600.index(
        "passing american football (not in game)"
    )


def test_names_that_collide_after_normalising_are_an_error() -> None:
    with pytest.raises(UserError, match=r"'hugging \(baby\)' and 'Hugging_baby' differ only in case, spaces or punct"):
        ClassList("mine", ("yoga", "hugging (baby)", "Hugging_baby"))
    assert normal("Massaging_Person’s head") == normal("massaging persons head")


def test_an_unknown_list_is_an_error_that_names_the_known() -> None:
    with pytest.raises(UserError, match="no class list 'kinetics500'; there are kinetics400"):
        class_list("kinetics500")


def test_labels_tell_the_lists_they_belong_to() -> None:
    assert lists_with(["hugging (not baby)", "yoga"]) == ["kinetics600", "kinetics700"]
    assert lists_with(["no such class"]) == []


# --- lists of one's own -----------------------------------------------------------------------------------------------


def write(folder: Path, *lines: str) -> Path:
    path = folder / "classes.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "lines",
    [
        ["b, with comma", "a"],
        ["b, with comma\t0", "a\t1"],
        ["0 b, with comma", "1 a"],
        ["\ufeffb, with comma\r", "", "a\r", ""],
    ],
)
def test_a_list_of_ones_own_may_show_its_ids(tmp_path: Path, lines: list[str]) -> None:
    assert read_class_file(write(tmp_path, *lines)).names == ("b, with comma", "a")


def test_names_that_hold_numbers_stay_whole(tmp_path: Path) -> None:
    names = ("100 m hurdles", "200 m hurdles", "10000, walking")
    assert read_class_file(write(tmp_path, *names)).names == names


def test_ids_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sort the lines by id"):
        read_class_file(write(tmp_path, "a\t1", "b\t0"))


def test_uniformer_s_order_is_known_by_its_first_entries_and_can_be_remapped(tmp_path: Path) -> None:
    beginning = ["riding a bike", "marching", "dodgeball"]
    theirs = [*beginning, *(name for name in reversed(K400) if name not in beginning)]
    path = write(tmp_path, *(f"{name}\t{number}" for number, name in enumerate(theirs)))
    with pytest.raises(
        UserError, match=r"in UniFormer's order, not that of kinetics400: id 0 is 'riding a bike'.*remap"
    ):
        read_class_file(path, class_list("kinetics400"))
    ids = remap(theirs, class_list("kinetics400"))
    assert [K400[label_id] for label_id in ids] == theirs
    with pytest.raises(UserError, match="'flying' is not in kinetics400"):
        remap(["flying"], class_list("kinetics400"))


def test_another_order_of_the_published_names_is_refused_with_the_first_difference(tmp_path: Path) -> None:
    swapped = [*K400[:5], K400[6], K400[5], *K400[7:]]
    with pytest.raises(UserError, match=r"another order than kinetics400: id 5 is 'arm wrestling' there and 'archery'"):
        read_class_file(write(tmp_path, *swapped), class_list("kinetics400"))


def test_the_published_names_in_another_spelling_are_the_published_list(tmp_path: Path) -> None:
    path = write(tmp_path, *(name.replace(" ", "_") for name in K400))
    assert read_class_file(path, class_list("kinetics400")) is class_list("kinetics400")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"yoga\nsal\xf3n\n", "line 2 is not UTF-8: byte 0xf3 at column 4"),
        (b"yoga\0\n", "line 1 holds a NUL byte"),
        (b"yoga\n\x1b[31mred\n", "holds a control character"),
        (b"a" * 10_000_000, "line 1 is longer than"),
    ],
)
def test_a_file_that_is_no_class_list_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_class_file(path)


def test_a_formula_is_a_name_like_any_other(tmp_path: Path) -> None:
    assert read_class_file(write(tmp_path, "=cmd()", "yoga")).names == ("=cmd()", "yoga")


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.txt: No such file"):
        read_class_file(tmp_path / "none.txt")
