"""When a site renews, whom it asks and how often, with a clock of the test's own."""

from datetime import timedelta
from random import Random

from cluster_of_keys import NOW, Cluster

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER, Woke
from agent.identity.certificates import Identity, read_passport
from agent.identity.renewal import renew_myself
from agent.identity.renewal_plan import (
    ASKED_MAX,
    OTHERS_MAX,
    RETRY_ENDED_MAX_S,
    AskIssuer,
    Candidate,
    CertifyMyself,
    ClockMoved,
    Granted,
    PlanEffect,
    Refusal,
    RenewalPlan,
    RoundEnded,
    Wanted,
)
from agent.wire.records import Endpoint, Passport

CLUSTER = Cluster()
EDGE = CLUSTER.site("edge")
DAY_S = 86_400.0
OFFSET_S = NOW.timestamp() - 1000.0
"""The machine's clock stands at 1,000 s when the certificate is issued."""
START = 1000.0


def identity(days: float = 0.0, life_s: int = 0) -> Identity:
    claims = CLUSTER.claims("edge", life_s=life_s)
    return read_passport(
        CLUSTER.certified(EDGE, claims, NOW + timedelta(days=days)), CLUSTER.root.certificate
    )


def candidate(number: int, *, issuer: bool = True, alive: bool = True) -> Candidate:
    return Candidate(
        Endpoint(f"10.0.0.{number}", 7411, 7412), SiteId(bytes([number]) * 32), issuer, alive
    )


def plan(*candidates: Candidate, is_issuer: bool = False, seed: int = 1) -> RenewalPlan:
    return RenewalPlan(
        identity(), candidates=lambda: candidates, may_certify=lambda: is_issuer, rng=Random(seed), now=START,
        wall_offset_s=OFFSET_S,
    )  # fmt: skip


def asked(effects: list[PlanEffect]) -> Candidate:
    (effect,) = effects
    assert isinstance(effect, AskIssuer)
    return effect.candidate


def run_round(machine: RenewalPlan, now: float) -> list[Candidate]:
    """Everybody refuses; whom it asked, in order."""
    found, effects = [], machine.step(Woke(), now)
    while isinstance(effects[0], AskIssuer):
        found.append(asked(effects))
        effects = machine.step(Refusal(found[-1], "no"), now)
    assert isinstance(effects[0], RoundEnded)
    return found


def test_it_is_due_after_a_third_of_its_life_with_jitter() -> None:
    due = {plan(seed=seed).wake_at() - START for seed in range(50)}
    third_s = 14 * DAY_S / 3
    assert all(third_s <= one <= third_s + 14 * DAY_S / 12 for one in due)
    assert len(due) > 40
    assert plan().step(Woke(), START + third_s - 1) == []


def test_a_shorter_life_is_renewed_sooner() -> None:
    machine = RenewalPlan(
        identity(life_s=60), candidates=lambda: (), may_certify=lambda: False, rng=Random(1), now=START,
        wall_offset_s=OFFSET_S,
    )  # fmt: skip
    assert START + 20 <= machine.wake_at() <= START + 25


def test_a_clock_that_is_set_moves_the_plan() -> None:
    machine = plan()
    before = machine.wake_at()
    machine.step(ClockMoved(OFFSET_S + DAY_S), START)
    assert machine.wake_at() == before - DAY_S


def test_living_issuers_are_asked_first_then_others_and_then_a_few_of_the_rest() -> None:
    others = [candidate(100 + n, issuer=False) for n in range(30)]
    machine = plan(*others, candidate(1, alive=False), candidate(2), candidate(3))
    found = run_round(machine, START + 6 * DAY_S)
    assert {found[0], found[1]} == {candidate(2), candidate(3)}
    assert found[2] == candidate(1, alive=False)
    assert len(found) == 3 + OTHERS_MAX


def test_a_round_is_bounded_and_nobody_is_asked_twice_in_it() -> None:
    many = [candidate(n) for n in range(1, 101)]
    found = run_round(plan(*many, *many), START + 6 * DAY_S)
    assert len(found) == len(set(found)) == ASKED_MAX


def test_whom_a_member_names_is_asked_next() -> None:
    member, unknown = candidate(1, issuer=False), candidate(9)
    machine = plan(member, candidate(2, issuer=False))
    first = asked(machine.step(Woke(), START + 6 * DAY_S))
    assert asked(machine.step(Refusal(first, "no issuer here", (unknown,)), START)) == unknown


def test_a_success_plans_the_next_one_from_the_new_certificate() -> None:
    machine = plan(candidate(1))
    now = START + 6 * DAY_S
    machine.step(Woke(), now)
    assert machine.wake_at() == NEVER
    assert machine.step(Granted(identity(days=6.0), "hub"), now) == [RoundEnded("")]
    assert machine.wake_at() >= now + 14 * DAY_S / 3
    assert machine.attempts == []


def test_what_an_issuer_gives_though_it_is_due_again_at_once_makes_no_storm() -> None:
    machine, now = plan(candidate(1)), START + 13 * DAY_S
    for _ in range(10):
        assert asked(machine.step(Woke(), now)) == candidate(1)
        machine.step(Granted(identity(), "hub"), now)
        assert machine.wake_at() >= now + 5
        now = machine.wake_at()


def test_failing_waits_grow_to_an_hour_and_shrink_as_the_end_comes_near() -> None:
    machine = plan(candidate(1))
    now, waits = machine.wake_at(), []
    while now < START + 14 * DAY_S:
        run_round(machine, now)
        waits.append(machine.wake_at() - now)
        now = machine.wake_at()
    assert waits[0] <= 5.0
    assert 0.7 * 3600 <= max(waits) <= 3600
    assert waits[-1] <= 60.0
    assert machine.problem(START + 13 * DAY_S).startswith("this site's certificate ends")


def test_an_ended_certificate_is_tried_every_minute_for_ever() -> None:
    machine = plan(candidate(1))
    now = START + 20 * DAY_S
    for _ in range(200):
        run_round(machine, now)
        assert machine.wake_at() - now <= RETRY_ENDED_MAX_S
        now = machine.wake_at()
    assert "10.0.0.1:7411: no" in machine.problem(now)
    assert "ended 2026-05-15 12:00 UTC" in machine.problem(now)


def test_with_nobody_to_ask_it_says_so_and_tries_again() -> None:
    machine = plan()
    now = START + 6 * DAY_S
    assert machine.step(Woke(), now) == [RoundEnded("no other site is known to ask")]
    assert now < machine.wake_at() <= now + 5.0


def test_the_operator_need_not_wait() -> None:
    machine = plan(candidate(1))
    assert asked(machine.step(Wanted(), START)) == candidate(1)
    assert machine.step(Wanted(), START) == []  # the round under way answers both
    assert machine.step(Refusal(candidate(1), "it is down"), START) == [
        RoundEnded("10.0.0.1:7411: it is down")
    ]


def test_a_site_with_an_issuer_key_certifies_itself_and_asks_nobody() -> None:
    machine = plan(candidate(1), is_issuer=True)
    assert machine.step(Woke(), START) == []
    due = machine.wake_at()
    assert machine.step(Woke(), due) == [CertifyMyself()]
    now = NOW + timedelta(seconds=due - START)
    told = read_passport(
        Passport(renew_myself(CLUSTER.issuer, identity(), now)), CLUSTER.root.certificate
    )
    machine.step(Granted(told, "itself"), due)
    later = machine.wake_at()
    assert later > due + 4 * DAY_S
    machine.step(Woke(), later)
    (ended,) = machine.step(Refusal(None, "its certificate ended"), later)
    assert ended == RoundEnded("this site itself: its certificate ended")
    assert machine.wake_at() > later


def test_a_clock_before_the_certificate_is_named_as_the_trouble() -> None:
    machine = plan()
    machine.step(ClockMoved(0.0), START)
    assert "set the clock" in machine.problem(START)
    assert "1970-01-01" in machine.problem(START)
    assert plan().problem(START) == ""


def test_an_answer_of_a_former_round_changes_nothing() -> None:
    machine = plan(candidate(1))
    assert machine.step(Refusal(candidate(1), "late"), START) == []
    assert machine.attempts == []
