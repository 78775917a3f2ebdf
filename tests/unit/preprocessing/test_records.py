import json
from pathlib import Path

import pytest

from preprocessing.records import (
    check_name,
    kinetics_key,
    raise_problems,
    read_json,
    spaced,
    ssv2_key,
    text_lines,
    the_one_file,
)
from vast.errors import UserError


def test_start_is_part_of_a_kinetics_key() -> None:
    assert kinetics_key("k400", "-_abcdefghi", 7) == "k400_-_abcdefghi_000007"
    assert ssv2_key("ssv2", "007") == "ssv2_007"


def test_a_name_that_readers_would_cut_is_refused() -> None:
    assert check_name("my-set_1") == "my-set_1"
    for name in ("a.b", "a/b", "", "a b"):
        with pytest.raises(UserError, match="only A-Z a-z 0-9 _ - may be in it"):
            check_name(name)


def test_problems_are_shown_together_but_not_without_end() -> None:
    raise_problems("x.csv", [])
    with pytest.raises(UserError) as caught:
        raise_problems("x.csv", [f"line {i}" for i in range(14)])
    assert str(caught.value).splitlines()[0] == "x.csv: 14 problem(s)"
    assert str(caught.value).splitlines()[-1] == "  and 4 more"


def test_a_file_is_looked_for_under_all_its_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no a\.json or b\.json"):
        the_one_file(tmp_path, ("a.json", "b.json"))
    (tmp_path / "b.json").touch()
    assert the_one_file(tmp_path, ("a.json", "b.json")) == tmp_path / "b.json"
    (tmp_path / "a.json").touch()
    with pytest.raises(UserError, match=r"has both a\.json and b\.json"):
        the_one_file(tmp_path, ("a.json", "b.json"))


def test_lines_come_without_a_byte_order_mark_and_with_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffé\r\n\ufeffb\nc".encode())
    assert list(text_lines(path)) == ["é\r\n", "\ufeffb\n", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\xe9\n", "line 2 is not UTF-8: byte 0xe9 at column 2"),
        ("a\n".encode("utf-16"), "line 1 (holds a NUL byte|is not UTF-8)"),
        (b"a\nb\0\n", "line 2 holds a NUL byte"),
        (b"a\n" + b"x" * 1001 + b"\n", "line 2 is longer than 1000 bytes"),
        (b"x" * 1_000_000, "line 1 is longer than 1000 bytes"),
    ],
)
def test_what_is_not_text_names_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(text_lines(path, max_bytes=1000))


def test_a_folder_or_nothing_in_a_file_s_place_is_the_users_mistake(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="cannot read"):
            list(text_lines(path))
        with pytest.raises(UserError, match="cannot read"):
            read_json(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", "is not JSON: Expecting value"),
        (b"\xff{}", "is not JSON: .*can't decode"),
        (b"[" * 200_000, "is not JSON: .*recursion"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' occurs twice"),
    ],
)
def test_what_is_not_json_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(path)


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("\ufeff" + json.dumps({"a": [1]}), encoding="utf-8")
    assert read_json(path) == {"a": [1]}


def test_counts_are_written_for_people() -> None:
    assert [spaced(number) for number in (0, 999, 19906, 1234567)] == ["0", "999", "19 906", "1 234 567"]
