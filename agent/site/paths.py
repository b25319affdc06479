"""What works between this site and each member: the last call over TLS, beside what gossip knows of UDP.

A blocked port is the most frequent fault of a new site, and half a connection the most confusing one:
TLS works and datagrams vanish, or the reverse.
"""

from collections import OrderedDict
from dataclasses import dataclass

from agent.foundation.ids import SiteId
from agent.membership.member import Member
from agent.site.causes import CUT, GOOD, Cause
from agent.wire.limits import MEMBERS_MAX

UDP_EXPECTED_S = 15.0
"""A living member is probed at least once in this time in a cluster of the usual size; without an
answer since it appeared, its datagrams do not come back."""


@dataclass(frozen=True, slots=True)
class Called:
    """The last call to a member."""

    at: float
    cause: Cause
    detail: str


class Paths:
    """Calls by member, the newest of each."""

    def __init__(self) -> None:
        """Nobody was called yet."""
        self._called: OrderedDict[SiteId, Called] = OrderedDict()

    def called(self, site: SiteId, now: float, cause: Cause, detail: str) -> None:
        """A call to ``site`` has ended."""
        self._called[site] = Called(now, cause, detail)
        self._called.move_to_end(site)
        if len(self._called) > MEMBERS_MAX:
            self._called.popitem(last=False)

    def of(self, site: SiteId) -> Called | None:
        """The last call to ``site``; None if there was none."""
        return self._called.get(site)

    def fault(self, member: Member, now: float) -> Cause | None:
        """Which half of the way to a living member does not work; None if both do, or neither.

        A member that answers a call and refuses it is no matter of ports: then its reason.
        """
        if member.state not in ("alive", "suspect"):
            return None
        called = self._called.get(member.site)
        has_tls = called is not None and called.cause in GOOD
        is_old = now - member.changed_at > UDP_EXPECTED_S
        has_udp = member.rtt_s is not None and not member.is_relayed
        if has_udp and called is not None and not has_tls:
            return Cause.TLS_BLOCKED if called.cause in CUT else called.cause
        if (member.is_relayed or (is_old and member.rtt_s is None)) and has_tls:
            return Cause.UDP_BLOCKED
        return None
