"""What ``atoll peers`` shows: each way in which other sites are looked for, and what came of it."""

from collections.abc import Iterator
from dataclasses import asdict

from agent.api.bodies import Json
from agent.daemon.listening import shown
from agent.drivers.mdns import Mdns
from agent.foundation.ids import SiteId
from agent.site.causes import GOOD, Cause, mend
from agent.site.discovery import Hint
from agent.site.site import Site

SHOWN_AS = {"book": "peer-book"}
_FIREWALL = (
    "if sites beside this one are not found, open UDP port 5353 (multicast DNS) here and there"
)


def peer_rows(site: Site, mdns: Mdns | None, now: float, wall_offset_s: float) -> list[Json]:
    """One row for each interface, each address of each mechanism, and each member half reached.

    Args:
        site: whose hints and members are shown.
        mdns: None if it is switched off.
        now: the site's clock, seconds.
        wall_offset_s: Unix time minus the site's clock.
    """
    rows = [*_interfaces(mdns), *_hints(site), *_members(site, now)]
    for row in rows:
        for key in ("last_at", "next_at"):
            row[key] = None if row[key] is None else row[key] + wall_offset_s
    return rows


def counters(site: Site, mdns: Mdns | None) -> Json:
    """Figures for scripts and metrics; all but ``hints`` only ever rise."""
    found: Json = {
        "hints": len(site.discovery.hints), "turned_away": site.discovery.turned_away,
        "attempts": [
            {"source": SHOWN_AS.get(mechanism, mechanism), "cause": cause.value, "count": count}
            for (mechanism, cause), count in sorted(site.discovery.outcomes.items())
        ],
    }  # fmt: skip
    if mdns is not None:
        gate = mdns.gate
        found["mdns"] = {
            **asdict(mdns.counts), "packets": gate.passed, "packets_foreign": gate.foreign,
            "packets_excess": gate.excess,
        }  # fmt: skip
    return found


def _row(source: str, target: str, outcome: str, cause: str, reason: str, remedy: str = "") -> Json:
    return {
        "source": source, "target": target, "site": None, "name": None, "outcome": outcome,
        "cause": cause, "reason": reason, "mend": remedy, "last_at": None, "next_at": None,
        "attempts": 0,
    }  # fmt: skip


def _interfaces(mdns: Mdns | None) -> Iterator[Json]:
    if mdns is None:
        yield _row("mdns", "every interface", "off", "switched off", "[discovery] mdns = false")
        return
    if mdns.failure:
        yield _row(
            "mdns", "every interface", "failed", "no multicast", mdns.failure,
            "allow multicast on this network, or name seeds in [discovery]",
        )  # fmt: skip
        return
    counts = mdns.counts
    for one in mdns.choice.used:
        own = {str(address.ip) for address in one.usable}
        told = ", ".join(mdns.announced)
        scoped = [a for a in own if a.startswith("fe80:")]
        reason = f"announces {told}; {counts.taken} announcements of this cluster heard"
        if scoped and not own.intersection(mdns.announced):
            reason += (
                f"; {scoped[0]} is left out: a link-local IPv6 address means nothing to other sites"
            )
        remedy = "" if counts.taken else _FIREWALL
        yield _row("mdns", one.name, "connected", "announced", reason, remedy)
    for name, why in mdns.choice.left_out:
        remedy = "take it out of discovery.deny_interfaces" if why.startswith("denied") else ""
        yield _row("mdns", name, "left out", "left out", why, remedy)
    if not mdns.choice.used:
        yield _row(
            "mdns", "every interface", "waiting", "no interface",
            "no interface that may be used is up; it is followed",
            "see the interfaces above, and [discovery] interfaces",
        )  # fmt: skip
    if mdns.conflict:
        yield _row(
            "mdns", mdns.conflict, "failed", "name conflict",
            f"{mdns.conflict} announces something under this site's name"
            f" ({counts.conflicts} times)",
            "a copy of this site's state folder runs there, or somebody forges announcements",
        )  # fmt: skip


def _hints(site: Site) -> Iterator[Json]:
    for hint in site.discovery.hints:
        for mechanism in sorted(hint.mechanisms):
            yield _hint(site, hint, SHOWN_AS.get(mechanism, mechanism))


def _hint(site: Site, hint: Hint, source: str) -> Json:
    where, cause = hint.endpoint, hint.cause
    outcome = "connected" if cause in GOOD else "failed"
    if cause is Cause.WAITING:
        outcome = "waiting"
    row = _row(
        source, shown(where.host, where.mesh_port), outcome, cause.value,
        hint.detail or cause.value, mend(cause, where.host, where.mesh_port, where.data_port),
    )  # fmt: skip
    if hint.is_under_way:
        row["outcome"] = outcome if cause in GOOD else "trying"
    row["site"] = hint.site.hex() if hint.site is not None else None
    row["name"] = _name(site, hint.site)
    row["last_at"], row["next_at"], row["attempts"] = hint.last_at, hint.next_at, hint.attempts
    return row


def _members(site: Site, now: float) -> Iterator[Json]:
    """Members reached by half (UDP without TLS, TLS without UDP), or that answer and refuse."""
    for member in site.swim.members().values():
        fault = site.paths.fault(member, now)
        if fault is None:
            continue
        where, called = member.record.endpoint, site.paths.of(member.site)
        outcome = "blocked" if fault in (Cause.UDP_BLOCKED, Cause.TLS_BLOCKED) else "failed"
        row = _row(
            "member", shown(where.host, where.mesh_port), outcome, fault.value,
            called.detail if called is not None and called.detail else
            "calls are answered, datagrams are not",
            mend(fault, where.host, where.mesh_port, where.data_port),
        )  # fmt: skip
        row["site"], row["name"] = member.site.hex(), _name(site, member.site)
        row["last_at"] = None if called is None else called.at
        yield row


def _name(site: Site, who: SiteId | None) -> str | None:
    if who is None:
        return None
    identity = site.identity if who == site.me else site.roll.get(who)
    return identity.claims.name if identity is not None else None
