"""The whole loop on one machine: what the demo measures, beside plain PyTorch and raw ONNX Runtime.

Run: make bench-loop        (or: python benchmarks/bench_loop.py [--runs 3])
Writes benchmarks/results/loop.json and renews the figures in docs/status.md.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rows import commit, line, row

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "loop.json"
ROUNDS = 10
"""Four whole rounds of all five sites before the kill; only these are compared with plain PyTorch."""
REQUESTS = 300


def main() -> int:
    """Measure, write, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    here = commit()
    demos = [_demo() for _ in range(asked.runs)]
    plain = _plain_training()
    rows = [*_from_demos(demos, plain), *inference()]
    for one in rows:
        one |= {"commit": here}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    for one in rows:
        print(line(one))
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "status.py")], check=True)
    return 0


def _demo() -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run(
            [sys.executable, "-m", "agent", "demo", "--figures", file.name, "--rounds", str(ROUNDS)],
            check=True, stdout=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip
        return dict(json.loads(Path(file.name).read_text()))


def _from_demos(demos: list[dict[str, Any]], plain: dict[str, float]) -> list[dict[str, Any]]:
    def of(key: str) -> list[float]:
        return [float(demo[key]) for demo in demos]

    overheads = [value - plain["two"] for value in of("round_s")]
    rows = [
        row("first discovery: four processes started to all see all", of("discovery_s"), "s"),
        row("model pushed to served at two other sites", of("model_spread_s"), "s"),
        row("job submitted to aggregator elected", of("election_s"), "s"),
        row("round, 5 sites, MNIST 2NN, TLS + sandbox + register", of("round_s"), "s",
             peer="plain PyTorch, 2 processes", peer_value=plain["two"]),
        row("round overhead over plain PyTorch", overheads, "s", 0.5,
             peer="plain PyTorch, 1 process", peer_value=plain["one"]),
        row("aggregator SIGKILL in mid-round to next commit", of("kill_to_commit_s"), "s", 3.0),
        row("killed site restarted to serving the same digest", of("return_s"), "s"),
        row("job submitted to served at every living site", of("submit_to_served_s"), "s"),
        row("the whole demo", of("total_s"), "s", 180.0),
    ]  # fmt: skip
    for name, goal in (("control", 60.0), ("gateway", None), ("model-worker", None)):
        values = [float(demo["memory_mib"][name]) for demo in demos if name in demo["memory_mib"]]
        rows.append(row(f"memory of {name} at the end (PSS)", values, "MiB", goal))
    for name in sorted({name for demo in demos for name in demo["memory_training_mib"]}):
        training = [demo["memory_training_mib"] for demo in demos]
        values = [float(memory[name]) for memory in training if name in memory]
        rows.append(row(f"memory of {name} while training (PSS)", values, "MiB"))
    accuracy = row("accuracy on 2,000 held-out images", of("accuracy"), "")
    return [*rows, accuracy]


# --- plain PyTorch -------------------------------------------------------------------------------
_SHARES: list[tuple[Any, Any]] = []


def _shares() -> list[tuple[Any, Any]]:
    import torch

    from agent.cli.demo import data
    from agent.cli.demo.story import SEED

    if not _SHARES:
        torch.set_num_threads(1)
        images = data.read(data.find(None), "train")
        pixels = torch.frombuffer(bytearray(images.pixels), dtype=torch.uint8).reshape(-1, 784)
        labels = torch.frombuffer(bytearray(images.labels), dtype=torch.uint8).long()
        for share in data.split(images, 5, SEED):
            kept = torch.tensor(share[: len(share) * 9 // 10])
            _SHARES.append((pixels[kept].float().div_(255), labels[kept]))
    return _SHARES


def _local(task: tuple[int, dict[str, Any]]) -> tuple[dict[str, Any], int]:
    import torch
    from torch import nn

    index, state = task
    images, labels = _shares()[index]
    net = nn.Sequential(
        nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )
    net.load_state_dict(state)
    parameters = list(net.parameters())
    for batch in torch.randperm(len(labels)).split(32):
        loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
        with torch.no_grad():
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(loss, parameters), strict=True
            ):
                parameter.sub_(gradient, alpha=0.1)
    return net.state_dict(), len(labels)


def _plain_training() -> dict[str, float]:
    """Median seconds a round of the same work without any framework."""
    from torch import nn

    _shares()
    net = nn.Sequential(
        nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )

    def rounds(run: Callable[[list[Any]], list[Any]]) -> float:
        state, times = net.state_dict(), []
        for _ in range(5):
            began = time.perf_counter()
            updates = run([(index, state) for index in range(5)])
            total = sum(count for _, count in updates)
            state = {key: sum(u[key] * (n / total) for u, n in updates) for key in state}
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    one = rounds(lambda tasks: [_local(task) for task in tasks])
    with get_context("fork").Pool(2) as pool:
        two = rounds(lambda tasks: pool.map(_local, tasks, 1))
    return {"one": one, "two": two}


# --- inference -----------------------------------------------------------------------------------
def inference() -> list[dict[str, Any]]:
    """Latency of magika: raw session, through the own site, through a site that forwards."""
    import numpy as np
    import onnxruntime as ort

    from agent.cli.demo.applications import FileTypes
    from agent.cli.demo.cluster import Cluster, until

    model = FileTypes.find()
    features = model.features(Path(__file__).read_bytes())
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    header = json.dumps({
        "inputs": [{"name": "bytes", "datatype": "INT32", "shape": list(features.shape),
                    "parameters": {"binary_data_size": features.nbytes}}],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    body = header + features.tobytes()
    cluster = Cluster(None)
    here, there = cluster.sites[:2]
    try:
        cluster.found()
        here.start()
        until("the first site is up", 60, lambda: _is_up(here))
        cluster.join(there)
        there.start()
        until("the second site is up", 60, lambda: _is_up(there))
        here.atoll("model", "push", str(model.path), "--name", "magika", "--version", "v3")
        until("the other site knows", 20, lambda: _knows(there))
        raw, local, remote = [], [], []
        connections = [http.client.HTTPConnection(site.host, 8000) for site in (here, there)]
        for number in range(REQUESTS):  # side by side, so that noise meets all three
            for into, call in (
                (raw, lambda: session.run(None, {"bytes": features})),
                (local, lambda: _infer(connections[0], header, body)),
                (remote, lambda: _infer(connections[1], header, body)),
            ):
                began = time.perf_counter()
                call()
                if number >= 20:
                    into.append((time.perf_counter() - began) * 1000)
        for connection in connections:
            connection.close()
    finally:
        cluster.stop()
        cluster.remove()
    median = {
        name: statistics.median(v)
        for name, v in (("raw", raw), ("local", local), ("remote", remote))
    }
    added = [a - b for a, b in zip(local, raw, strict=True)]
    forwarded = [a - b for a, b in zip(remote, local, strict=True)]
    assert np.isfinite(median["raw"])
    return [
        _latency("inference, magika, own site, p50", median["local"], None, median["raw"]),
        _latency(
            "inference, added to raw ONNX Runtime, p50",
            statistics.median(added),
            1.2,
            median["raw"],
        ),
        _latency(
            "inference, forwarded to the other site, p50", median["remote"], None, median["raw"]
        ),
        _latency(
            "inference, added by forwarding (audited, TLS), p50",
            statistics.median(forwarded),
            None,
            None,
        ),
        _latency("inference, added by forwarding, p99", _p99(forwarded), 2.0, None),
    ]


def _latency(name: str, value: float, goal: float | None, raw: float | None) -> dict[str, Any]:
    return row(name, [value], "ms", goal, peer="raw ONNX Runtime, same process", peer_value=raw)


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def _is_up(site: Any) -> bool | None:
    return None if site.admin.get("/1/status")["state"] == "starting" else True


def _knows(site: Any) -> bool | None:
    rows = site.admin.get("/1/models")["models"]
    return True if any(s["state"] == "ready" for row in rows for s in row["sites"]) else None


def _infer(connection: http.client.HTTPConnection, header: bytes, body: bytes) -> None:
    connection.request(
        "POST", "/v2/models/magika/infer", body,
        {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"},
    )  # fmt: skip
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, content[:300]


if __name__ == "__main__":
    sys.exit(main())
