"""Three real sites, one with little room: what it keeps, what it lets go, and what it need not fetch."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from daemon_cluster import Daemon, that_met, wait_for
from onnx import TensorProto, helper, numpy_helper
from serving_site import save_model

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

ROOM = "[storage]\nblob_bytes_max = 20_971_520\n"
WEIGHTS = 2_400_000
"""Floats: 9.6 MB, so that the room holds two such models."""


def weights_model(path: Path, seed: int, tuned: int = 0) -> Path:
    """``y = x + w[0] + tail``: large weights of ``seed``, of which training has changed the last few."""
    weights = np.random.default_rng(seed).standard_normal(WEIGHTS, np.float32)
    weights[WEIGHTS - 1000 :] += tuned
    return save_model(
        path,
        [
            helper.make_node("ReduceMax", ["w"], ["most"], keepdims=0),
            helper.make_node("Add", ["x", "most"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(weights, "w")],
    )


@pytest.fixture(scope="module")
def sites() -> Iterator[list[Daemon]]:
    def little_room(site: Daemon) -> None:
        if site.name == "hamburg":
            site.configure(ROOM)

    with that_met(dict.fromkeys(("berlin", "munich", "hamburg"), "DE"), little_room) as sites:
        yield sites


def push(site: Daemon, model: Path, version: str, *where: str, name: str = "m") -> None:
    site.cli("model", "push", str(model), "--name", name, "--version", version, *where)


def named_at(site: Daemon) -> dict[str, str]:
    """State of each blob that something names, by the beginning of what names it first."""
    rows = site.json("blobs", "list")["blobs"]
    return {row["names"][0].partition(",")[0]: row["state"] for row in rows if row["names"]}


def test_a_new_version_travels_only_as_far_as_it_differs(
    sites: list[Daemon], tmp_path: Path
) -> None:
    berlin, munich, hamburg = sites
    push(berlin, weights_model(tmp_path / "m1.onnx", 1), "1", "--everywhere")
    push(berlin, weights_model(tmp_path / "m2.onnx", 1, tuned=9), "2", "--everywhere")
    for site in (munich, hamburg):
        (told,) = re.findall(r"(\d+) of its (\d+) chunks are in other blobs here", site.log())
        shared, total = map(int, told)
        assert total - 3 <= shared < total
        assert named_at(site) == {"model m:1": "whole", "model m:2": "whole"}
    for site in sites:
        answer = site.cli("infer", "m", "--input", "-", "--json", text=json.dumps(QUESTION)).stdout
        assert json.loads(answer)["outputs"][0]["data"][0] > 9.0


QUESTION = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0.0]}]}


def test_a_site_without_room_lets_go_what_two_others_hold(
    sites: list[Daemon], tmp_path: Path
) -> None:
    berlin, munich, hamburg = sites
    push(berlin, weights_model(tmp_path / "n1.onnx", 2), "1", "--sites", "hamburg", name="n")
    assert named_at(hamburg) == {"model m:2": "whole", "model n:1": "whole"}
    assert "2 other sites hold it" in hamburg.log()
    for site in (berlin, munich):
        assert named_at(site)["model m:1"] == "whole"


def test_what_still_does_not_fit_is_refused_with_its_reason(
    sites: list[Daemon], tmp_path: Path
) -> None:
    berlin, _, hamburg = sites
    model = weights_model(tmp_path / "o1.onnx", 3)
    done = berlin.cli(
        "model", "push", str(model), "--name", "o", "--version", "1", "--sites", "hamburg",
        "--timeout", "4s", ok=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "quota" in hamburg.model("o", "1")["reason"]
    told = hamburg.cli("blobs", "list").stdout
    assert "of 20.0 MiB" in told
    assert hamburg.model("m", "2")["state"] == hamburg.model("n", "1")["state"] == "ready"
    done = hamburg.cli(
        "model", "push", str(model), "--name", "o", "--version", "1",
        "--admin-key", str(berlin.state_dir / "identity/admin.key"), ok=False,
    )  # fmt: skip
    assert "the quota for blobs is used up" in done.stderr
    assert "retire models, or raise storage.blob_bytes_max" in done.stderr


def test_a_retired_version_goes_everywhere_and_room_comes_of_it(sites: list[Daemon]) -> None:
    berlin, munich, hamburg = sites
    done = berlin.cli("model", "retire", "n:1", ok=False)
    assert "n:1 is deployed" in done.stderr
    berlin.cli("model", "retire", "m:1")
    wait_for(
        lambda: any("retired" in n for row in munich.json("blobs", "list")["blobs"] for n in row["names"]),
        10, "munich knows", sites,
    )  # fmt: skip
    for site in (berlin, munich):
        assert len(site.json("blobs", "collect")["removed"]) == 1
        assert "model m:1" not in named_at(site)
    catalog = berlin.folder / "catalog.toml"
    catalog.write_text('[deployment.n]\nversion = "1"\nsites = ["hamburg"]\nis_active = false\n')
    berlin.cli("apply", str(catalog))
    berlin.cli("model", "retire", "n:1")
    wait_for(lambda: hamburg.json("blobs", "collect")["removed"], 10, "n:1 goes", sites)
    wait_for(
        lambda: hamburg.model("o", "1")["state"] == "ready", 40, "o:1 fits", [hamburg]
    )  # it had been trying all the while
    assert hamburg.json("blobs", "list")["used_bytes"] <= 20 << 20
