import io
import json
from pathlib import Path

import numpy as np
import pytest

from agent.foundation.errors import Malformed
from agent.workers.parameters import Parameters, check_like, largest, parse, read, write


def some(label: str = "mnist-2nn/28", **changes: np.ndarray) -> Parameters:
    tensors = {
        "bias": np.array([1.5, -2.0], np.float32),
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        **changes,
    }
    return Parameters(label, tensors)


def content(parameters: Parameters) -> bytes:
    file = io.BytesIO()
    assert write(parameters, file) == len(file.getvalue())
    return file.getvalue()


def handmade(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with path.open("wb") as file:
        write(some(), file)
    with path.open("rb") as file:
        back = read(file.fileno())
    assert back.label == "mnist-2nn/28"
    assert back.outline() == {"bias": (2,), "weight": (2, 3)}
    assert np.array_equal(back.tensors["weight"], some().tensors["weight"])


def test_equal_parameters_give_equal_bytes_whatever_their_order() -> None:
    one = some()
    other = Parameters(one.label, dict(reversed(list(one.tensors.items()))))
    assert content(one) == content(other)


def test_a_mapped_tensor_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        parse(content(some())).tensors["bias"][0] = 1


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (b"", "do not start with a header"),
        (b"\xff" * 64, "do not start with a header"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "do not start with a header"),
        (handmade({}), "header differ"),
        ((9).to_bytes(8, "little") + b'{"a":NaN}', "no place in the file"),
        ((4).to_bytes(8, "little") + b"\xff\xff\xff\xff", "not JSON"),
        ((2000).to_bytes(8, "little") + b"[" * 2000, "not JSON"),
        (handmade([]), "not a table"),
        (handmade({"a": 1}), "no place in the file"),
        (handmade({"a": ENTRY}), "cut off"),
        (handmade({"a": ENTRY}, bytes(8)), "header differ"),
        (handmade({"a": ENTRY | {"dtype": "F16"}}, bytes(4)), "not float32"),
        (handmade({"a": ENTRY | {"shape": [2]}}, bytes(4)), "misses bytes"),
        (handmade({"a": ENTRY | {"shape": [-1]}}, bytes(4)), "impossible shape"),
        (handmade({"a": ENTRY | {"shape": [1] * 9}}, bytes(4)), "impossible shape"),
        (handmade({"a": ENTRY | {"shape": [True]}}, bytes(4)), "impossible shape"),
        (handmade({"a": ENTRY, "b": ENTRY}, bytes(4)), "overlaps"),
        (handmade({"a": ENTRY | {"data_offsets": [4, 8]}}, bytes(8)), "leaves a gap"),
        (handmade({"a": ENTRY, "__metadata__": {"atoll": 7}}, bytes(4)), "short text"),
        (handmade({"a": ENTRY, "__metadata__": {"atoll": "x" * 300}}, bytes(4)), "short text"),
        (handmade({"a": ENTRY, "__metadata__": []}, bytes(4)), "not a table"),
    ],
)
def test_bytes_that_are_not_parameters_are_malformed(given: bytes, what: str) -> None:
    with pytest.raises(Malformed, match=what):
        parse(given)


def test_an_empty_file_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file, pytest.raises(Malformed, match="0 bytes"):
        read(file.fileno())


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (some("mnist-cnn/28"), "mnist-cnn/28"),
        (some(bias=np.zeros(3, np.float32)), "'bias' has shape"),
        (some(extra=np.zeros(3, np.float32)), "'extra' is not part"),
        (Parameters("mnist-2nn/28", {"bias": np.zeros(2, np.float32)}), "'weight' is missing"),
    ],
)
def test_a_difference_is_named(given: Parameters, what: str) -> None:
    with pytest.raises(Malformed, match=what):
        check_like(given, some())


def test_the_largest_magnitude_counts_either_sign() -> None:
    assert largest(some()) == {"bias": 2.0, "weight": 5.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_named(bad: float) -> None:
    with pytest.raises(Malformed, match="'bias' is not finite"):
        largest(some(bias=np.array([1, bad, 2], np.float32)))
