"""The updates that a round counts: how they are weighed, who has them, and what the round says of them."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from agent.federation.cohort import Entry
from agent.federation.events import Counting
from agent.federation.lateness import weight_of
from agent.federation.sharing import Counted
from agent.federation.value import Contribution
from agent.foundation.ids import SiteId
from agent.wire.mesh import Offer

Pairs = tuple[tuple[Entry, Offer], ...]
"""Sites or regions, and what they have offered; fixed when the averaging starts."""


def pairs(entries: Mapping[SiteId, Entry], chosen: Iterable[SiteId]) -> Pairs:
    """Of those chosen, as they are now."""
    return tuple(
        (replace(entry), entry.offer)
        for site in chosen
        if (entry := entries[site]).offer is not None
    )


def countings(of: Pairs) -> list[Counting]:
    """For the mean that this site makes."""
    return [
        Counting(
            offer.update, weight_of(offer.samples, entry.late_by),
            offer.base if entry.late_by else None,
        )
        for entry, offer in of
    ]  # fmt: skip


def counted(of: Pairs) -> list[Counted]:
    """For the mean that several sites make."""
    return [
        Counted(offer, entry.site, weight_of(offer.samples, entry.late_by), bool(entry.late_by))
        for entry, offer in of
    ]


def contributions(of: Pairs) -> tuple[Contribution, ...]:
    """For everybody who wants to know whether an update was counted."""
    return tuple(
        Contribution(
            entry.site, offer.update, offer.samples, offer.metrics,
            offer.round if entry.late_by else 0, offer.base if entry.late_by else None,
            entry.region, offer.after, offer.until,
        )
        for entry, offer in of
    )  # fmt: skip
