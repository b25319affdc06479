"""What a site says to jobs: its data, its jurisdiction, its abilities."""

from dataclasses import replace
from random import Random

import pytest
from sites_of_one_cluster import NOW, Node, World, a_job

from agent.federation import events as job
from agent.federation.burial import Tombstone, key_of
from agent.federation.job import JobMachine
from agent.federation.restored import Restored
from agent.federation.value import JobValue
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.writes import Put
from agent.identity.trust_entries import SetGroup
from agent.identity.trust_signing import sign_entry
from agent.site.events import Answer, BlobStored, CallReceived, DrainRequested, JobEnded
from agent.site.workshop import JOBS_MAX, Workshop
from agent.wire.mesh import Buried, Read


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"dataset": "other"}, "no data set 'other' here"),
        ({"residency": ("FR",)}, "restricted to FR"),
    ],
)
def test_a_site_says_why_it_does_not_train(changes: dict[str, object], said: str) -> None:
    one = World().add()
    wanted = replace(a_job("j-1", one.site.me), **changes)  # type: ignore[arg-type]
    refusal = one.site.workshop.refusal(wanted)
    assert said in refusal
    assert bool(said) == bool(refusal)


@pytest.mark.parametrize(
    ("label", "residency", "is_taken"),
    [
        ((), (), True),
        (("DE", "FR"), ("DE",), True),
        (("DE", "FR"), ("FR", "DE"), True),
        (("DE", "FR"), (), False),
        (("DE",), ("DE", "FR"), False),
        (("EU",), ("DE", "FR"), True),
        (("EU",), ("EU",), True),
        (("DE", "FR"), ("EU", "DE"), False),
        (("nowhere",), ("DE",), False),
    ],
)
def test_what_is_learned_from_labelled_data_goes_nowhere_else(
    label: tuple[str, ...], residency: tuple[str, ...], *, is_taken: bool
) -> None:
    world = World()
    one = world.add()
    entry = SetGroup("EU", ("DE", "FR"))
    log = one.site.trust
    log.append(sign_entry(log, entry, world.keys.root.private_key, NOW))
    workshop = one.site.workshop
    settings = replace(one.site.settings, dataset_labels={"d": label})
    one.site._surroundings._settings = settings
    wanted = replace(a_job("j-1", one.site.me), residency=residency)
    refusal = workshop.refusal(wanted)
    assert (refusal == "") == is_taken, refusal
    if not is_taken:
        asked = ", ".join(residency) or "anywhere"
        assert f"only; the job's residency is {asked}" in refusal


def test_a_draining_site_takes_no_part() -> None:
    world = World()
    one = world.add()
    world.feed(one, DrainRequested(is_draining=True))
    assert one.site.is_draining
    assert "draining" in one.site.workshop.refusal(a_job("j-1", one.site.me))


def test_an_open_job_wants_time_and_is_opened_once() -> None:
    world = World()
    one = world.add()
    world.submit(one, a_job("j-1", one.site.me))
    machine = one.site.workshop.machines[a_job("j-1").id]
    one.site.workshop.open(a_job("j-1", one.site.me, SiteId(bytes(32))), world.now)
    assert one.site.workshop.machines[a_job("j-1").id] is machine
    world.run(2)
    assert machine.value is not None
    assert machine.value.aggregator == one.site.me
    assert JOBS_MAX >= 10_000


def with_parameters(world: World, one: Node) -> JobMachine:
    """A job whose first parameters this site has made and committed."""
    world.submit(one, a_job("j-1", one.site.me))
    world.run(2)
    (machine,) = one.site.workshop.machines.values()
    assert machine.aggregation is not None
    made = Digest(b"p" * 32)
    world.feed(one, BlobStored(made))
    done = job.WorkDone(machine.aggregation._token, made, 9)
    world.feed(one, JobEnded(machine.job.id, done))
    world.run(1)
    assert machine.value is not None
    assert machine.value.parameters == made
    return machine


def test_an_update_may_be_fetched_before_it_is_offered() -> None:
    world = World()
    one = world.add()
    machine = with_parameters(world, one)
    update = Digest(b"u" * 32)
    effects = one.site.step(BlobStored(update), world.now)
    assert not [effect for effect in effects if isinstance(effect, job.Label)]
    trained = job.Trained(1, Digest(b"p" * 32), update, 7, ())
    effects = one.site.step(JobEnded(machine.job.id, trained), world.now)
    assert job.Label(update, ()) in effects


def test_a_blob_that_a_job_needs_is_not_removed_for_another() -> None:
    world = World()
    one = world.add()
    with_parameters(world, one)
    needed, served = Digest(b"p" * 32), Digest(b"x" * 32)
    one.site._job_effects([job.ForgetBlob(needed), job.ForgetBlob(served)], world.now)
    effects = one.site.step(BlobStored(Digest(b"y" * 32)), world.now)
    assert [e.digest for e in effects if isinstance(e, job.ForgetBlob)] == [served]


def finished_jobs(one: Node, number: int) -> dict[JobId, Restored]:
    """Jobs that ended before this start, each with a model."""
    found = {}
    for n in range(number):
        done = JobValue(
            a_job(f"j-{n}").id, 1, one.site.me, 0, Digest(b"p" * 32), None, "finished",
            Digest(bytes([n]) * 32), 9, "", (),
        )  # fmt: skip
        found[a_job(f"j-{n}").id] = Restored(value=done)
    return found


def test_the_oldest_jobs_that_are_over_leave_a_tombstone_and_their_model() -> None:
    world = World()
    one = world.add()
    stored = finished_jobs(one, 3)
    numbers = iter(range(10**6))
    workshop = Workshop(
        one.site.me, 1, lambda: next(numbers), one.site._surroundings, Random(1), stored, "",
        jobs_kept=1,
    )  # fmt: skip
    for name in ("j-0", "j-1", "j-2"):
        workshop.open(a_job(name, one.site.me), world.now)
    effects = workshop.woke(world.now)
    puts = [
        w for e in effects if isinstance(e, job.Persist) for w in e.writes if isinstance(w, Put)
    ]
    assert [put.table for put in puts] == ["tombstones", "tombstones"]
    assert list(workshop.machines) == [a_job("j-2").id]
    stone = workshop.tombstone(a_job("j-0").id)
    assert stone == Tombstone("finished", 0, Digest(bytes(32)), 9)
    workshop.open(a_job("j-0", one.site.me), world.now)
    assert a_job("j-0").id not in workshop.machines, "its id is never used again"


def test_a_buried_job_answers_with_its_end_and_its_model_is_still_known() -> None:
    world = World()
    one = world.add()
    wanted = replace(a_job("j-1", one.site.me), publish="m")
    stone = Tombstone("finished", 4, Digest(b"m" * 32), 77)
    one.site.workshop._tombstones[key_of(wanted.id)] = stone
    world.submit(one, wanted)
    assert wanted.id not in one.site.workshop.machines
    other = world.add()
    effects = one.site.step(CallReceived(5, other.site.me, Read(wanted.id)), world.now)
    assert Answer(5, Buried(wanted.id, "finished", 4, Digest(b"m" * 32), 77)) in effects
    ((version, _),) = one.site.versions.published()
    assert (version.manifest, version.bytes) == (Digest(b"m" * 32), 77)
