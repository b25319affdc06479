"""Many proposers, one register, a bad network and worse disks; one seed gives one history.

Faults: loss, duplication, reordering, one-way and two-way cuts, pauses, crashes that lose what was not
yet committed to disk, and (once in a run at most) a wiped disk, after which the site is a new one and no
longer of the committee. ``register_checker`` judges the history and shares no code with this.

``Parts`` names what is under test, so that a mutant is one changed part (tests/simulation).
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import count
from random import Random

from agent.election.acceptor import Acceptor, RegisterCall, RegisterReply, state_of
from agent.election.proposer import (
    Ask,
    Decided,
    Declined,
    NoQuorum,
    OutcomeUnknown,
    Proposer,
    Refusal,
    RegisterEffect,
    Replied,
)
from agent.election.reader import Reader
from agent.election.roster import Known, Roster, pinned, released, replaced
from agent.foundation.ids import JobId, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.writes import Put, Scalar
from agent.simulation.network import Faults, Network
from agent.simulation.register_checker import (
    OPERATIONS_MAX,
    History,
    Kind,
    Ledger,
    Operation,
    read,
    violations,
    written,
)
from agent.wire.mesh import Accept, Prepare

JOB = JobId("simulated-00000000")
RETRIES = 3
"""How often a client repeats an operation whose outcome it does not know, under the same id."""
Row = dict[str, Scalar]
Change = Callable[[bytes | None], bytes | Refusal]
ChangeOf = Callable[[Operation], Change]


def change_of(operation: Operation) -> Change:
    """The idempotent change of a claim or a commit, as federation makes them."""

    def change(value: bytes | None) -> bytes | Refusal:
        ledger = Ledger(0, 0, 0, ()) if value is None else read(value)
        if operation.id in ledger.operations:
            assert value is not None
            return value
        operations = (*ledger.operations, operation.id)
        if operation.kind == "claim":
            claimed = replace(ledger, epoch=ledger.epoch + 1, holder=operation.site)
            return written(replace(claimed, operations=operations))
        if operation.epoch != ledger.epoch:
            return Refusal(f"the epoch is {ledger.epoch}", value)
        return written(replace(ledger, round=ledger.round + 1, operations=operations))

    return change


def roster_of(value: bytes) -> Roster | None:
    """The holders that a ledger names."""
    return read(value).roster


def swap_of(operation: Operation, present: Roster, gone: SiteId, by: SiteId) -> Change:
    """Begin to replace ``gone`` by ``by``; what is already under way is completed instead."""

    def change(value: bytes | None) -> bytes | Refusal:
        if value is None:
            return Refusal("nothing is held yet", None)
        ledger = read(value)
        if operation.id in ledger.operations:
            return value
        roster = ledger.roster or present
        if roster.is_joint:
            after = released(roster)
        elif roster.generation != present.generation:
            return Refusal("the holders have changed", value)
        else:
            after = replaced(roster, gone, by)
        operations = (*ledger.operations, operation.id)
        return written(replace(ledger, operations=operations, roster=after))

    return change


@dataclass(frozen=True, slots=True)
class Parts:
    """What is under test; each default is the real thing."""

    acceptor: type[Acceptor] = Acceptor
    proposer: type[Proposer] = Proposer
    reader: type[Reader] = Reader
    change_of: ChangeOf = change_of
    is_durable_before_reply: bool = True
    is_wiped_site_barred: bool = True


@dataclass(frozen=True, slots=True)
class Scenario:
    """How big, how long, how bad."""

    sites: int = 6
    committee: int = 3
    seconds: float = 30.0
    operations: int = 120
    loss: float = 0.03
    duplicate: float = 0.05
    delay_mean_s: float = 0.02
    commit_mean_s: float = 0.004
    """Mean time of a commit to disk."""
    fault_every_s: float = 1.0
    """Mean time between faults (a crash, a pause, a cut); each lasts about as long."""
    wipes: int = 1
    """Committee members whose disk is wiped in the course of the run."""
    timeout_s: float = 0.4
    swaps: float = 0.0
    """Share of the operations that change the holders, or complete such a change."""
    turnover: int = 0
    """Members wiped one after another, each when the one before it has been replaced."""


@dataclass(slots=True)
class _Site:
    index: int
    acceptor: Acceptor
    boot_epoch: int = 1
    is_up: bool = True
    is_barred: bool = False
    disk: Row | None = None
    disk_free_at: float = 0.0
    epoch_seen: int = 0
    after: int = 0
    known: Known | None = None


@dataclass(slots=True)
class _Run:
    number: int
    operation: Operation
    machine: Proposer | Reader
    site: int
    boot_epoch: int
    retries_left: int = RETRIES
    has_ended: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    run: int
    call: RegisterCall


@dataclass(frozen=True, slots=True)
class _Response:
    run: int
    reply: RegisterReply | None


def site_id(index: int) -> SiteId:
    """The identity of a simulated site."""
    return SiteId(sha256(b"simulated site %d" % index).digest())


@dataclass(slots=True)
class Report:
    """What a run came to."""

    history: History
    violations: list[str]
    messages: int
    is_final_read_decided: bool
    outcomes: dict[str, int] = field(default_factory=dict)
    final: Ledger | None = None
    generation: int = 0
    """Of the holders in the end."""


class World:
    """One run; ``simulate`` is the front door."""

    def __init__(self, rng: Random, scenario: Scenario, parts: Parts) -> None:
        assert scenario.operations <= OPERATIONS_MAX, "the ledger must fit one register"
        self._rng, self._scenario, self._parts = rng, scenario, parts
        self._faults = Faults(scenario.loss, scenario.duplicate, 0.002, scenario.delay_mean_s)
        self._network: Network[int] = Network(self._rng, self._deliver, self._faults)
        self._sites = [_Site(n, parts.acceptor(JOB)) for n in range(scenario.sites)]
        self._committee = tuple(site_id(n) for n in range(scenario.committee))
        self._index = {site_id(n): n for n in range(scenario.sites)}
        self._newest = pinned(self._committee)
        self._turnover_left = scenario.turnover
        self._runs: dict[int, _Run] = {}
        self._next_operation = 1
        self._run_numbers = count(1)
        self._history = History()
        self._is_calm = False

    def run(self) -> Report:
        """Everything: trouble, then calm, then one last claim and one last read."""
        scenario = self._scenario
        for _ in range(scenario.operations - 2):
            at = self._rng.uniform(0.0, scenario.seconds)
            self._network.call_at(at, self._some_operation)
        self._network.call_at(self._next_fault_at(), self._some_fault)
        wiped = self._rng.sample(range(scenario.committee), scenario.wipes)
        for index in wiped:
            at = self._rng.uniform(0.0, scenario.seconds)
            self._network.call_at(at, lambda index=index: self._wipe(index))
        if scenario.swaps:
            self._network.call_at(1.0, self._tell_of_holders)
        self._network.run_until(scenario.seconds)
        self._calm()
        self._network.run_until(scenario.seconds + 20.0)
        last_kinds: tuple[Kind, ...] = ("claim", "read")
        last = next(site.index for site in self._sites if not site.is_barred)
        for kind in last_kinds:
            self._begin(self._operation(kind, last))
            self._network.run_until(self._network.now + 20.0)
        end = self._history.operations[-1]
        outcomes: dict[str, int] = {}
        for operation in self._history.operations:
            outcomes[operation.outcome] = outcomes.get(operation.outcome, 0) + 1
        return Report(
            self._history,
            violations(self._history),
            self._network.posted,
            end.outcome == "decided",
            outcomes,
            end.observed,
            self._newest.roster.generation,
        )

    # --- faults ----------------------------------------------------------------------------------
    def _next_fault_at(self) -> float:
        return self._network.now + self._rng.expovariate(1 / self._scenario.fault_every_s)

    def _some_fault(self) -> None:
        if self._is_calm:
            return
        index = self._rng.randrange(len(self._sites))
        lasts_s = self._rng.expovariate(1 / self._scenario.fault_every_s)
        everyone = range(len(self._sites))
        match self._rng.randrange(5):
            case 0 | 1:
                self._crash(index)
                self._network.call_at(self._network.now + lasts_s, lambda: self._restart(index))
            case 2:
                self._network.pause(index, self._network.now + lasts_s)
            case 3:
                side = self._rng.sample(everyone, len(self._sites) // 2)
                others = [one for one in everyone if one not in side]

                self._network.cut(side, others)
                if self._rng.random() < 0.5:  # noqa: PLR2004 - half of the cuts are one-way
                    self._network.cut(others, side)
                self._network.call_at(self._network.now + lasts_s, self._network.heal)
            case _:
                self._network.cut([index], everyone)
                self._network.call_at(self._network.now + lasts_s, self._network.heal)
        self._network.call_at(self._next_fault_at(), self._some_fault)

    def _crash(self, index: int) -> None:
        site = self._sites[index]
        site.is_up = False
        for run in list(self._runs.values()):
            if run.site == index:
                self._end(run, "unknown", None)

    def _restart(self, index: int) -> None:
        site = self._sites[index]
        if site.is_up:
            return
        site.is_up = True
        site.boot_epoch += 1
        site.disk_free_at, site.after = 0.0, 0
        if site.disk is None:
            site.known = None
        state = None if site.disk is None else state_of(site.disk)[1]
        site.acceptor = self._parts.acceptor(JOB, state)

    def _wipe(self, index: int) -> None:
        self._crash(index)
        site = self._sites[index]
        site.disk = None
        site.is_barred = self._parts.is_wiped_site_barred
        self._restart(index)

    def _tell_of_holders(self) -> None:
        """What one site knows to be committed reaches another, as by a notice of the aggregator."""
        teller, hearer = self._rng.sample(self._sites, 2)
        if teller.is_up and hearer.is_up and teller.known is not None:
            self._learn(hearer, teller.known.roster)
        self._network.call_at(
            self._network.now + self._rng.uniform(0.0, 0.5), self._tell_of_holders
        )

    def _learn(self, site: _Site, roster: Roster | None) -> None:
        """``roster`` is named by a committed value."""
        if roster is None:
            return
        if site.known is None or site.known.roster.generation < roster.generation:
            site.known = Known(roster)
        if self._newest.roster.generation < roster.generation:
            self._newest = Known(roster)
            if self._turnover_left and not self._is_calm:
                at = self._network.now + self._rng.uniform(1.0, 3.0)
                self._network.call_at(at, self._turn_over)

    def _turn_over(self) -> None:
        """A member loses its disk for good, if all others are sound and the word has got around.

        The committee before counts until some living site knows that the next one is in place: two
        losses in it before that are two losses at once.
        """
        roster = self._newest.roster
        is_sound = not any(self._sites[self._index[one]].is_barred for one in roster.members)
        knowing = sum(one.known == self._newest and not one.is_barred for one in self._sites)
        is_at_rest = not roster.is_joint and knowing > 1
        if is_at_rest and is_sound and self._turnover_left and not self._is_calm:
            self._turnover_left -= 1

            self._wipe(self._index[self._rng.choice(roster.members)])

    def _calm(self) -> None:
        self._is_calm = True
        self._faults.loss = self._faults.duplicate = 0.0
        self._network.heal()
        for site in self._sites:
            self._network.pause(site.index, 0.0)
            self._restart(site.index)

    # --- clients ---------------------------------------------------------------------------------
    def _some_operation(self) -> None:
        site = self._rng.choice(self._sites)
        if not site.is_up:
            return
        if self._scenario.swaps and self._rng.random() < self._scenario.swaps:
            self._begin(self._operation("swap", site.index))
            return
        dice = self._rng.random()
        kind: Kind = "claim" if dice < 0.25 else "commit" if dice < 0.7 else "read"  # noqa: PLR2004 - a mix
        self._begin(self._operation(kind, site.index))

    def _operation(self, kind: Kind, index: int) -> Operation:
        operation = Operation(
            self._next_operation, kind, index, self._sites[index].epoch_seen, self._network.now
        )
        self._next_operation += 1
        self._history.operations.append(operation)
        return operation

    def _begin(self, operation: Operation, retries_left: int = RETRIES) -> None:
        site = self._sites[operation.site]
        machine = self._machine(operation, site, is_retry=retries_left < RETRIES)
        number = next(self._run_numbers)
        run = _Run(number, operation, machine, site.index, site.boot_epoch, retries_left)
        self._runs[number] = run
        self._carry_out(run, machine.start())

    def _machine(self, operation: Operation, site: _Site, *, is_retry: bool) -> Proposer | Reader:
        if operation.kind == "read":
            return self._parts.reader(
                job=JOB,
                committee=self._committee,
                me=site_id(site.index),
                boot_epoch=site.boot_epoch,
                rng=self._rng,
                now=self._network.now,
                timeout_s=self._scenario.timeout_s,
                known=site.known,
                roster_of=roster_of,
            )
        if operation.kind == "swap":
            change = self._swap(operation, site)
        else:
            change = self._parts.change_of(operation)
        return self._parts.proposer(
            job=JOB,
            committee=self._committee,
            me=site_id(site.index),
            boot_epoch=site.boot_epoch,
            rng=self._rng,
            now=self._network.now,
            change=change,
            timeout_s=self._scenario.timeout_s,
            after=site.after,
            is_retry=is_retry,
            known=site.known,
            roster_of=roster_of,
        )

    def _swap(self, operation: Operation, site: _Site) -> Change:
        """A member that has lost its disk goes first; somebody sound takes its place."""
        present = (site.known or pinned(self._committee)).roster
        members = present.members
        gone = [one for one in members if self._sites[self._index[one]].is_barred] or list(members)
        sound = [
            site_id(one.index)
            for one in self._sites
            if not one.is_barred and site_id(one.index) not in {*members, *present.others}
        ]
        if not sound:
            sound = [one for one in self._index if one not in members]
        return swap_of(operation, present, self._rng.choice(gone), self._rng.choice(sound))

    def _carry_out(self, run: _Run, effects: Sequence[RegisterEffect]) -> None:
        for effect in effects:
            match effect:
                case Ask(site, call):
                    self._spy(run, call)
                    self._post(run.site, self._index[site], _Request(run.number, call))
                case Decided(value, ballot):
                    self._sites[run.site].after = 0 if ballot is None else ballot.number
                    self._end(run, "decided", value)
                case Declined(refusal):
                    self._end(run, "declined", refusal.value)
                case NoQuorum():
                    self._end(run, "failed", None)
                case OutcomeUnknown():
                    self._end(run, "unknown", None)
        if not run.has_ended and (at := run.machine.wake_at()) != NEVER:
            self._network.call_at(at, lambda: self._wake(run))

    def _wake(self, run: _Run) -> None:
        if run.has_ended or self._network.now < run.machine.wake_at():
            return
        if until := self._network.paused_until(run.site):
            self._network.call_at(until, lambda: self._wake(run))
            return
        self._carry_out(run, run.machine.step(Woke(), self._network.now))

    def _end(self, run: _Run, outcome: str, value: bytes | None) -> None:
        run.has_ended = True
        self._runs.pop(run.number, None)
        operation = run.operation
        observed = None if value is None else read(value)
        if observed is not None:
            self._sites[run.site].epoch_seen = observed.epoch
            self._learn(self._sites[run.site], observed.roster)
        may_retry = operation.kind != "read" and self._sites[run.site].is_up
        if outcome == "unknown" and may_retry and run.retries_left > 0:
            self._network.call_at(
                self._network.now + self._rng.uniform(0.0, 1.0),
                lambda: self._retry(operation, run.boot_epoch, run.retries_left - 1),
            )
            return
        assert outcome in {"decided", "declined", "failed", "unknown"}
        operation.outcome = outcome  # type: ignore[assignment]
        operation.observed = observed
        if outcome in {"decided", "declined"}:
            operation.ended_at = self._network.now

    def _retry(self, operation: Operation, boot_epoch: int, retries_left: int) -> None:
        site = self._sites[operation.site]
        if site.is_up and site.boot_epoch == boot_epoch:
            self._begin(operation, retries_left)
        else:
            operation.outcome = "unknown"

    def _spy(self, run: _Run, call: RegisterCall) -> None:
        if isinstance(call, Prepare):
            key = (call.ballot.number, call.ballot.proposer)
            self._history.ballots.setdefault(key, set()).add(run.number)
        elif isinstance(call, Accept):
            key = (call.ballot.number, call.ballot.proposer)
            self._history.proposals.setdefault(key, set()).add(call.value)

    # --- acceptors -------------------------------------------------------------------------------
    def _post(self, source: int, target: int, payload: object) -> None:
        if source == target:
            self._network.call_at(self._network.now, lambda: self._deliver(source, target, payload))
        else:
            self._network.post(source, target, payload)

    def _deliver(self, source: int, target: int, payload: object) -> None:
        if isinstance(payload, _Response):
            run = self._runs.get(payload.run)
            if run is not None and run.site == target:
                event = Replied(site_id(source), payload.reply)
                self._carry_out(run, run.machine.step(event, self._network.now))
        elif isinstance(payload, _Request):
            self._serve(source, target, payload)

    def _serve(self, source: int, target: int, payload: _Request) -> None:
        site = self._sites[target]
        if site.is_barred or not site.is_up:
            if self._rng.random() < 0.5:  # noqa: PLR2004 - refused at once, or never heard of again
                self._post(target, source, _Response(payload.run, None))
            return
        answer = site.acceptor.step(payload.call, site_id(source))
        response = _Response(payload.run, answer.reply)
        if not answer.writes:
            self._post(target, source, response)
            return
        if not self._parts.is_durable_before_reply:
            self._post(target, source, response)
        boot_epoch, acceptor = site.boot_epoch, site.acceptor
        commit_s = self._rng.expovariate(1 / self._scenario.commit_mean_s)
        site.disk_free_at = max(site.disk_free_at, self._network.now) + commit_s

        def committed() -> None:
            if not site.is_up or site.boot_epoch != boot_epoch:
                return  # the crash came first
            for write in answer.writes:
                assert isinstance(write, Put)
                site.disk = dict(write.row)
            acceptor.saved(answer)
            if self._parts.is_durable_before_reply:
                self._post(target, source, response)

        self._network.call_at(site.disk_free_at, committed)


def simulate(seed: int, scenario: Scenario | None = None, parts: Parts | None = None) -> Report:
    """Run one seed to its end and judge it."""
    return World(
        Random(seed),  # noqa: S311 - reproducible on purpose
        scenario if scenario is not None else Scenario(),
        parts if parts is not None else Parts(),
    ).run()


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what ``run`` reads."""
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--runs", type=int, default=20, help="how many seeds, from the first on")
    parser.add_argument("--sites", type=int, default=6, help="sites that propose")
    parser.add_argument("--committee", type=int, default=3, choices=(1, 3, 5))
    parser.add_argument("--seconds", type=float, default=30.0, help="virtual seconds of trouble")


def run(args: Namespace) -> int:
    """``python -m agent.simulation register``: 0 if every seed's history is one register's.

    Reads what ``add_arguments`` declares; what is missing or None takes its default.
    """
    parser = ArgumentParser()
    add_arguments(parser)
    given = {name: value for name, value in vars(args).items() if value is not None}
    args = parser.parse_args([], Namespace(**given))
    scenario = Scenario(
        sites=max(args.sites, args.committee),
        committee=args.committee,
        seconds=args.seconds,
        wipes=1 if args.committee > 1 else 0,
    )
    bad = 0
    for seed in range(args.seed, args.seed + args.runs):
        report = simulate(seed, scenario)
        is_good = not report.violations and report.is_final_read_decided
        bad += not is_good
        outcomes = " ".join(f"{name}={n}" for name, n in sorted(report.outcomes.items()))
        sys.stdout.write(
            f"seed {seed}: {'ok' if is_good else 'WRONG'} {outcomes} messages={report.messages}\n"
        )
        for violation in report.violations[:10]:
            sys.stdout.write(f"  {violation}\n")
        if not report.is_final_read_decided:
            sys.stdout.write("  the last read did not come back after all faults had ended\n")
    sys.stdout.write(f"{args.runs - bad} of {args.runs} seeds are good\n")
    return 1 if bad else 0
