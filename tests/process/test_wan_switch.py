"""The wide network itself: what it promises to the tests that use it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

import pytest
from wan_switch import WideNetwork, why_not

WHY_NOT = why_not()
MUST_RUN = os.environ.get("ATOLL_REQUIRE_ALL") == "1"
pytestmark = [
    pytest.mark.process,
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(WHY_NOT) and not MUST_RUN, reason=WHY_NOT),
]

ECHO = """
import socket, sys
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
here.bind((sys.argv[1], 9))
print("bound", flush=True)
while True:
    data, where = here.recvfrom(2000)
    here.sendto(data, where)
"""
ASK = """
import socket, sys, time
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
here.settimeout(1.0)
for number in range(int(sys.argv[2])):
    began = time.perf_counter()
    here.sendto(b"%d" % number, (sys.argv[1], 9))
    try:
        while here.recv(2000) != b"%d" % number:
            pass
        print(time.perf_counter() - began)
    except TimeoutError:
        print("lost")
"""


@pytest.fixture
def network() -> Iterator[WideNetwork]:
    with WideNetwork(("one", "two", "three")) as network:
        yield network


@pytest.fixture
def echo(network: WideNetwork) -> Iterator[None]:
    """Site two answers what it is sent."""
    with subprocess.Popen(
        [*network.within("two"), sys.executable, "-c", ECHO, network.address("two")],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def trips(network: WideNetwork, source: str, number: int = 30) -> list[float | None]:
    done = subprocess.run(
        [*network.within(source), sys.executable, "-c", ASK, network.address("two"), str(number)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [None if line == "lost" else float(line) for line in done.stdout.split()]


@pytest.mark.usefixtures("echo")
def test_each_pair_has_a_round_trip_of_its_own(network: WideNetwork) -> None:
    network.trips({("one", "two"): 0.05, ("three", "two"): 0.02}, jitter_s=0.0, loss=0.0)
    found = [median(s for s in trips(network, name) if s is not None) for name in ("one", "three")]
    # Never earlier than said; later by what a busy machine needs.
    assert 0.05 <= found[0] < 0.08
    assert 0.02 <= found[1] < 0.05


@pytest.mark.usefixtures("echo")
def test_loss_and_one_way_cuts_do_what_they_say(network: WideNetwork) -> None:
    network.lane("one", "two", loss=0.5)
    lost = sum(one is None for one in trips(network, "one", 20))
    assert 2 <= lost <= 18
    network.lane("one", "two", loss=0.0)
    network.cut("two", "one")
    before = network.counts()
    assert trips(network, "one", 2) == [None, None]
    assert trips(network, "three", 2) != [None, None]
    assert network.counts()["lost"] >= before["lost"] + 2
    network.cut("two", "one", is_cut=False)
    assert None not in trips(network, "one", 2)
