"""One codec for every message: frozen dataclasses to MessagePack arrays and back, checked by type.

Rule: nothing from outside becomes an object without passing ``unpack``, which raises ``Malformed``
and nothing else, whatever the bytes are.

A dataclass travels as an array of its fields in order. Evolution: fields are only appended, always
with a default. A shorter array takes the defaults (older sender); extra elements are ignored (newer
sender). A union of dataclasses travels as ``[tag, fields]`` through ``Union``.

Supported annotations: int, float, bool, bytes, str, None unions, NewType of those, Literal, Enum,
``tuple[T, ...]``, ``tuple[A, B]``, nested dataclasses; bounds by ``Annotated`` with ``Range``,
``Length`` (exact) or ``AtMost`` (bytes, characters or elements).
"""

import enum
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import (
    Annotated,
    Any,
    Literal,
    NewType,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgpack

from agent.foundation.errors import Malformed
from agent.wire.limits import MESH_BODY_BYTES_MAX, NESTING_MAX

T = TypeVar("T")
Decode = Callable[[Any], Any]

STRING_CHARS_MAX = 4096
"""Default bound of a str or bytes field that names none of its own is AtMost of this size."""
ELEMENTS_MAX = 65_536
"""Default bound of a tuple field: the chunks of the largest blob."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bound of a number, both ends included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Length:
    """Exact number of bytes, characters or elements."""

    exact: int


@dataclass(frozen=True, slots=True)
class AtMost:
    """Largest number of bytes, characters or elements."""

    most: int


def pack(message: object) -> bytes:
    """The bytes of a dataclass instance; the inverse of ``unpack`` for its type."""
    return msgpack.packb(_plain(message), use_bin_type=True)  # type: ignore[no-any-return]


def unpack(kind: type[T], data: bytes | memoryview, bytes_max: int = MESH_BODY_BYTES_MAX) -> T:
    """Check and build one ``kind``.

    Raises:
        Malformed: too long, not MessagePack, nested too deep, or of another shape than ``kind``.
    """
    if len(data) > bytes_max:
        raise Malformed(f"{kind.__name__} of {len(data)} bytes", why=f"the bound is {bytes_max}")
    try:
        plain = msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"{kind.__name__} does not decode", why=type(error).__name__) from None
    _bound_depth(plain, NESTING_MAX)
    return _decoder(kind)(plain)  # type: ignore[no-any-return]


class Tagged:
    """A closed union of dataclasses on the wire, each with a number that is never reused."""

    def __init__(self, tags: Mapping[int, type[Any]]) -> None:
        """``tags`` maps number to type; part of the protocol, so numbers are for ever."""
        self._types = dict(tags)
        self._tags = {kind: tag for tag, kind in tags.items()}

    def pack(self, message: object) -> bytes:
        """The bytes of ``[tag, fields]``."""
        tag = self._tags[type(message)]
        return msgpack.packb([tag, _plain(message)], use_bin_type=True)  # type: ignore[no-any-return]

    def unpack(self, data: bytes | memoryview, bytes_max: int = MESH_BODY_BYTES_MAX) -> Any:
        """The message; ``Malformed`` for anything else, unknown tags included."""
        if len(data) > bytes_max:
            raise Malformed(f"message of {len(data)} bytes", why=f"the bound is {bytes_max}")
        try:
            plain = msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise Malformed("message does not decode", why=type(error).__name__) from None
        _bound_depth(plain, NESTING_MAX)
        if not isinstance(plain, list) or len(plain) != 2 or not isinstance(plain[0], int):  # noqa: PLR2004 - tag and body
            raise Malformed("message is not a tagged pair")
        kind = self._types.get(plain[0])
        if kind is None:
            raise Malformed(
                f"unknown message tag {plain[0]}", why="a newer version may have sent it"
            )
        return _decoder(kind)(plain[1])


def _bound_depth(value: Any, left: int) -> None:
    if left == 0:
        raise Malformed("message nests too deep", why=f"the bound is {NESTING_MAX}")
    if isinstance(value, list):
        for item in value:
            if isinstance(item, (list, dict)):
                _bound_depth(item, left - 1)
    elif isinstance(value, dict):
        raise Malformed("message holds a map", why="this protocol uses arrays only")


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if is_dataclass(value):
        return [_plain(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


_DECODERS: dict[Any, Decode] = {}
"""One decoder for each annotation in this program; bounded by the source text."""


def _decoder(kind: Any) -> Decode:
    if (known := _DECODERS.get(kind)) is None:
        known = _DECODERS[kind] = _build(kind)
    return known


def _build(kind: Any) -> Decode:  # noqa: PLR0911 - one return for each supported annotation
    if isinstance(kind, NewType):
        return _decoder(kind.__supertype__)
    origin = get_origin(kind)
    if origin is Annotated:
        base, *bounds = get_args(kind)
        return _bounded(base, bounds)
    if origin in (Union, types.UnionType):
        return _optional(kind)
    if origin is Literal:
        return _one_of(get_args(kind))
    if origin is tuple:
        return _tuple(get_args(kind), ELEMENTS_MAX)
    if is_dataclass(kind):
        return _dataclass(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum(kind)
    if kind in (int, float, bool, bytes, str):
        return _scalar(kind, None)
    raise TypeError(f"no wire form for {kind!r}")


def _scalar(kind: Any, most: int | None) -> Decode:
    limit = STRING_CHARS_MAX if most is None else most

    def decode(value: Any) -> Any:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise Malformed(f"expected {kind.__name__}, got {type(value).__name__}")
        if kind is float and not math.isfinite(value):
            raise Malformed("number is not finite")
        if kind in (bytes, str) and len(value) > limit:
            raise Malformed(f"{kind.__name__} of {len(value)}", why=f"the bound is {limit}")
        return value

    return decode


def _bounded(base: Any, bounds: list[Any]) -> Decode:
    most = min(
        [b.most for b in bounds if isinstance(b, AtMost)]
        + [b.exact for b in bounds if isinstance(b, Length)],
        default=None,
    )
    while isinstance(base, NewType):
        base = base.__supertype__
    if get_origin(base) is tuple:
        inner = _tuple(get_args(base), ELEMENTS_MAX if most is None else most)
    elif base in (bytes, str):
        inner = _scalar(base, most)
    else:
        inner = _decoder(base)
    exact = next((b.exact for b in bounds if isinstance(b, Length)), None)
    ranges = [b for b in bounds if isinstance(b, Range)]

    def decode(value: Any) -> Any:
        result = inner(value)
        if exact is not None and len(result) != exact:
            raise Malformed(f"length {len(result)}", why=f"it must be {exact}")
        for bound in ranges:
            if not bound.low <= result <= bound.high:
                raise Malformed(f"{result!r} is out of range", why=f"{bound.low} to {bound.high}")
        return result

    return decode


def _optional(kind: Any) -> Decode:
    others = [arg for arg in get_args(kind) if arg is not type(None)]
    if len(others) != 1:
        raise TypeError(f"no wire form for {kind!r}: only T | None")
    inner = _decoder(others[0])
    return lambda value: None if value is None else inner(value)


def _one_of(allowed: tuple[Any, ...]) -> Decode:
    def decode(value: Any) -> Any:
        for choice in allowed:
            if type(choice) is type(value) and choice == value:
                return value
        raise Malformed("value is not one of the allowed ones")

    return decode


def _enum(kind: type[enum.Enum]) -> Decode:
    def decode(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError:
            raise Malformed(f"no such {kind.__name__}") from None

    return decode


def _tuple(args: tuple[Any, ...], most: int) -> Decode:
    if len(args) == 2 and args[1] is Ellipsis:  # noqa: PLR2004 - tuple[T, ...]
        inner = _decoder(args[0])

        def decode(value: Any) -> Any:
            if not isinstance(value, list) or len(value) > most:
                raise Malformed("expected a list", why=f"of at most {most} elements")
            return tuple(inner(item) for item in value)

        return decode
    inners = tuple(_decoder(arg) for arg in args)

    def decode_fixed(value: Any) -> Any:
        if not isinstance(value, list) or len(value) != len(inners):
            raise Malformed(f"expected a list of {len(inners)}")
        return tuple(inner(item) for inner, item in zip(inners, value, strict=True))

    return decode_fixed


def _dataclass(kind: Any) -> Decode:
    hints = get_type_hints(kind, include_extras=True)
    columns = fields(kind)
    inners = [_decoder(hints[column.name]) for column in columns]
    required = sum(
        column.default is MISSING and column.default_factory is MISSING for column in columns
    )

    def decode(value: Any) -> Any:
        if not isinstance(value, list) or len(value) < required:
            raise Malformed(f"{kind.__name__} needs {required} fields")
        arguments = [inner(item) for inner, item in zip(inners, value, strict=False)]
        try:
            return kind(*arguments)
        except ValueError as error:
            raise Malformed(f"{kind.__name__}: {error}") from None

    return decode
