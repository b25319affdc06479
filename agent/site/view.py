"""What the gateway decides by: this site's knowledge, flattened into one message."""

import math

from agent.foundation.ids import SiteId
from agent.site.site import Site
from agent.wire.documents import Policy
from agent.wire.inside import BlobLabel, KnownModel, LocalModel, RemoteSite, View, model_key

RTT_MS_UNKNOWN = 1000.0
"""Of a member neither measured nor placed: behind every one that is."""
RTT_STEPS = 4
"""To a factor of two: the jitter of an idle network changes no view, and a step of 19 % no choice."""


def view_of(site: Site, revoked: tuple[SiteId, ...] = ()) -> View:
    """The present view; the gateway replaces its former one by it."""
    claims, watched = site.identity.claims, site.holdings.rollouts.watched()
    local = tuple(
        LocalModel(
            key, item.version.name, item.version.version, item.stage == "ready", item.reason,
            item.version.residency, item.metadata, item.service_us,
            key in watched,
        )
        for key, item in sorted(site.shelf.items.items())
    )  # fmt: skip
    # Also of blobs that are not here yet: what has come of them is given to others meanwhile.
    blobs = tuple(BlobLabel(*one) for one in sorted(site.labels.items()))
    return View(
        site.me, claims.name, claims.jurisdiction, site.is_draining, local, _known(site),
        _sites(site), blobs, revoked, site.trust.groups, site.trust.jurisdictions,
        tuple(one for one in site.catalog.of_kind(Policy) if one.is_active),
    )  # fmt: skip


def _steady(rtt_ms: float) -> float:
    """The nearest step of a geometric scale, at least 0.1 ms."""
    steps = round(RTT_STEPS * math.log2(max(rtt_ms, 0.1)))
    return round(math.exp2(steps / RTT_STEPS), 2)


def _known(site: Site) -> tuple[KnownModel, ...]:
    """All versions of the catalog and of jobs, and which of each model answers by default."""
    versions = site.versions.every()
    default = site.versions.defaults(versions.values())
    overrides = site.holdings.overrides
    found = []
    for (name, number), version in sorted(versions.items()):
        decided = overrides.of(name, number)
        unloaded = str(decided) if decided is not None and not decided.is_served else ""
        is_default, key = default.get(name) == number, model_key(name, number)
        found.append(KnownModel(key, name, number, is_default, version.residency, unloaded))
    return tuple(found)


def _sites(site: Site) -> tuple[RemoteSite, ...]:
    found: list[RemoteSite] = []
    if site.duplicates.state == "left":
        return ()
    for member in site.swim.members().values():
        identity = site.roll.get(member.site)
        if identity is None or member.state not in ("alive", "suspect"):
            continue
        record, claims = member.record, identity.claims
        distance_s = site.swim.distance_s(member.site)
        rtt_ms = RTT_MS_UNKNOWN if distance_s is None else _steady(1000.0 * distance_s)
        found.append(
            RemoteSite(
                member.site, claims.name, claims.region, claims.tier, claims.jurisdiction,
                record.endpoint.host, record.endpoint.data_port,
                "suspect" if member.state == "suspect" else "alive",
                record.status != "alive", rtt_ms, record.load,
                tuple(served for served in record.serving if not served.is_refused),
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda remote: remote.site))
