"""One codec for every message: frozen dataclasses to MessagePack arrays and back, checked by type.

Rule: nothing from outside becomes an object without passing ``unpack``, which raises ``Malformed``
and nothing else, whatever the bytes are.

A dataclass travels as an array of its fields in order. Evolution: fields are only appended, always
with a default. A shorter array takes the defaults (older sender); extra elements are ignored (newer
sender). A last field made with ``omitted`` travels only if it differs from its default. A union of dataclasses travels as ``[tag, fields]`` through ``Union``.

Supported annotations: int, float, bool, bytes, str, None unions, NewType of those, Literal, Enum,
``tuple[T, ...]``, ``tuple[A, B]``, nested dataclasses; bounds by ``Annotated`` with ``Range``,
``Length`` (exact) or ``AtMost`` (bytes, characters or elements).

Both directions are composed once for each type from closures: a gossip packet is packed or checked
in some ten microseconds, which is most of what an idle site does.
"""

import enum
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from operator import attrgetter
from typing import (
    Annotated,
    Any,
    Literal,
    NewType,
    NoReturn,
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
Encode = Callable[[Any], Any]

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


def omitted(default: Any) -> Any:
    """A last field that costs no byte while it has its ``default``; what older senders send."""
    return field(default=default, metadata={"is_omitted": True})


def pack(message: object) -> bytes:
    """The bytes of a dataclass instance; the inverse of ``unpack`` for its type."""
    return msgpack.packb(_encoder(type(message))(message), use_bin_type=True)  # type: ignore[no-any-return]


def unpack(kind: type[T], data: bytes | memoryview, bytes_max: int = MESH_BODY_BYTES_MAX) -> T:
    """Check and build one ``kind``.

    Raises:
        Malformed: too long, not MessagePack, nested too deep, or of another shape than ``kind``.
    """
    plain = _read(data, bytes_max, kind.__name__)
    try:
        return _decoder(kind)(plain)  # type: ignore[no-any-return]
    except Malformed:
        _bound_depth(plain, NESTING_MAX)
        raise


def checked(kind: Any, plain: Any) -> Any:
    """A value as an annotation of this module wants it: of lists and scalars, as ``unpack`` meets it.

    Raises:
        Malformed: it is of another type, or out of bounds.
    """
    return _decoder(kind)(plain)


class Tagged:
    """A closed union of dataclasses on the wire, each with a number that is never reused."""

    def __init__(self, tags: Mapping[int, type[Any]], others: type[Any] | None = None) -> None:
        """``tags`` maps number to type; part of the protocol, so numbers are for ever.

        ``others``: what a message with any other number is read as, its further fields ignored.
        """
        self._types, self._others = dict(tags), others
        self._tags = {kind: tag for tag, kind in tags.items()}

    def pack(self, message: object) -> bytes:
        """The bytes of ``[tag, fields]``."""
        kind = type(message)
        return msgpack.packb((self._tags[kind], _encoder(kind)(message)), use_bin_type=True)  # type: ignore[no-any-return]

    def unpack(self, data: bytes | memoryview, bytes_max: int = MESH_BODY_BYTES_MAX) -> Any:
        """The message; ``Malformed`` for anything else, unknown tags included."""
        plain = _read(data, bytes_max, "message")
        try:
            return self._decode(plain)
        except Malformed:
            _bound_depth(plain, NESTING_MAX)
            raise

    def _decode(self, plain: Any) -> Any:
        if type(plain) is not list or len(plain) != 2 or type(plain[0]) is not int:  # noqa: PLR2004 - tag and body
            raise Malformed("message is not a tagged pair")
        kind = self._types.get(plain[0], self._others)
        if kind is None:
            raise Malformed(
                f"unknown message tag {plain[0]}", why="a newer version may have sent it"
            )
        return _decoder(kind)(plain[1])


def _read(data: bytes | memoryview, bytes_max: int, what: str) -> Any:
    """Lists and scalars, not checked for their shape: for decoders, which look no deeper than it."""
    if len(data) > bytes_max:
        raise Malformed(f"{what} of {len(data)} bytes", why=f"the bound is {bytes_max}")
    try:
        return msgpack.unpackb(data, raw=False, object_pairs_hook=_refuse_map, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        if isinstance(error, Malformed):
            raise
        raise Malformed(f"{what} does not decode", why=type(error).__name__) from None


def _refuse_map(_pairs: object) -> NoReturn:
    raise Malformed("message holds a map", why="this protocol uses arrays only")


def _bound_depth(value: Any, left: int) -> None:
    """For what decoders do not look at, and for what they refused: it may be printed."""
    if left == 0:
        raise Malformed("message nests too deep", why=f"the bound is {NESTING_MAX}")
    if isinstance(value, list):
        for item in value:
            if isinstance(item, list):
                _bound_depth(item, left - 1)


# --- to the wire ---------------------------------------------------------------------------------
_ENCODERS: dict[type[Any], Encode] = {}
"""One encoder for each message type of this program; bounded by the source text."""


def _encoder(kind: type[Any]) -> Encode:
    if (known := _ENCODERS.get(kind)) is None:
        known = _ENCODERS[kind] = _build_encoder(kind)
    return known


def _build_encoder(kind: type[Any]) -> Encode:
    """The fields in order; those that MessagePack cannot take as they are, made plain."""
    if not is_dataclass(kind):
        return _plain
    columns = fields(kind)
    names = [column.name for column in columns]
    hints = get_type_hints(kind, include_extras=True)
    nested = tuple(
        (index, _plainer(hints[name]))
        for index, name in enumerate(names)
        if not _is_plain(hints[name])
    )
    omitted_defaults = [column.default for column in columns if column.metadata.get("is_omitted")]
    getter: Encode = attrgetter(*names) if len(names) > 1 else _few_fields(names)
    if not nested and not omitted_defaults:
        return getter

    def encode(message: Any) -> Any:
        values = list(getter(message))
        for default in reversed(omitted_defaults):
            if values[-1] != default:
                break
            values.pop()
        for index, make_plain in nested:
            if index < len(values):
                values[index] = make_plain(values[index])
        return values

    return encode


def _few_fields(names: list[str]) -> Encode:
    """As ``attrgetter``, which gives no tuple for one name and takes no empty list."""
    return lambda message: [getattr(message, name) for name in names]


def _is_plain(kind: Any) -> bool:
    """Whether every value of this annotation is what MessagePack takes (a tuple is)."""
    if isinstance(kind, NewType):
        return _is_plain(kind.__supertype__)
    origin = get_origin(kind)
    if origin is Annotated:
        return _is_plain(get_args(kind)[0])
    if origin in (Union, types.UnionType, tuple):
        return all(_is_plain(arg) for arg in get_args(kind) if arg is not Ellipsis)
    return origin is Literal or kind in (int, float, bool, bytes, str, type(None))


def _plainer(kind: Any) -> Encode:
    """``_plain`` for one annotation, with the look-ups done beforehand where that is worth it."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis:
        item = _plainer(get_args(kind)[0])
        return lambda values: [item(value) for value in values]
    return _encoder(kind) if isinstance(kind, type) else _plain


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if is_dataclass(value):
        return _encoder(type(value))(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


# --- from the wire -------------------------------------------------------------------------------
_DECODERS: dict[Any, Decode] = {}
"""One decoder for each annotation in this program; bounded by the source text."""


def _decoder(kind: Any) -> Decode:
    if (known := _DECODERS.get(kind)) is None:
        known = _DECODERS[kind] = _build(kind)
    return known


def _build(kind: Any) -> Decode:  # noqa: C901, PLR0911 - one return for each supported annotation
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
    if kind is float:
        return _real(())
    if kind is int:
        return _whole(())
    if kind in (bytes, str):
        return _text(kind, STRING_CHARS_MAX, None)
    if kind is bool:
        return _truth
    raise TypeError(f"no wire form for {kind!r}")


def _bounded(base: Any, bounds: list[Any]) -> Decode:
    while isinstance(base, NewType):
        base = base.__supertype__
    exact = next((b.exact for b in bounds if isinstance(b, Length)), None)
    most = min(
        [b.most for b in bounds if isinstance(b, AtMost)] + ([] if exact is None else [exact]),
        default=None,
    )
    ranges = tuple((b.low, b.high) for b in bounds if isinstance(b, Range))
    if get_origin(base) is tuple:
        return _sized(_tuple(get_args(base), ELEMENTS_MAX if most is None else most), exact)
    if base in (bytes, str):
        return _text(base, STRING_CHARS_MAX if most is None else most, exact)
    if base is int:
        return _whole(ranges)
    if base is float:
        return _real(ranges)
    raise TypeError(f"no bounded wire form for {base!r}")


def _wrong(kind: type[Any], value: Any) -> Malformed:
    return Malformed(f"expected {kind.__name__}, got {type(value).__name__}")


def _truth(value: Any) -> Any:
    if type(value) is not bool:
        raise _wrong(bool, value)
    return value


def _text(kind: type[Any], most: int, exact: int | None) -> Decode:
    """Bytes or characters, as ``kind`` is ``bytes`` or ``str``."""

    def decode(value: Any) -> Any:
        if type(value) is not kind:
            raise _wrong(kind, value)
        if len(value) > most:
            raise Malformed(f"{kind.__name__} of {len(value)}", why=f"the bound is {most}")
        return value

    def decode_exact(value: Any) -> Any:
        if type(value) is not kind:
            raise _wrong(kind, value)
        if len(value) != exact or exact > most:
            raise Malformed(f"length {len(value)}", why=f"it must be {exact}")
        return value

    return decode if exact is None else decode_exact


def _require_within(value: float, ranges: tuple[tuple[float, float], ...]) -> None:
    for low, high in ranges:
        if not low <= value <= high:
            raise Malformed(f"{value!r} is out of range", why=f"{low} to {high}")


def _whole(ranges: tuple[tuple[float, float], ...]) -> Decode:
    low, high = ranges[0] if len(ranges) == 1 else (-math.inf, math.inf)

    def decode(value: Any) -> Any:
        if type(value) is not int:
            raise _wrong(int, value)
        if not low <= value <= high:
            raise Malformed(f"{value!r} is out of range", why=f"{low} to {high}")
        if len(ranges) > 1:
            _require_within(value, ranges)
        return value

    return decode


def _real(ranges: tuple[tuple[float, float], ...]) -> Decode:
    def decode(value: Any) -> Any:
        if type(value) is int:
            value = float(value)
        elif type(value) is not float:
            raise _wrong(float, value)
        if not math.isfinite(value):
            raise Malformed("number is not finite")
        if ranges:
            _require_within(value, ranges)
        return value

    return decode


def _sized(inner: Decode, exact: int | None) -> Decode:
    if exact is None:
        return inner

    def decode(value: Any) -> Any:
        result = inner(value)
        if len(result) != exact:
            raise Malformed(f"length {len(result)}", why=f"it must be {exact}")
        return result

    return decode


def _optional(kind: Any) -> Decode:
    others = [arg for arg in get_args(kind) if arg is not type(None)]
    if len(others) != 1:
        raise TypeError(f"no wire form for {kind!r}: only T | None")
    inner = _decoder(others[0])
    return lambda value: None if value is None else inner(value)


def _one_of(allowed: tuple[Any, ...]) -> Decode:
    choices = frozenset((type(choice), choice) for choice in allowed)

    def decode(value: Any) -> Any:
        # A list has no hash; no choice is one.
        if type(value) is list or (type(value), value) not in choices:
            raise Malformed("value is not one of the allowed ones")
        return value

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
            if type(value) is not list or len(value) > most:
                raise Malformed("expected a list", why=f"of at most {most} elements")
            return tuple([inner(item) for item in value])

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
    count = len(inners)
    required = sum(
        column.default is MISSING and column.default_factory is MISSING for column in columns
    )

    def decode(value: Any) -> Any:
        if type(value) is not list or len(value) < required:
            raise Malformed(f"{kind.__name__} needs {required} fields")
        if len(value) > count:
            _bound_depth(value[count:], NESTING_MAX)
        arguments = [inner(item) for inner, item in zip(inners, value, strict=False)]
        try:
            return kind(*arguments)
        except ValueError as error:
            raise Malformed(f"{kind.__name__}: {error}") from None

    return decode
