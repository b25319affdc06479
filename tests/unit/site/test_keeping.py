"""What a site keeps on its disk, with others that hold it too."""

from dataclasses import replace

import pytest
from sites_of_one_cluster import Node, World, a_job, deployment, model, remembered

from agent.distribution.retention import LOOK_S, UNNAMED_S, Standing
from agent.election.ballots import proposer_id
from agent.federation import events as job
from agent.federation.value import JobValue
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.site.events import (
    Ask,
    BlobFailed,
    BlobsFull,
    BlobStored,
    CallEnded,
    CallReceived,
    CollectRequested,
    JobEnded,
    Submitted,
)
from agent.wire.documents import Body
from agent.wire.mesh import Accept, Accepted, Ballot, Have, HaveReply, Prepare, Promise
from agent.wire.schema import pack

NOBODYS = Digest(b"n" * 32)


def forgotten(node: Node) -> list[Digest]:
    return [effect.digest for effect in node.others if isinstance(effect, job.ForgetBlob)]


def collected(world: World, node: Node) -> tuple[str, ...]:
    world.feed(node, CollectRequested(77))
    return node.resolved[77]


def sites(world: World, count: int, *bodies: Body) -> list[Node]:
    """So many, all of which hold ``m:1`` and serve nothing."""
    nodes = [world.add() for _ in range(count)]
    for node in nodes[1:]:
        world.meet(node, nodes[0])
    world.run(2)
    for node in nodes:
        world.feed(node, BlobStored(model().manifest))
    world.submit(nodes[0], *(bodies or (model(),)))
    world.run(5)
    return nodes


def test_what_nothing_names_goes_after_an_hour_and_a_named_model_stays() -> None:
    world = World()
    (one,) = sites(world, 1)
    world.feed(one, BlobStored(NOBODYS))
    world.run(LOOK_S)
    assert one.site.keeping.goes_at(NOBODYS) < NEVER
    assert one.site.keeping.goes_at(model().manifest) == NEVER
    assert forgotten(one) == []
    world.run(UNNAMED_S + LOOK_S)
    assert forgotten(one) == [NOBODYS]
    assert one.site.held == {model().manifest}
    assert any("nothing names it" in text for text in one.noted)
    world.run(10 * UNNAMED_S)
    assert one.site.held == {model().manifest}


def test_a_model_that_is_put_before_its_document_is_signed_stays() -> None:
    world = World()
    one = world.add()
    world.feed(one, BlobStored(model().manifest))
    world.run(UNNAMED_S - 60)
    world.submit(one, model(), deployment())
    world.run(3 * UNNAMED_S)
    assert one.stage() == "ready"
    assert forgotten(one) == []


def test_a_question_of_another_site_begins_the_time_anew() -> None:
    world = World()
    one = world.add()
    world.feed(one, BlobStored(NOBODYS))
    world.run(UNNAMED_S - 100)
    world.feed(one, CallReceived(1, one.site.me, Have((NOBODYS,))))
    world.run(UNNAMED_S - 100)
    assert forgotten(one) == []


def test_a_full_disk_costs_what_two_others_hold_and_nobody_wants_here() -> None:
    world = World()
    one, *_ = sites(world, 3)
    world.feed(one, BlobsFull())
    assert forgotten(one) == [model().manifest]
    assert one.site.held == set()
    assert model().manifest not in one.site.labels


def test_the_last_copies_stay_however_full_the_disk_is() -> None:
    world = World()
    nodes = sites(world, 3)
    for _ in range(5):
        for node in nodes:
            world.feed(node, BlobsFull())
        world.run(400)
    held = [node for node in nodes if model().manifest in node.site.held]
    assert len(held) == 2
    for node in held:
        assert node.site.labels[model().manifest] == ()


def test_a_served_model_stays_however_full_the_disk_is() -> None:
    world = World()
    one, *_ = sites(world, 4, model(), deployment(sites=("site-1",)))
    world.feed(one, BlobsFull())
    world.run(400)
    assert one.stage() == "ready"
    assert forgotten(one) == []


def test_sites_outside_the_label_are_not_asked() -> None:
    world = World()
    one, two, three = sites(world, 3, model(residency=("DE",)))
    stranger = world.add("FR")
    world.meet(stranger, one)
    world.run(3)
    before = len(one.asked)
    world.feed(one, BlobsFull())
    asked = {ask.site for ask in one.asked[before:] if isinstance(ask.message, Have)}
    assert asked == {two.site.me, three.site.me}


def test_a_model_that_is_wanted_while_it_is_being_left_is_not_removed() -> None:
    world = World()
    one, two, three = sites(world, 3)
    deployed = world.keys.document(deployment(sites=("site-1",)))
    effects = one.site.step(BlobsFull(), world.now)
    asks = [e for e in effects if isinstance(e, Ask) and isinstance(e.message, Have)]
    assert model().manifest not in one.site.held
    world.feed(one, Submitted(99, (deployed,)))  # the shelf finds it on the disk
    assert one.stage() == "ready"
    for ask in asks:
        world.feed(one, CallEnded(ask.call, ask.site, HaveReply((True,))))
    assert forgotten(one) == []
    assert model().manifest in one.site.held
    assert {two.site.me, three.site.me} == {ask.site for ask in asks}


def test_room_that_was_made_is_used_soon() -> None:
    world = World()
    one, two, *_ = sites(world, 3)
    world.feed(two, BlobStored(model("2").manifest))
    two.site.held.discard(model("2").manifest)  # so that the first try fails
    world.submit(one, model("2"), deployment("2", sites=("site-1",)))
    (item,) = one.site.shelf.items.values()
    item.failures, item.retry_at = 9, world.now + 30.0
    world.feed(one, BlobsFull())
    assert item.retry_at <= world.now + 1.0


def test_a_retired_version_goes_where_it_is_not_served() -> None:
    world = World()
    one, two = sites(world, 2, model(), deployment(sites=("site-1",)))
    world.submit(one, replace(model(), is_retired=True))
    world.run(UNNAMED_S + 2 * LOOK_S)
    assert one.stage() == "ready"
    assert (forgotten(one), forgotten(two)) == ([], [model().manifest])
    world.submit(one, replace(deployment(), is_active=False))
    assert collected(world, one) == (model().manifest.hex(),)


def test_a_part_of_what_nothing_names_goes_also_after_a_restart() -> None:
    world = World()
    one = world.add()
    world.feed(one, BlobFailed(NOBODYS, "gone"))
    other = Digest(b"o" * 32)
    again = world.add(stored=replace(remembered(one), parts=frozenset((other,))), again=one)
    world.feed(again, BlobFailed(NOBODYS, "gone"))
    world.feed(again, BlobStored(NOBODYS))  # whole by now: no part any more
    assert collected(world, again) == (NOBODYS.hex(), other.hex())


def test_a_running_job_keeps_all_it_names_and_an_ended_one_only_for_others() -> None:
    world = World()
    one = world.add()
    world.submit(one, a_job("j-1", one.site.me))
    world.run(2)
    (machine,) = one.site.workshop.machines.values()
    assert machine.aggregation is not None
    made = Digest(b"p" * 32)
    world.feed(one, BlobStored(made))
    world.feed(one, JobEnded(machine.job.id, job.WorkDone(machine.aggregation._token, made, 9)))
    world.run(1)
    assert machine.value is not None
    assert made in machine.references().needed
    world.run(3 * UNNAMED_S)
    assert made in one.site.held
    assert ("job j-1", Standing.WANTED) in one.site.keeping.names()[made]
    world.submit(one, replace(machine.job, is_cancelled=True))
    world.run(3 * UNNAMED_S)
    assert one.site.keeping.names()[made] == [("job j-1, ended", Standing.NAMED)]
    assert made in one.site.held


@pytest.mark.parametrize("is_readable", [True, False])
def test_what_an_acceptor_has_accepted_is_kept_though_nobody_has_read_it(
    *, is_readable: bool
) -> None:
    """All sites of a committee restart, and hear each other again only the next day."""
    world = World()
    one, other = world.add(), world.add()
    world.meet(one, other)
    world.run(2)
    the_job = a_job("j-1", one.site.me, other.site.me, SiteId(b"z" * 32))
    world.submit(one, the_job)
    world.run(1)
    world.down.add(other.site.me)
    accepted = Digest(b"a" * 32)
    value = JobValue(the_job.id, 1, other.site.me, 1, accepted, None, "running", None, 0, "", ())
    encoded = pack(value) if is_readable else b"\xc1 of a newer version"
    ballot = Ballot(9, proposer_id(other.site.me, 1, world.rng))
    machine = one.site.workshop.machines[the_job.id]
    world.feed(one, BlobStored(accepted))
    called = machine.register.called
    assert isinstance(called(other.site.me, Prepare(the_job.id, ballot)), Promise)
    assert isinstance(called(other.site.me, Accept(the_job.id, ballot, encoded)), Accepted)
    world.run(3 * UNNAMED_S)
    assert machine.value is None or machine.value.parameters != accepted
    assert accepted in one.site.held
    assert forgotten(one) == []
