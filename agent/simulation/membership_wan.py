"""Membership over a wide network: sites on a map, each behind an access link of its own.

A one-way delay is the distance on the map, stretched as cables are, plus half of both access links;
jitter is the exponential part of the network's faults. What round trips are is known here exactly,
so that coordinates can be judged.
"""

import math
from dataclasses import dataclass
from random import Random
from statistics import median

from agent.foundation.ids import SiteId
from agent.membership.settings import Settings
from agent.simulation.membership_world import MembershipWorld, site_id
from agent.simulation.network import Faults

STRETCH = (0.95, 1.15)
"""Cables do not run straight: each path is longer or shorter than the map says by such a factor."""
JITTER_S = 0.001
"""Mean of the exponential delay that each way adds."""
JITTER_MEDIAN = 1.678
"""Median of the sum of two exponential delays, in means of one: what jitter adds to a round trip."""
LOSS = 0.01

FIVE_CITIES: dict[tuple[str, str], float] = {
    ("frankfurt", "paris"): 0.0095, ("frankfurt", "madrid"): 0.0265,
    ("frankfurt", "warsaw"): 0.0205, ("frankfurt", "lisbon"): 0.037,
    ("paris", "madrid"): 0.0185, ("paris", "warsaw"): 0.029, ("paris", "lisbon"): 0.0285,
    ("madrid", "warsaw"): 0.046, ("madrid", "lisbon"): 0.0125, ("warsaw", "lisbon"): 0.056,
}  # fmt: skip
"""Round trips between the cities' exchanges in seconds, as public looking glasses show them."""
ACCESS_S: dict[str, float] = {
    "frankfurt": 0.0005, "paris": 0.002, "madrid": 0.001, "warsaw": 0.004, "lisbon": 0.0015,
}  # fmt: skip
"""What each site's access link adds to every round trip."""


def five_cities() -> dict[tuple[int, int], float]:
    """Round trips in seconds between five sites, access links included; both directions."""
    names = list(ACCESS_S)
    return {
        (names.index(a), names.index(b)): trip_s + ACCESS_S[a] + ACCESS_S[b]
        for pair, trip_s in FIVE_CITIES.items()
        for a, b in (pair, pair[::-1])
    }


def on_a_map(sites: int, width_s: float, rng: Random) -> dict[tuple[int, int], float]:
    """Round trips between ``sites`` strewn over a map that is ``width_s`` wide; both directions."""
    places = [(rng.uniform(0, width_s), rng.uniform(0, 0.7 * width_s)) for _ in range(sites)]
    links_s = [min(0.02, rng.expovariate(1 / 0.003)) for _ in range(sites)]
    found: dict[tuple[int, int], float] = {}
    for a in range(sites):
        for b in range(a):
            across_s = math.dist(places[a], places[b]) * rng.uniform(*STRETCH)
            found[a, b] = found[b, a] = 0.001 + across_s + links_s[a] + links_s[b]
    return found


def wan_fleet(
    trips: dict[tuple[int, int], float],
    seed: int,
    *,
    settings: Settings | None = None,
    jitter_s: float = JITTER_S,
    loss: float = LOSS,
    measures_bytes: bool = False,
) -> tuple[MembershipWorld, list[SiteId]]:
    """Sites with these round trips that have just started; all but the first join through it."""
    sites = 1 + max(a for a, _ in trips)
    world = MembershipWorld(
        seed=seed,
        settings=Settings.wan(sites) if settings is None else settings,
        faults=Faults(loss, 0.0, 0.0, jitter_s),
        measures_bytes=measures_bytes,
    )
    ids = [site_id(index) for index in range(sites)]
    for (a, b), trip_s in trips.items():
        world.network.delays[ids[a], ids[b]] = trip_s / 2
    for index in range(sites):
        world.add(index, seeds=ids[:1] if index else ())
    return world, ids


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How good the estimates by coordinates are, over all ordered pairs of running sites."""

    error_median: float
    """Of |estimate - truth| / truth; 1.0 where there is no estimate."""
    error_worst_tenth: float
    """What the worst tenth exceeds."""
    unknown: float
    """Share of the pairs without an estimate."""


def accuracy(world: MembershipWorld) -> Accuracy:
    """Compare what coordinates say with the round trips that packets take in the median."""
    faults, running = world.network.faults, world.running()
    extra_s = 2 * faults.delay_min_s + JITTER_MEDIAN * faults.delay_mean_s
    errors, unknown = [], 0
    for me in running:
        for other in running:
            if me == other:
                continue
            truth_s = 2 * world.network.delays[me, other] + extra_s
            estimate_s = world.swim(me).estimated_s(other)
            unknown += estimate_s is None
            errors.append(1.0 if estimate_s is None else abs(estimate_s - truth_s) / truth_s)
    errors.sort()
    return Accuracy(median(errors), errors[len(errors) * 9 // 10], unknown / len(errors))
