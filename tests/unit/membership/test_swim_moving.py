"""A site whose address changed tells everybody at once, and takes back what was said of the old one."""

from dataclasses import replace

from mesh_of_statements import accusation, site
from one_site import OneSite

from agent.membership.events import LocalChanged, SendGossip
from agent.wire.records import Endpoint, SiteRecord

NEW = Endpoint("10.9.9.9", 7411, 7412)


def test_a_new_address_reaches_every_member_in_the_same_instant_as_a_refutation() -> None:
    one = OneSite()
    one.run(5)
    before = one.swim.record
    made = one.step(LocalChanged(endpoint=NEW))
    now = one.swim.record
    assert now.endpoint == NEW
    assert now.incarnation > before.incarnation, "accusations were about the old address"
    assert {e.target for e in made if isinstance(e, SendGossip)} >= {site(name) for name in "abcd"}
    told = [s for s in one.told(site("a")) if isinstance(s, SiteRecord) and s.site == site("me")]
    assert told[-1] == now


def test_the_same_address_again_is_no_news() -> None:
    one = OneSite()
    one.run(5)
    before = one.swim.record
    one.step(LocalChanged(endpoint=before.endpoint))
    one.step(LocalChanged(load=0.01))
    assert replace(one.swim.record, sequence=0) == replace(before, sequence=0)
    assert one.swim.record.incarnation == before.incarnation


def test_who_was_lost_with_the_old_address_is_looked_for_at_once() -> None:
    one = OneSite()
    one.run(5)
    one.silent = {"a"}
    one.run(9)
    for accuser in "bcd":
        one.hear(accuser, accusation(accuser, "a"))
    one.run(30)
    assert one.state("a") == "dead"
    one.silent = set()
    one.step(LocalChanged(endpoint=NEW))
    one.run(one.settings.recovery_fast_s * 2)
    assert any(isinstance(e, SendGossip) and e.target == site("a") for e in one.effects[-20:])
