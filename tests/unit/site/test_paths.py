"""Half a connection: TLS without UDP, or UDP without TLS, is named."""

from dataclasses import replace

import pytest

from agent.foundation.ids import SiteId
from agent.membership.member import Member, State
from agent.site.causes import Cause
from agent.site.paths import UDP_EXPECTED_S, Paths
from agent.wire.limits import MEMBERS_MAX
from agent.wire.records import Endpoint, Signed, SiteRecord

SITE = SiteId(b"\1" * 32)
RECORD = SiteRecord(
    SITE, 1, 1, 1, "alive", Endpoint("10.0.0.1", 7411, 7412), 0.0, 1.0, (), b"\0" * 8
)
MEMBER = Member(SITE, "alive", RECORD, Signed(b"", b"\0" * 64), 0.01, 0.0, is_relayed=False)


def paths(cause: Cause) -> Paths:
    found = Paths()
    found.called(SITE, 1.0, cause, "words")
    return found


def test_a_member_reached_both_ways_has_no_fault_and_one_never_called_neither() -> None:
    assert paths(Cause.ANSWERED).fault(MEMBER, 100.0) is None
    assert Paths().fault(MEMBER, 100.0) is None
    assert Paths().of(SITE) is None


def test_datagrams_that_do_not_come_back_are_named() -> None:
    answered = paths(Cause.ANSWERED)
    assert answered.fault(replace(MEMBER, is_relayed=True), 1.0) is Cause.UDP_BLOCKED
    silent = replace(MEMBER, rtt_s=None)
    assert answered.fault(silent, 1.0) is None, "too early to say"
    assert answered.fault(silent, UDP_EXPECTED_S + 1) is Cause.UDP_BLOCKED


def test_calls_that_fail_while_datagrams_come_back_are_named() -> None:
    assert paths(Cause.TIMED_OUT).fault(MEMBER, 100.0) is Cause.TLS_BLOCKED


@pytest.mark.parametrize(
    "cause", [Cause.WE_REVOKED, Cause.WE_EXPIRED, Cause.EXPIRED, Cause.TURNED_AWAY]
)
def test_who_answers_and_refuses_is_no_firewall(cause: Cause) -> None:
    assert paths(cause).fault(MEMBER, 100.0) is cause


@pytest.mark.parametrize("state", ["dead", "left"])
def test_of_the_dead_nothing_is_expected(state: State) -> None:
    assert paths(Cause.TIMED_OUT).fault(replace(MEMBER, state=state), 100.0) is None


def test_it_is_bounded() -> None:
    found = Paths()
    for number in range(MEMBERS_MAX + 1):
        found.called(SiteId(number.to_bytes(32, "big")), 0.0, Cause.ANSWERED, "")
    assert found.of(SiteId(bytes(32))) is None
    assert found.of(SiteId((1).to_bytes(32, "big"))) is not None
