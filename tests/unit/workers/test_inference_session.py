"""ONNX Runtime behind one door: what loads, what runs, what it says when it does not."""

import json
import threading
import time
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from agent.foundation.errors import UsageError
from agent.serving.datatypes import DATATYPES
from agent.serving.request import parse_request
from agent.workers import inference_session
from agent.workers.inference_session import (
    CPU_PROVIDER,
    LoadRefused,
    ModelSession,
    RunFailed,
    Terminated,
    run_options,
)
from agent.workers.inference_tensors import Array, array_of


def model(text: str) -> bytes:
    head = '<ir_version: 8, opset_import: ["" : 17]>\n'
    content: bytes = parser.parse_model(head + text).SerializeToString()
    return content


def session(text: str, name: str = "m") -> ModelSession:
    return ModelSession(model(text), name, "1", ())


def run(loaded: ModelSession, header: dict[str, Any], tail: bytes = b"") -> list[Array]:
    text = json.dumps(header).encode()
    body = memoryview(bytearray(text + tail))
    request = parse_request(body, len(text), loaded.signature)
    return loaded.run(request, [array_of(t, body) for t in request.inputs], run_options())


ENDLESS = """g (int64 n) => (float total) {
    start = Constant<value_float = 1.0>()
    total = Loop<body = b (int64 i, bool go, float t) => (bool go_out, float t_out) {
        go_out = Identity(go)
        t_out = Add(t, t)
    }>(n, , start)
}"""


@pytest.mark.parametrize("name", [n for n in DATATYPES if n != "BYTES"])
def test_every_numeric_datatype_passes_through_unchanged(name: str) -> None:
    datatype = DATATYPES[name]
    loaded = session(f"g ({datatype.onnx}[N] x) => ({datatype.onnx}[N] y) {{ y = Identity(x) }}")
    assert loaded.signature.inputs[0].datatype is datatype
    content = bytes([1, 0] * 4 * datatype.element_bytes)[: 4 * datatype.element_bytes]
    entry = {"name": "x", "shape": [4], "datatype": name}
    found = run(
        loaded, {"inputs": [{**entry, "parameters": {"binary_data_size": len(content)}}]}, content
    )
    assert found[0].tobytes() == content


def test_strings_pass_through() -> None:
    loaded = session("g (string[N] x) => (string[N] y) { y = Identity(x) }")
    data = {"name": "x", "shape": [2], "datatype": "BYTES", "data": ["Zürich", ""]}
    assert run(loaded, {"inputs": [data]})[0].tolist() == ["Zürich", ""]


def test_only_the_wanted_outputs_come_in_the_order_asked() -> None:
    loaded = session("g (float[N] x) => (float[N] a, float[N] b) { a = Neg(x) b = Abs(x) }")
    given = {"name": "x", "shape": [1], "datatype": "FP32", "data": [2]}
    found = run(loaded, {"inputs": [given], "outputs": [{"name": "b"}, {"name": "a"}]})
    assert [array.tolist() for array in found] == [[2.0], [-2.0]]
    assert [a.tolist() for a in run(loaded, {"inputs": [given], "outputs": [{"name": "a"}]})] == [
        [-2.0]
    ]


def test_an_output_never_lies_in_the_requests_memory() -> None:
    loaded = session("g (float[N] x) => (float[N] y) { y = Identity(x) }")
    text = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [4],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": 16},
                }
            ]
        }
    ).encode()
    text += b" " * (-len(text) % 64)
    body = memoryview(bytearray(text + bytes(16)))
    request = parse_request(body, len(text), loaded.signature)
    inputs = [array_of(t, body) for t in request.inputs]
    (found,) = loaded.run(request, inputs, run_options())
    assert not np.may_share_memory(found, inputs[0])


def test_the_session_says_which_providers_it_really_has() -> None:
    text = "g (float[N] x) => (float[N] y) { y = Identity(x) }"
    loaded = ModelSession(model(text), "m", "1", ("NoSuchExecutionProvider", CPU_PROVIDER))
    assert loaded.providers == (CPU_PROVIDER,)
    assert loaded.service_us > 0


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no ONNX model"),
        (b"no model", "no ONNX model"),
        (model("g (float[N] x) => (float[N] y) { y = NoSuchOp(x) }"), "refuses the model"),
        (model("g (float[3] x) => (float[2] y) { s = Constant<value_ints=[2]>() y = Reshape(x, s) }"), "zeros"),
        (model("g (seq(float[N]) x) => (int64 y) { y = SequenceLength(x) }"), "no such type"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_the_reason(content: bytes, named: str) -> None:
    with pytest.raises(LoadRefused) as caught:
        ModelSession(content, "m", "1", ())
    assert named in str(caught.value)


def test_a_model_whose_data_lies_in_another_file_is_refused_before_anything_is_read() -> None:
    """Relative to the process's folder ONNX Runtime would read it, wherever the sandbox lets it."""
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="agent/__init__.py")
    made = onnx.load_model_from_string(model("g () => (uint8[4] y) { y = Identity(w) }"))
    made.graph.initializer.append(weight)
    with pytest.raises(LoadRefused, match="tensor 'w' has its data in another file"):
        ModelSession(made.SerializeToString(), "m", "1", ())


def test_a_model_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_session, "TRIAL_S_MAX", 0.2)
    text = ENDLESS.replace("(int64 n)", "()").replace(
        "start =", "n = Constant<value_int = 4611686018427387904>()\n start ="
    )
    begun = time.monotonic()
    with pytest.raises(LoadRefused, match=r"does not end on zeros within 0\.2 s"):
        session(text)
    assert time.monotonic() - begun < 2


def test_a_model_that_only_takes_larger_images_is_warmed_up_with_those() -> None:
    loaded = session(
        "g (float[N,1,H,W] x) => (float[N,1,h,w] y) {"
        " y = MaxPool<kernel_shape=[20,20], strides=[20,20]>(x) }"
    )
    assert loaded.service_us > 0


ADD = "g (float[A] x, float[B] y) => (float[C] z) { z = Add(x, y) }"


def two(x: int, y: int) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": [size], "data": [1] * size}
            for name, size in (("x", x), ("y", y))
        ]
    }


def test_an_input_that_no_node_can_take_is_the_callers_mistake() -> None:
    loaded = session(ADD)
    for sizes in ((2, 3), (0, 3)):
        with pytest.raises(UsageError, match=r"model 'm' does not take this input.*Add node"):
            run(loaded, two(*sizes))
    assert run(loaded, two(2, 2))


def test_a_model_that_never_ran_is_at_fault_itself() -> None:
    never = session("g (float[N] x) => (float[A,B] y) { s = Constant<value_ints = [7, -1]>()\n"
                    " y = Reshape(x, s) }")  # fmt: skip
    entry = {"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}
    with pytest.raises(RunFailed, match="failed on this input"):
        run(never, {"inputs": [entry]})
    entry = {"name": "x", "datatype": "FP32", "shape": [7], "data": [1] * 7}
    assert run(never, {"inputs": [entry]})
    entry = {"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}
    with pytest.raises(UsageError, match="does not take this input"):
        run(never, {"inputs": [entry]})


def test_memory_that_is_not_there_is_not_the_callers_mistake() -> None:
    loaded = session("g (int64[R] n) => (float y) { z = ConstantOfShape(n)\n y = ReduceSum(z) }")
    huge = {"name": "n", "datatype": "INT64", "shape": [3], "data": [1 << 20, 1 << 20, 64]}
    with pytest.raises(RunFailed, match="allocate memory"):
        run(loaded, {"inputs": [huge]})


def test_a_run_stops_when_told() -> None:
    loaded = session(ENDLESS)
    text = json.dumps(
        {"inputs": [{"name": "n", "shape": [], "datatype": "INT64", "data": [10**9]}]}
    ).encode()
    request = parse_request(text, None, loaded.signature)
    inputs = [array_of(t, memoryview(text)) for t in request.inputs]
    options = run_options()
    timer = threading.Timer(0.2, lambda: setattr(options, "terminate", True))
    timer.start()
    begun = time.monotonic()
    with pytest.raises(Terminated):
        loaded.run(request, inputs, options)
    timer.join()
    assert time.monotonic() - begun < 1


def test_a_run_that_was_held_up_does_not_make_a_model_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first requests would be refused, because each would seem to wait for such runs."""
    runs = iter([0.05, 0.002, 0.003])
    now = 0.0

    def run() -> None:
        nonlocal now
        now += next(runs)

    monkeypatch.setattr("agent.workers.inference_session.time.perf_counter", lambda: now)
    assert inference_session._clocked(run) == 2000


def test_a_model_that_runs_long_is_clocked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def run() -> None:
        nonlocal now
        now += 0.5

    monkeypatch.setattr("agent.workers.inference_session.time.perf_counter", lambda: now)
    assert inference_session._clocked(run) == 500_000
    assert now == 0.5


def test_the_gpus_memory_is_bounded_by_each_providers_own_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which options a real GPU honours was never tried on one."""
    wanted = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(
        "agent.workers.inference_session.ort.get_available_providers", lambda: wanted
    )
    arena = {"arena_extend_strategy": "kSameAsRequested"}
    assert inference_session._providers(wanted, 0) == [
        (wanted[0], {}), (wanted[1], arena), wanted[2],
    ]  # fmt: skip
    assert inference_session._providers(wanted, 1024) == [
        (wanted[0], {"trt_max_workspace_size": "1024"}),
        (wanted[1], {**arena, "gpu_mem_limit": "1024"}),
        wanted[2],
    ]
    assert "gpu_mem_limit" not in inference_session._OPTIONS[wanted[1]], "each call has its own"
