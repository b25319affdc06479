"""What a serving site does when models, clients and bodies are out to break it; small forms of each.

``benchmarks/serving_faults.py`` does the same at full size.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from serving_faults import (
    Bystander,
    forget_peak,
    late,
    metrics,
    offer_broken,
    open_files,
    peak_bytes,
    send_huge,
    settle,
    slow_crowd,
    vanish,
)
from serving_models import CLS, MAGIKA
from serving_site import ServingSite, found, open_site, save_model

from agent.wire.inside import ModelRefused

pytestmark = pytest.mark.process

LIMIT_BYTES = 8 << 20
HUGE_BYTES = 512 << 20
SECRET = b"nobody may read this"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    folder = tmp_path_factory.mktemp("faults")
    options = ("--request-bytes-max", str(LIMIT_BYTES))
    with open_site(found(folder / "identity"), folder / "blobs", options=options) as opened:
        opened.start_worker()
        opened.serve("cls", CLS)
        yield opened


def test_broken_models_are_refused_with_a_reason_or_serve_and_disturb_nobody(
    site: ServingSite, tmp_path: Path
) -> None:
    models = {"cls": CLS.read_bytes(), "magika": MAGIKA.read_bytes()}
    with Bystander(site).asking() as bystander:
        told = offer_broken(site, models, 40, 11, tmp_path)
    assert told.loaded + told.refused + len(told.crashes) == 40
    assert (told.unexplained, told.unanswered) == (0, 0)
    assert min(told.loaded, told.refused) > 5, "both happen"
    if not told.crashes:
        assert bystander.refused == []
    assert len(bystander.took_s) > 40


# --- models that point elsewhere -----------------------------------------------------------------------
def outside(location: str, name: str = "w") -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def pointing(
    path: Path, node: Any = None, weights: Any = None, sparse: Any = None, domain: str = ""
) -> Path:
    """No input -> y UINT8 [4]."""
    made = helper.make_graph(
        [node or helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [4])],
        [] if weights is None else [weights],
    )
    if sparse is not None:
        made.sparse_initializer.append(sparse)
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    path.write_bytes(
        helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    return path


def in_subgraph(location: str) -> Any:
    output = helper.make_tensor_value_info("inner", TensorProto.UINT8, [4])
    inner = helper.make_node("Identity", ["w"], ["inner"])
    branch = helper.make_graph([inner], "b", [], [output], [outside(location)])
    return helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)


def in_sparse(location: str) -> Any:
    sparse = onnx.SparseTensorProto(dims=[8])
    sparse.values.CopyFrom(outside(location))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [4], [0, 1, 2, 3]))
    return sparse


def custom(domain: str, kind: str, **attributes: Any) -> dict[str, Any]:
    """A node of somebody's own making, that names a file to open."""
    return {
        "node": helper.make_node(kind, ["w"], ["y"], domain=domain, **attributes),
        "weights": helper.make_tensor("w", TensorProto.UINT8, [4], [1, 2, 3, 4]),
        "domain": domain,
    }


def escapes(secret: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Each way out, and what is said of it. The worker stands in the repository's folder."""
    elsewhere = "tensor 'w' has its data in another file"
    true = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    context = {"ep_cache_context": str(secret), "embed_mode": 0, "main_context": 1}
    return {
        "absolute": ({"weights": outside("/etc/passwd")}, elsewhere),
        "upwards": ({"weights": outside("../../../../../../etc/passwd")}, elsewhere),
        "beside the worker": ({"weights": outside("agent/__init__.py")}, elsewhere),
        "sparse": ({"sparse": in_sparse("agent/__init__.py")}, elsewhere),
        "subgraph": (
            {"node": in_subgraph("agent/__init__.py"), "weights": true},
            elsewhere,
        ),
        "attribute": (
            {"node": helper.make_node("Constant", [], ["y"], value=outside(str(secret)))},
            elsewhere,
        ),
        "library": (custom("evil", "Load", library="/tmp/evil.so"), "is not a registered function"),
        "path in an attribute": (custom("com.microsoft", "EPContext", **context), "EPContext"),
    }


@pytest.mark.parametrize("case", escapes(Path("secret")))
def test_a_model_that_points_at_a_file_is_refused_and_nothing_is_read(
    site: ServingSite, tmp_path: Path, case: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    asked, told = escapes(secret)[case]
    read_at = secret.stat().st_atime_ns
    answer = site.load("escape", pointing(tmp_path / "escape.onnx", **asked))
    assert isinstance(answer, ModelRefused), answer
    assert told in answer.reason
    assert secret.stat().st_atime_ns == read_at


def test_what_lies_behind_a_symbolic_link_is_a_model_or_refused(
    site: ServingSite, tmp_path: Path
) -> None:
    link = tmp_path / "link.onnx"
    link.symlink_to("/etc/passwd")
    answer = site.load("link", link)
    assert isinstance(answer, ModelRefused)
    assert answer.reason.startswith("the file is no ONNX model")
    link.unlink()
    link.symlink_to(CLS)
    assert not isinstance(site.load("link", link), ModelRefused)


def test_an_empty_tensor_of_impossible_size_ends_no_worker(
    site: ServingSite, tmp_path: Path
) -> None:
    """It is worth nothing and fits every count; a tensor library that is asked for it raises."""
    nodes = [helper.make_node("Identity", ["w"], ["v"])]
    text = int(TensorProto.STRING)
    source, result = [("w", text, ["n", "m"])], [("v", text, ["n", "m"])]
    path = save_model(tmp_path / "words.onnx", nodes, source, result)
    site.serve("words", path)
    assert site.worker is not None
    for shape in ([0, 1 << 63], [0, 1 << 62], [1 << 31, 0]):
        given = {"name": "w", "shape": shape, "datatype": "BYTES", "data": []}
        status, _, answer = site.infer("words", {"inputs": [given]})
        assert (status, "is too large" in answer["error"]) == (400, True)
    assert site.worker.process.poll() is None


# --- clients ---------------------------------------------------------------------------------------------
def test_a_slow_crowd_larger_than_the_door_costs_an_honest_client_nothing(
    site: ServingSite,
) -> None:
    pid = site.gateway.process.pid
    held, before = forget_peak(pid), metrics(site)
    with slow_crowd(site, 1500) as seen, Bystander(site).asking() as bystander:
        time.sleep(4)
    assert seen["came"] >= 1500
    assert bystander.refused == []
    assert len(bystander.took_s) > 50
    assert bystander.quantile_s(0.99) < 1.0, "on a busy machine; the benchmark is strict"
    assert late(before, metrics(site), "0.25") == 0
    assert peak_bytes(pid) - held < 256 << 20


@pytest.mark.parametrize("form", ["length", "chunked", "gzip"])
def test_a_huge_body_is_refused_early_and_not_held(site: ServingSite, form: str) -> None:
    pid = site.gateway.process.pid
    held = forget_peak(pid)
    status, took_s, sent = send_huge(site, form, HUGE_BYTES)
    assert status == 413
    assert took_s < 5
    assert sent < HUGE_BYTES // 4
    assert peak_bytes(pid) - held < 8 * LIMIT_BYTES


def test_clients_that_vanish_leave_nothing_behind(site: ServingSite) -> None:
    site.wait(lambda: metrics(site)["nv_inference_pending_request_count"] == 0)
    vanish(site, 5, random.Random(1))
    time.sleep(0.5)
    files = open_files(site.gateway.process.pid)
    vanish(site, 200, random.Random(2))
    settle(site, files)
    for _ in range(20):
        with Bystander(site, pause_s=0.0).asking() as bystander:
            time.sleep(0.01)
        assert bystander.refused == []
