"""Real sites far apart: coordinates, what the operator sees of them, one-way cuts, restarts."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from daemon_cluster import Daemon, wait_for
from wan_cluster import error_median, five_sites
from wan_switch import WideNetwork, why_not

WHY_NOT = why_not()
MUST_RUN = os.environ.get("ATOLL_REQUIRE_ALL") == "1"
pytestmark = [
    pytest.mark.process,
    pytest.mark.root,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(WHY_NOT) and not MUST_RUN, reason=WHY_NOT),
]

Cluster = tuple[WideNetwork, dict[str, Daemon]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    assert not WHY_NOT, WHY_NOT
    with five_sites() as (network, daemons):
        yield network, {daemon.name: daemon for daemon in daemons}


def row(at: Daemon, of: str) -> Any:
    rows = {one["name"]: one for one in at.get("/1/members")["members"]}
    return rows[of]


def test_five_sites_estimate_their_round_trips_within_fifteen_percent(cluster: Cluster) -> None:
    daemons = list(cluster[1].values())
    wait_for(lambda: error_median(daemons) <= 0.15, 150.0, "estimates are good", daemons)
    (lisbon,) = [one for one in daemons[0].json("members")["members"] if one["name"] == "lisbon"]
    assert lisbon["rtt_ms"] >= 39.0
    assert not lisbon["rtt_is_estimated"]


def test_a_way_that_is_cut_in_one_direction_makes_a_member_relayed_not_dead(
    cluster: Cluster,
) -> None:
    network, sites = cluster
    network.cut("paris", "madrid")
    wait_for(lambda: row(sites["paris"], "madrid")["relayed"], 60.0, "relayed", [sites["paris"]])
    for daemon in sites.values():
        assert {one["status"] for one in daemon.get("/1/members")["members"]} <= {
            "alive",
            "suspect",
        }
    network.cut("paris", "madrid", is_cut=False)
    wait_for(lambda: not row(sites["paris"], "madrid")["relayed"], 60.0, "direct again")
    wait_for(lambda: len(sites["lisbon"].alive()) == 5, 60.0, "all alive again")


def test_a_site_that_was_killed_knows_after_its_restart_how_far_the_others_are(
    cluster: Cluster,
) -> None:
    _, sites = cluster
    again = sites["warsaw"]
    wait_for(lambda: error_median([again]) <= 0.2, 150.0, "warsaw knows its place", [again])
    wait_for(lambda: _has_noted(again), 90.0, "its place is on disk")
    again.kill()
    again.start()
    wait_for(
        lambda: all(
            row(again, name)["estimated_rtt_ms"] is not None for name in sites if name != "warsaw"
        ),
        30.0, "warsaw estimates again", [again],
    )  # fmt: skip
    again.wait_ready(60.0)
    wait_for(lambda: len(sites["lisbon"].alive()) == 5, 60.0, "all alive again")


def _has_noted(daemon: Daemon) -> bool:
    """Whether the place is in the log of the database: the file is locked while the agent runs."""
    names = ("atoll.db", "atoll.db-wal")
    return any(b"coordinate" in (daemon.state_dir / name).read_bytes() for name in names)
