from random import Random

from federated_site import ANNA, BERT, CARL, ME, Around, desk, job, of, site_id, value

from agent.election.order import stagger_s
from agent.federation.claims import BARREN_PAUSE_MAX_S, CLAIM_RTT_S, Claims
from agent.federation.events import Persist
from agent.federation.register import Outcome, Register, Settled
from agent.foundation.machine import NEVER


class Bench:
    def __init__(self, *committee: bytes) -> None:
        self.desk, self.around = desk(), Around(ANNA, BERT, CARL)
        the_job = job(committee=committee or (ANNA, BERT, CARL))
        self.register = Register(the_job, ME, 1, self.desk, Random(1), None)
        self.outcomes: list[Outcome] = []
        self.claims = Claims(
            the_job, ME, self.desk, self.around, self.register,
            lambda outcome, _: self.outcomes.append(outcome),
        )  # fmt: skip


def test_a_site_outside_the_committee_lets_all_living_members_go_first() -> None:
    bench = Bench()
    bench.claims.consider(None, 0.0)
    assert bench.claims.wake_at() == stagger_s(3, CLAIM_RTT_S)


def test_sites_outside_the_committee_take_turns_too() -> None:
    times = []
    others = [site_id(f"other {n}") for n in range(6)]
    for me in others:
        around = Around(*others, ANNA, BERT)
        outbox = desk()
        the_job = job(committee=(ANNA, BERT, CARL))
        register = Register(the_job, me, 1, outbox, Random(1), None)
        claims = Claims(the_job, me, outbox, around, register, lambda *_: None)
        claims.consider(value(), 0.0)
        times.append(claims.wake_at())
    assert len(set(times)) == len(times)


def test_the_aggregator_that_has_gone_is_left_out_of_the_order() -> None:
    bench = Bench()
    bench.claims.consider(value(aggregator=ANNA), 0.0)
    assert bench.claims.wake_at() == stagger_s(2, CLAIM_RTT_S)


def test_a_site_that_cannot_aggregate_or_hold_the_job_never_claims() -> None:
    bench = Bench()
    bench.around.aggregates = False
    bench.claims.consider(None, 0.0)
    bench.around.aggregates = True
    bench.around.outlaws = {ME}
    bench.claims.consider(None, 0.0)
    assert bench.claims.wake_at() == NEVER


def test_a_scheduled_claim_is_withdrawn_when_the_register_moves() -> None:
    bench = Bench()
    bench.claims.consider(value(), 0.0)
    bench.claims.moved(value(), value(round=1))
    assert bench.claims.wake_at() == NEVER


def test_epochs_without_progress_make_the_next_claim_after_a_resignation_wait_longer() -> None:
    bench = Bench()
    pauses = []
    for epoch in range(1, 12):
        bench.claims.consider(value(epoch=epoch), 0.0, has_resigned=True)
        pauses.append(bench.claims.wake_at())
        bench.claims.moved(value(epoch=epoch), value(epoch=epoch + 1))
    assert pauses[5] > pauses[2] > pauses[0]
    assert pauses[-1] <= BARREN_PAUSE_MAX_S + 1.0
    bench.claims.moved(value(), value(round=1))
    bench.claims.consider(value(), 0.0, has_resigned=True)
    assert bench.claims.wake_at() < 3.0


def test_a_claim_is_made_once_and_its_outcome_reported() -> None:
    bench = Bench(ME)
    bench.claims.consider(None, 0.0)
    bench.claims.woke(None, bench.claims.wake_at())
    assert bench.claims.is_under_way
    bench.claims.consider(None, 0.0)
    assert bench.claims.wake_at() == NEVER
    for _ in range(2):
        for persist in of(bench.desk.take(), Persist):
            bench.register.persisted(persist.token or 0, 0.1)
    (outcome,) = bench.outcomes
    assert isinstance(outcome, Settled)
    assert not bench.claims.is_under_way
