from agent.election.lease import LEASE_S, Lease


def test_a_lease_counts_from_the_question_not_from_the_answer() -> None:
    lease = Lease()
    assert not lease.is_held(0.0)
    lease.renewed(100.0)
    assert lease.is_held(100.0 + LEASE_S - 0.1)
    assert not lease.is_held(100.0 + LEASE_S)


def test_an_answer_to_an_older_question_shortens_nothing() -> None:
    lease = Lease()
    lease.renewed(100.0)
    lease.renewed(90.0)
    assert lease.is_held(100.0 + LEASE_S - 0.1)
