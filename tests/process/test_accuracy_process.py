"""A rollout judged by MNIST's own hold-out: a model that knows digits goes on, one that guesses is taken back."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from daemon_cluster import MNIST, Daemon, that_met, wait_for
from onnx import TensorProto, helper, numpy_helper
from serving_site import save_model

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]

DATASET = f'[datasets.digits]\npath = "{MNIST}"\n'
TERMS = """
[deployment.digits]
version = "{}"

[deployment.digits.rollout]
waves = [50]
observe_s = 2
accuracy_min = 0.75
holdout = "digits"
"""


def linear(path: Path, *, is_trained: bool) -> Path:
    """Ten linear functions of the pixels, fitted to 5,000 digits by least squares; or none at all."""
    weights = np.zeros((785, 10), np.float32)
    if is_trained:
        images = np.frombuffer((MNIST / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
        labels = np.frombuffer((MNIST / "train-labels-idx1-ubyte").read_bytes()[8:], np.uint8)[
            :5000
        ]
        pixels = images[: 5000 * 784].reshape(5000, 784).astype(np.float32) / 255
        given = np.concatenate([pixels, np.ones((5000, 1), np.float32)], 1)
        wanted = np.eye(10, dtype=np.float32)[labels]
        square = given.T @ given + 10 * np.eye(785, dtype=np.float32)
        weights = np.linalg.solve(square, given.T @ wanted).astype(np.float32)
    return save_model(
        path,
        [helper.make_node("Gemm", ["image", "w", "b"], ["logits"])],
        [("image", TensorProto.FLOAT, ["n", 784])],
        [("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weights[:784], "w"), numpy_helper.from_array(weights[784], "b")],
    )


@pytest.fixture(scope="module")
def sites() -> Iterator[list[Daemon]]:
    """Both have MNIST bound."""
    places = dict.fromkeys(("berlin", "paris"), "DE")
    with that_met(places, lambda site: site.configure(DATASET)) as sites:
        push(sites[0], linear(sites[0].folder / "1.onnx", is_trained=True), "1")
        yield sites


def push(site: Daemon, model: Path, version: str, *more: str) -> None:
    site.cli("model", "push", str(model), "--name", "digits", "--version", version, "--everywhere", *more)  # fmt: skip


def answering(site: Daemon) -> str:
    rows = site.get("/1/models")["models"]
    return str(next(row["version"] for row in rows if row["name"] == "digits" and row["deployed"]))


def test_a_version_goes_on_only_where_it_knows_enough_of_the_sites_own_digits(
    sites: list[Daemon], tmp_path: Path
) -> None:
    berlin, paris = sites
    file = berlin.folder / "terms.toml"
    file.write_text(TERMS.format("1"))
    berlin.cli("apply", str(file))
    push(berlin, linear(tmp_path / "2.onnx", is_trained=False), "2", "--no-wait")
    told = wait_for(lambda: _failed(berlin) or _failed(paris), 40, "version 2 is refused", sites)
    assert "its accuracy on 2000 images of this site's hold-out is 0." in told
    assert "0.75 is asked for" in told
    assert "accuracy >= 0.75 on digits" in berlin.cli("rollout", "status", "digits").stdout
    wait_for(lambda: answering(berlin) == answering(paris) == "1", 30, "back at 1", sites)
    push(berlin, linear(tmp_path / "3.onnx", is_trained=True), "3", "--no-wait")
    wait_for(lambda: answering(berlin) == answering(paris) == "3", 60, "version 3", sites)


def _failed(site: Daemon) -> str:
    rows = site.get("/1/rollouts", model="digits")["rollouts"]
    return str(rows[0]["here"]["reason"]) if rows and rows[0]["here"]["stage"] == "failed" else ""
