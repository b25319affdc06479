"""A hundred sites, a skewed load, old gossip: how late are answers beside a sender that knows all?

The same ``Outlook`` as the gateway's decides at each site. The oracle joins the site with the least
true completion (round trip, queue at this moment, service). Both see the same arrivals.
"""

import heapq
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from random import Random

from agent.foundation.ids import SiteId
from agent.routing.outlook import Expected, Outlook
from agent.routing.policy import ALLOWED, Verdict
from agent.routing.score import QUEUE_AT_FULL
from agent.wire.inside import RemoteSite

KEY = bytes(32)
SERVICE_S = 0.02
GOSSIP_S = 1.0
"""Age of a load when it is replaced: what anti-entropy gives in the five-site WAN."""
HOT_SHARE = 0.5
"""Of all requests, come at the tenth of the sites that is hot: five times what these can do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One world."""

    seed: int
    sites: int = 100
    requests: int = 20_000
    utilisation: float = 0.7


@dataclass(slots=True)
class _Request:
    home: int
    begun_s: float
    service_s: float
    site: int
    """Where it is answered."""
    own_before: int = 0
    """Requests of its home that were under way there as it was sent."""


class World:
    """Sites with one runner each; time goes from event to event."""

    def __init__(self, plan: Plan, *, is_oracle: bool) -> None:
        self._plan, self._is_oracle = plan, is_oracle
        rng = self._rng = Random(plan.seed)  # noqa: S311 - reproducible on purpose
        count = plan.sites
        places = [(rng.random() * 0.05, rng.random() * 0.05) for _ in range(count)]
        self._names = [SiteId(at.to_bytes(32, "big")) for at in range(count)]
        self._number = {name: at for at, name in enumerate(self._names)}
        self._trips_s = [
            [0.001 + abs(a[0] - b[0]) + abs(a[1] - b[1]) if a is not b else 0.0 for b in places]
            for a in places
        ]
        self._outlooks = [Outlook(Random(rng.getrandbits(64))) for _ in range(count)]  # noqa: S311
        self._under_way: list[dict[SiteId, int]] = [{} for _ in range(count)]
        self._free_at = [0.0] * count
        """When the site's runner has done all that has come."""
        self._gossiped = [0.0] * count
        self._gossiped_at = [rng.random() * GOSSIP_S for _ in range(count)]
        self._remotes = [
            [_remote(self._names[to], self._trips_s[at][to]) for to in range(count)]
            for at in range(count)
        ]
        self._events: list[tuple[float, int, bool, _Request]] = []
        self._pushed = 0
        self._done_s: list[float] = []

    def run(self) -> list[float]:
        """Completion times of all requests, seconds, sorted."""
        plan, rng = self._plan, self._rng
        hot, now_s = max(plan.sites // 10, 1), 0.0
        arrivals_per_s = plan.utilisation * plan.sites / SERVICE_S
        for _ in range(plan.requests):
            now_s += rng.expovariate(arrivals_per_s)
            home = rng.randrange(hot) if rng.random() < HOT_SHARE else rng.randrange(plan.sites)
            self._advance(now_s)
            service_s = SERVICE_S * rng.uniform(0.8, 1.2)
            if self._is_oracle:
                self._place(now_s, home, service_s)
            else:
                self._send(_Request(home, now_s, service_s, self._choose(now_s, home)))
        self._advance(float("inf"))
        return sorted(self._done_s)

    def _advance(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            at_s, _, is_answer, request = heapq.heappop(self._events)
            if is_answer:
                self._answered(at_s, request)
            else:
                self._arrive(at_s, request)

    def _push(self, at_s: float, request: _Request, *, is_answer: bool) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (at_s, self._pushed, is_answer, request))

    def _wait_s(self, site: int, now_s: float) -> float:
        return max(self._free_at[site] - now_s, 0.0)

    def _send(self, request: _Request) -> None:
        if request.site == request.home:
            self._arrive(request.begun_s, request)
            return
        name, under_way = self._names[request.site], self._under_way[request.home]
        request.own_before = under_way.get(name, 0)
        under_way[name] = request.own_before + 1
        half_s = self._trips_s[request.home][request.site] / 2
        self._push(request.begun_s + half_s, request, is_answer=False)

    def _arrive(self, now_s: float, request: _Request) -> None:
        """It waits behind all that have come, and its answer goes back."""
        site = request.site
        self._free_at[site] = max(self._free_at[site], now_s) + request.service_s
        half_s = self._trips_s[request.home][site] / 2
        self._push(self._free_at[site] + half_s, request, is_answer=True)

    def _place(self, now_s: float, home: int, service_s: float) -> None:
        """Where it is answered first, counting what is on its way to each site: nobody knows more."""
        half_s, free_at = [trip_s / 2 for trip_s in self._trips_s[home]], self._free_at
        to = min(
            range(len(free_at)), key=lambda at: max(free_at[at], now_s + half_s[at]) + half_s[at]
        )
        free_at[to] = max(free_at[to], now_s + half_s[to]) + service_s
        self._done_s.append(free_at[to] + half_s[to] - now_s)

    def _choose(self, now_s: float, home: int) -> int:
        wait_s = self._wait_s(home, now_s)
        if not wait_s:
            return home
        verdicts = [
            Verdict(
                name, "", False, "", ALLOWED,
                replace(self._remotes[home][to], load=self._load(to, now_s)),
                round(SERVICE_S * 1e6),
            )
            for to, name in enumerate(self._names)
            if to != home
        ]  # fmt: skip
        outlook = self._outlooks[home]
        best, prediction = outlook.order(KEY, verdicts, self._under_way[home], now_s)[0]
        home_ms = (wait_s + SERVICE_S) * 1000
        is_away = outlook.is_better_away(KEY, home_ms, prediction.total_ms)
        return self._number[best.site] if is_away else home

    def _load(self, site: int, now_s: float) -> float:
        if now_s - self._gossiped_at[site] >= GOSSIP_S:
            self._gossiped_at[site] = now_s
            self._gossiped[site] = self._wait_s(site, now_s) / SERVICE_S / QUEUE_AT_FULL
        return self._gossiped[site]

    def _answered(self, now_s: float, request: _Request) -> None:
        home, site = request.home, request.site
        took_s = now_s - request.begun_s
        self._done_s.append(took_s)
        if site != home:
            name, service_ms = self._names[site], SERVICE_S * 1000
            idle_ms = self._trips_s[home][site] * 1000 + service_ms
            sent = Expected(idle_ms, service_ms, request.own_before)
            self._outlooks[home].answered(name, KEY, sent, took_s * 1000, now_s)
            self._under_way[home][name] -= 1


def run_world(plan: Plan, *, is_oracle: bool) -> list[float]:
    """Completion times of all requests, seconds, sorted."""
    return World(plan, is_oracle=is_oracle).run()


def p99_s(times_s: list[float]) -> float:
    """The 99th percentile of sorted times."""
    return times_s[min(len(times_s) * 99 // 100, len(times_s) - 1)]


def _remote(site: SiteId, trip_s: float) -> RemoteSite:
    return RemoteSite(site, "", "", "edge", "", "h", 1, "alive", False, trip_s * 1000, 0.0, ())


def add_arguments(parser: ArgumentParser) -> None:
    """Of ``python -m agent.simulation routing``."""
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--requests", type=int, default=20_000)


def run(args: Namespace) -> int:
    """Print both p99s and their ratio."""
    plan = Plan(args.seed, args.sites, args.requests)
    oracle, ours = (p99_s(run_world(plan, is_oracle=which)) for which in (True, False))
    print(f"p99: {ours * 1000:.1f} ms, oracle {oracle * 1000:.1f} ms, ratio {ours / oracle:.2f}")
    return 0
