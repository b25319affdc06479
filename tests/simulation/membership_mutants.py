"""Machines, envelopes, notaries and disks with one guard taken out; the ordinary rules must see it.

Each mutant is the ``Parts`` of a simulated cluster in which every site has the same fault.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agent.foundation.ids import SiteId
from agent.membership.roster import Roster, Verdict
from agent.membership.rumors import Key, Rumors
from agent.membership.settings import Settings
from agent.membership.swim import Swim
from agent.membership.syncs import SyncPlan
from agent.membership.testimony import Testimony
from agent.simulation.membership_chaos import Parts
from agent.simulation.membership_sealed import LinkedSealer, RevokingNotary, SealedWorld
from agent.simulation.membership_world import FakeNotary, Site
from agent.wire.records import Accusation, Signed, SiteRecord


def altered(change: Callable[[Swim], None]) -> Callable[..., Swim]:
    """A machine that ``change`` has worked on."""

    def build(**parts: Any) -> Swim:
        swim = Swim(**parts)
        change(swim)
        return swim

    return build


def with_settings(**changes: Any) -> Callable[..., Swim]:
    def build(**parts: Any) -> Swim:
        settings: Settings = parts.pop("settings")
        return Swim(settings=replace(settings, **changes), **parts)

    return build


def with_part(name: str, kind: type[Any]) -> Callable[..., Swim]:
    def change(swim: Swim) -> None:
        getattr(swim, name).__class__ = kind

    return altered(change)


# --- the envelope and the disk -------------------------------------------------------------------
class ReplayBlind(LinkedSealer):
    """Opens a packet as often as it comes."""

    def open(self, packet: bytes) -> tuple[SiteId, bytes]:
        for window in self._windows.values():
            window.highest, window.seen = -1, 0
        return super().open(packet)


class AddressBeliever(SealedWorld):
    """Takes a packet for a message of whoever has the address that it came from."""

    def open(self, site: Site, source: SiteId, packet: bytes) -> tuple[SiteId, bytes] | None:
        opened = super().open(site, source, packet)
        return None if opened is None else (source, opened[1])


# --- keys ----------------------------------------------------------------------------------------
class Credulous(RevokingNotary):
    """Checks no signature."""

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        del body, signature
        return site in self._known and site not in self._revoked


class AnyMember(RevokingNotary):
    """Checks that some member has signed, not which: one member can speak for another."""

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        return any(
            super(AnyMember, self).is_signed_by(o, body, signature) for o in (site, *self._known)
        )


class Forgiving(RevokingNotary):
    """Believes revoked keys."""

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        return FakeNotary.is_signed_by(self, site, body, signature)


class ForgivingWorld(SealedWorld):
    """Opens packets of revoked keys too."""

    def _public_of(self, site: Site, other: SiteId) -> bytes | None:
        revoked, self.revoked[site.id] = self.revoked[site.id], set()
        try:
            return super()._public_of(site, other)
        finally:
            self.revoked[site.id] = revoked


# --- belief --------------------------------------------------------------------------------------
class Mute(Testimony):
    """Refutes nothing."""

    def _accused(
        self, accusation: Accusation, signed: Signed, sender: SiteId | None, now: float
    ) -> None:
        del accusation, signed, sender, now


class Follower(Roster):
    """Takes a higher incarnation from an accuser's word."""

    def take_accusation(self, accusation: Accusation, signed: Signed, now: float) -> Verdict:
        peer = self.get(accusation.subject)
        if peer is not None and accusation.incarnation > peer.record.incarnation:
            peer.record = replace(peer.record, incarnation=accusation.incarnation)
            self.refresh(peer)
        return super().take_accusation(accusation, signed, now)


class Grudge(Roster):
    """Counts accusations against any incarnation."""

    def take_accusation(self, accusation: Accusation, signed: Signed, now: float) -> Verdict:
        peer = self.get(accusation.subject)
        if peer is not None:
            accusation = replace(accusation, incarnation=peer.record.incarnation)
        return super().take_accusation(accusation, signed, now)


class Resurrector(Roster):
    """Lets an old record bring back a member that has left."""

    def take_record(self, record: SiteRecord, signed: Signed, now: float) -> Verdict:
        peer = self.get(record.site)
        if peer is not None and peer.state == "left" and record.sequence < peer.record.sequence:
            peer.record = replace(peer.record, sequence=-1, incarnation=-1)
        return super().take_record(record, signed, now)


# --- failure detection ---------------------------------------------------------------------------
class LagBlind(Swim):
    """Does not notice that it stood still."""

    def _lagged(self, lag_s: float, now: float) -> None:
        del lag_s, now


class Forgetful(Swim):
    """Starts to count its sequence anew at each boot."""

    def __init__(self, **parts: Any) -> None:
        first = 1 << 32
        parts["record"] = replace(parts["record"], sequence=first, incarnation=first)
        super().__init__(**parts)


# --- telling -------------------------------------------------------------------------------------
class Selfish(Rumors):
    """Passes on nothing that others say."""

    me: SiteId

    def put(self, key: Key, signed: Signed) -> bool:
        return super().put(key, signed) if key[1] == self.me else True


def selfish(swim: Swim) -> None:
    swim._rumors.__class__ = Selfish
    swim._rumors.me = swim.record.site  # type: ignore[attr-defined]


class Hoarder(Rumors):
    """Keeps every statement, and tells it for ever."""

    def put(self, key: Key, signed: Signed) -> bool:
        unique = SiteId(key[1] + signed.body[-16:] + signed.signature)
        return super().put((key[0], unique), signed)

    def take(self, first: list[Signed], transmissions: int) -> tuple[Signed, ...]:
        return super().take(first, transmissions * 1000)


class JoinOnly(SyncPlan):
    """Syncs once, at its start."""

    def want(self, site: SiteId, reason: str, now: float, spacing_s: float | None = None) -> bool:
        return not self.has_joined and super().want(site, reason, now, spacing_s)


MUTANTS: dict[str, Parts] = {
    "replay window off": Parts(sealer=ReplayBlind),
    "boot epoch not synced to disk": Parts(is_epoch_synced=False),
    "sender by address": Parts(world=AddressBeliever),
    "signature unchecked": Parts(notary=Credulous),
    "one member may speak for another": Parts(notary=AnyMember),
    "revoked key accepted": Parts(notary=Forgiving, world=ForgivingWorld),
    "refutation off": Parts(machine=with_part("_testimony", Mute)),
    "incarnation taken from others": Parts(machine=with_part("_roster", Follower)),
    "accusation not bound to an incarnation": Parts(machine=with_part("_roster", Grudge)),
    "left overwritten by an old record": Parts(machine=with_part("_roster", Resurrector)),
    "sequence not kept over restarts": Parts(machine=Forgetful),
    "one accuser suffices": Parts(machine=with_settings(accusers_needed=1)),
    "suspicion too short": Parts(machine=with_settings(suspicion_min_s=0.5)),
    "own stall ignored": Parts(machine=LagBlind),
    "dead never retried": Parts(
        machine=with_settings(recovery_interval_s=1e9, recovery_fast_s=1e9)
    ),
    "rumors not passed on": Parts(machine=altered(selfish)),
    "rumors kept for ever": Parts(machine=with_part("_rumors", Hoarder)),
    "no sync after the first": Parts(machine=with_part("_syncs", JoinOnly)),
}
"""By what was taken out."""
