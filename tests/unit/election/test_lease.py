from dataclasses import replace

from agent.election.lease import LEASES_MAX, Lease, Leases
from agent.foundation.ids import JobId, SiteId
from agent.foundation.machine import NEVER

JOB = JobId("mnist-12345678")
LEASE = Lease(epoch=2, holder=SiteId(b"a" * 32), progress=5, started_at=100.0, length_s=10.0)


def test_a_holder_stops_before_an_observer_may_claim() -> None:
    assert LEASE.is_held(109.9)
    assert not LEASE.is_held(110.0)
    assert LEASE.lapses_at > 110.0


def test_progress_or_a_new_epoch_renews_and_old_news_does_not() -> None:
    leases = Leases()
    assert leases.renewed(JOB, LEASE)
    assert not leases.renewed(JOB, replace(LEASE, started_at=200.0))
    assert not leases.renewed(JOB, replace(LEASE, epoch=1, progress=9, started_at=200.0))
    assert leases.lapses_at(JOB) == LEASE.lapses_at
    assert leases.renewed(JOB, replace(LEASE, progress=6, started_at=200.0))
    assert leases.renewed(JOB, replace(LEASE, epoch=3, progress=0, started_at=300.0))
    assert leases.lapses_at(JOB) > 310.0


def test_an_unknown_or_ended_job_never_lapses() -> None:
    leases = Leases()
    assert leases.lapses_at(JOB) == NEVER
    leases.renewed(JOB, LEASE)
    leases.ended(JOB)
    assert leases.get(JOB) is None
    assert leases.lapses_at(JOB) == NEVER


def test_leases_are_bounded() -> None:
    leases = Leases()
    for number in range(LEASES_MAX):
        assert leases.renewed(JobId(f"job-{number}"), LEASE)
    assert not leases.renewed(JOB, LEASE)
    assert leases.renewed(JobId("job-0"), replace(LEASE, epoch=9))
