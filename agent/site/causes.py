"""Why an attempt to reach a site failed, and what the operator can do about it.

A cause is one of a few, so that ``atoll peers --why``, metrics and scripts can rely on it; the exact
words of libraries and kernels stand beside it, for people.
"""

from enum import StrEnum


class Cause(StrEnum):
    """What came of the last attempt."""

    WAITING = "not tried yet"
    ANSWERED = "answered"
    MET = "a living member"
    MYSELF = "this site itself"
    REFUSED = "port refused"
    TIMED_OUT = "no answer"
    NO_ROUTE = "no route"
    NOT_ALLOWED = "not allowed to send"
    UNKNOWN_NAME = "name not known"
    NOT_ATOLL = "not Atoll"
    WRONG_CLUSTER = "another cluster"
    EXPIRED = "certificate expired"
    NOT_YET_VALID = "certificate not valid yet"
    REVOKED = "revoked"
    OTHER_SITE = "another site answers"
    WE_WRONG_CLUSTER = "it does not know our cluster"
    WE_EXPIRED = "it holds our certificate to be expired"
    WE_NOT_YET_VALID = "it holds our certificate not to be valid yet"
    WE_REVOKED = "it holds us to be revoked"
    TURNED_AWAY = "turned away"
    BROKEN_OFF = "broken off"
    UDP_BLOCKED = "UDP blocked"
    TLS_BLOCKED = "TLS blocked"
    OTHER = "failed"


GOOD = frozenset({Cause.ANSWERED, Cause.MET, Cause.MYSELF})
"""Nothing to mend."""

CUT = frozenset({
    Cause.REFUSED, Cause.TIMED_OUT, Cause.NO_ROUTE, Cause.NOT_ALLOWED, Cause.UNKNOWN_NAME,
    Cause.BROKEN_OFF, Cause.OTHER,
})  # fmt: skip
"""No answer came; with any other cause somebody has answered, and said no."""

_MENDS = {
    Cause.REFUSED: "the host is there and nothing listens at TCP port {port}: start its agent, or"
    " correct the port",
    Cause.TIMED_OUT: "is the host on, and is the address right? if both, a firewall drops TCP port"
    " {port}: open TCP and UDP {port} and TCP {data_port} there",
    Cause.NO_ROUTE: "this machine has no route there (ip route get {host}): check cable, address and"
    " gateway",
    Cause.NOT_ALLOWED: "a firewall on this machine forbids it (nft list ruleset)",
    Cause.UNKNOWN_NAME: "the name {host} does not resolve here (getent hosts {host}): correct it or"
    " the resolver, or give an IP address; it is looked up anew at each attempt",
    Cause.NOT_ATOLL: "something else listens at {host} port {port}: correct the address, or the port",
    Cause.WRONG_CLUSTER: "that site belongs to another cluster (atoll status shows each site's):"
    " remove the address here, or join one of the two anew",
    Cause.EXPIRED: "its certificate has expired: start its agent where it can reach an issuer; if both"
    " clocks are right it renews by itself",
    Cause.NOT_YET_VALID: "its certificate begins later than now: set the clock of this machine",
    Cause.REVOKED: "the site was revoked: remove its address, or join it anew with a new token",
    Cause.OTHER_SITE: "the address has passed to another site: nothing to do, the new one is learned",
    Cause.WE_WRONG_CLUSTER: "that site belongs to another cluster: remove the address here, or join one"
    " of the two anew",
    Cause.WE_EXPIRED: "compare the clocks of both machines; if they agree, let this site reach an"
    " issuer so that it renews its certificate",
    Cause.WE_NOT_YET_VALID: "set the clock of the machine at {host}: it is behind",
    Cause.WE_REVOKED: "this site was revoked: join again with a new key and a new token",
    Cause.TURNED_AWAY: "see the journal of the site at {host}",
    Cause.BROKEN_OFF: "the connection broke: see the journal of the site at {host}; if it breaks each"
    " time, compare the clocks of both machines, and see whether a middlebox cuts TLS 1.3",
    Cause.UDP_BLOCKED: "TLS works and UDP does not come back: open UDP port {port} in both directions"
    " between here and {host}",
    Cause.TLS_BLOCKED: "UDP works and TLS does not: open TCP port {port} between here and {host}",
    Cause.OTHER: "see the journal of this site and of the one at {host}",
}


def mend(cause: Cause, host: str, port: int, data_port: int) -> str:
    """What the operator should do; empty where nothing is to be done."""
    return _MENDS.get(cause, "").format(host=host, port=port, data_port=data_port)
