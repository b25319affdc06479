"""Where a request should go among the sites where it may: the earliest predicted completion.

completion = round trip (measured, else estimated from coordinates) + queue + service time of that
model on that site. A suspect member comes last: it may be dead. This site's own choice of the last
second is known better than what gossip says of load, so requests that are under way to a site count
as queue in front of it.
"""

from dataclasses import dataclass

from agent.routing.policy import Verdict
from agent.serving.admission import SERVICE_US_UNKNOWN

QUEUE_AT_FULL = 8
"""Requests that wait at a site whose load is 1 (its slots are full); the default number of slots."""
SUSPECT_PENALTY_MS = 1000.0
"""More than any round trip between sites: chosen only if nothing else is left."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """When a site would have answered, milliseconds from now."""

    rtt_ms: float
    queue_ms: float
    service_ms: float
    penalty_ms: float

    @property
    def total_ms(self) -> float:
        """The score: the smaller the better."""
        return self.rtt_ms + self.queue_ms + self.service_ms + self.penalty_ms

    @property
    def idle_ms(self) -> float:
        """With nobody before it."""
        return self.rtt_ms + self.service_ms


def predict(verdict: Verdict, *, local_wait_ms: float, under_way: int) -> Prediction:
    """The predicted completion at one site.

    Args:
        verdict: a site and what is known of its speed.
        local_wait_ms: what admission says of this site's own queue.
        under_way: requests sent from here to that site and not answered.
    """
    service_ms = (verdict.service_us or SERVICE_US_UNKNOWN) / 1000
    if verdict.remote is None:
        return Prediction(0.0, local_wait_ms, service_ms, 0.0)
    waiting = verdict.remote.load * QUEUE_AT_FULL + under_way
    penalty_ms = SUSPECT_PENALTY_MS if verdict.remote.status == "suspect" else 0.0
    return Prediction(verdict.remote.rtt_ms, waiting * service_ms, service_ms, penalty_ms)
