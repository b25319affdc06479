"""A call about one job does not open blobs of another to everybody."""

from sites_of_one_cluster import World, a_job

from agent.federation import events as job
from agent.federation.value import blob_digest
from agent.foundation.ids import JobId
from agent.site.events import BlobStored, CallReceived
from agent.wire.mesh import Keep


def test_a_call_to_keep_does_not_take_away_anothers_label() -> None:
    """Parameters of an EU job lie at a site that takes part in a job without a label, too. Whoever names them in a
    ``Keep`` of the latter (their digest is in the register, which every member may read) may fetch them then."""
    world = World()
    one, other = world.add("DE"), world.add("US")
    world.meet(one, other)
    world.run(1)
    world.submit(one, a_job("open-00000001", one.site.me))
    world.run(2)
    secret = blob_digest(b"parameters of a job that stays in Germany")
    world.feed(one, BlobStored(secret))
    one.site.holdings.label(job.Label(secret, ("DE",)))
    assert one.site.labels[secret] == ("DE",)
    one.others.clear()
    world.feed(one, CallReceived(7, other.site.me, Keep(JobId("open-00000001"), (secret,))))
    assert one.site.labels[secret] == ("DE",)


def test_what_two_jobs_make_of_one_seed_may_go_where_either_allows() -> None:
    world = World()
    one = world.add("DE")
    holdings = one.site.holdings
    first = blob_digest(b"parameters of one seed")
    holdings.label(job.Label(first, ("DE",)))
    holdings.label(job.Label(first, ("FR",)))
    assert one.site.labels[first] == ("DE",)
    holdings.label(job.Label(first, ("FR",), is_own=True))
    assert one.site.labels[first] == ("DE", "FR")
    holdings.label(job.Label(first, (), is_own=True))
    assert one.site.labels[first] == ()
