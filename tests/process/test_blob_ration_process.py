"""What blobs may take of a site's way out, counted at the network cards of those who fetch.

Two sites fetch a model each from a third, whose ``blob_bytes_per_s`` bounds both together.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from daemon_cluster import Daemon, scratch, wait_for
from mesh_network import NEEDS_NAMESPACES, Network, all_see_all, fleet, network, run, tool
from onnx import TensorProto, helper
from serving_site import save_model

from agent.distribution.ration import BURST_S
from agent.drivers.clock import monotonic_s

pytestmark = [pytest.mark.process, pytest.mark.timeout(200), *NEEDS_NAMESPACES]

RATE = 2_000_000
"""Bytes a second."""
BLOB_BYTES = 8_000_000
"""Of each model: two take eight seconds."""
OTHER_BYTES = 400_000
"""What else comes in meanwhile, and what TLS and TCP add to 8 MB: less than 5 %."""
SETTINGS = f"[serving]\nblob_bytes_per_s = {RATE}\n[training]\nenabled = false\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Network, list[Daemon]]]:
    with scratch() as folder, network(3) as net:
        sites = fleet(folder, net, SETTINGS)
        try:
            for site in sites:
                site.wait_ready()
            all_see_all(sites)
            yield net, sites
        finally:
            for site in sites:
                site.clean_up()


def large_model(path: Path) -> Path:
    """x UINT8 [n] -> itself and a constant of random bytes."""
    data = os.urandom(BLOB_BYTES)
    return save_model(
        path,
        [helper.make_node("Concat", ["x", "kept"], ["y"], axis=0)],
        [("x", TensorProto.UINT8, ["n"])],
        [("y", TensorProto.UINT8, ["m"])],
        [helper.make_tensor("kept", TensorProto.UINT8, [len(data)], data, raw=True)],
    )


def push(origin: Daemon, receiver: Daemon, file: Path) -> None:
    origin.cli("model", "push", str(file), "--name", file.stem, "--version", "1",
               "--sites", receiver.name, "--no-wait")  # fmt: skip


def received(net: Network, index: int) -> int:
    """Bytes that have come in at a site's network card."""
    told = run(tool("ip"), "-n", net.space(index), "-s", "-j", "link", "show", "eth0")
    return int(json.loads(told)[0]["stats64"]["rx"]["bytes"])


def test_two_who_fetch_share_the_bound_and_together_stay_within_it(
    cluster: tuple[Network, list[Daemon]],
) -> None:
    net, sites = cluster
    origin, receivers = sites[0], (1, 2)
    files = {index: large_model(origin.folder / f"m{index}.onnx") for index in receivers}
    before = {index: received(net, index) for index in receivers}
    began_s = monotonic_s()
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda index: push(origin, sites[index], files[index]), receivers))
    samples: list[tuple[float, list[int]]] = []

    def are_both_there() -> bool:
        got = [received(net, index) - before[index] for index in receivers]
        samples.append((monotonic_s() - began_s, got))
        return all(sites[index].model(f"m{index}", "1")["state"] == "ready" for index in receivers)

    wait_for(are_both_there, 90, "both have theirs", sites)
    for after_s, got in samples:
        assert sum(got) <= RATE * (after_s + BURST_S) + 2 * OTHER_BYTES, (after_s, got)
    assert all(got >= BLOB_BYTES for got in samples[-1][1])
    under_way = [got for _, got in samples if min(got) > OTHER_BYTES and max(got) < BLOB_BYTES]
    gains = [last - first for first, last in zip(under_way[0], under_way[-1], strict=True)]
    assert min(gains) > BLOB_BYTES / 8, "they fetched at the same time"
    assert max(gains) < 1.5 * min(gains), gains
