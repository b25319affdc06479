"""What must hold in every run of the membership world, judged apart from the machines.

Hard rules, raised at once as ``Violation``: nobody forges a record, sequences and incarnations
never fall while the observer lives, only the owner moves them, nobody wakes in the past. Findings,
kept for the scenario to judge: deaths declared of running sites (with the observer and the time).
"""

from dataclasses import dataclass
from math import inf

from agent.foundation.ids import SiteId, short
from agent.membership.events import MemberChanged, RecordChanged, SwimEffect
from agent.membership.swim import Swim
from agent.wire.records import STATEMENTS, SiteRecord

PROVEN_MAX = 100_000
"""Then they are looked up again; a fleet of 1,000 sites makes some 10,000 records."""


class Violation(AssertionError):
    """The machine broke a rule of membership."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One observer declared one site dead."""

    at: float
    observer: SiteId
    subject: SiteId
    was_running: bool
    subject_down_for_s: float


class MembershipChecks:
    """Watches every step of every site."""

    def __init__(self, made: dict[bytes, SiteId]) -> None:
        """``made`` is the ledger of statements that sites really signed."""
        self._made = made
        self._down_at: dict[SiteId, float] = {}
        self._heights: dict[SiteId, dict[SiteId, SiteRecord]] = {}
        """By observer: the newest record it has believed of each site."""
        self._proven: dict[int, SiteRecord] = {}
        """Records found in the ledger, by identity: packing each anew is most of a large run."""
        self.verdicts: list[Verdict] = []

    def started(self, site: SiteId, now: float) -> None:
        """A process starts: it may have forgotten what it believed."""
        self._down_at.pop(site, None)
        self._heights.pop(site, None)
        assert now >= 0, "time starts at 0"

    def stopped(self, site: SiteId, now: float) -> None:
        """A process ends."""
        self._down_at[site] = now

    def false_deaths(self, since: float = 0.0) -> list[Verdict]:
        """Deaths declared of sites that ran."""
        return [v for v in self.verdicts if v.was_running and v.at >= since]

    def armed(self, me: SiteId, wake_at: float, now: float) -> None:
        """Judge when a machine wants to wake."""
        if wake_at <= now:
            raise Violation(f"{short(me)} wants to wake at {wake_at}, now is {now}")

    def stepped(self, me: SiteId, swim: Swim, effects: list[SwimEffect], now: float) -> None:
        """Judge one step."""
        for effect in effects:
            if isinstance(effect, RecordChanged):
                self._check_record(me, swim, effect)
            elif isinstance(effect, MemberChanged) and effect.after == "dead":
                down_at = self._down_at.get(effect.site, inf)
                self.verdicts.append(Verdict(now, me, effect.site, down_at == inf, now - down_at))

    def _check_record(self, me: SiteId, swim: Swim, effect: RecordChanged) -> None:
        record = effect.record
        if self._proven.get(id(record)) is not record:
            if self._made.get(STATEMENTS.pack(record)) != record.site:
                text = f"{short(me)} believes a record that {short(record.site)} never made"
                raise Violation(text)
            if len(self._proven) >= PROVEN_MAX:
                self._proven.clear()
            self._proven[id(record)] = record
        heights = self._heights.setdefault(me, {})
        before = heights.get(record.site)
        if before is not None and (
            record.sequence <= before.sequence or record.incarnation < before.incarnation
        ):
            raise Violation(
                f"{short(record.site)} fell from {(before.sequence, before.incarnation)} to "
                f"{(record.sequence, record.incarnation)} at {short(me)}"
            )
        heights[record.site] = record
        if record.site != me and record.site not in swim.members():
            raise Violation(f"{short(record.site)} is believed and no member")
