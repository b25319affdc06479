"""Replacing a committee member that is gone for good, and taking over after the loss of a majority.

A member goes because the trust log has revoked or retired it (the aggregator does it then) or because an
operator says so (at any site that holds the job's parameters). The one that takes its place first keeps
the blobs that the register names, then the register's two changes follow (``election.roster``): a site
that dies between them leaves a change that the next aggregator completes.

A recovery is an operator's word that the rest of the committee never comes back. Its daemon takes it only
when every member that is left out is revoked: such a site is heard by nobody, so no second majority can
form. All survivors are asked for what they have accepted, and all must answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

from agent.election.roster import Known, Roster, Voters
from agent.federation.desk import Desk, Surroundings, sources
from agent.federation.events import FetchBlob, Label
from agent.federation.register import Outcome, Register, Settled
from agent.federation.value import (
    EPOCH_JUMP,
    Change,
    JobValue,
    decode,
    recover,
    release_member,
    replace_member,
)
from agent.foundation.errors import Malformed
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.wire.documents import Job
from agent.wire.mesh import Done, Keep, Read, ReadReply, Reply

KEEP_TIMEOUT_S = 20.0
READ_TIMEOUT_S = 5.0
RETRY_S = 1.0
RETRY_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class Swap:
    """``by`` is to take the place of ``gone``."""

    gone: SiteId
    by: SiteId


class Swaps:
    """One site's changes of one job's committee; one at a time."""

    def __init__(
        self,
        job: Job,
        me: SiteId,
        desk: Desk,
        surroundings: Surroundings,
        register: Register,
        adopt: Callable[[JobValue, float], None],
    ) -> None:
        """``adopt`` takes every value that a change was decided with."""
        self._job, self._me, self._desk, self._surroundings = job, me, desk, surroundings
        self._register, self._adopt = register, adopt
        self.trouble = ""
        """Why the last change has not been made; empty while all goes well."""
        self._wanted: Swap | None = None
        self._is_busy = self._is_over = False
        self._retry_at = NEVER
        self._pause_s = RETRY_S
        self._again: Callable[[float], None] | None = None
        self._sought: set[Digest] = set()
        """By a recovery, which goes on with ``_then``."""
        self._nowhere: set[Digest] = set()
        self._then: Callable[[float], None] = lambda _: None

    # --- replacing -------------------------------------------------------------------------------
    def replace(self, swap: Swap, value: JobValue, now: float) -> None:
        """An operator's word: ``swap.gone`` does not come back."""
        self._wanted, self.trouble, self._pause_s = swap, "", RETRY_S
        self._retry_at, self._again = NEVER, None
        self.consider(value, now, is_aggregator=False)

    def consider(self, value: JobValue, now: float, *, is_aggregator: bool) -> None:
        """Go on with a change that is under way, or begin one that is wanted."""
        if self._is_busy or self._retry_at != NEVER:
            return
        roster = self._register.roster
        wanted = self._wanted
        if wanted is not None and wanted.gone not in roster.members:
            wanted = self._wanted = None
        if roster.is_joint:
            if is_aggregator or wanted is not None:
                (by,) = set(roster.others) - set(roster.members)
                kept, operation = frozenset(value.blobs), self._desk.operation()
                self._after_keeping(by, value, release_member(kept, operation), now)
            return
        if wanted is None and is_aggregator:
            wanted = self._of_one_that_is_gone(roster)
        if wanted is not None:
            kept, operation = frozenset(value.blobs), self._desk.operation()
            change = replace_member(self._job, wanted.gone, wanted.by, kept, operation)
            self._after_keeping(wanted.by, value, change, now)

    def _of_one_that_is_gone(self, roster: Roster) -> Swap | None:
        gone = next((s for s in roster.members if self._surroundings.is_gone(s)), None)
        if gone is None:
            return None
        by = self._surroundings.substitute(self._job, roster.members, gone)
        return None if by is None else Swap(gone, by)

    def _after_keeping(self, by: SiteId, value: JobValue, change: Change, now: float) -> None:
        """Make the change when ``by`` holds all that the register names."""
        blobs = tuple(sorted(value.blobs))
        if any(not self._surroundings.is_held(blob) for blob in blobs):
            self._later("this site does not hold what the register names", now)
            return
        self._is_busy = True

        def kept(reply: Reply | None, at: float) -> None:
            self._is_busy = False
            if isinstance(reply, Done):
                self._change(change, at)
            else:
                self._later("the site that is to take the place cannot be reached", at)

        if by == self._me or not blobs:
            self._change(change, now)
        else:
            self._desk.ask(by, Keep(self._job.id, blobs), KEEP_TIMEOUT_S, kept)

    # --- recovering ------------------------------------------------------------------------------
    def recover(
        self, survivors: tuple[SiteId, ...], members: tuple[SiteId, ...], value: JobValue | None,
        now: float,
    ) -> None:  # fmt: skip
        """An operator's word: of the committee only ``survivors`` are left, ``members`` follow it.

        Args:
            survivors: those of the present committee that are left, each also in ``members``.
            members: the new committee.
            value: the furthest that this site has read.
            now: monotonic time, seconds.
        """
        if self._is_busy:
            return
        self._is_busy, self.trouble = True, ""
        self._nowhere.clear()  # who has it may be back
        answers: dict[SiteId, ReadReply] = {}
        others = [site for site in survivors if site != self._me]

        def taker(site: SiteId) -> Callable[[Reply | None, float], None]:
            def take(reply: Reply | None, at: float) -> None:
                if isinstance(reply, ReadReply):
                    answers[site] = reply
                    if len(answers) == len(others):
                        self._is_busy = False
                        self._take_over(members, value, tuple(answers.values()), at)
                else:
                    self._is_busy = False
                    self.trouble = "a survivor of the committee does not answer"

            return take

        for site in others:
            self._desk.ask(site, Read(self._job.id), READ_TIMEOUT_S, taker(site))
        if not others:
            self._is_busy = False
            self._take_over(members, value, (), now)

    def _take_over(
        self,
        members: tuple[SiteId, ...],
        value: JobValue | None,
        answers: tuple[ReadReply, ...],
        now: float,
    ) -> None:
        try:
            found = [value, self._register.accepted(), *(decode(one.value) for one in answers)]
        except Malformed as error:
            self.trouble = f"a survivor holds a value of another version: {error.what}"
            return
        known = [one for one in found if one is not None]
        if not known:
            self.trouble = "no survivor holds anything: submit the job anew"
            return
        seen = max((one.accepted.number for one in answers if one.accepted), default=0)
        best = self._best(known)
        if best is None:
            self.trouble = "this site does not hold what the register names, and nobody gives it: ask one that takes part"
            return
        missing = {blob for blob in best.blobs if not self._surroundings.is_held(blob)}
        if missing:
            self._is_busy, self._sought = True, missing
            self._then = lambda at: self._take_over(members, value, answers, at)
            self.trouble = f"fetching what round {best.round} is made of"
            around = sources(members, self._surroundings.alive(), self._me)
            self._desk.emit(*(FetchBlob(blob, around) for blob in sorted(missing)))
            return
        self.trouble = ""
        # A value that was accepted here and never read is no reason yet to give its blobs to anybody.
        self._desk.emit(*(Label(blob, self._job.residency) for blob in sorted(best.blobs)))
        holders = Known(Roster(0, members, ()))
        nowhere = frozenset(self._nowhere)
        change = recover(best, members, self._me, self._desk.operation(), nowhere)
        self._have_kept(
            members, best, now, lambda at: self._change(change, at, holders, seen + EPOCH_JUMP)
        )

    def _best(self, known: list[JobValue]) -> JobValue | None:
        """The furthest whose blobs can be had, as far as is known: others are as lost as those who had them."""
        reachable = [one for one in known if not one.blobs & self._nowhere]
        return max(reachable, key=lambda one: one.progress, default=None)

    def blob_arrived(self, digest: Digest, now: float) -> None:
        """Go on with a recovery when all is here, or known to be nowhere."""
        if digest in self._sought:
            self._sought.discard(digest)
            if not self._sought:
                self._is_busy = False
                self._then(now)

    def blob_missing(self, digest: Digest, now: float) -> None:
        """No living site gives it."""
        if digest in self._sought:
            self._nowhere.add(digest)
            self._sought.clear()  # what else that value names is of no use without it
            self._is_busy = False
            self._then(now)

    def _have_kept(
        self,
        members: tuple[SiteId, ...],
        best: JobValue,
        now: float,
        then: Callable[[float], None],
    ) -> None:
        """Go on when a majority of ``members`` keeps all that ``best`` names."""
        voters = Voters((members,), self._me)
        keeping = {self._me} & set(members) if best.blobs else set(members)
        waiting = set(members) - keeping
        if voters.have(keeping):
            then(now)
            return
        self._is_busy = True

        def taker(site: SiteId) -> Callable[[Reply | None, float], None]:
            def take(reply: Reply | None, at: float) -> None:
                had, is_last = voters.have(keeping), waiting == {site}
                waiting.discard(site)
                if isinstance(reply, Done):
                    keeping.add(site)
                if voters.have(keeping) and not had:
                    self._is_busy = False
                    then(at)
                elif is_last and not voters.have(keeping):
                    self._is_busy = False
                    self.trouble = "a majority of the new committee does not keep what is named"

            return take

        for site in sorted(waiting):
            message = Keep(self._job.id, tuple(sorted(best.blobs)))
            self._desk.ask(site, message, KEEP_TIMEOUT_S, taker(site))

    # --- the register ----------------------------------------------------------------------------
    def _change(
        self, change: Change, now: float, holders: Known | None = None, after: int = 0,
        *, is_retry: bool = False,
    ) -> None:  # fmt: skip
        if self._is_over:
            return
        self._is_busy = True

        def settled(outcome: Outcome, at: float) -> None:
            self._is_busy = False
            if isinstance(outcome, Settled):
                self.trouble = "" if outcome.is_ours else "the register has moved on meanwhile"
                self._pause_s = RETRY_S
                if outcome.value is not None:
                    self._adopt(outcome.value, at)
                return
            self._again = lambda later: self._change(change, later, holders, after, is_retry=True)
            self._later(outcome.reason, at)

        self._register.change(
            change, now, settled, is_retry=is_retry, recovered=holders, after=after
        )

    def _later(self, why: str, now: float) -> None:
        self.trouble, self._retry_at = why, NEVER if self._is_over else now + self._pause_s
        self._pause_s = min(2 * self._pause_s, RETRY_MAX_S)

    def stop(self) -> None:
        """The job is over."""
        self._is_over = True
        self._retry_at, self._wanted, self._again = NEVER, None, None

    def woke(self, value: JobValue | None, now: float, *, is_aggregator: bool) -> None:
        """Try again when due."""
        if now < self._retry_at:
            return
        self._retry_at = NEVER
        again, self._again = self._again, None
        if again is not None:
            again(now)
        elif value is not None:
            self.consider(value, now, is_aggregator=is_aggregator)

    def wake_at(self) -> float:
        """When the next try is due."""
        return self._retry_at
