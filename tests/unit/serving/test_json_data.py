"""JSON values become elements only if they are exactly of the datatype's kind."""

from typing import Any

import pytest

from agent.foundation.errors import UsageError
from agent.serving.datatypes import DATATYPES
from agent.serving.json_data import flat_values


def take(data: list[Any], datatype: str = "FP32", shape: tuple[int, ...] = (2, 2)) -> list[Any]:
    return flat_values(data, "x", DATATYPES[datatype], shape)


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]])
def test_flat_and_nested_data_are_the_same(data: list[Any]) -> None:
    assert take(data) == [1, 2, 3, 4]


def test_empty_shapes_and_scalars_are_taken() -> None:
    assert take([], shape=(0, 3)) == []
    assert take([7], shape=()) == [7]


@pytest.mark.parametrize(
    ("data", "datatype", "named"),
    [
        ([1, 2, 3], "FP32", "takes 4, given 3"),
        ([1, 2, 3, 4, 5], "FP32", "takes 4, given 5"),
        ([[1, 2], [3]], "FP32", "nested unevenly"),
        ([[1, 2], 3, 4], "FP32", "nested unevenly"),
        ([[[1], [2]], [[3], [4]]], "FP32", "too deep"),
        ([[1, 2, 3, 4]], "FP32", "does not fit its shape"),
        ([[1], [2], [3], [4]], "FP32", "does not fit its shape"),
        (["a", 1, 2, 3], "FP32", "FP32 does not take a string"),
        ([None, 1, 2, 3], "FP32", "does not take null"),
        ([True, 1, 2, 3], "FP32", "does not take true or false"),
        ([1.0, 1, 2, 3], "INT32", "INT32 does not take a number"),
        ([1, 0, 1, 0], "BOOL", "BOOL does not take an integer"),
        ([1, 0, 1, 0], "BYTES", "BYTES does not take an integer"),
        ([{}, 0, 1, 0], "FP32", "does not take an object"),
        ([1, [2], 3, 4], "FP32", "does not take a list"),
        ([256, 0, 0, 0], "UINT8", "goes from 0 to 255"),
        ([-1, 0, 0, 0], "UINT64", "goes from 0 to"),
        ([2**63, 0, 0, 0], "INT64", "goes from"),
    ],
)
def test_other_values_are_refused_by_name(data: list[Any], datatype: str, named: str) -> None:
    with pytest.raises(UsageError, match="'x'") as caught:
        take(data, datatype)
    assert named in str(caught.value)
