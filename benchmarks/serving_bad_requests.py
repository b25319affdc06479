"""Twenty requests that are wrong, and whether each is refused as it should be."""

import json
from dataclasses import dataclass

import numpy as np
from serving_servers import BINARY, HEADER, JSON, Body, Server

SHAPE = [1, 3, 48, 192]
TENSOR = np.zeros(SHAPE, np.float32).tobytes()
ELEMENTS = len(TENSOR) // 4


@dataclass(frozen=True, slots=True)
class Bad:
    """A request to the model ``cls``, whose only input is ``x``."""

    what: str
    content: bytes
    headers: dict[str, str]
    status: int = 400
    path: str = "/v2/models/cls/infer"
    names: str = ""
    """The tensor that the answer must name."""


def cases() -> list[Bad]:
    """All twenty."""
    good, typed = _json()
    return [
        Bad("unknown model", good, typed, 404, "/v2/models/nope/infer"),
        Bad("unknown version", good, typed, 404, "/v2/models/cls/versions/9/infer"),
        Bad("empty body", b"", typed),
        Bad("no JSON", b"{", typed),
        Bad("no inputs", b'{"inputs": []}', typed, names="x"),
        Bad("unknown input", *_json(name="zz"), names="zz"),
        Bad("wrong datatype", *_json(datatype="INT64"), names="x"),
        Bad("unknown datatype", *_json(datatype="FP33"), names="x"),
        Bad("fewer elements than data", *_json(shape=[1, 3, 48, 191]), names="x"),
        Bad("a shape that the model has not", *_json(shape=[1, 4, 48, 144]), names="x"),
        Bad("negative dimension", *_json(shape=[-1, 3, 48, 192]), names="x"),
        Bad("strings for numbers", *_json(data=["a"] * ELEMENTS), names="x"),
        Bad("tensor cut off", *_binary(TENSOR[:-4]), names="x"),
        Bad("bytes behind the tensor", *_binary(TENSOR + b"xxxx")),
        Bad("a size that lies", *_binary(size=16), names="x"),
        Bad("JSON longer than the body", *_binary(length=10**9)),
        Bad("JSON of negative length", *_binary(length=-5)),
        Bad("JSON of no length", *_binary(length="abc")),
        Bad("unknown output", *_binary(outputs=[{"name": "nope"}]), names="nope"),
        Bad("huge shape, little data", *_binary(shape=[1 << 40, 3, 48, 192]), names="x"),
    ]


def refused_rightly(server: Server) -> tuple[int, int, list[str]]:
    """How many get the right status and an error that names the tensor; how many are accepted; what is wrong."""
    right, accepted, wrong = 0, 0, []
    for case in cases():
        answer = server.ask("cls", Body(case.content, JSON), case.headers, path=case.path)
        accepted += answer.status == 200
        text = _error(answer.body)
        if answer.status == case.status and text and case.names in text:
            right += 1
        else:
            wrong.append(f"{case.what}: {answer.status} {answer.body[:200]!r}")
    return right, accepted, wrong


def _error(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        return ""


def _json(**changes: object) -> tuple[bytes, dict[str, str]]:
    given = {"name": "x", "shape": SHAPE, "datatype": "FP32", "data": [0] * ELEMENTS, **changes}
    return json.dumps({"inputs": [given]}).encode(), {"Content-Type": JSON}


def _binary(
    tail: bytes = TENSOR, *, length: object = None, size: int = len(TENSOR), shape: list[int] = SHAPE,
    **more: object,
) -> tuple[bytes, dict[str, str]]:  # fmt: skip
    given = {
        "name": "x",
        "shape": shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [given], **more}).encode()
    said = str(len(head) if length is None else length)
    return head + tail, {"Content-Type": BINARY, HEADER: said}
