"""Renewed passports, retired identities and copied keys, as whole site machines meet them."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sites_of_one_cluster import NOW, Node, World, a_job

from agent.foundation.ids import SiteId
from agent.identity.certificates import Identity, issue_site, read_passport
from agent.site.events import CallReceived, MeshLeft, Recertified
from agent.site.stored import VOTING_BARRED_KEY
from agent.site.view import view_of
from agent.wire.mesh import Ballot, Declined, Introduction, Prepare, Push, SyncRequest
from agent.wire.records import STATEMENTS, Endpoint, Passport, Signed, SiteRecord

ELSEWHERE = Endpoint("127.0.0.99", 7411, 7412)


@pytest.fixture
def world() -> World:
    return World()


def trio(world: World) -> list[Node]:
    nodes = [world.add(), world.add("FR"), world.add("IT")]
    world.meet(nodes[0], nodes[1])
    world.meet(nodes[0], nodes[2])
    world.run(5)
    assert all(len(node.alive()) == 2 for node in nodes)
    return nodes


def certified(world: World, node: Node, **claimed: object) -> tuple[Identity, Passport]:
    """A certificate of the same key, issued an hour later."""
    claims = replace(node.site.identity.claims, **claimed)  # type: ignore[arg-type]
    key, issuer = node.private.public_key(), world.keys.issuer
    leaf = issue_site(issuer, key, claims, NOW + timedelta(hours=1))
    passport = Passport((leaf, issuer.certificate))
    return read_passport(passport, world.keys.root.certificate), passport


def test_a_renewed_passport_reaches_every_member_and_its_peer_book(world: World) -> None:
    one, *others = trio(world)
    for node in others:
        node.persisted.clear()
    identity, passport = certified(world, one)
    world.feed(one, Recertified(identity, passport))
    assert one.site.identity.not_after == identity.not_after
    world.run(120)
    for node in others:
        assert node.site.roll.passport(one.site.me) == passport
        rows = [put.row for put in node.persisted if put.table == "peers"]
        assert any(row["site"] == one.site.me for row in rows)


def test_a_member_that_never_meets_the_renewed_site_learns_its_passport_from_others(
    world: World,
) -> None:
    one, other, third = trio(world)
    _, passport = certified(world, one)
    reply = Push((Introduction(passport, one.site.swim.signed),), ())
    world.feed(other, CallReceived(900_001, third.site.me, reply))
    assert other.site.roll.passport(one.site.me) == passport
    world.down.add(one.site.me)
    world.run(120)
    assert third.site.roll.passport(one.site.me) == passport


def test_a_successor_retires_its_predecessor_at_every_site_and_leaves_no_ghost(
    world: World,
) -> None:
    old, other, third = trio(world)
    world.down.add(old.site.me)
    new = world.add()
    claimed = {"name": old.site.identity.claims.name, "replaces": (old.site.me,)}
    identity, passport = certified(world, new, **claimed)
    world.feed(new, Recertified(identity, passport))
    world.meet(new, other)
    world.run(60)
    for node in (other, third):
        assert old.site.me not in node.site.swim.members()
        assert new.site.me in node.alive()
        assert any("is retired: a new site joined under its name" in text for text in node.noted)
        assert old.site.me in node.forgotten
    world.run(60)
    assert all(old.site.me not in node.site.swim.members() for node in (new, other, third))


def test_the_retired_site_cannot_come_back(world: World) -> None:
    old, other, third = trio(world)
    new = world.add()
    claimed = {"name": old.site.identity.claims.name, "replaces": (old.site.me,)}
    world.feed(new, Recertified(*certified(world, new, **claimed)))
    world.meet(new, other)
    world.run(120)  # the old one runs, and goes on telling of itself
    for node in (other, third):
        assert old.site.me not in node.site.swim.members()
        assert node.site.roll.get(old.site.me) is None


def doubled(node: Node, *, boot_epochs: int, mark: bytes = b"b" * 8) -> SiteRecord:
    """A record that a copy of this site's state folder would make."""
    own = node.site.swim.record
    epoch = own.boot_epoch + boot_epochs
    return replace(
        own, boot_epoch=epoch, sequence=max(0, epoch) << 32, incarnation=max(0, epoch) << 32,
        endpoint=ELSEWHERE, mark=mark,
    )  # fmt: skip


def call_of(node: Node, record: SiteRecord) -> CallReceived:
    """A copy of ``node`` calls with its present record."""
    body = STATEMENTS.pack(record)
    me = Introduction(node.passport, Signed(body, node.private.sign(body)))
    return CallReceived(900_002, node.site.me, SyncRequest(me, (), ()))


def left(node: Node) -> list[MeshLeft]:
    return [effect for effect in node.others if isinstance(effect, MeshLeft)]


def barred(node: Node) -> bool:
    rows = [put.row for put in node.persisted if put.table == "meta"]
    value = next((row["value"] for row in rows if row["key"] == VOTING_BARRED_KEY), "")
    return str(value).startswith(node.site.me.hex()) and str(value).endswith("copied")


def test_the_copy_that_started_earlier_leaves_and_neither_votes_again(world: World) -> None:
    one, other, _ = trio(world)
    world.submit(one, a_job("j-00000001", one.site.me, other.site.me))
    world.run(5)
    world.feed(one, call_of(one, doubled(one, boot_epochs=1)))
    assert barred(one)
    assert len(left(one)) == 1
    assert view_of(one.site).sites == ()
    assert "duplicate identity" in one.site.workshop.barred_because
    prepare = Prepare(a_job("j-00000001").id, Ballot(9, bytes(28)))
    assert isinstance(answer_to(world, one, other.site.me, prepare), Declined)


def answer_to(world: World, node: Node, sender: SiteId, message: Prepare) -> object:
    from agent.site.events import Answer  # noqa: PLC0415

    effects = node.site.step(CallReceived(900_003, sender, message), world.now)
    return next(effect.reply for effect in effects if isinstance(effect, Answer))


def test_the_copy_that_started_later_stays_and_is_barred_alike(world: World) -> None:
    one, *_ = trio(world)
    world.feed(one, call_of(one, doubled(one, boot_epochs=-1)))
    assert barred(one)
    assert left(one) == []
    assert len(view_of(one.site).sites) == 2
    assert any("that one has to leave the mesh" in text for text in one.noted)


def test_a_newer_record_of_ones_own_key_bars_and_calls_whoever_made_it(world: World) -> None:
    one, other, _ = trio(world)
    record = doubled(one, boot_epochs=3)
    body = STATEMENTS.pack(record)
    gossip = Introduction(one.passport, Signed(body, one.private.sign(body)))
    world.feed(one, CallReceived(900_004, other.site.me, Push((gossip,), ())))
    assert barred(one)
    assert left(one) == []  # it may be this site's own past, restored from a backup
    assert any(ask.site == one.site.me and ask.endpoint == ELSEWHERE for ask in one.asked)


def test_a_third_site_names_the_duplicate(world: World) -> None:
    one, other, _ = trio(world)
    fresh = replace(doubled(one, boot_epochs=1), mark=b"a" * 8)
    for record in (fresh, replace(fresh, mark=b"b" * 8)):
        world.feed(other, call_of(one, record))
    assert any("two processes use the key of" in text for text in other.noted)
    assert "duplicate identity" in other.site.duplicates.reports(world.now)[0]
