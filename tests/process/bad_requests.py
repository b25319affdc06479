"""What is wrong with the requests of ``test_bad_requests_process``, and what each is told over HTTP."""

import json
from typing import Any

SHAPE = [1, 3, 48, 192]
ELEMENTS = 3 * 48 * 192
RAW = bytes(4 * ELEMENTS)
LENGTH = "Inference-Header-Content-Length"
Sent = tuple[bytes, dict[str, str]]


def entry(**changes: Any) -> dict[str, Any]:
    start = {"name": "x", "shape": SHAPE, "datatype": "FP32"}
    return {key: value for key, value in {**start, **changes}.items() if value is not None}


def text(**changes: Any) -> Sent:
    return json.dumps({"inputs": [entry(**{"data": [0] * ELEMENTS, **changes})]}).encode(), {}


def binary(
    *, size: int = len(RAW), tail: bytes = RAW, length: Any = None, more: Any = None, **changes: Any
) -> Sent:
    given = entry(parameters={"binary_data_size": size}, **changes)
    header = json.dumps({"inputs": [given], **(more or {})}).encode()
    return header + tail, {LENGTH: str(len(header) if length is None else length)}


def echo(name: str, datatype: str, shape: list[int], **more: Any) -> Sent:
    content = {"inputs": [{"name": name, "datatype": datatype, "shape": shape, **more}]}
    return json.dumps(content).encode(), {}


def all_of_echo(words: bytes, boolean: int = 1) -> Sent:
    contents = {"INT8": b"\1", "BYTES": words, "FP16": bytes(2), "BOOL": bytes([boolean])}
    return _joined({name: ([1], content) for name, content in contents.items()})


def overlapping() -> Sent:
    """Three tensors of four bytes in a body that has room for two."""
    header, headers = _joined({"INT8": ([4], b""), "FP16": ([2], b""), "BOOL": ([4], b"")}, size=4)
    return header + bytes(8), headers


def _joined(tensors: dict[str, tuple[list[int], bytes]], size: int | None = None) -> Sent:
    inputs = [
        {
            "name": f"x_{name}",
            "datatype": name,
            "shape": shape,
            "parameters": {"binary_data_size": len(content) if size is None else size},
        }
        for name, (shape, content) in tensors.items()
    ]
    header = json.dumps({"inputs": inputs}).encode()
    tail = b"".join(content for _, content in tensors.values())
    return header + tail, {LENGTH: str(len(header))}


def twice(one: dict[str, Any]) -> Sent:
    return json.dumps({"inputs": [one, one]}).encode(), {}


def many() -> Sent:
    return json.dumps(
        {"inputs": [entry(name=f"x{number}") for number in range(10_000)]}
    ).encode(), {}


Case = tuple[str, Sent, int, str]

PEERS: dict[str, Case] = {
    "infer unknown model": (
        "nope",
        text(),
        404,
        "unknown model 'nope'; see POST /v2/repository/index",
    ),
    "infer unknown version": (
        "cls/versions/9",
        text(),
        404,
        "unknown version '9' of model 'cls'; known are 1",
    ),
    "empty body": (
        "cls",
        (b"", {}),
        400,
        'the request is empty; send {"inputs": [...]}',
    ),
    "bad JSON": (
        "cls",
        (b"{", {}),
        400,
        "the request is not JSON; unexpected end of data: line 1 column 2 (char 1)",
    ),
    "no inputs": (
        "cls",
        (b'{"inputs":[]}', {}),
        400,
        "input 'x' is missing; the model takes x",
    ),
    "unknown input name": (
        "cls",
        text(name="zz"),
        400,
        "unknown input 'zz'; the model takes x",
    ),
    "wrong datatype": (
        "cls",
        text(datatype="INT64"),
        400,
        "wrong datatype of input 'x'; expected FP32, given INT64",
    ),
    "unknown datatype": (
        "cls",
        text(datatype="FP33"),
        400,
        "unknown datatype 'FP33' of input 'x'; expected FP32",
    ),
    "shape/element mismatch": (
        "cls",
        text(shape=[1, 3, 48, 191]),
        400,
        "wrong shape of input 'x'; expected [-1, 3, 48, 192], given [1, 3, 48, 191]",
    ),
    "wrong shape for the model": (
        "cls",
        text(shape=[1, 4, 48, 144]),
        400,
        "wrong shape of input 'x'; expected [-1, 3, 48, 192], given [1, 4, 48, 144]",
    ),
    "negative dimension": (
        "cls",
        text(shape=[-1, 3, 48, 192]),
        400,
        "negative dimension in the shape of input 'x'; expected [-1, 3, 48, 192], given [-1, 3, 48, 192]",
    ),
    "strings as data": (
        "cls",
        text(data=["a"] * ELEMENTS),
        400,
        "wrong values of input 'x'; FP32 does not take a string",
    ),
    "binary truncated": (
        "cls",
        binary(tail=RAW[:-4]),
        400,
        "input 'x' is cut off; its binary_data_size 110592 goes 4 bytes beyond the body",
    ),
    "binary too long": (
        "cls",
        binary(tail=RAW + b"xxxx"),
        400,
        "4 bytes follow the last tensor 'x'; the sizes in binary_data_size do not add up to the body",
    ),
    "binary_data_size lies": (
        "cls",
        binary(size=16),
        400,
        "wrong size of input 'x'; FP32 [1, 3, 48, 192] takes 110592 bytes, given 16",
    ),
    "header length > body": (
        "cls",
        binary(length=10**9),
        400,
        "Inference-Header-Content-Length is longer than the body; 1000000000 of 110709 bytes",
    ),
    "header length negative": (
        "cls",
        binary(length=-5),
        400,
        "Inference-Header-Content-Length is not a length; given '-5'",
    ),
    "header length not a number": (
        "cls",
        binary(length="abc"),
        400,
        "Inference-Header-Content-Length is not a length; given 'abc'",
    ),
    "unknown output": (
        "cls",
        binary(more={"outputs": [{"name": "nope"}]}),
        400,
        "unknown output 'nope'; the model gives mean",
    ),
    "huge shape, tiny data": (
        "cls",
        binary(shape=[1 << 40, 3, 48, 192]),
        400,
        "shape of input 'x' is too large; given [1099511627776, 3, 48, 192], its dimensions may multiply to 2147483647",
    ),
}

MORE: dict[str, Case] = {
    "an array": (
        "cls",
        (b"[]", {}),
        400,
        'the request is not a JSON object; send {"inputs": [...]}',
    ),
    "NaN": (
        "cls",
        (b'{"inputs":[{"name":"x","shape":[1,3,48,192],"datatype":"FP32","data":[NaN]}]}', {}),
        400,
        "the request is not JSON; unexpected character, expected a JSON value: line 1 column 71 (char 70)",
    ),
    "deep nesting": (
        "cls",
        (b"[" * 100_000, {}),
        400,
        "the request is not JSON; depth limit exceeded: line 1 column 1026 (char 1025)",
    ),
    "deep data": (
        "int8",
        echo("x_INT8", "INT8", [1], data=[[[1]]]),
        400,
        "data of input 'x_INT8' is nested unevenly or too deep; its shape is [1]",
    ),
    "uneven data": (
        "int8",
        echo("x_INT8", "INT8", [2], data=[[1], 2]),
        400,
        "data of input 'x_INT8' is nested unevenly or too deep; its shape is [2]",
    ),
    "too few elements": (
        "cls",
        text(data=[0] * (ELEMENTS - 1)),
        400,
        "wrong number of elements of input 'x'; shape [1, 3, 48, 192] takes 27648, given 27647",
    ),
    "number too large for a float": (
        "cls",
        text(data=[1e39] * ELEMENTS),
        400,
        "value of input 'x' is out of range; it is FP32",
    ),
    "integer out of range": (
        "int8",
        echo("x_INT8", "INT8", [2], data=[1, 128]),
        400,
        "value of input 'x_INT8' is out of range; INT8 goes from -128 to 127",
    ),
    "integer beyond 64 bits": (
        "int8",
        echo("x_INT8", "INT8", [1], data=[10**30]),
        400,
        "wrong values of input 'x_INT8'; INT8 does not take a number",
    ),
    "fraction for an integer": (
        "int8",
        echo("x_INT8", "INT8", [1], data=[0.5]),
        400,
        "wrong values of input 'x_INT8'; INT8 does not take a number",
    ),
    "boolean for an integer": (
        "int8",
        echo("x_INT8", "INT8", [1], data=[True]),
        400,
        "wrong values of input 'x_INT8'; INT8 does not take true or false",
    ),
    "null in data": (
        "cls",
        text(data=[None] * ELEMENTS),
        400,
        "wrong values of input 'x'; FP32 does not take null",
    ),
    "half floats in JSON": (
        "echo",
        echo("x_FP16", "FP16", [1], data=[1.0]),
        400,
        "input 'x_FP16' is FP16, which has no JSON form; send it in binary with Inference-Header-Content-Length",
    ),
    "data that is no list": (
        "int8",
        echo("x_INT8", "INT8", [1], data=1),
        400,
        "data of input 'x_INT8' is not a list; given 1",
    ),
    "data and a size": (
        "cls",
        text(parameters={"binary_data_size": 4}),
        400,
        "input 'x' needs either data or parameters.binary_data_size; both are given",
    ),
    "neither data nor a size": (
        "cls",
        text(data=None),
        400,
        "input 'x' needs either data or parameters.binary_data_size; neither is given",
    ),
    "shape with a fraction": (
        "cls",
        text(shape=[1.0, 3, 48, 192]),
        400,
        "shape of input 'x' is not a list of integers; expected [-1, 3, 48, 192], given [1.0, 3, 48, 192]",
    ),
    "shape with a huge number": (
        "cls",
        text(shape=[10**30, 3, 48, 192]),
        400,
        "shape of input 'x' is not a list of integers; expected [-1, 3, 48, 192], given [1e+30, 3, 48, 192]",
    ),
    "shape that is no list": (
        "cls",
        text(shape="1"),
        400,
        "shape of input 'x' is not a list of integers; expected [-1, 3, 48, 192], given '1'",
    ),
    "an empty tensor of 2**63 rows": (
        "int8",
        echo("x_INT8", "INT8", [1 << 63], data=[]),
        400,
        "shape of input 'x_INT8' is too large; given [9223372036854775808], its dimensions may multiply to 2147483647",
    ),
    "a size that is negative": (
        "cls",
        binary(size=-1),
        400,
        "binary_data_size of input 'x' is not a size; given -1",
    ),
    "a size that is text": (
        "cls",
        text(data=None, parameters={"binary_data_size": "4"}),
        400,
        "binary_data_size of input 'x' is not a size; given '4'",
    ),
    "sizes that overlap": (
        "echo",
        overlapping(),
        400,
        "input 'x_BOOL' is cut off; its binary_data_size 4 goes 4 bytes beyond the body",
    ),
    "BYTES whose length lies": (
        "echo",
        all_of_echo(b"\xff\xff\xff\xffa"),
        400,
        "input 'x_BYTES' is cut off; an element has 4294967295 bytes",
    ),
    "BYTES cut off in a length": (
        "echo",
        all_of_echo(b"\0\0\0\0\0"),
        400,
        "input 'x_BYTES' is cut off inside an element's length",
    ),
    "BYTES of another count": (
        "echo",
        all_of_echo(b"\0\0\0\0\0\0\0\0"),
        400,
        "wrong number of elements of input 'x_BYTES'; shape [1] takes 1, given 2",
    ),
    "BYTES that are not UTF-8": (
        "echo",
        all_of_echo(b"\1\0\0\0\xff"),
        400,
        "element 0 of input 'x_BYTES' is not UTF-8; ONNX strings are UTF-8",
    ),
    "a BOOL that is neither": (
        "echo",
        all_of_echo(b"\1\0\0\0a", boolean=2),
        400,
        "a value of input 'x_BOOL' is neither 0 nor 1 (BOOL)",
    ),
    "the same input twice": (
        "cls",
        twice(entry(data=[0] * ELEMENTS)),
        400,
        "input 'x' is given twice",
    ),
    "ten thousand inputs": (
        "cls",
        many(),
        400,
        "unknown input 'x0'; the model takes x",
    ),
    "a name in other scripts": (
        "cls",
        text(name="\u202e\u0445\U0001f600"),
        400,
        "unknown input '\\u202e\u0445\U0001f600'; the model takes x",
    ),
    "a name of a megabyte": (
        "cls",
        text(name="n" * 1_000_000),
        400,
        "unknown input 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn; the model takes x",
    ),
    "an input that is text": (
        "cls",
        (b'{"inputs":["x"]}', {}),
        400,
        "an input is not a JSON object",
    ),
    "parameters that are a list": (
        "cls",
        text(parameters=[]),
        400,
        "parameters of input 'x' are not a JSON object",
    ),
    "output twice": (
        "cls",
        binary(more={"outputs": [{"name": "mean"}] * 2}),
        400,
        "output 'mean' is asked for twice",
    ),
    "shared memory": (
        "cls",
        text(data=None, parameters={"shared_memory_region": "r"}),
        400,
        "input 'x': shared memory of the client is not supported",
    ),
    "a sequence": (
        "cls",
        binary(more={"parameters": {"sequence_id": 7}}),
        400,
        "sequence_id is not supported; models here keep no state",
    ),
    "a timeout that is text": (
        "cls",
        binary(more={"parameters": {"timeout": "1"}}),
        400,
        "timeout is not a number of microseconds; given '1'",
    ),
    "an id that is a number": (
        "cls",
        binary(more={"id": 7}),
        400,
        "id is not a string of at most 1024 characters",
    ),
    "raw binary of another size": (
        "cls",
        (RAW[:-1], {LENGTH: "0"}),
        400,
        "wrong size of input 'x'; FP32 [-1, 3, 48, 192] takes a multiple of 110592 bytes, given 110591",
    ),
    "raw binary for several inputs": (
        "echo",
        (RAW, {LENGTH: "0"}),
        400,
        "a raw binary request needs a model with one input; echo has 4; send a JSON header",
    ),
    "gzip that is none": (
        "cls",
        (b"not gzip", {"Content-Encoding": "gzip"}),
        400,
        "the body cannot be read; Can not decode content-encoding: gzip",
    ),
    "an encoding nobody knows": (
        "cls",
        (b"{}", {"Content-Encoding": "br"}),
        400,
        "the body's encoding 'br' is not supported; it may be identity, gzip, deflate",
    ),
    "a residency that is none": (
        "cls",
        (text()[0], {"Atoll-Residency": "DE,,"}),
        400,
        "Atoll-Residency is not a list of jurisdictions; given 'DE,,'; name at least one, separated by commas, such as DE,FR",
    ),
    "a deadline that is none": (
        "cls",
        (text()[0], {"Atoll-Deadline-Ms": "soon"}),
        400,
        "Atoll-Deadline-Ms is not a number; given 'soon'",
    ),
    "beyond the limit": (
        "cls",
        (bytes(4_000_001), {}),
        413,
        "the body is too large; the limit is 4000000 bytes, after decompression; raise serving.request_bytes_max or send less at once",
    ),
}
