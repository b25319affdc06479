"""The register under every order of messages that hypothesis can think of."""

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.election.acceptor import Acceptor, Answer
from agent.election.committee import Seat, choose_committee
from agent.election.order import Candidate, claim_order
from agent.election.proposer import Ask, Decided, Outcome, Proposer, RegisterEffect, Replied
from agent.foundation.ids import JobId, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.randomness import Rng
from agent.foundation.writes import Put, Scalar

JOB = JobId("mnist-12345678")
SITES = tuple(SiteId(bytes([number + 1]) * 32) for number in range(3))
sites = st.binary(min_size=32, max_size=32).map(SiteId)


@dataclass
class Bench:
    """Proposers and acceptors whose messages lie in one bag, taken out in any order, or again."""

    rng: Rng
    proposers: dict[SiteId, Proposer] = field(default_factory=dict)
    acceptors: dict[SiteId, Acceptor] = field(default_factory=dict)
    disks: dict[SiteId, dict[str, Scalar]] = field(default_factory=dict)
    bag: list[tuple[SiteId, Ask | Replied]] = field(default_factory=list)
    unsaved: list[tuple[SiteId, SiteId, Answer]] = field(default_factory=list)
    outcomes: dict[SiteId, Outcome] = field(default_factory=dict)
    now: float = 0.0

    def propose(self, site: SiteId) -> None:
        def change(value: bytes | None) -> bytes:
            value = value or b""
            return value if site[:1] in value else value + site[:1]

        self.proposers[site] = Proposer(
            job=JOB,
            committee=SITES,
            me=site,
            boot_epoch=1,
            rng=self.rng,
            now=0.0,
            change=change,
        )
        self.carry_out(site, self.proposers[site].start())

    def carry_out(self, site: SiteId, effects: "list[RegisterEffect]") -> None:
        for effect in effects:
            if isinstance(effect, Ask):
                self.bag.append((site, effect))
            else:
                assert site not in self.outcomes, "one outcome only"
                self.outcomes[site] = effect

    def deliver(self, index: int, *, again: bool) -> None:
        if not self.bag:
            return
        index %= len(self.bag)
        proposer, message = self.bag[index] if again else self.bag.pop(index)
        if isinstance(message, Replied):
            self.carry_out(proposer, list(self.proposers[proposer].step(message, self.now)))
            return
        acceptor = self.acceptors.setdefault(message.site, Acceptor(JOB))
        answer = acceptor.step(message.call, proposer)
        if answer.writes:
            self.unsaved.append((message.site, proposer, answer))
        else:
            self.bag.append((proposer, Replied(message.site, answer.reply)))

    def save(self) -> None:
        if self.unsaved:
            site, proposer, answer = self.unsaved.pop(0)
            for write in answer.writes:
                assert isinstance(write, Put)
                self.disks[site] = dict(write.row)
            self.acceptors[site].saved(answer)
            self.bag.append((proposer, Replied(site, answer.reply)))

    def crash(self, index: int) -> None:
        site = SITES[index % len(SITES)]
        self.unsaved = [entry for entry in self.unsaved if entry[0] != site]
        disk = self.disks.get(site)
        self.acceptors[site] = Acceptor(JOB) if disk is None else Acceptor.restored(disk)

    def wake(self, index: int) -> None:
        site = list(self.proposers)[index % len(self.proposers)]
        at = self.proposers[site].wake_at()
        if at < NEVER:
            self.now = max(self.now, at)
            self.carry_out(site, list(self.proposers[site].step(Woke(), self.now)))

    def drain(self) -> None:
        """Let everything come to its end: all messages, all commits, all timers."""
        for turn in range(10_000):
            if self.unsaved:
                self.save()
            elif self.bag:
                self.deliver(0, again=False)
            elif len(self.outcomes) < len(self.proposers):
                self.wake(turn)
            else:
                return
        raise AssertionError("the proposers do not come to an end")


steps = st.lists(
    st.tuples(
        st.sampled_from(["deliver"] * 6 + ["save"] * 4 + ["again", "crash", "wake"]),
        st.integers(0, 1000),
    ),
    max_size=150,
)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), schedule=steps)
def test_decided_values_extend_one_another_in_any_order_of_events(
    seed: int, schedule: list[tuple[str, int]]
) -> None:
    bench = Bench(Rng(seed))
    for site in SITES:
        bench.propose(site)
    for kind, number in schedule:
        match kind:
            case "deliver":
                bench.deliver(number, again=False)
            case "again":
                bench.deliver(number, again=True)
            case "save":
                bench.save()
            case "crash":
                bench.crash(number)
            case _:
                bench.wake(number)
    bench.drain()
    assert set(bench.outcomes) == set(SITES)
    decided = {
        site: outcome.value
        for site, outcome in bench.outcomes.items()
        if isinstance(outcome, Decided)
    }
    values = sorted((value or b"" for value in decided.values()), key=len)
    for site, value in decided.items():
        assert value is not None
        assert value.count(site[:1]) == 1
    for shorter, longer in pairwise(values):
        assert longer.startswith(shorter)


@given(
    capacities=st.dictionaries(sites, st.floats(0, 1e9), max_size=12),
    epoch=st.integers(0, 2**63 - 1),
    rng=st.randoms(use_true_random=False),
)
def test_a_claim_order_depends_on_its_members_only(
    capacities: dict[SiteId, float], epoch: int, rng: Rng
) -> None:
    candidates = [Candidate(site, capacity) for site, capacity in capacities.items()]
    order = claim_order(JOB, epoch, candidates)
    assert sorted(order) == sorted(capacities)
    rng.shuffle(candidates)
    assert claim_order(JOB, epoch, candidates) == order
    if candidates:
        gone = candidates.pop().site
        assert claim_order(JOB, epoch, candidates) == [site for site in order if site != gone]


@given(
    places=st.dictionaries(sites, st.sampled_from(["bonn", "kiel", "jena", "ulm"]), min_size=1),
    rng=st.randoms(use_true_random=False),
)
def test_a_committee_is_odd_within_bounds_and_spread_as_far_as_it_goes(
    places: dict[SiteId, str], rng: Rng
) -> None:
    seats = [Seat(site, region, "edge") for site, region in places.items()]
    chosen = choose_committee(JOB, seats)
    rng.shuffle(seats)
    assert choose_committee(JOB, seats) == chosen
    assert len(chosen) in {1, 3, 5}
    assert len(chosen) == len(set(chosen)) <= len(places)
    assert len({places[site] for site in chosen}) == min(len(set(places.values())), len(chosen))
