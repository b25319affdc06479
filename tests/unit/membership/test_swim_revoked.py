"""A revoked key's member is forgotten: not probed, not told of, not believed."""

from mesh_of_statements import BOOT, accusation, record, signed, site
from one_site import OneSite

from agent.membership.events import Heard, Introduced, Revoked, SendGossip
from agent.wire.gossip import Gossip


def test_a_revoked_member_is_forgotten_and_sent_nothing_more() -> None:
    one = OneSite()
    assert one.state("a") == "alive"
    one.step(Revoked((site("a"), site("nobody"))))
    assert site("a") not in one.swim.members()
    assert site("a") not in {head.site for head in one.swim.heads()}
    one.effects.clear()
    one.run(20)
    assert site("a") not in {effect.target for effect in one.made(SendGossip)}
    assert all(
        statement.site != site("a") for statement in one.told() if hasattr(statement, "site")
    )


def test_a_suspect_and_a_dead_member_are_forgotten_with_their_evidence() -> None:
    one = OneSite()
    one.silent = {"a"}
    one.run(6)
    assert one.state("a") == "suspect"
    one.step(Revoked((site("a"),)))
    assert one.swim.evidence_for(site("a")) == ()
    one.run(60)
    assert site("a") not in one.swim.members()


def test_what_a_revoked_member_said_of_others_is_not_passed_on() -> None:
    one = OneSite()
    one.hear("b", accusation("a", "c", BOOT))
    one.step(Revoked((site("a"),)))
    one.effects.clear()
    one.run(3)
    assert not [s for s in one.told() if getattr(s, "accuser", None) == site("a")]


def test_a_site_whose_last_member_is_revoked_is_alone_and_not_isolated() -> None:
    one = OneSite()
    one.step(Revoked(tuple(one.swim.members())))
    one.run(30)
    assert not one.swim.is_isolated
    assert len(one.swim.members()) == 0


def test_the_same_key_may_come_back_with_a_certificate_that_stands() -> None:
    one = OneSite()
    one.step(Revoked((site("a"),)))
    one.step(Introduced((signed(record("a", BOOT + 5)),)))
    assert one.state("a") == "alive"
    one.step(Heard(site("a"), Gossip(())))
