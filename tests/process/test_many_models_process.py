"""Two hundred models in the memory of a few: sessions come and go, answers stay right."""

import json
import threading
import time
from pathlib import Path

import pytest
from onnx import TensorProto, helper
from serving_site import ServingSite, found, open_site, save_model

pytestmark = pytest.mark.process

MODELS = 200
WEIGHTS = 50_000
"""Of each model: 200 KB of FP32, so that sessions are worth counting."""


def adding_model(path: Path, number: int) -> Path:
    """x [1] FP32 -> x + number, with a large constant that only takes memory."""
    ballast = helper.make_tensor(
        "ballast", TensorProto.FLOAT, [WEIGHTS], bytes(4 * WEIGHTS), raw=True
    )
    amount = helper.make_tensor("amount", TensorProto.FLOAT, [1], [float(number)])
    return save_model(
        path,
        [
            helper.make_node("Add", ["x", "amount"], ["sum"]),
            helper.make_node("ReduceSum", ["ballast"], ["nothing"], keepdims=1),
            helper.make_node("Add", ["sum", "nothing"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, [1])],
        [("y", TensorProto.FLOAT, [1])],
        constants=[ballast, amount],
    )


def ask(site: ServingSite, number: int, value: float) -> tuple[int, float | str]:
    given = {"name": "x", "shape": [1], "datatype": "FP32", "data": [value]}
    status, _, content = site.infer(f"m{number}", {"inputs": [given]})
    return status, content["outputs"][0]["data"][0] if status == 200 else content["error"]


def test_two_hundred_models_share_the_memory_of_a_few(tmp_path: Path) -> None:
    keys = found(tmp_path / "identity")
    with open_site(keys, tmp_path / "blobs") as site:
        site.worker_options = ("--sessions-bytes", str(8 << 20))
        site.start_worker()
        assert site.worker is not None
        for number in range(MODELS):
            site.serve(f"m{number}", adding_model(tmp_path / f"{number}.onnx", number))
        for number in (0, 1, 150, 0):  # the first ones were let go long ago
            begun = time.monotonic()
            assert ask(site, number, 0.5) == (200, number + 0.5)
            assert time.monotonic() - begun < 5.0
        statm = Path(f"/proc/{site.worker.process.pid}/statm")
        before = int(statm.read_text().split()[1])
        wrong: list[object] = []

        def roam(start: int) -> None:
            for number in range(start, MODELS, 4):
                answer = ask(site, number, float(start))
                if answer != (200, float(number + start)):
                    wrong.append((number, answer))

        threads = [threading.Thread(target=roam, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        grown = (int(statm.read_text().split()[1]) - before) * 4096
        assert grown < 64 << 20, "sessions are let go, or 200 of them would pile up"


def test_a_model_that_was_withdrawn_while_cold_is_gone(tmp_path: Path) -> None:
    keys = found(tmp_path / "identity")
    with open_site(keys, tmp_path / "blobs") as site:
        site.worker_options = ("--sessions-bytes", "1")  # room for the last one only
        site.start_worker()
        for number in range(3):
            site.serve(f"m{number}", adding_model(tmp_path / f"{number}.onnx", number))
        assert ask(site, 0, 1.0) == (200, 1.0)
        site.unload("m1")
        site.wait(lambda: ask(site, 1, 1.0)[0] == 503)
        status, text = ask(site, 1, 1.0)
        assert (status, "cannot take the request" in json.dumps(text)) == (503, True)
        assert ask(site, 2, 1.0) == (200, 3.0)
