import math
from collections import Counter

from agent.election.order import (
    STAGGER_CEILING_S,
    STAGGER_FLOOR_S,
    Candidate,
    claim_order,
    stagger_s,
)
from agent.foundation.ids import JobId, SiteId

JOB = JobId("mnist-12345678")
SITES = [SiteId(bytes([number]) * 32) for number in range(8)]
EQUAL = [Candidate(site, 1.0) for site in SITES]


def test_every_candidate_has_one_place_whatever_the_order_of_the_argument() -> None:
    order = claim_order(JOB, 1, EQUAL)
    assert sorted(order) == SITES
    assert claim_order(JOB, 1, EQUAL[::-1]) == order


def test_a_site_that_leaves_moves_nobody_else() -> None:
    order = claim_order(JOB, 1, EQUAL)
    rest = claim_order(JOB, 1, [one for one in EQUAL if one.site != order[0]])
    assert rest == order[1:]


def test_jobs_and_epochs_are_spread_over_the_sites() -> None:
    firsts = Counter(claim_order(JOB, epoch, EQUAL)[0] for epoch in range(800))
    assert set(firsts) == set(SITES)
    assert max(firsts.values()) < 150
    assert claim_order(JobId("other"), 1, EQUAL) != claim_order(JOB, 1, EQUAL)


def test_a_site_is_first_in_proportion_to_its_capacity() -> None:
    candidates = [Candidate(SITES[0], 6.0), *(Candidate(site, 1.0) for site in SITES[1:4])]
    firsts = Counter(claim_order(JOB, epoch, candidates)[0] for epoch in range(3000))
    assert math.isclose(firsts[SITES[0]] / 3000, 6 / 9, abs_tol=0.04)


def test_a_site_without_capacity_comes_last_and_is_not_left_out() -> None:
    candidates = [Candidate(SITES[0], 0.0), Candidate(SITES[1], 0.0), *EQUAL[2:]]
    for epoch in range(20):
        assert set(claim_order(JOB, epoch, candidates)[-2:]) == {SITES[0], SITES[1]}


def test_nobody_is_first_among_nobody() -> None:
    assert claim_order(JOB, 1, []) == []


def test_the_first_does_not_wait_and_the_others_let_a_whole_claim_pass() -> None:
    assert stagger_s(0, 0.2) == 0.0
    assert math.isclose(stagger_s(1, 0.2), 0.6)
    assert math.isclose(stagger_s(2, 0.2), 1.2)
    assert stagger_s(1, 0.0001) == STAGGER_FLOOR_S
    assert stagger_s(999, 0.2) == STAGGER_CEILING_S
