import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from agent.foundation.errors import ConfigError
from agent.foundation.toml_reading import (
    AtMost,
    Between,
    Doc,
    Each,
    Keys,
    Matches,
    Problem,
    keys_of,
    read_toml,
)

WORD = Matches(re.compile("[a-z]+"), "it must be lower-case letters")


@dataclass(frozen=True, slots=True)
class Inner:
    count: Annotated[int, Between(1, 9), Doc("How many.")]
    words: Annotated[tuple[str, ...], AtMost(2), Each(WORD)] = ()


@dataclass(frozen=True, slots=True)
class Outer:
    title: str = ""
    ratio: float = 0.5
    where: Path | None = None
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    named: Annotated[Mapping[str, Inner], AtMost(2), Keys(WORD)] = field(default_factory=dict)


def read(text: str) -> Outer:
    return read_toml(Outer, text, "file.toml")


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value)


def test_every_supported_type_is_read() -> None:
    assert read(
        'title = "x"\nratio = 1\nwhere = "/a"\nkind = "b"\n'
        '[inner]\ncount = 1\nwords = ["a"]\n[named.x]\ncount = 2\n'
    ) == Outer("x", 1.0, Path("/a"), "b", Inner(1, ("a",)), {"x": Inner(2)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[inner]", "line 1: inner has no count; add it"),
        ("[inner]\ncount = 10", "line 2: inner.count is 10; it must be from 1 to 9"),
        ("[inner]\ncount = 1\nwords = ['a', 'B']", "element 2 is 'B'; it must be lower-case"),
        ("[inner]\ncount = 1\nwords = ['a', 'b', 'c']", "at most 2"),
        ("[inner]\ncuont = 1", "did you mean 'count'?"),
        ("inner = 1", "write [inner] and its keys below it"),
        ("[named.X]\ncount = 1", "named: the name is 'X'"),
        ("[named]\nx = 1", "write [named.x]"),
        ("[named.a]\ncount=1\n[named.b]\ncount=1\n[named.c]\ncount=1", "named has 3 elements"),
        ("zzz = 1", "known: title, ratio, where, kind, inner, named"),
    ],
)
def test_a_wrong_file_is_refused(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_problems_come_in_the_order_of_their_lines() -> None:
    told = refusal("[inner]\nwords = 1\nx = 1\n[named.a]\ny = 1\n")
    assert [int(line) for line in re.findall(r"line (\d+)", told)] == [1, 2, 3, 4, 5]


def test_a_check_of_the_whole_runs_only_on_values_that_are_right_alone() -> None:
    def never(_: Outer) -> list[Problem]:
        raise AssertionError

    with pytest.raises(ConfigError, match="must be a number"):
        read_toml(Outer, "ratio = 'x'", "file.toml", never)
    with pytest.raises(ConfigError, match="line 1: too much"):
        read_toml(Outer, "ratio = 2", "f", lambda _: [Problem(("ratio",), "too much")])


def test_keys_tell_their_explanation_and_whether_they_are_required() -> None:
    keys = keys_of(Inner)
    assert (keys["count"].doc, keys["count"].is_required) == ("How many.", True)
    assert (keys["words"].doc, keys["words"].is_required) == ("", False)


def test_a_file_nested_too_deep_is_refused() -> None:
    assert "not valid TOML" in refusal(f"title = {'[' * 5000}{']' * 5000}")
