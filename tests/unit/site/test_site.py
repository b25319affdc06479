"""Two and three site machines against each other: sync, documents, models, votes, restarts."""

from dataclasses import replace

import pytest
from sites_of_one_cluster import (
    OFFSET_S,
    Node,
    World,
    a_job,
    deployment,
    model,
    remembered,
)

from agent.federation import events as job
from agent.foundation.ids import SiteId
from agent.membership.coordinates import Coordinate
from agent.membership.events import RememberPlace
from agent.site.causes import GOOD
from agent.site.events import (
    Answer,
    Ask,
    BlobStored,
    CallReceived,
    LeaveRequested,
    LoadMeasured,
    PowerMeasured,
    WallClock,
)
from agent.site.exchange import DOCUMENTS_PER_MESSAGE_MAX
from agent.site.stored import COORDINATE_KEY
from agent.wire.inside import model_key
from agent.wire.mesh import Ballot, Declined, Have, HaveReply, Prepare, Promise, Push, SyncRequest


@pytest.fixture
def world() -> World:
    return World()


def pair(world: World) -> tuple[Node, Node]:
    one, other = world.add(), world.add("FR")
    world.meet(one, other)
    world.run(1)
    assert one.alive() == {other.site.me}
    return one, other


def test_a_greeting_makes_two_sites_members_of_each_other(world: World) -> None:
    one, other = pair(world)
    assert other.alive() == {one.site.me}
    assert {put.table for put in one.persisted} == {"peers"}


def test_a_document_reaches_every_site(world: World) -> None:
    one, other = pair(world)
    third = world.add()
    world.meet(third, other)
    assert world.submit(one, model(), deployment(sites=("site-9",))) == ("", "")
    world.run(10)
    assert len({len(node.site.catalog) for node in (one, other, third)}) == 1
    assert len(third.site.catalog) == 2
    assert any(put.table == "documents" for put in third.persisted)


def test_hundreds_of_documents_arrive_in_pages(world: World) -> None:
    one = world.add()
    count = 3 * DOCUMENTS_PER_MESSAGE_MAX + 10
    for start in range(0, count, 64):
        versions = [model(f"{n}") for n in range(start, min(start + 64, count))]
        world.submit(one, *versions)
    other = world.add()
    world.meet(other, one)
    world.run(1)
    assert len(other.site.catalog) == count
    back = world.add()
    world.meet(one, back)  # now the asker has what the answerer lacks: it is pushed in pages too
    world.run(1)
    assert len(back.site.catalog) == count
    pushes = [a.message for a in one.asked if isinstance(a.message, Push)]
    assert pushes
    assert all(len(push.documents) <= DOCUMENTS_PER_MESSAGE_MAX for push in pushes)


def test_a_document_of_somebody_else_is_refused_with_its_reason(world: World) -> None:
    one = world.add()
    stranger = World(seed=2)
    world.keys.admin = stranger.keys.admin
    (error,) = world.submit(one, model())
    assert "admin" in error
    assert len(one.site.catalog) == 0


def test_a_deployed_model_is_fetched_loaded_and_told(world: World) -> None:
    one, other = pair(world)
    world.feed(one, BlobStored(model().manifest))
    world.submit(one, model(), deployment(sites=("site-2",)))
    world.run(5)
    assert other.stage() == "ready"
    assert one.stage() == ""
    (served,) = one.site.swim.members()[other.site.me].record.serving
    assert not served.is_refused


def test_how_long_a_model_runs_is_told_once_requests_have_shown_it(world: World) -> None:
    one, other = pair(world)
    world.feed(one, BlobStored(model().manifest))
    world.submit(one, model(), deployment(sites=("site-2",)))
    world.run(5)
    told = one.site.swim.members()[other.site.me]
    (by_warm_up,) = told.record.serving
    measured_us = 1000 * (by_warm_up.service_us + 1)
    world.feed(other, LoadMeasured(0.0, {model_key("m", "1"): measured_us}, {}))
    world.run(6)
    (served,) = one.site.swim.members()[other.site.me].record.serving
    assert served.service_us == measured_us


def test_a_model_never_comes_to_a_site_outside_its_residency(world: World) -> None:
    one, other = pair(world)
    world.feed(one, BlobStored(model().manifest))
    world.submit(one, model(residency=("DE",)), deployment())
    world.run(5)
    assert (one.stage(), other.stage()) == ("ready", "")
    assert other.fetched == []


def test_a_model_that_cannot_be_fetched_is_tried_again(world: World) -> None:
    one, other = pair(world)
    world.submit(other, model(), deployment(sites=("site-2",)))
    world.run(3)
    assert len(other.fetched) >= 2
    assert "nobody has it" in next(iter(other.site.shelf.items.values())).reason
    world.feed(one, BlobStored(model().manifest))
    world.run(31)
    assert other.stage() == "ready"


def test_a_broken_new_version_does_not_take_the_working_one_away(world: World) -> None:
    one, other = pair(world)
    for version in ("1", "2"):
        world.feed(one, BlobStored(model(version).manifest))
    world.submit(one, model(), deployment(sites=("site-2",)))
    world.run(3)
    other.refuses.add("2")
    world.submit(one, model("2"), deployment("2", sites=("site-2",)))
    world.run(3)
    assert (other.stage("1"), other.stage("2")) == ("ready", "refused")
    assert one.site.versions.defaults(one.site.versions.every().values()) == {"m": "1"}
    served = one.site.swim.members()[other.site.me].record.serving
    assert [one.is_refused for one in served] == [False, True]
    world.feed(one, BlobStored(model("3").manifest))
    world.submit(one, model("3"), deployment("3", sites=("site-2",)))
    world.run(3)
    assert (other.stage("1"), other.stage("3")) == ("", "ready")
    assert one.site.versions.defaults(one.site.versions.every().values()) == {"m": "3"}


def test_the_former_version_waits_for_its_successor_elsewhere(world: World) -> None:
    one, other = pair(world)
    world.feed(one, BlobStored(model("1").manifest))
    world.submit(one, model("1"), deployment(sites=("site-1",)))
    world.submit(one, model("2"), deployment("2", sites=("site-2",)))
    world.run(1)
    assert one.stage("1") == "ready", "nobody has version 2 yet"
    world.feed(one, BlobStored(model("2").manifest))
    world.run(31)
    assert (one.stage("1"), other.stage("2")) == ("", "ready")


def test_a_restart_remembers_peers_documents_and_promises(world: World) -> None:
    one, other = pair(world)
    job = a_job("j-1", one.site.me, other.site.me, SiteId(bytes(32)))
    world.submit(one, job)
    world.run(3)
    ballot = Ballot(10**6, other.site.me[:8] + bytes(12))
    before = promised(one)
    assert before > 0
    again = world.add(stored=remembered(one), again=one)
    world.run(3)
    assert again.alive() == {other.site.me}
    assert set(again.site.workshop.machines) == {"j-1"}
    reply = call(world, again, other, Prepare("j-1", replace(ballot, number=1)))
    assert not isinstance(reply, Promise), "a promise outlives a restart"


def promised(node: Node) -> int:
    rows = [put for put in node.persisted if put.table == "register"]
    return max((int(str(put.row["promised_number"])) for put in rows), default=0)


def call(world: World, node: Node, sender: Node, message: object) -> object:
    """The answer of ``node``, looked at outside the world's own calls."""
    effects = node.site.step(CallReceived(77, sender.site.me, message), world.now)  # type: ignore[arg-type]
    answers = [effect for effect in effects if isinstance(effect, Answer)]
    return answers[0].reply if answers else None


def test_a_clock_that_is_years_behind_at_boot_loses_no_document_no_promise_no_peer(
    world: World,
) -> None:
    one, other = pair(world)
    job = a_job("j-1", one.site.me, other.site.me, SiteId(bytes(32)))
    world.submit(one, job, model())
    world.run(3)
    stored = remembered(one)
    again = world.add(stored=stored, again=one, offset_s=-1000.0 + 86400.0)  # 1970
    assert len(again.site.catalog) == 2
    assert set(again.site.workshop.machines) == {"j-1"}
    hints = {hint.endpoint for hint in again.site.discovery.hints}
    assert other.where in hints, "the address is tried although the passport seems to be too new"
    world.feed(again, WallClock(OFFSET_S))
    world.run(40)
    assert again.alive() == {other.site.me}


def test_a_job_that_becomes_known_after_the_start_finds_its_promises(world: World) -> None:
    one, other = pair(world)
    job = a_job("j-1", one.site.me, other.site.me, SiteId(bytes(32)))
    world.submit(one, job)
    world.run(3)
    stored = replace(remembered(one), documents=())  # the row was damaged
    again = world.add(stored=stored, again=one)
    world.run(5)
    assert set(again.site.workshop.machines) == {"j-1"}, "it came by state sync"
    low = Prepare("j-1", Ballot(1, other.site.me[:8] + bytes(12)))
    assert not isinstance(call(world, again, other, low), Promise)


def test_a_site_that_is_barred_votes_in_nothing(world: World) -> None:
    one, other = pair(world)
    again = world.add(stored=replace(remembered(one), barred_because="it forgot"), again=one)
    world.run(3)
    world.submit(other, a_job("j-1", again.site.me, other.site.me, SiteId(bytes(32))))
    world.run(3)
    message = Prepare("j-1", Ballot(10**6, other.site.me[:8] + bytes(12)))
    assert call(world, again, other, message) == Declined("it forgot")
    assert not any(put.table == "register" for put in again.persisted), "not for itself either"


def test_calls_for_an_unknown_job_cause_one_sync_at_a_time(world: World) -> None:
    one, other = pair(world)
    message = Prepare("no-such-job", Ballot(1, other.site.me[:8] + bytes(12)))
    effects = []
    for number in range(5):
        effects += one.site.step(CallReceived(number, other.site.me, message), world.now)
    asks = [e for e in effects if isinstance(e, Ask) and isinstance(e.message, SyncRequest)]
    assert len(asks) == 1
    assert sum(isinstance(e, Answer) and isinstance(e.reply, Declined) for e in effects) == 5


def test_a_site_says_which_blobs_it_has(world: World) -> None:
    one, other = pair(world)
    held, missing = model("1").manifest, model("2").manifest
    world.feed(one, BlobStored(held))
    assert call(world, one, other, Have((held, missing))) == HaveReply((True, False))


def test_a_silent_site_is_noticed_and_found_again(world: World) -> None:
    one, other = pair(world)
    world.down.add(other.site.me)
    world.run(20)
    assert one.alive() == set()
    assert one.site.is_isolated, "of two, nobody can say whose fault the silence is"
    assert any("is suspect" in text for text in one.noted)
    world.down.clear()
    world.run(90)
    assert one.alive() == {other.site.me}


def test_an_isolated_site_says_of_each_known_address_why_nobody_answers_there(
    world: World,
) -> None:
    one, *others = [world.add() for _ in range(6)]
    for other in others:
        world.meet(one, other)
    world.run(60)
    world.down |= {other.site.me for other in others}
    while not one.site.is_isolated:
        world.run(0.1)
    assert one.alive(), "not all of them are suspected yet"
    assert not GOOD & {hint.cause for hint in one.site.discovery.hints}


def test_a_site_that_leaves_says_so(world: World) -> None:
    one, other = pair(world)
    world.feed(one, LeaveRequested())
    world.run(2)
    assert other.site.swim.members()[one.site.me].state == "left"


def test_a_site_keeps_its_place_over_a_restart(world: World) -> None:
    one, other = pair(world)
    lies = Coordinate((0.01, 0.02, 0.0, 0.0), 0.001, 0.0, 0.2).pack()
    one.site.swim._out.append(RememberPlace(lies))
    world.run(2)
    kept = [put.row for put in one.persisted if put.table == "meta"]
    assert kept == [{"key": COORDINATE_KEY, "value": lies}]
    again = world.add(stored=replace(remembered(one), coordinate=lies), again=one)
    assert again.site.swim.record.coordinate == lies
    world.run(10)
    assert other.site.swim.members()[one.site.me].record.coordinate == lies


def test_a_model_that_asks_for_power_goes_where_it_is_free_and_leaves_when_it_is_not(
    world: World,
) -> None:
    one, other = pair(world)
    world.feed(one, BlobStored(model().manifest))
    hungry = replace(deployment(), replicas=1, power_free_w_min=50.0)
    world.submit(one, model(), hungry)
    world.run(5)
    for node in (one, other):
        reasons = [item.reason for item in node.site.shelf.items.values()]
        assert all("does not know how much it has" in reason for reason in reasons)
    world.feed(other, PowerMeasured(80.0))
    world.run(5)
    assert (one.stage() == "ready", other.stage()) == (False, "ready")
    world.feed(one, PowerMeasured(80.0))
    world.feed(other, PowerMeasured(20.0))
    world.run(5)
    assert (one.stage(), other.stage() == "ready") == ("ready", False)


def test_what_a_job_asks_for_is_done_before_membership_looks_whom_it_doubts(world: World) -> None:
    """What membership finds may be news that jobs act on: their earlier effects come first."""
    one, other = pair(world)
    world.run(5)
    effects: list[job.JobEffect] = [
        job.Doubt(other.site.me),
        job.Doubt(one.site.me),
        job.Progressed(),
    ]
    one.site._job_effects(effects, world.now)
    done = [type(effect).__name__ for effect in one.site._outbox]
    assert done == ["Progressed", "SendGossip"]
