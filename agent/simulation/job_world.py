"""One federated job on many sites: bad network, slow disks, sudden deaths; one seed gives one trace.

Each site runs the real ``JobMachine``. What is not the machine is modelled as the daemon does it: calls
are request and reply with a time-out (a connection that breaks may repeat the request), effects wait
for the commit of the rows before them, a crash loses what was not yet committed, memory, labels and
children; blobs are fetched from those who hold *and label* them. Training takes random time and may
fail or give a poisoned update; aggregation is a hash of its input. ``job_checks`` judges the evidence.
"""

import math
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from agent.federation.events import RecoverRegister, ViewChanged
from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.simulation.job_checks import (
    Cut,
    Evidence,
    violations,
)
from agent.simulation.job_fleet import Fleet, Parts, Scenario, TightLoop
from agent.simulation.job_site import SimulatedSite

JUMP_S = 1e7
"""Clocks for people jump by up to four months when a site was stopped."""
KINDS = (b"update\0", b"part\0", b"range\0", b"carried\0", b"mean\0", b"initial\0")


@dataclass(slots=True)
class Report:
    """What a run came to."""

    evidence: Evidence
    violations: list[str]
    trace: str
    """Hash of everything that happened, in order."""
    finished_at: float | None
    asks: int
    epochs: int
    rounds: int
    virtual_s: float


class World(Fleet):
    """One run; ``simulate`` is the front door."""

    def run(self) -> Report:
        """Trouble, then calm, then silence."""
        scenario, rng = self.scenario, self.rng
        for site in self.sites:
            late_s = (
                0.0 if rng.random() < 1 - scenario.late else rng.uniform(0.0, scenario.seconds / 2)
            )
            self.network.call_at(late_s, lambda site=site: self.start(site))
        if scenario.fault_every_s < scenario.seconds:
            self.network.call_at(rng.expovariate(1 / scenario.fault_every_s), self._some_fault)
        for _ in range(scenario.kills):
            self.network.call_at(rng.uniform(0.0, scenario.seconds), self._mark_aggregator)
        for _ in range(scenario.gone):
            self.network.call_at(rng.uniform(0.0, scenario.seconds), self._lose_for_ever)
        for _ in range(scenario.turnover):
            self.network.call_at(rng.uniform(0.0, scenario.seconds * 0.7), self._turn_over)
        if scenario.recover:
            at = rng.uniform(2.0, scenario.seconds * 0.7)
            self.network.call_at(at, self._lose_the_majority)
        if scenario.cancel:
            self.network.call_at(rng.uniform(0.0, scenario.seconds), self._cancel)
        self.network.run_until(scenario.seconds)
        self._calm()
        deadline = scenario.seconds + scenario.patience_s
        while self.network.now < deadline and not self._is_complete():
            self.network.run_until(self.network.now + 1.0)
        if self._is_complete():
            self.finished_at = self.network.now
        self._judge_end()
        return self._report()

    def _report(self) -> Report:
        evidence = self.evidence
        for site in self.sites:
            if not site.is_gone:
                for job, book in self.books.items():
                    rows = site.rows("rounds", job)
                    book.histories[site.index] = {row["round"]: row for row in rows}
        epochs = max((c.value.epoch for c in evidence.chosen), default=0)
        rounds = max((c.value.round for c in evidence.chosen), default=0)
        return Report(
            evidence, self._violations(), self.spy.trace.hexdigest(), self.finished_at, self.asks,
            epochs, rounds, self.network.now,
        )  # fmt: skip

    def _violations(self) -> list[str]:
        found = violations(self.evidence)
        for job, book in self.books.items():
            if job != self.job.id:
                found += [f"{book.region}: {one}" for one in violations(book)]
        return found

    def _is_complete(self) -> bool:
        wanted = 0 if self.scenario.cancel else self.scenario.rounds
        return all(
            site.is_gone
            or (
                site.workshop is not None
                and all(machine.is_over for machine in site.workshop.machines.values())
                and (len(site.rows("rounds")) >= wanted or self._is_buried_elsewhere(site))
                and site.workshop.wake_at() == NEVER
            )
            for site in self.sites
        )

    def _is_buried_elsewhere(self, site: SimulatedSite) -> bool:
        """It learned of the end from a tombstone: what its history lacks nobody has any more."""
        return bool(site.tombstones()) and self.evidence.buried > 0

    def _judge_end(self) -> None:
        evidence = self.evidence
        for site in self.sites:
            workshop = site.workshop
            if site.is_gone or workshop is None:
                continue
            rounds = len(site.rows("rounds"))
            is_over = all(machine.is_over for machine in workshop.machines.values())
            is_short = rounds < self.scenario.rounds and not self._is_buried_elsewhere(site)
            if not is_over or (is_short and not self.scenario.cancel):
                evidence.unfinished.append(
                    f"site {site.index} has {rounds} rounds, "
                    f"{'over' if is_over else 'not over'}, long after the last fault"
                )
            elif workshop.wake_at() != NEVER:
                evidence.after_the_end.append(f"site {site.index} still wants to be woken")
        if evidence.unfinished:
            return
        self.network.run_until(self.network.now + 60.0)
        before = self.asks
        self.network.run_until(self.network.now + 120.0)
        if self.asks != before:
            evidence.after_the_end.append(f"{self.asks - before} calls after the end")
        for site in self.sites:
            if site.is_gone or site.machine is None:
                continue
            data = {digest: evidence.blobs[digest] for digest in sorted(site.blobs)}
            kinds = Counter(
                one.split(b"\0", 1)[0] for one in data.values() if one.startswith(KINDS)
            )
            kinds[b"update"] += sum(
                bool(book.updates.keys() & data) for book in self.books.values()
            )
            served = (b"update", b"part", b"range", b"carried")
            if any(kinds[kind] for kind in served) or kinds[b"mean"] + kinds[b"initial"] > 1:
                evidence.leftovers.append(f"site {site.index} keeps {dict(kinds)}")

    # --- faults ----------------------------------------------------------------------------------
    def _some_fault(self) -> None:
        if self.is_calm:
            return
        rng, now = self.rng, self.network.now
        self.network.call_at(
            now + rng.expovariate(1 / self.scenario.fault_every_s), self._some_fault
        )
        lasts_s = rng.expovariate(1 / (2 * self.scenario.fault_every_s))
        site = rng.choice(self.sites)
        match rng.randrange(7):
            case 0 | 1:
                self.crash(site)
                self.network.call_at(now + lasts_s, lambda: self.start(site))
            case 2:
                self.network.pause(site.index, now + lasts_s)
                site.wall_offset_s = JUMP_S * math.sin(1000.0 * now)
                self.views_change()
                self.network.call_at(now + lasts_s + 0.001, self.views_change)
            case 3 | 4 if self.cut is None:
                side = rng.sample(
                    range(len(self.sites)), rng.randint(1, max(1, len(self.sites) - 1))
                )
                if self.job.regions and rng.random() < 0.5:  # noqa: PLR2004 - one region of two
                    name = rng.choice(self.job.regions).name
                    side = [n for n in range(len(self.sites)) if self.region(n) == name]
                others = [n for n in range(len(self.sites)) if n not in side]
                self.network.cut(side, others)
                if rng.random() < 0.7:  # noqa: PLR2004 - most cuts are two-way
                    self.network.cut(others, side)
                    self._note_cut(side, others)
                self.views_change()
                self.network.call_at(now + lasts_s, self._heal)
            case 5:
                wrong = set(rng.sample(range(len(self.sites)), len(self.sites) // 2))
                self.see(site, site.boot_epoch, site.view - wrong)
                self.network.call_at(now + lasts_s, self.views_change)
            case _:
                self._mark_aggregator()

    def _note_cut(self, side: Sequence[int], others: Sequence[int]) -> None:
        for part in (side, others):
            ids = frozenset(self.sites[n].id for n in part)
            is_fixed = (
                not self.scenario.turnover and not self.scenario.recover
            )  # else who is the minority changes meanwhile
            if is_fixed and len(ids & set(self.job.committee)) <= len(self.job.committee) // 2:
                self.cut = (self.network.now, ids)

    def _heal(self) -> None:
        if self.cut is not None:
            began_at, minority = self.cut
            self.evidence.cuts.append(Cut(began_at, self.network.now, minority))
            self.cut = None
        self.network.heal()
        self.views_change()

    def _mark_aggregator(self) -> None:
        """Whoever aggregates now dies within a few effects; it comes back later."""
        acting = [s for s in self.sites if s.machine is not None and s.machine.aggregation]
        if acting and not self.is_calm:
            self.rng.choice(acting).kill_after = self.rng.randint(1, 25)

    def _lose_for_ever(self) -> None:
        committee = [self.index[site] for site in self.job.committee]
        lost = [s.index for s in self.sites if s.is_gone]
        may = [
            s for s in self.sites
            if not s.is_gone
            and (s.index not in committee or sum(n in committee for n in lost) < (len(committee) - 1) // 2)
            and len(self.sites) - len(lost) > self.scenario.sites_min + 1
        ]  # fmt: skip
        acting = [s for s in may if s.machine is not None and s.machine.aggregation]
        if may:
            site = self.rng.choice(acting or may)
            self.crash(site)
            site.is_gone = True
            site.labels.clear()

    def _turn_over(self) -> None:
        """A committee member is lost and revoked, if all others stand and the word has got around.

        The committee before counts until a living site has read that the next one is in place.
        """
        roster = self.roster
        sound = [self.sites[self.index[s]] for s in roster.members]
        knowing = [
            s for s in self.sites
            if s.is_up and s.machine is not None and s.machine.committee == roster.members
        ]  # fmt: skip
        left = [s for s in self.sites if not s.is_gone]
        may = not roster.is_joint and all(not s.is_gone for s in sound) and len(knowing) > 1
        if self.is_calm or len(left) <= max(self.scenario.sites_min + 1, len(roster.members)):
            return
        if not may:
            self.network.call_at(self.network.now + 1.0, self._turn_over)
            return
        site = self.rng.choice(sound)
        self.crash(site)
        site.is_gone = True
        site.labels.clear()
        later = self.network.now + self.rng.uniform(0.0, 5.0)
        self.network.call_at(later, lambda: self._revoke(site.id))

    def _revoke(self, site: SiteId) -> None:
        self.revoked.add(site)
        self.views_change()
        for other in self.sites:
            self.later(other, self.network.now + self.rng.uniform(0.0, 1.0), ViewChanged())

    def _lose_the_majority(self) -> None:
        """At a moment when some site that stays has read all that was decided: no round is lost by it."""
        members = [self.index[site] for site in self.job.committee]
        lost = self.rng.sample(members, len(members) // 2 + 1)
        best = self._best_informed(set(lost))
        last = max((choice.value.progress for choice in self.evidence.chosen), default=None)
        known = best.machine.value if best is not None and best.machine is not None else None
        if known is None or known.progress != last or known.parameters is None:
            if not self.is_calm:
                self.network.call_at(self.network.now + 0.5, self._lose_the_majority)
            return
        for n in lost:
            self.crash(self.sites[n])
            self.sites[n].is_gone = True
            self.sites[n].labels.clear()
            self._revoke(self.sites[n].id)
        self.network.call_at(
            self.network.now + self.rng.uniform(0.0, 10.0), lambda: self._recover(set(lost))
        )

    def _best_informed(self, lost: set[int]) -> SimulatedSite | None:
        """Where an operator would look: a site that stays, and holds what it has read of."""
        found = [
            site for site in self.sites
            if site.index not in lost and site.machine is not None and not site.is_gone
            and site.machine.value is not None and site.machine.value.blobs <= site.blobs
        ]  # fmt: skip
        return max(found, key=lambda site: site.machine.value.progress, default=None)  # type: ignore[union-attr]

    def _recover(self, lost: set[int]) -> None:
        """An operator says it again until it is done."""
        recovered = [
            s for s in self.sites
            if s.machine is not None and s.machine.value is not None and s.machine.value.recoveries
        ]  # fmt: skip
        best = self._best_informed(lost)
        if recovered:
            return
        if best is not None:
            left = tuple(s for s in self.job.committee if self.index[s] not in lost)
            others = [s.id for s in self.sites if s.id not in self.job.committee]
            members = (*left, *others)[: len(self.job.committee)]
            self.later(best, self.network.now, RecoverRegister(left, members))
        self.network.call_at(self.network.now + 5.0, lambda: self._recover(lost))

    def _cancel(self) -> None:
        """The document spreads; who is down or late learns of it after its next start."""
        self.is_cancelled = self.evidence.is_cancelled = True
        for site in self.sites:
            self.tell_of_cancellation(site)

    def _calm(self) -> None:
        self.is_calm = True
        self.faults.loss = self.faults.duplicate = 0.0
        for site in self.sites:
            self.network.pause(site.index, 0.0)
            site.kill_after = None
            self.start(site)
        self._heal()


def simulate(seed: int, scenario: Scenario | None = None, parts: Parts | None = None) -> Report:
    """Run one seed to its end and judge it."""
    world = World(
        Random(seed),  # noqa: S311 - reproducible on purpose
        scenario if scenario is not None else Scenario(),
        parts if parts is not None else Parts(),
    )
    try:
        return world.run()
    except TightLoop:
        return world._report()  # noqa: SLF001 - the front door of this very class


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what ``run`` reads."""
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--runs", type=int, default=10, help="how many seeds, from the first on")
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--committee", type=int, default=3, choices=(1, 3, 5))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0, help="virtual seconds of trouble")
    parser.add_argument("--cancel", action="store_true", help="cancel the job on the way")


def run(args: Namespace) -> int:
    """``python -m agent.simulation job``: 0 if every seed's job kept every rule and ended."""
    scenario = Scenario(
        sites=args.sites, committee=args.committee, rounds=args.rounds, seconds=args.seconds,
        cancel=args.cancel, gone=1 if args.sites > 3 else 0,  # noqa: PLR2004 - three sites need all
    )  # fmt: skip
    bad = 0
    for seed in range(args.seed, args.seed + args.runs):
        report = simulate(seed, scenario)
        bad += bool(report.violations)
        ended = "never" if report.finished_at is None else f"{report.finished_at:.0f} s"
        sys.stdout.write(
            f"seed {seed}: {'WRONG' if report.violations else 'ok'} rounds={report.rounds} "
            f"epochs={report.epochs} calls={report.asks} ended={ended} trace={report.trace[:12]}\n"
        )
        for violation in report.violations[:10]:
            sys.stdout.write(f"  {violation}\n")
    sys.stdout.write(f"{args.runs - bad} of {args.runs} seeds are good\n")
    return 1 if bad else 0
