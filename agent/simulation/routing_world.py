"""A hundred sites, a skewed load, old gossip: how late are answers beside a sender that knows all?

The same ``Outlook`` as the gateway's decides at each site. The oracle joins the site with the least
true completion (round trip, queue at this moment, service). Both see the same arrivals.
"""

import heapq
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from random import Random

from agent.foundation.ids import SiteId
from agent.routing.outlook import Outlook
from agent.routing.policy import ALLOWED, Verdict
from agent.routing.score import QUEUE_AT_FULL, predict
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


def run_world(plan: Plan, *, is_oracle: bool) -> list[float]:
    """Completion times of all requests, seconds, sorted."""
    rng = Random(plan.seed)  # noqa: S311 - reproducible on purpose
    count = plan.sites
    places = [(rng.random() * 0.05, rng.random() * 0.05) for _ in range(count)]
    names = [SiteId(at.to_bytes(32, "big")) for at in range(count)]
    trips_s = [
        [0.001 + abs(a[0] - b[0]) + abs(a[1] - b[1]) if a is not b else 0.0 for b in places]
        for a in places
    ]
    senders = [Outlook(Random(rng.getrandbits(64))) for _ in range(count)]  # noqa: S311 - the same
    under_way: list[dict[SiteId, int]] = [{} for _ in range(count)]
    free_at = [0.0] * count
    """When the site's one runner has done all that has come."""
    gossiped, gossiped_at = [0.0] * count, [rng.random() * GOSSIP_S for _ in range(count)]
    remotes = [[_remote(names[to], trips_s[at][to]) for to in range(count)] for at in range(count)]
    answers: list[tuple[float, int, int, float, float]] = []
    arrivals_per_s = plan.utilisation * count / SERVICE_S
    expected_ms = 0.0
    hot, now_s, done = max(count // 10, 1), 0.0, []
    for _ in range(plan.requests):
        now_s += rng.expovariate(arrivals_per_s)
        home = rng.randrange(hot) if rng.random() < HOT_SHARE else rng.randrange(count)
        service_s = SERVICE_S * rng.uniform(0.8, 1.2)
        while answers and answers[0][0] <= now_s:
            at_s, sender, site, predicted_ms, took_s = heapq.heappop(answers)
            senders[sender].answered(names[site], KEY, predicted_ms, took_s * 1000, at_s)
            under_way[sender][names[site]] -= 1
        waits_s = [max(free - now_s, 0.0) for free in free_at]
        for site in range(count):
            if now_s - gossiped_at[site] >= GOSSIP_S:
                gossiped_at[site] = now_s
                gossiped[site] = waits_s[site] / SERVICE_S / QUEUE_AT_FULL
        if is_oracle:
            chosen = min(range(count), key=lambda to: trips_s[home][to] + waits_s[to])
        else:
            chosen = home
            verdicts = [
                Verdict(
                    names[to], "", False, "", ALLOWED,
                    replace(remotes[home][to], load=gossiped[to]), round(SERVICE_S * 1e6),
                )
                for to in range(count)
                if to != home
            ]  # fmt: skip
            home_ms = (waits_s[home] + SERVICE_S) * 1000
            if waits_s[home]:
                ordered = senders[home].order(KEY, verdicts, under_way[home], now_s)
                if senders[home].is_better_away(KEY, home_ms, ordered[0][1].total_ms):
                    best = ordered[0][0]
                    chosen = names.index(best.site)
                    sent = under_way[home].get(best.site, 0)
                    expected_ms = predict(best, local_wait_ms=0.0, under_way=sent).total_ms
                    under_way[home][best.site] = sent + 1
        trip_s = trips_s[home][chosen]
        free_at[chosen] = max(free_at[chosen], now_s + trip_s / 2) + service_s
        took_s = free_at[chosen] + trip_s / 2 - now_s
        done.append(took_s)
        if not is_oracle and chosen != home:
            heapq.heappush(answers, (now_s + took_s, home, chosen, expected_ms, took_s))
    return sorted(done)


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
