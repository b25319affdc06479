from agent.election.acceptor import Acceptor
from agent.election.acceptors import REGISTERS_MAX, Acceptors
from agent.election.ballots import proposer_id
from agent.foundation.ids import JobId, SiteId
from agent.foundation.randomness import Rng
from agent.foundation.writes import Put, Scalar
from agent.wire.mesh import Accept, Accepted, Ballot, Declined, Prepare, Promise, Read, ReadReply

JOB, OTHER = JobId("mnist-12345678"), JobId("digits-12345678")
NAME = proposer_id(SiteId(b"a" * 32), 1, Rng(1))


def row_of(job: JobId) -> dict[str, Scalar]:
    (write,) = Acceptor(job).step(Accept(job, Ballot(3, NAME), b"v")).writes
    assert isinstance(write, Put)
    return dict(write.row)


def test_registers_are_restored_and_kept_apart() -> None:
    acceptors = Acceptors([row_of(JOB)])
    assert acceptors.step(Read(JOB)).reply == ReadReply(Ballot(3, NAME), b"v")
    assert acceptors.step(Read(OTHER)).reply == ReadReply(None, None)
    assert acceptors.highest(JOB) == 3
    assert acceptors.highest(OTHER) == 0
    assert acceptors.findings == ()


def test_a_register_is_opened_by_its_first_change_and_settled_by_a_save() -> None:
    acceptors = Acceptors([])
    answer = acceptors.step(Accept(JOB, Ballot(1, NAME), b"v"))
    assert answer.reply == Accepted(Ballot(1, NAME))
    assert acceptors.step(Read(JOB)).writes == answer.writes
    acceptors.saved(answer)
    assert acceptors.step(Read(JOB)).writes == ()


def test_a_site_that_lost_its_database_does_not_vote() -> None:
    acceptors = Acceptors([], barred_because="the database was moved aside")
    for call in (Prepare(JOB, Ballot(1, NAME)), Accept(JOB, Ballot(1, NAME), b"v"), Read(JOB)):
        answer = acceptors.step(call)
        assert answer.reply == Declined("the database was moved aside")
        assert answer.writes == ()
    assert acceptors.findings == ("the database was moved aside",)


def test_a_damaged_row_bars_its_job_only() -> None:
    acceptors = Acceptors([row_of(JOB) | {"value": None}, row_of(OTHER)])
    assert isinstance(acceptors.step(Prepare(JOB, Ballot(9, NAME))).reply, Declined)
    assert isinstance(acceptors.step(Prepare(OTHER, Ballot(9, NAME))).reply, Promise)
    assert "mnist-12345678" in acceptors.findings[0]


def test_a_row_of_an_unknown_job_bars_every_job_that_has_no_row() -> None:
    acceptors = Acceptors([row_of(JOB) | {"job": None}, row_of(OTHER)])
    assert isinstance(acceptors.step(Prepare(JOB, Ballot(9, NAME))).reply, Declined)
    assert isinstance(acceptors.step(Prepare(OTHER, Ballot(9, NAME))).reply, Promise)


def test_reads_of_unknown_jobs_take_no_memory_and_registers_are_bounded() -> None:
    acceptors = Acceptors([])
    for number in range(REGISTERS_MAX):
        acceptors.step(Read(JobId(f"unknown-{number}")))
        acceptors.step(Prepare(JobId(f"job-{number}"), Ballot(1, NAME)))
    assert isinstance(acceptors.step(Prepare(JOB, Ballot(1, NAME))).reply, Declined)
    assert isinstance(acceptors.step(Prepare(JobId("job-0"), Ballot(2, NAME))).reply, Promise)
