from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal, NewType

import msgpack
import pytest

from agent.foundation.errors import Malformed
from agent.wire.schema import AtMost, Length, Range, Tagged, omitted, pack, unpack

Id = NewType("Id", bytes)


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, slots=True)
class Point:
    x: Annotated[int, Range(0, 10)]
    y: float = 0.0


@dataclass(frozen=True, slots=True)
class Longer:
    x: int
    y: float = 0.0
    z: str = "new"


@dataclass(frozen=True, slots=True)
class Everything:
    id: Annotated[Id, Length(4)]
    name: Annotated[str, AtMost(5)]
    kind: Literal["a", "b"]
    colour: Colour
    point: Point
    maybe: Point | None
    many: Annotated[tuple[Point, ...], AtMost(2)]
    pair: tuple[int, str]
    flag: bool


GOOD = Everything(
    Id(b"1234"), "name", "a", Colour.BLUE, Point(3, 1.5), None, (Point(1),), (1, "x"), True
)


def plain(**changes: object) -> bytes:
    columns = ["id", "name", "kind", "colour", "point", "maybe", "many", "pair", "flag"]
    values: dict[str, object] = {
        "id": b"1234", "name": "name", "kind": "a", "colour": 2, "point": [3, 1.5], "maybe": None,
        "many": [[1, 0.0]], "pair": [1, "x"], "flag": True,
    }  # fmt: skip
    values |= changes
    return bytes(msgpack.packb([values[column] for column in columns], use_bin_type=True))


def test_a_message_survives_the_journey() -> None:
    assert unpack(Everything, pack(GOOD)) == GOOD
    assert pack(GOOD) == plain()


@pytest.mark.parametrize(
    "changes",
    [
        {"id": b"123"},
        {"id": "1234"},
        {"name": "longer"},
        {"name": None},
        {"kind": "c"},
        {"kind": 1},
        {"colour": 3},
        {"colour": [1]},
        {"point": [11]},
        {"point": []},
        {"point": "p"},
        {"point": [True]},
        {"point": [3, float("nan")]},
        {"point": [3, float("inf")]},
        {"many": [[1], [2], [3]]},
        {"many": {}},
        {"pair": [1]},
        {"pair": [1, "x", 2]},
        {"flag": 1},
    ],
    ids=str,
)
def test_every_other_shape_is_malformed(changes: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        unpack(Everything, plain(**changes))


def test_a_newer_sender_may_append_fields() -> None:
    assert unpack(Point, pack(Longer(3, 1.0))) == Point(3, 1.0)


def test_an_older_sender_gets_the_defaults() -> None:
    assert unpack(Longer, pack(Point(3, 1.0))) == Longer(3, 1.0, "new")


def test_a_whole_number_may_stand_for_a_float() -> None:
    assert unpack(Point, msgpack.packb([3, 2])) == Point(3, 2.0)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91", b"\xff" * 20, b"\x80"])
def test_bytes_that_are_no_message_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        unpack(Point, data)


def test_nesting_is_bounded_before_anything_looks_at_the_content() -> None:
    deep: object = 1
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(Malformed, match=r"nest|decode"):
        unpack(Point, msgpack.packb(deep))


def test_maps_are_not_part_of_the_protocol() -> None:
    with pytest.raises(Malformed, match="map"):
        unpack(Point, msgpack.packb([3, {"a": 1}]))


def test_length_is_bounded() -> None:
    with pytest.raises(Malformed, match="bound"):
        unpack(Point, pack(Point(1)), bytes_max=1)


def test_a_tagged_union_tells_its_members_apart() -> None:
    union = Tagged({1: Point, 2: Longer})
    assert union.unpack(union.pack(Longer(1))) == Longer(1)
    assert union.unpack(union.pack(Point(1))) == Point(1)


@pytest.mark.parametrize(
    "plain_form", [[3, [1]], [1], [1, [1], 2], "x", [[1], [1]], [1.0, [1]]], ids=str
)
def test_an_unknown_tag_is_malformed(plain_form: object) -> None:
    with pytest.raises(Malformed):
        Tagged({1: Point}).unpack(msgpack.packb(plain_form))


@dataclass(frozen=True, slots=True)
class One:
    many: tuple[Point | None, ...]


@dataclass(frozen=True, slots=True)
class Nothing:
    pass


@dataclass(frozen=True, slots=True)
class Nested:
    one: One
    pairs: tuple[tuple[Annotated[str, AtMost(3)], Colour], ...]
    colour: Colour | None = None


@pytest.mark.parametrize(
    "message",
    [
        One((Point(1), None)),
        Nothing(),
        Nested(One(()), (("a", Colour.RED),), Colour.BLUE),
        Nested(One((None,)), ()),
    ],
    ids=str,
)
def test_messages_of_few_fields_and_of_nested_ones_survive_the_journey(message: object) -> None:
    assert unpack(type(message), pack(message)) == message


def test_what_a_newer_sender_appends_may_not_nest_too_deep() -> None:
    deep: object = 1
    for _ in range(20):
        deep = [deep]
    assert unpack(Point, msgpack.packb([3, 1.0, [[1]]])) == Point(3, 1.0)
    with pytest.raises(Malformed, match="nest"):
        unpack(Point, msgpack.packb([3, 1.0, deep]))


def test_a_truth_value_is_no_tag() -> None:
    with pytest.raises(Malformed):
        Tagged({1: Point}).unpack(msgpack.packb([True, [1]]))


@dataclass(frozen=True, slots=True)
class Told:
    x: int
    place: Annotated[bytes, AtMost(4)] = omitted(b"")
    mark: int = omitted(0)


@dataclass(frozen=True, slots=True)
class Untold:
    x: int


def test_an_omitted_field_costs_no_byte_while_it_has_its_default() -> None:
    assert pack(Told(5)) == pack(Untold(5))
    assert unpack(Told, pack(Untold(5))) == Told(5)
    for told in (Told(5, b"ab"), Told(5, b"", 7), Told(5, b"ab", 7)):
        assert unpack(Told, pack(told)) == told
        assert unpack(Untold, pack(told)) == Untold(5)
