"""Shares hold whatever is sent: against the bounds of the paper, on random arrivals.

Source: Goyal, Vin and Cheng 1996, theorem 1: while two flows both wait, what they get in any interval,
each over its weight, differs by at most one largest request of each over its weight.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.foundation.errors import Busy
from agent.serving.admission import Admission, Ticket
from agent.serving.fair import PARTS, FairQueue, Priority, Turn

COSTS_US = (100, 500, 2000)
PHASES = 12
SEEDS = st.integers(0, 1 << 32)
Flow = tuple[int, Priority]


@dataclass(frozen=True, slots=True)
class Served:
    """One request, and the flows that had something waiting when it was taken, its own included."""

    turn: Turn
    waiting: frozenset[Flow]
    period: int
    """Busy periods are numbered: between two of them nobody waits."""

    @property
    def flow(self) -> Flow:
        return self.turn.application, self.turn.priority


def arrivals(seed: int) -> Iterator[Turn | None]:
    """Requests, and as None the moments at which one is served.

    In phases: for a while only some flows send, a few of them more than is served; others rest.
    """
    chance = random.Random(seed)
    weights = [chance.choice((1, 1, 2, 7)) for _ in range(chance.randint(2, 4))]
    flows = [(application, one) for application in range(len(weights)) for one in Priority]
    for _ in range(PHASES):
        active = chance.sample(flows, chance.randint(1, 5))
        rate = chance.choice((0.3, 0.6, 0.8))
        for _ in range(chance.randint(20, 150)):
            if chance.random() < rate:
                application, priority = chance.choice(active)
                yield Turn(application, weights[application], priority, chance.choice(COSTS_US))
            else:
                yield None


def serve(events: Iterator[Turn | None]) -> Iterator[Served]:
    """One server that takes one after the other; what is left at the end is served too."""
    queue: FairQueue[Turn] = FairQueue()
    waiting: Counter[Flow] = Counter()
    period = 0

    def take() -> Iterator[Served]:
        nonlocal period
        flows = frozenset(+waiting)
        if (found := queue.pop()) is not None:
            assert found[0] is found[1]
            waiting[found[0].application, found[0].priority] -= 1
            yield Served(found[0], flows, period)
        else:
            period += 1
            queue.rest()

    for event in events:
        if event is None:
            yield from take()
        else:
            queue.push(event, event)
            waiting[event.application, event.priority] += 1
    while len(queue):
        yield from take()


def stretches(log: Sequence[Served], is_one: Callable[[Served], bool]) -> Iterator[list[Served]]:
    """Many intervals within the longest stretches of a busy period that are all ``is_one``."""
    for (_, is_wanted), found in groupby(log, lambda one: (one.period, is_one(one))):
        stretch = list(found)
        for start in range(0, len(stretch) if is_wanted else 0, 7):
            for end in range(len(stretch), start, -11):
                yield stretch[start:end]


def work_us(part: Sequence[Served], is_one: Callable[[Served], bool]) -> int:
    return sum(one.turn.cost_us for one in part if is_one(one))


def waiting(*applications: int) -> Callable[[Served], bool]:
    """Whether all of these had something waiting."""
    wanted = set(applications)
    return lambda one: wanted <= {application for application, _ in one.waiting}


def of_application(application: int) -> Callable[[Served], bool]:
    return lambda one: one.turn.application == application


def of_priority(priority: Priority) -> Callable[[Served], bool]:
    return lambda one: one.turn.priority == priority


def flow_waiting(flow: Flow) -> Callable[[Served], bool]:
    return lambda one: flow in one.waiting


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_two_applications_that_wait_get_work_by_their_weights(seed: int) -> None:
    log = list(serve(arrivals(seed)))
    weight = {one.turn.application: one.turn.weight for one in log}
    for pair in combinations(weight, 2):
        for part in stretches(log, waiting(*pair)):
            got = [work_us(part, of_application(one)) / weight[one] for one in pair]
            allowed = sum(max(COSTS_US) / weight[a] for a in pair)
            assert abs(got[0] - got[1]) <= allowed + 1e-6


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_an_application_that_waits_gets_its_share_less_a_largest_request_of_each(seed: int) -> None:
    """Whatever the others send, of whatever priority: that is what nobody can take from it."""
    log = list(serve(arrivals(seed)))
    weight = {one.turn.application: one.turn.weight for one in log}
    for application, own in weight.items():
        share = own / sum(weight.values())
        slack = max(COSTS_US) * (1 - share + (len(weight) - 1) * share)
        for part in stretches(log, waiting(application)):
            got = work_us(part, of_application(application))
            assert got >= share * work_us(part, lambda _: True) - slack - 1e-6


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_no_priority_of_an_application_starves(seed: int) -> None:
    log = list(serve(arrivals(seed)))
    for application, priority in {one.flow for one in log}:
        share = PARTS[priority] / sum(PARTS)
        slack = max(COSTS_US) * (1 - share + (len(Priority) - 1) * share)
        own = [one for one in log if one.turn.application == application]
        for part in stretches(own, flow_waiting((application, priority))):
            got = work_us(part, of_priority(priority))
            assert got >= share * work_us(part, lambda _: True) - slack - 1e-6


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_every_request_is_served_once_and_in_order_within_its_flow(seed: int) -> None:
    sent = [one for one in arrivals(seed) if one is not None]
    got = [one.turn for one in serve(iter([*sent]))]
    assert len(sent) == len(got)
    for flow in {(one.application, one.priority) for one in sent}:
        before, after = (
            [id(one) for one in many if (one.application, one.priority) == flow]
            for many in (sent, got)
        )
        assert before == after


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_admission_never_refuses_one_that_has_nothing_waiting_and_forgets_nothing(
    seed: int,
) -> None:
    chance = random.Random(seed)
    admission = Admission(queue_max_s=0.1, waiting_max=1000)
    admission.seed(b"k" * 8, 10_000)
    held: dict[Flow, list[Ticket]] = {}
    refused = 0
    for _ in range(400):
        flow = (chance.randint(0, 3), chance.choice(list(Priority)))
        tickets = held.setdefault(flow, [])
        if chance.random() < 0.1 and tickets:
            admission.release(tickets.pop())
            continue
        try:
            tickets.append(
                admission.admit(b"k" * 8, f"app{flow[0]}", flow[1], runners=1, left_s=60)
            )
        except Busy:
            assert tickets, "nothing of it waits"
            refused += 1
    assert refused
    for tickets in held.values():
        for ticket in tickets:
            admission.release(ticket)
    assert (admission.in_flight, admission.wait_s(1)) == (0, 0.0)
