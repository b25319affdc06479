"""Real models behind NVIDIA's clients, over every transport, against raw ONNX Runtime: equal to the bit."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_client
import tritonclient.http.aio as http_aio
from serving_models import CLS, DET, MAGIKA, REC, echo_model, raw_runtime
from serving_site import ServingSite, found, open_site
from tritonclient.utils import InferenceServerException

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings(
        "ignore:Sending a large body:ResourceWarning"
    ),  # NVIDIA's client does
]

Array = npt.NDArray[Any]
MODELS = {"magika": MAGIKA, "det": DET, "cls": CLS, "rec": REC}
IN_JSON = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32",
           "FP64", "BYTES")  # fmt: skip
NUMERIC = {name: np.dtype(name.lower()) for name in IN_JSON if name.startswith(("INT", "UINT"))}
TRANSPORTS = ("http", "http aio", "grpc", "grpc aio")
IMAGES: dict[str, list[tuple[int, ...]]] = {
    "magika": [(1, 2048), (3, 2048)],
    "cls": [(1, 3, 48, 192), (4, 3, 48, 192)],
    "rec": [(1, 3, 48, 32), (2, 3, 48, 320)],
    "det": [(1, 3, 96, 96), (1, 3, 96, 960), (1, 3, 416, 224), (2, 3, 160, 160), (1, 3, 960, 960)],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    folder = tmp_path_factory.mktemp("conformance")
    with open_site(found(folder / "identity"), folder / "blobs") as opened:
        opened.start_worker(slot_bytes=64 << 20)
        for name, path in MODELS.items():
            opened.serve(name, path)
        opened.serve("echo", echo_model(folder / "echo.onnx", (*IN_JSON, "FP16")))
        opened.serve("echo-bf16", echo_model(folder / "bf16.onnx", ("BF16", "FP32")))
        yield opened


@pytest.fixture(scope="module")
def raw() -> Callable[[str, Array], Array]:
    sessions = {name: raw_runtime(path) for name, path in MODELS.items()}

    def run(name: str, given: Array) -> Array:
        session = sessions[name]
        found: Array = session.run(None, {session.get_inputs()[0].name: given})[0]
        return found

    return run


def ask(
    site: ServingSite,
    transport: str,
    model: str,
    inputs: dict[str, tuple[Array, str]],
    outputs: list[str],
    **more: Any,
) -> tuple[dict[str, Array], str]:
    """One request by one of NVIDIA's four clients: its outputs, and the id that came back."""
    module: Any = http_client if transport.startswith("http") else grpc_client
    port = site.http_port if transport.startswith("http") else site.grpc_port
    given = []
    for name, (array, datatype) in inputs.items():
        given.append(module.InferInput(name, list(array.shape), datatype))
        given[-1].set_data_from_numpy(array)
    wanted = [module.InferRequestedOutput(name) for name in outputs] or None
    more = {"outputs": wanted, "request_id": "r-ü-1", **more}

    async def over_asyncio(module: Any) -> Any:
        async with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            return await client.infer(model, given, **more)

    if transport.endswith("aio"):
        answer = asyncio.run(over_asyncio(http_aio if module is http_client else grpc_aio))
    else:
        client = module.InferenceServerClient(f"127.0.0.1:{port}")
        try:
            answer = client.infer(model, given, **more)
        finally:
            client.close()
    response: Any = answer.get_response()
    described: Any = response["outputs"] if module is http_client else response.outputs
    names = [one["name"] if module is http_client else one.name for one in described]
    request_id = response["id"] if module is http_client else response.id
    return {name: answer.as_numpy(name) for name in names}, request_id


def image(model: str, shape: tuple[int, ...]) -> tuple[Array, str]:
    random = np.random.default_rng(sum(shape))
    if model == "magika":
        return random.integers(0, 256, shape, dtype=np.int32), "INT32"
    return random.standard_normal(shape, dtype=np.float32), "FP32"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("model", MODELS)
def test_a_real_model_answers_as_raw_onnx_runtime_does(
    site: ServingSite, raw: Callable[[str, Array], Array], model: str, transport: str
) -> None:
    name = "bytes" if model == "magika" else "x"
    for shape in IMAGES[model]:
        given, datatype = image(model, shape)
        answer, request_id = ask(site, transport, model, {name: (given, datatype)}, [])
        (found,) = answer.values()
        expected = raw(model, given)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected), f"{model} {shape} over {transport}"
        assert request_id == "r-ü-1"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_image_that_a_real_model_cannot_take_is_the_callers_mistake(
    site: ServingSite, transport: str
) -> None:
    """Free dimensions let 33 x 47 pass; inside det two branches meet that differ by a pixel."""
    with pytest.raises(InferenceServerException) as caught:
        ask(site, transport, "det", {"x": image("det", (1, 3, 33, 47))}, [])
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert "model 'det' does not take this input" in caught.value.message()
    assert "Add node" in caught.value.message()
    ask(site, transport, "det", {"x": image("det", (1, 3, 96, 96))}, [])


def test_in_json_a_float_survives_both_ways(
    site: ServingSite, raw: Callable[[str, Array], Array]
) -> None:
    """The shortest decimal that names a float comes back as that float."""
    for model, shape in (
        ("det", (1, 3, 96, 96)),
        ("cls", (2, 3, 48, 192)),
        ("rec", (1, 3, 48, 32)),
    ):
        given, datatype = image(model, shape)
        for data in (given.ravel().tolist(), given.tolist()):
            entry = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
            status, _, answer = site.infer(model, {"inputs": [entry]})
            assert status == 200
            found = np.array(answer["outputs"][0]["data"], np.float32)
            assert np.array_equal(found.reshape(answer["outputs"][0]["shape"]), raw(model, given))


def extremes(datatype: str) -> Array:
    """The values at which a conversion goes wrong first."""
    if datatype in NUMERIC:
        limits = np.iinfo(NUMERIC[datatype])
        return np.array([limits.min, limits.max, 0, 1], NUMERIC[datatype])
    if datatype == "BOOL":
        return np.array([True, False, True, True])
    if datatype == "BYTES":
        return np.array([b"", "ü\0 \U0001f30d".encode(), b"a" * 300, b"\n"], object)
    kinds = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BF16": ml_dtypes.bfloat16}
    kind: Any = kinds[datatype]
    extreme: Any = ml_dtypes.finfo(kind)  # type: ignore[no-untyped-call]
    return np.array([extreme.smallest_subnormal, extreme.max, -0.0, 1.5], kind)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_datatype_passes_through_in_binary(site: ServingSite, transport: str) -> None:
    names = (*IN_JSON, "FP16")
    given = {f"x_{name}": (extremes(name), name) for name in names}
    answer, _ = ask(site, transport, "echo", given, [])
    for name in names:
        expected = extremes(name)
        assert answer[f"y_{name}"].tobytes() == expected.tobytes() or (
            name == "BYTES" and answer["y_BYTES"].tolist() == expected.tolist()
        ), name
    odd = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    both = {"x_BF16": (extremes("BF16"), "BF16"), "x_FP32": (odd, "FP32")}
    answer, _ = ask(site, transport, "echo-bf16", both, [])
    assert answer["y_BF16"].tobytes() == extremes("BF16").tobytes()
    assert answer["y_FP32"].tobytes() == odd.tobytes()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_only_the_outputs_asked_for_come_back_in_the_order_asked(
    site: ServingSite, transport: str
) -> None:
    given = {f"x_{name}": (extremes(name), name) for name in (*IN_JSON, "FP16")}
    answer, _ = ask(site, transport, "echo", given, ["y_INT8", "y_BOOL"])
    assert list(answer) == ["y_INT8", "y_BOOL"]


def json_values(datatype: str) -> list[Any]:
    values = extremes(datatype).tolist()
    return [value.decode() for value in values] if datatype == "BYTES" else values


def test_every_datatype_that_has_a_json_form_passes_through_in_json(site: ServingSite) -> None:
    inputs: list[dict[str, Any]] = [
        {"name": f"x_{name}", "datatype": name, "shape": [4], "data": json_values(name)}
        for name in IN_JSON
    ]
    half = np.zeros(4, np.float16).tobytes()
    inputs.append({"name": "x_FP16", "datatype": "FP16", "shape": [4]})
    inputs[-1]["parameters"] = {"binary_data_size": len(half)}
    content = {
        "inputs": inputs,
        "outputs": [
            {"name": f"y_{name}", "parameters": {"binary_data": False}} for name in IN_JSON
        ],
        "parameters": {"binary_data_output": True},
    }
    header = json.dumps(content).encode()
    status, found, body = site.request(
        "POST",
        "/v2/models/echo/infer",
        header + half,
        {"Inference-Header-Content-Length": str(len(header))},
    )
    assert status == 200, body
    assert "inference-header-content-length" not in found, "no output is binary"
    answer = {one["name"]: one["data"] for one in json.loads(body)["outputs"]}
    assert np.array(answer.pop("y_FP32"), np.float32).tobytes() == extremes("FP32").tobytes()
    assert answer == {f"y_{name}": json_values(name) for name in IN_JSON if name != "FP32"}


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies_mean_what_plain_ones_mean(
    site: ServingSite, raw: Callable[[str, Array], Array], encoding: str
) -> None:
    given, datatype = image("magika", (3, 2048))
    expected = raw("magika", given)
    answer, _ = ask(
        site, "http", "magika", {"bytes": (given, datatype)}, [],
        request_compression_algorithm=encoding, response_compression_algorithm=encoding,
    )  # fmt: skip
    assert np.array_equal(next(iter(answer.values())), expected)
    compress = gzip.compress if encoding == "gzip" else zlib.compress
    status, found, body = site.request(
        "POST",
        "/v2/models/magika/infer",
        compress(given.tobytes()),
        {"Inference-Header-Content-Length": "0", "Content-Encoding": encoding},
    )
    assert status == 200, body
    tail = body[int(found["inference-header-content-length"]) :]
    assert tail == expected.tobytes()
