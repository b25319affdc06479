"""Five real sites in five cities of a simulated Europe (see ``wan_switch``)."""

import contextlib
from collections.abc import Iterator, Sequence
from statistics import median

from daemon_cluster import Daemon, make_founder, running, scratch, token_for, wait_for
from wan_switch import WideNetwork

from agent.simulation.membership_wan import ACCESS_S, FIVE_CITIES, JITTER_MEDIAN, JITTER_S, LOSS

SETTINGS = """
[membership]
link = "wan"
expected_sites = 5
[discovery]
mdns = false
[training]
enabled = false
"""
START_TIMEOUT_S = 60.0

Pair = tuple[str, str]


def set_trips(network: WideNetwork) -> None:
    """The distances between the cities, jitter and loss, on every lane."""
    trips_s = {(a, b): trip_s + ACCESS_S[a] + ACCESS_S[b] for (a, b), trip_s in FIVE_CITIES.items()}
    network.trips(trips_s, jitter_s=JITTER_S, loss=LOSS)


def truths_s() -> dict[Pair, float]:
    """Round trips in the median, seconds, in both directions: what the switch was told."""
    return {
        pair: trip_s + ACCESS_S[a] + ACCESS_S[b] + JITTER_MEDIAN * JITTER_S
        for (a, b), trip_s in FIVE_CITIES.items()
        for pair in ((a, b), (b, a))
    }


@contextlib.contextmanager
def five_sites(seed: int = 1) -> Iterator[tuple[WideNetwork, list[Daemon]]]:
    """A cluster across the five cities in which all know all; the first has founded it."""
    names = list(ACCESS_S)
    with WideNetwork(names, seed) as network, scratch() as folder:
        set_trips(network)
        daemons = [
            Daemon(folder, name, SETTINGS, host=network.address(name), within=network.within(name))
            for name in names
        ]
        founder, *joiners = daemons
        make_founder(founder)
        with running(*daemons):
            founder.start().wait_ready(START_TIMEOUT_S)
            for daemon in joiners:
                daemon.cli("join", token_for(founder, daemon.name))
            for daemon in joiners:
                daemon.start()
            for daemon in joiners:
                daemon.wait_ready(START_TIMEOUT_S)
            for daemon in daemons:
                wait_for(
                    lambda one=daemon: one.alive() == set(names),  # type: ignore[misc]
                    START_TIMEOUT_S, f"{daemon.name} knows all", daemons,
                )  # fmt: skip
            yield network, daemons


def errors(daemons: Sequence[Daemon], key: str) -> dict[Pair, float]:
    """Relative error of each ordered pair by what members' rows say under ``key``; 1.0 if nothing.

    ``key``: ``estimated_rtt_ms`` (by coordinates) or ``rtt_ms``.
    """
    truth_s, wrong = truths_s(), {}
    for daemon in daemons:
        for row in daemon.get("/1/members")["members"]:
            if (pair := (daemon.name, row["name"])) in truth_s:
                true_ms, told_ms = 1000 * truth_s[pair], row[key]
                wrong[pair] = 1.0 if told_ms is None else abs(told_ms - true_ms) / true_ms
    return wrong


def error_median(daemons: Sequence[Daemon], key: str = "estimated_rtt_ms") -> float:
    """The median over all ordered pairs."""
    return median(errors(daemons, key).values())
