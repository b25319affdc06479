"""Values of a JSON tensor, checked at the speed of C loops and without a tensor library.

Rule: a value is taken only if it is exactly of the datatype's kind: no string becomes a number, no
boolean an integer, no fraction is cut off.
"""

from itertools import chain
from math import prod
from typing import Any

from agent.foundation.errors import UsageError
from agent.serving.datatypes import Datatype

_ALLOWED: dict[str, frozenset[type]] = {
    "bool": frozenset({bool}),
    "integer": frozenset({int}),
    "float": frozenset({int, float}),
    "bytes": frozenset({str}),
}
_JSON_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def flat_values(
    data: list[Any], name: str, datatype: Datatype, shape: tuple[int, ...]
) -> list[Any]:
    """The elements in row-major order; ``data`` is flat or nested exactly as ``shape``.

    Raises:
        UsageError: wrong nesting, count, or kind of value; the text names the tensor.
    """
    values = _unnest(data, name, shape)
    elements = prod(shape)
    if len(values) != elements:
        raise UsageError(
            f"wrong number of elements of input {name!r}",
            why=f"shape {list(shape)} takes {elements}, given {len(values)}",
        )
    wrong = set(map(type, values)) - _ALLOWED[datatype.kind]
    if wrong:
        given = " and ".join(sorted(_JSON_NAMES[kind] for kind in wrong))
        raise UsageError(
            f"wrong values of input {name!r}", why=f"{datatype.name} does not take {given}"
        )
    if (
        datatype.kind == "integer"
        and values
        and not (datatype.low <= min(values) and max(values) <= datatype.high)
    ):
        raise UsageError(
            f"value of input {name!r} is out of range",
            why=f"{datatype.name} goes from {datatype.low} to {datatype.high}",
        )
    return values


def _unnest(data: list[Any], name: str, shape: tuple[int, ...]) -> list[Any]:
    values = data
    given = [len(values)]
    while values and isinstance(values[0], list):
        lengths = {len(row) if isinstance(row, list) else -1 for row in values}
        if len(lengths) != 1 or len(given) >= len(shape):
            raise UsageError(
                f"data of input {name!r} is nested unevenly or too deep",
                why=f"its shape is {list(shape)}",
            )
        given.append(lengths.pop())
        values = list(chain.from_iterable(values))
    if len(given) > 1 and tuple(given) != shape:
        raise UsageError(
            f"data of input {name!r} does not fit its shape",
            why=f"shape {list(shape)}, nested as {given}",
        )
    return values
