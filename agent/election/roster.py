"""Who holds a register, and how the holders change without losing it.

A register starts at the committee pinned in its job. One member is replaced in two changes of the value
itself: the first (odd generation) names the members to come beside the present ones, the second (even)
puts them in place. Between the two, and until the second is known to be committed, every read and
every write needs a majority of *both* sets; the second change therefore carries the whole value to a
majority of the new set. Leave that out and the new set answers from what it happens to remember.

Rules:

- What one acceptor has accepted may name a roster that was never chosen. It may be followed all the same:
  asking both sets is never wrong, only perhaps more than is needed.
- One set alone suffices when a value that names it as the present one is known to be committed.
- A value without a roster is of generation 0, at the pinned committee.

Source: Rystsov 2018, section 2.3 (membership change): replacing acceptors one by one without carrying the
value over ("rescan") loses it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated

from agent.election.ballots import quorum_of
from agent.foundation.ids import SiteId
from agent.wire.records import Counter, Site
from agent.wire.schema import AtMost

MEMBERS_MAX = 5
FOLLOWED_MAX = 8
"""Changes of committee that one conversation follows; one a try would do."""

Members = Annotated[tuple[Site, ...], AtMost(MEMBERS_MAX)]
Parts = tuple[tuple[SiteId, ...], ...]
"""Sets of sites; a majority of each is needed."""


@dataclass(frozen=True, slots=True)
class Roster:
    """The holders that a register's value names."""

    generation: Counter
    """Odd: a change is under way."""
    members: Members
    others: Members
    """Odd generation: the members to come. Even: those before; empty if they count no more."""

    @property
    def is_joint(self) -> bool:
        """Whether ``others`` are about to take over."""
        return self.generation % 2 == 1

    @property
    def is_sound(self) -> bool:
        """Whether changes of one member at a time can have led to it; what others tell may be anything."""
        members, others = set(self.members), set(self.others)
        if not members or len(members) < len(self.members) or len(others) < len(self.others):
            return False
        if not others:
            return not self.is_joint
        return len(others) == len(members) and len(others - members) == 1

    def parts(self, *, is_committed: bool) -> Parts:
        """Whose majorities are needed, as far as this roster tells."""
        if self.others and (self.is_joint or not is_committed):
            return (self.members, self.others)
        return (self.members,)


RosterOf = Callable[[bytes], Roster | None]
"""The roster that a value names; None: generation 0."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a site knows of a register's holders."""

    roster: Roster
    is_committed: bool = True

    @property
    def parts(self) -> Parts:
        """Whose majorities are needed."""
        return self.roster.parts(is_committed=self.is_committed)


def pinned(committee: tuple[SiteId, ...]) -> Known:
    """The holders at the start."""
    assert committee, "a register has a committee"
    assert len(set(committee)) == len(committee), "each member has one vote"
    return Known(Roster(0, committee, ()))


def replaced(roster: Roster, gone: SiteId, by: SiteId) -> Roster:
    """The first change: ``by`` is to take the place of ``gone``."""
    assert not roster.is_joint, "one change at a time"
    to_come = tuple(by if site == gone else site for site in roster.members)
    return Roster(roster.generation + 1, roster.members, to_come)


def released(roster: Roster) -> Roster:
    """The second change: the members to come are the members."""
    assert roster.is_joint, "nothing is under way"
    return Roster(roster.generation + 1, roster.others, roster.members)


def newer_in(value: bytes | None, known: Known, roster_of: RosterOf | None) -> Roster | None:
    """The holders that ``value`` names, if a change later than ``known`` made them."""
    if value is None or roster_of is None:
        return None
    roster = roster_of(value)
    is_newer = roster is not None and roster.generation > known.roster.generation
    return roster if is_newer else None


def is_behind(value: bytes | None, known: Known, roster_of: RosterOf | None) -> bool:
    """Whether holders who stand alone hold less than the value that put them in place."""
    if known.roster.generation == 0 or roster_of is None or len(known.parts) > 1:
        return False
    roster = None if value is None else roster_of(value)
    return roster is None or roster.generation < known.roster.generation


class Voters:
    """Counts votes."""

    def __init__(self, parts: Parts, me: SiteId) -> None:
        """``me``: comes first."""
        self._parts = parts
        everyone = dict.fromkeys(site for part in parts for site in part)
        self.everyone = tuple(sorted(everyone, key=lambda site: site != me))

    def have(self, sites: Collection[SiteId]) -> bool:
        """Whether ``sites`` hold a majority of each part."""
        return all(
            sum(site in sites for site in part) >= quorum_of(len(part)) for part in self._parts
        )

    def can_have(self, out: Collection[SiteId]) -> bool:
        """Whether they still can when ``out`` do not vote."""
        return self.have([site for site in self.everyone if site not in out])
