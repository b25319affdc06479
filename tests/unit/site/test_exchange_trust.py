"""The trust log between whole site machines: who learns what, and what it means there at once."""

from dataclasses import replace

from sites_of_one_cluster import NOW, Node, World, remembered

from agent.foundation.ids import SiteId
from agent.identity.certificates import make_issuer
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import AddIssuer, RemoveIssuer, RevokeSite, seal_entry
from agent.identity.trust_signing import sign_entry, sign_mend, sign_revocation
from agent.membership.events import Heard
from agent.site.events import Answer, CallReceived, TrustChanged, TrustFetched, TrustSubmitted
from agent.site.exchange import TRUST_PER_MESSAGE_MAX, digest8
from agent.wire.gossip import Ping
from agent.wire.mesh import Declined, IssuerKeyWanted, SyncReply, SyncRequest


def meeting(world: World, count: int) -> list[Node]:
    """Sites that all know each other."""
    nodes = [world.add() for _ in range(count)]
    for node in nodes[1:]:
        world.meet(node, nodes[0])
    world.run(5)
    assert all(len(node.alive()) == count - 1 for node in nodes)
    return nodes


def submit(world: World, node: Node, *entries: bytes) -> tuple[str, ...]:
    world.feed(node, TrustSubmitted(9_000_000, entries))
    return node.resolved[9_000_000]


def revoke(world: World, at: Node, site: SiteId, reason: str = "") -> str:
    entry = sign_revocation(at.site.trust, site, reason, world.keys.admin, NOW)
    return submit(world, at, entry)[0]


def refuses(node: Node, other: Node) -> bool:
    return other.site.me not in node.site.swim.members() and (
        node.site.roll.gossip_key(other.site.me) is None
    )


def test_a_revocation_is_durable_before_it_is_answered_and_reaches_everybody() -> None:
    world = World()
    one, two, three, gone = meeting(world, 4)
    entry = sign_revocation(one.site.trust, gone.site.me, "lost", world.keys.admin, NOW)
    effects = one.site.step(TrustSubmitted(1, (entry,)), world.now)
    kinds = [type(effect).__name__ for effect in effects]
    assert kinds.index("Persist") < kinds.index("Resolved")
    assert kinds.index("Persist") < kinds.index("TrustChanged")
    for effect in effects:
        world._carry_out(one, effect)
    world.run(10)
    for node in (one, two, three):
        assert refuses(node, gone)
        assert node.site.trust.height == 2
        assert any("is revoked: lost" in text for text in node.noted)
        assert any(isinstance(effect, TrustChanged) for effect in node.others)
        assert [put for put in node.persisted if put.table == "trust"]
    assert one.alive() == {two.site.me, three.site.me}


def test_thirty_sites_refuse_within_ten_seconds() -> None:
    world = World()
    nodes = meeting(world, 31)
    gone = nodes.pop()
    revoke(world, nodes[7], gone.site.me)
    world.run(10)
    assert all(refuses(node, gone) for node in nodes)


def test_what_a_revoked_site_says_changes_nothing() -> None:
    world = World()
    one, two, gone = meeting(world, 3)
    revoke(world, one, gone.site.me)
    world.run(10)
    signed = gone.site.swim.signed
    before = dict(one.site.swim.members())
    one.site.step(Heard(two.site.me, Ping(1, (signed,))), world.now)
    assert gone.site.me not in one.site.swim.members()
    assert set(before) == set(one.site.swim.members())
    introduction = gone.site.exchange.introduction(gone.site.me)
    assert introduction is not None
    assert one.site.exchange.admit((introduction,), world.now + NOW.timestamp() - 1000) == []


def test_who_was_away_learns_it_from_whoever_it_meets_first() -> None:
    world = World()
    one, two, away, gone = meeting(world, 4)
    world.down.add(away.site.me)
    world.run(30)
    revoke(world, one, gone.site.me)
    world.run(10)
    world.down = {one.site.me, gone.site.me}
    world.run(90)
    assert refuses(away, gone)
    assert two.site.me in away.alive()


def test_a_restarted_site_has_forgotten_the_member_and_not_the_revocation() -> None:
    world = World()
    one, two, gone = meeting(world, 3)
    revoke(world, one, gone.site.me)
    world.run(5)
    stored = remembered(two)
    again = world.add(stored=stored, again=two)
    rows = [put.row for put in two.persisted if put.table == "trust"]
    for row in rows:
        again.site.trust.append(bytes(row["entry"]))  # type: ignore[arg-type]
    world.run(5)
    assert refuses(again, gone)
    assert again.site.trust.head == one.site.trust.head


def test_long_logs_travel_in_pages_both_ways() -> None:
    world = World()
    one, two = world.add(), world.add()
    log = one.site.trust
    entries = []
    for number in range(2 * TRUST_PER_MESSAGE_MAX + 20):
        site = SiteId(number.to_bytes(32, "big"))
        entries.append(sign_revocation(log, site, "", world.keys.admin, NOW))
        log.append(entries[-1])
    world.meet(two, one)
    world.run(2)
    assert two.site.trust.head == log.head
    three = world.add()
    world.meet(one, three)
    world.run(2)
    assert three.site.trust.head == log.head
    replies = [len(one.site.exchange.answer(ask.message).trust_entries)
               for ask in three.asked if isinstance(ask.message, SyncRequest)]  # fmt: skip
    assert all(count <= TRUST_PER_MESSAGE_MAX for count in replies)


def test_both_branches_of_a_fork_reach_everybody_and_the_root_mends_it() -> None:
    world = World()
    one, two, three, four = meeting(world, 4)
    world.down = {two.site.me, three.site.me, four.site.me}
    revoke(world, one, SiteId(b"\1" * 32))
    world.down = {one.site.me}
    world.run(1)
    revoke(world, two, SiteId(b"\2" * 32))
    world.down = set()
    world.run(60)
    for node in (one, two, three, four):
        assert node.site.trust.fork is not None
        assert node.site.trust.revoked() == {b"\1" * 32, b"\2" * 32}
        assert any("forked at height 2" in text for text in node.noted)
    later = seal_entry(
        3, three.site.trust.head, RevokeSite(SiteId(b"\3" * 32)), world.keys.admin, NOW
    )
    assert "frozen" in submit(world, three, later)[0]
    log = three.site.trust
    assert log.fork is not None
    mend = sign_mend(log, keep=log.fork.branches[1].tip, root=world.keys.root.private_key, now=NOW)
    assert submit(world, three, mend) == ("",)
    world.run(10)
    assert {node.site.trust.head for node in world.nodes} == {three.site.trust.head}
    assert all(node.site.trust.fork is None for node in world.nodes)
    assert revoke(world, four, SiteId(b"\3" * 32)) == ""


def test_members_of_a_removed_issuer_are_refused_and_others_stay() -> None:
    world = World()
    one, two = meeting(world, 2)
    second = make_issuer(world.keys.root, world.keys.entropy, NOW)
    root = world.keys.root.private_key
    genesis = world.keys.trust().entries()
    world.keys.issuer = second
    world.keys.trust = lambda: TrustLog.restore(one.site.trust.cluster, enumerate(genesis, 1))  # type: ignore[method-assign]
    third = world.add()
    world.meet(third, one)
    world.run(5)
    assert third.site.me in one.alive()
    (identifier,) = one.site.trust.issuers()
    for action in (AddIssuer(second.certificate), RemoveIssuer(identifier)):
        submit(world, third, sign_entry(third.site.trust, action, root, NOW))
    world.run(10)
    assert refuses(third, one)
    assert refuses(third, two)
    assert any("its issuer" in text for text in third.noted)


def test_a_change_of_the_log_changes_the_digest_that_records_carry() -> None:
    world = World()
    one, two = meeting(world, 2)
    assert digest8(one.site.catalog, one.site.trust) == one.site.swim.record.catalog
    before = one.site.swim.record.catalog
    revoke(world, one, SiteId(b"\1" * 32))
    world.run(1)
    assert one.site.swim.record.catalog != before
    assert two.site.swim.record.catalog == one.site.swim.record.catalog


def test_an_older_version_is_sent_no_entries() -> None:
    world = World()
    one, two = meeting(world, 2)
    world.down = {two.site.me}
    revoke(world, one, SiteId(b"\1" * 32))
    old = replace(two.site.exchange.request(), trust=None)
    assert one.site.exchange.answer(old).trust_entries == ()
    assert len(one.site.exchange.answer(two.site.exchange.request()).trust_entries) >= 1
    reply = SyncReply((), (), (), ())
    assert one.site.exchange.push(reply) == (None, True)


def test_a_doubted_log_is_confirmed_by_a_member_that_knows_no_more() -> None:
    world = World()
    one, two = world.add(), world.add()
    one.site.trust.trouble = "row 2 is lost"
    world.meet(one, two)
    world.run(1)
    assert one.site.trust.trouble == ""
    assert any("has confirmed" in text for text in one.noted)


def test_junk_among_the_entries_is_dropped() -> None:
    world = World()
    one, two = meeting(world, 2)
    stranger = World(seed=2)
    theirs = stranger.keys.trust().entries()[0]
    assert one.site.exchange.learn((b"junk", theirs, *two.site.trust.entries())) == []
    assert submit(world, one, theirs) != ("",)


def test_a_page_too_long_is_cut_before_its_signatures_are_checked() -> None:
    world = World()
    one, two = world.add(), world.add()
    for number in range(TRUST_PER_MESSAGE_MAX + 50):
        site = SiteId(number.to_bytes(32, "big"))
        one.site.trust.append(sign_revocation(one.site.trust, site, "", world.keys.admin, NOW))
    two.site.exchange.learn(one.site.trust.entries(after=1))
    assert two.site.trust.height == TRUST_PER_MESSAGE_MAX + 1


def test_what_comes_with_a_renewal_counts_as_what_comes_by_sync() -> None:
    world = World()
    one, two, gone = meeting(world, 3)
    world.down = {two.site.me}
    revoke(world, one, gone.site.me)
    world.down = {one.site.me}
    world.feed(two, TrustFetched(one.site.trust.entries()))
    assert refuses(two, gone)
    assert any(put.table == "trust" for put in two.persisted)


def test_issuer_keys_are_files_so_the_machine_itself_has_none() -> None:
    world = World()
    one, two = meeting(world, 2)
    effects = one.site.step(CallReceived(1, two.site.me, IssuerKeyWanted()), world.now)
    (answer,) = (effect for effect in effects if isinstance(effect, Answer))
    assert isinstance(answer.reply, Declined)
