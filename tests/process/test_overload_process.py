"""An edge site, a nearby and a far regional one, as real processes: load goes elsewhere and comes back.

What a site is asked is an echo with a run that takes as long as it says, so each answer proves whose
question it belongs to.
"""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from asking_within import Ask, Told, ask_within
from daemon_cluster import Daemon, make_founder, running, scratch, token_for, wait_for
from onnx import TensorProto, helper
from serving_site import save_model
from wan_switch import WideNetwork, why_not

from agent.site.view import RTT_MS_UNKNOWN

WHY_NOT = why_not()
MUST_RUN = os.environ.get("ATOLL_REQUIRE_ALL") == "1"
pytestmark = [
    pytest.mark.process,
    pytest.mark.root,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(WHY_NOT) and not MUST_RUN, reason=WHY_NOT),
]

NAMES = ("asking", "edge", "near", "far")
SERVING = ("edge", "near", "far")
TRIPS_S = {("edge", "near"): 0.015, ("edge", "far"): 0.06, ("near", "far"): 0.06,
           ("asking", "edge"): 0.002, ("asking", "near"): 0.02, ("asking", "far"): 0.06}  # fmt: skip
"""So far apart that run times on a machine which all of them share do not decide who is nearest."""
SETTINGS = """
[membership]
link = "wan"
expected_sites = 4
[discovery]
mdns = false
[training]
enabled = false
"""
SLOW = 15_000
"""Rounds of a slow question: some 25 ms of a core here."""
DEADLINE_MS = 3000
AT_ONCE = 6


@dataclass
class Cluster:
    network: WideNetwork
    sites: dict[str, Daemon] = field(default_factory=dict)

    def ask(self, name: str, asks: list[Ask], at_once: int = 1) -> list[Told]:
        site = self.sites[name]
        return ask_within(site.within, site.host, asks, at_once=at_once)

    def explained(self, at: str) -> dict[str, dict[str, float]]:
        """Who would be asked, best first, and how fast that site is as far as is known."""
        rows = self.sites[at].get("/1/route/explain", model="slow")["candidates"]
        return {row["name"]: row for row in rows}

    def is_known_well(self, at: str) -> bool:
        """Whether the site at ``at`` knows how far all are that serve, and how long a question takes."""
        known = self.explained(at)
        return set(known) == set(SERVING) and all(
            row["rtt_ms"] < RTT_MS_UNKNOWN and row["service_ms"] > 1.0 for row in known.values()
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    assert not WHY_NOT, WHY_NOT
    with WideNetwork(NAMES) as network, scratch() as folder:
        network.trips(TRIPS_S, jitter_s=0.0, loss=0.0)
        sites = {
            name: Daemon(
                folder, name, SETTINGS, host=network.address(name), within=network.within(name)
            )
            for name in NAMES
        }
        everybody = list(sites.values())
        founder, *others = everybody
        make_founder(founder)
        with running(*everybody):
            founder.start().wait_ready(60)
            for site in others:
                site.cli("join", token_for(founder, site.name))
                site.start()
            for site in others:
                site.wait_ready(60)
            wait_for(
                lambda: all(site.alive() == set(NAMES) for site in everybody),
                60, "all see all", everybody,
            )  # fmt: skip
            model = slow_echo(folder / "slow.onnx")
            founder.cli("model", "push", str(model), "--name", "slow", "--version", "1",
                        "--sites", ",".join(SERVING))  # fmt: skip
            made = Cluster(network, sites)
            for name in SERVING:
                wait_for(lambda: name in made.explained(name), 30, f"{name} serves")  # noqa: B023
                who(made.ask(name, questions(5)))
            for at in ("asking", "edge"):
                wait_for(lambda: made.is_known_well(at), 60, f"{at} knows the others")  # noqa: B023
            yield made


def slow_echo(path: Path) -> Path:
    """n, x INT64 [1] -> x + n, after n rounds of a loop."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_out"]),
            helper.make_node("Add", ["total", "one"], ["total_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total_out", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    return save_model(
        path,
        [
            helper.make_node("Squeeze", ["n"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body),
        ],
        [("n", TensorProto.INT64, [1]), ("x", TensorProto.INT64, [1])],
        [("y", TensorProto.INT64, [1])],
    )


def question(x: int, rounds: int) -> Ask:
    given = [
        {"name": name, "shape": [1], "datatype": "INT64", "data": [value]}
        for name, value in (("n", rounds), ("x", x))
    ]
    headers = {"Content-Type": "application/json", "Atoll-Deadline-Ms": str(DEADLINE_MS)}
    return Ask("/v2/models/slow/infer", headers, json.dumps({"inputs": given}).encode())


def questions(count: int, rounds: int = SLOW) -> list[Ask]:
    return [question(1000 * number, rounds) for number in range(count)]


def is_right(number: int, told: Told, rounds: int = SLOW) -> bool:
    return bool(json.loads(told.body)["outputs"][0]["data"] == [1000 * number + rounds])


class Load:
    """Questions that a site's own applications keep asking, from another thread."""

    def __init__(self, cluster: Cluster, at: str, asks: list[Ask], at_once: int) -> None:
        self.told: list[Told] = []
        self._thread = threading.Thread(target=self._run, args=(cluster, at, asks, at_once))
        self._thread.start()

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def end(self) -> list[Told]:
        self._thread.join()
        return self.told

    def _run(self, cluster: Cluster, at: str, asks: list[Ask], at_once: int) -> None:
        self.told = cluster.ask(at, asks, at_once)


def runs(cluster: Cluster, name: str) -> int:
    """Questions that the site's workers have answered."""
    (told,) = ask_within(
        cluster.sites[name].within, cluster.sites[name].host, [Ask("/metrics", {})], port=8002
    )
    lines = [line for line in told.body.decode().splitlines() if not line.startswith("#")]
    found = [line for line in lines if line.startswith("nv_inference_request_success{")]
    return sum(int(float(line.split()[-1])) for line in found)


def who(answers: list[Told]) -> dict[str, int]:
    """How many answers each site gave; every one of them right."""
    assert all(one.status == 200 for one in answers), [
        (one.status, one.body[:200]) for one in answers if one.status != 200
    ][:3]
    assert all(is_right(number, one) for number, one in enumerate(answers))
    names = [one.by for one in answers]
    return {name: names.count(name) for name in set(names)}


def test_what_an_edge_site_cannot_bear_goes_to_a_regional_one_and_stays_at_home_again_afterwards(
    cluster: Cluster,
) -> None:
    def is_home() -> bool:
        return who(cluster.ask("edge", questions(10))) == {"edge": 10}

    wait_for(is_home, 30, "the edge answers alone")
    busy = who(cluster.ask("edge", questions(200), at_once=12))
    assert busy["edge"] > 20, busy
    assert busy.get("near", 0) > 20, busy

    wait_for(is_home, 30, "the edge answers alone again", list(cluster.sites.values()))


def test_others_avoid_the_nearest_site_while_it_is_busy_and_come_back(cluster: Cluster) -> None:
    nearest, *_ = cluster.explained("asking")
    wait_for(
        lambda: who(cluster.ask("asking", questions(5))).get("edge", 0) >= 4, 30, "the edge is near"
    )
    load = Load(cluster, "edge", questions(400), at_once=16)
    elsewhere = 0
    while not load.is_over():
        answers = cluster.ask("asking", questions(10), at_once=2)
        elsewhere += sum(one.by in ("near", "far") for one in answers)
    who(load.end())
    assert elsewhere > 10, (nearest, elsewhere)
    wait_for(lambda: who(cluster.ask("asking", questions(10))).get("edge", 0) >= 9, 60, "as before")


def test_a_serving_site_that_dies_under_load_costs_no_answer_and_none_is_wrong(
    cluster: Cluster,
) -> None:
    """Last of this module. Each question has three seconds, so who asked again got its answer in that."""
    before = runs(cluster, "edge")
    load = Load(cluster, "asking", questions(600), at_once=AT_ONCE)
    wait_for(lambda: runs(cluster, "edge") > before + 50, 30, "the edge answers")
    cluster.sites["edge"].crash()
    by = who(load.end())
    assert by["edge"] >= 50
    assert by.get("near", 0) + by.get("far", 0) > 50, by
