"""What ``atoll peers`` shows: every way of looking for others has a row, its cause and its mend."""

from ipaddress import ip_address
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.api.bodies import Json
from agent.daemon.peers import counters, peer_rows
from agent.drivers.interfaces import Address, Choice, Interface
from agent.drivers.mdns import Mdns
from agent.foundation.ids import SiteId
from agent.membership.member import Member
from agent.site.causes import Cause
from agent.site.discovery import Discovery
from agent.site.paths import Paths
from agent.site.site import Site
from agent.wire.records import Endpoint, Signed, SiteRecord

ME, PARIS = SiteId(b"\1" * 32), SiteId(b"\2" * 32)
WHERE = Endpoint("2001:db8::2", 7411, 7412)
OFFSET_S = 1e9


class Fake:
    """A site as far as these rows read it."""

    def __init__(self) -> None:
        self.me = ME
        self.discovery, self.paths = Discovery(Random(1)), Paths()
        self.identity = SimpleNamespace(claims=SimpleNamespace(name="berlin"))
        paris = SimpleNamespace(claims=SimpleNamespace(name="paris"))
        self.roll = {PARIS: paris}
        self.members: dict[SiteId, Member] = {}
        self.swim = SimpleNamespace(members=lambda: self.members)

    def rows(self, mdns: Any = None, **wanted: object) -> list[Json]:
        rows = peer_rows(cast("Site", self), cast("Mdns | None", mdns), 100.0, OFFSET_S)
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def announcing(*used: Interface, left_out: tuple[tuple[str, str], ...] = ()) -> Mdns:
    mdns = Mdns(ME, bytes(32), lambda _: None, Random(1))
    mdns.failure, mdns.choice = "", Choice(used, left_out)
    mdns.announced = ("192.0.2.1",)
    return mdns


def interface(name: str, *addresses: str) -> Interface:
    return Interface(name, 1, True, tuple(Address(ip_address(text)) for text in addresses))


@pytest.fixture
def site() -> Fake:
    return Fake()


def test_multicast_that_is_off_or_broken_says_so(site: Fake) -> None:
    assert site.rows()[0]["outcome"] == "off"
    broken = announcing()
    broken.failure = "multicast DNS does not work here: no socket"
    (row,) = site.rows(broken)
    assert (row["outcome"], row["cause"]) == ("failed", "no multicast")
    assert "seeds" in row["mend"]


def test_each_interface_has_a_row(site: Fake) -> None:
    mdns = announcing(
        interface("eth0", "192.0.2.1", "fe80::1"), interface("eth1", "fe80::2"),
        left_out=(("docker0", "denied by 'docker*'"), ("eth2", "its link is down")),
    )  # fmt: skip
    rows = {row["target"]: row for row in site.rows(mdns, source="mdns")}
    assert rows["eth0"]["outcome"] == "connected"
    assert "192.0.2.1" in rows["eth0"]["reason"]
    assert "UDP port 5353" in rows["eth0"]["mend"], "nobody was heard yet"
    assert "link-local" in rows["eth1"]["reason"]
    assert "deny_interfaces" in rows["docker0"]["mend"]
    assert (rows["eth2"]["outcome"], rows["eth2"]["mend"]) == ("left out", "")
    mdns.counts.taken = 3
    assert site.rows(mdns, target="eth0")[0]["mend"] == ""


def test_no_interface_and_a_stolen_name_are_told(site: Fake) -> None:
    mdns = announcing()
    mdns._ear.conflict, mdns.counts.conflicts = "192.0.2.66", 4
    assert site.rows(mdns, cause="no interface")[0]["outcome"] == "waiting"
    assert "copy of this site" in site.rows(mdns, cause="name conflict")[0]["mend"]


def test_an_address_has_a_row_for_each_mechanism_with_cause_and_mend(site: Fake) -> None:
    site.discovery.learn(WHERE, "seed", None, 0)
    site.discovery.learn(WHERE, "book", PARIS, 0)
    rows = site.rows(target="[2001:db8::2]:7411")
    assert [(row["source"], row["outcome"]) for row in rows] == [
        ("peer-book", "waiting"),
        ("seed", "waiting"),
    ]
    site.discovery.due(10.0, set())
    assert site.rows(source="seed")[0]["outcome"] == "trying"
    site.discovery.ended(WHERE, "Connection refused", None, 10.0, cause=Cause.REFUSED)
    row = site.rows(source="seed")[0]
    assert (row["outcome"], row["cause"], row["reason"]) == (
        "failed", "port refused", "Connection refused",
    )  # fmt: skip
    assert "TCP port 7411" in row["mend"]
    assert row["last_at"] == 10.0 + OFFSET_S
    assert row["next_at"] > row["last_at"]
    assert row["attempts"] == 1
    site.discovery.due(100.0, set())
    site.discovery.ended(WHERE, "", PARIS, 100.0)
    row = site.rows(source="seed")[0]
    assert (row["outcome"], row["name"], row["mend"]) == ("connected", "paris", "")


def test_a_seed_that_is_this_site_itself_is_named(site: Fake) -> None:
    site.discovery.learn(WHERE, "seed", None, 0)
    site.discovery.due(0, set())
    site.discovery.ended(WHERE, "", ME, 0, is_me=True)
    row = site.rows(source="seed")[0]
    assert (row["name"], row["cause"], row["outcome"]) == (
        "berlin",
        "this site itself",
        "connected",
    )


def test_half_a_connection_has_a_row_of_its_own(site: Fake) -> None:
    record = SiteRecord(PARIS, 1, 1, 1, "alive", WHERE, 0.0, 1.0, (), b"\0" * 8)
    signed = Signed(b"", b"\0" * 64)
    site.members[PARIS] = Member(PARIS, "alive", record, signed, 0.1, 0.0, is_relayed=True)
    assert site.rows(source="member") == []
    site.paths.called(PARIS, 50.0, Cause.ANSWERED, "")
    (row,) = site.rows(source="member")
    assert (row["name"], row["outcome"], row["cause"]) == ("paris", "blocked", "UDP blocked")
    assert "UDP port 7411" in row["mend"]
    assert row["last_at"] == 50.0 + OFFSET_S


def test_attempts_are_counted_by_mechanism_and_cause(site: Fake) -> None:
    site.discovery.learn(WHERE, "book", None, 0)
    site.discovery.due(0, set())
    site.discovery.ended(WHERE, "x", None, 0, cause=Cause.TIMED_OUT)
    found = counters(cast("Site", site), announcing())
    assert found["attempts"] == [{"source": "peer-book", "cause": "no answer", "count": 1}]
    assert found["mdns"]["packets_excess"] == 0
    assert "mdns" not in counters(cast("Site", site), None)
