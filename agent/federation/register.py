"""A job's register as its machine uses it: read it, change it, and serve it to the committee.

Wraps the three election machines (acceptor, reader, proposer) and their conversations. Calls to this
very site's acceptor do not go through the network; its own vote counts when it is durable, not before.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from agent.election.acceptor import Acceptor
from agent.election.acceptor import Answer as AcceptorAnswer
from agent.election.lease import Lease
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
from agent.election.roster import Known, Roster, Voters, pinned
from agent.federation.desk import Desk
from agent.federation.events import Persist
from agent.federation.value import ENDED, Change, JobValue, decode, encode_value, roster_of
from agent.foundation.errors import Corruption, Malformed
from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.writes import Scalar
from agent.wire import mesh
from agent.wire.documents import Job

Word = Roster | mesh.Buried | JobValue
"""What others say: who holds the register, or how the job has ended."""
RegisterRow = Mapping[str, Scalar]
ASK_TIMEOUT_S = 2.0
CHANGES_REMEMBERED = 256
TELLERS_MIN = 2
ANSWERS_MIN = 20
"""Half a minute at least in which no holder has answered."""
HEARD_MAX = 64
"""Sites of which none was believed yet."""
CONVERSATIONS_MAX = 8
"""A claim, a commit and a read, and as many again from an aggregation that was just replaced."""


@dataclass(frozen=True, slots=True)
class Settled:
    """``value`` is committed; ``is_ours``: our change is in it (always true of a plain read)."""

    value: JobValue | None
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Unknown:
    """No majority answered; a change may or may not have happened."""

    reason: str


Outcome = Settled | Unknown
Then = Callable[[Outcome, float], None]


class Register:
    """Conversations about one job's register."""

    def __init__(
        self,
        job: Job,
        me: SiteId,
        boot_epoch: int,
        desk: Desk,
        rng: Random,
        row: RegisterRow | None,
        barred_because: str = "",
        buried: Callable[[mesh.Buried, float], None] = lambda _told, _now: None,
        ended: Callable[[JobValue, float], None] = lambda _value, _now: None,
    ) -> None:
        """``row``: this site's durable acceptor state, None if it never voted for the job.

        ``barred_because``: why this site may not vote at all (it may have forgotten a promise).
        ``buried``, ``ended``: take the word that the job is over, and all that is left of it, or its last value.
        """
        self._buried, self._ended = buried, ended
        self._barred_because = barred_because[:400]
        self._known = pinned(job.committee)
        self._job, self._me, self._boot_epoch = job, me, boot_epoch
        self._desk, self._rng = desk, rng
        try:
            self._acceptor = Acceptor(job.id) if row is None else Acceptor.restored(row)
        except Corruption as fault:  # forgotten promises: as good as wiped, for this job
            self._acceptor, self._barred_because = Acceptor(job.id), str(fault)[:400]
        self._conversations: dict[int, tuple[Proposer | Reader, Then, float]] = {}
        self._end: bytes | None = None
        self._heard: dict[SiteId, tuple[Word, int]] = {}
        """What each has said last, and how often in a row when it was asked."""
        self.lease = Lease()
        """Renewed by whatever a majority of the committee answers."""
        self.took_s: deque[float] = deque(maxlen=CHANGES_REMEMBERED)
        """How long the last changes from here took to be decided."""
        self._unsaved: dict[int, AcceptorAnswer] = {}
        self._own_votes: dict[int, int] = {}
        self._mute = ""
        self._highest = self._acceptor.state.promised.number

    @property
    def roster(self) -> Roster:
        """Who holds the register, as far as is known here."""
        return self._known.roster

    @property
    def members(self) -> tuple[SiteId, ...]:
        """The committee, without those to come."""
        return self._known.roster.members

    def voters(self) -> Voters:
        """Counts sites that keep what the register is to name, as votes are counted."""
        return Voters(self._known.parts, self._me)

    def learn(self, roster: Roster | None) -> None:
        """A committed value names ``roster`` as the holders."""
        if roster is None or not roster.is_sound:
            return
        if roster.generation > self._known.roster.generation:
            self._known = Known(roster)

    def read(self, now: float, then: Then) -> None:
        """The committed value."""
        reader = Reader(
            job=self._job.id, committee=self._job.committee, me=self._me,
            boot_epoch=self._boot_epoch, rng=self._rng, now=now, timeout_s=ASK_TIMEOUT_S,
            known=self._known, roster_of=roster_of,
        )  # fmt: skip
        self._open(reader, then, now)

    def accepted(self) -> JobValue | None:
        """What this site's acceptor has accepted last: it may be committed, though nobody has read it.

        Raises:
            Malformed: it is of a newer version.
        """
        return decode(self._acceptor.state.value)

    def change(
        self,
        change: Change,
        now: float,
        then: Then,
        *,
        is_retry: bool = False,
        recovered: Known | None = None,
        after: int = 0,
    ) -> None:
        """Apply ``change`` to the committed value.

        Args:
            change: see ``federation.value``.
            now: monotonic time, seconds.
            then: takes the outcome.
            is_retry: its outcome was unknown before.
            recovered: the holders that an operator has named after the loss of a majority; nobody
                else is asked, whatever a value says.
            after: highest ballot number seen elsewhere.
        """
        if self._mute:
            then(Unknown(self._mute), now)
            return
        proposer = Proposer(
            job=self._job.id, committee=self._job.committee, me=self._me,
            boot_epoch=self._boot_epoch, rng=self._rng, now=now, change=_readable(change),
            timeout_s=ASK_TIMEOUT_S, is_retry=is_retry,
            after=max(after, self._highest, self._acceptor.state.promised.number),
            known=recovered or self._known, roster_of=None if recovered else roster_of,
        )  # fmt: skip
        self._open(proposer, then, now)

    def called(self, sender: SiteId, call: mesh.Prepare | mesh.Accept | mesh.Read) -> mesh.Reply:
        """This site's acceptor answers; its promise is persisted before the reply can leave."""
        # Whoever is asked votes: only the value tells who is a member by now, and it is not here yet
        # when a new one is asked first. Whose votes count is decided by the one who asks.
        if self._barred_because:
            return mesh.Declined(self._barred_because)
        answer = self._acceptor.step(call, sender)
        if answer.writes:
            self._save(answer)
        known, reply = self._newest(), answer.reply
        if isinstance(reply, mesh.ReadReply) and known.generation:
            reply = replace(
                reply, generation=known.generation, members=known.members, others=known.others
            )
        return replace(reply, end=self._end) if isinstance(reply, mesh.ReadReply) else reply

    def _newest(self) -> Roster:
        """The last holders that this site has read of, or was asked to vote for as an acceptor."""
        known, value = self._known.roster, self._acceptor.state.value
        voted = None if value is None else roster_of(value)
        is_newer = voted is not None and voted.is_sound and voted.generation > known.generation
        return voted if voted is not None and is_newer else known

    def _save(self, answer: AcceptorAnswer) -> int:
        token = self._desk.number()
        self._unsaved[token] = answer
        self._desk.emit(Persist(answer.writes, token))
        return token

    def persisted(self, token: int, now: float) -> None:
        """The rows emitted with ``token`` are durable: this site's own vote counts from now on."""
        answer = self._unsaved.pop(token, None)
        number = self._own_votes.pop(token, None)
        if answer is not None:
            self._acceptor.saved(answer)
            if number is not None:
                self._replied(number, self._me, answer.reply, now)

    def _ask_myself(
        self, number: int, call: mesh.Prepare | mesh.Accept | mesh.Read, now: float
    ) -> None:
        if self._barred_because:
            self._replied(number, self._me, mesh.Declined(self._barred_because), now)
            return
        answer = self._acceptor.step(call, self._me)
        if answer.writes:
            self._own_votes[self._save(answer)] = number
        else:
            self._replied(number, self._me, answer.reply, now)

    def woke(self, now: float) -> None:
        """Give every conversation its time."""
        for number, (machine, _, _) in list(self._conversations.items()):
            if now >= machine.wake_at():
                self._perform(number, machine.step(Woke(), now), now)

    def bar(self, reason: str) -> None:
        """Vote and propose no more: another process votes and proposes under this identity too."""
        self._barred_because = self._mute = reason[:400]

    def hush(self, value: JobValue | None) -> None:
        """The job is over, with ``value``: let go of every conversation; this site goes on voting."""
        if value is not None and value.state in ENDED:
            self._end = encode_value(value)
        self._conversations.clear()
        self._own_votes.clear()

    def wake_at(self) -> float:
        """When the next conversation wants its time."""
        return min((m.wake_at() for m, _, _ in self._conversations.values()), default=NEVER)

    def _open(self, machine: Proposer | Reader, then: Then, now: float) -> None:
        if len(self._conversations) >= CONVERSATIONS_MAX:
            then(Unknown("too many conversations under way"), now)
            return
        number = self._desk.number()
        self._conversations[number] = (machine, then, now)
        self._perform(number, machine.start(), now)

    def _perform(self, number: int, effects: Sequence[RegisterEffect], now: float) -> None:
        # This site's own vote last: what goes to the others would wait until that is on disk.
        for effect in sorted(
            effects, key=lambda one: isinstance(one, Ask) and one.site == self._me
        ):
            match effect:
                case Ask(site, call) if site == self._me:
                    self._ask_myself(number, call, now)
                case Ask(site, call):
                    self._desk.ask(site, call, ASK_TIMEOUT_S, self._taker(number, site))
                case Decided(value, ballot):
                    if ballot is not None:
                        self._highest = max(self._highest, ballot.number)
                    conversation = self._conversations.get(number)
                    if conversation is not None and isinstance(conversation[0], Proposer):
                        self.took_s.append(now - conversation[2])
                    self._close(number, self._settled(value, is_ours=True), now)
                case Declined(refusal):
                    self._close(number, self._settled(refusal.value, is_ours=False), now)
                case NoQuorum(reason) | OutcomeUnknown(reason):
                    self._close(number, Unknown(reason), now)

    def _taker(self, number: int, site: SiteId) -> Callable[[mesh.Reply | None, float], None]:
        return lambda reply, now: self._replied(number, site, reply, now)

    def ask_who_holds_it(self, site: SiteId, now: float) -> None:
        """Those who held the register are all gone, perhaps: any site may know who came after them."""
        self.hear(self._me, self._newest(), now)
        self._desk.ask(
            site, mesh.Read(self._job.id), ASK_TIMEOUT_S,
            lambda reply, now: self._told(site, reply, now, is_answer=True),
        )  # fmt: skip

    def _told(
        self, site: SiteId, reply: mesh.Reply | None, now: float, *, is_answer: bool = False
    ) -> None:
        if isinstance(reply, mesh.ReadReply) and reply.end is not None:
            with contextlib.suppress(Malformed):  # a newer version's
                if (end := decode(reply.end)) is not None and end.state in ENDED:
                    self.hear(site, end, now, is_answer=is_answer)
        elif isinstance(reply, mesh.ReadReply) and reply.members:
            roster = Roster(reply.generation, reply.members, reply.others)
            self.hear(site, roster, now, is_answer=is_answer)
        elif isinstance(reply, mesh.Buried) and reply.job == self._job.id:
            self.hear(site, reply, now, is_answer=is_answer)

    def hear(self, teller: SiteId, word: Word, now: float, *, is_answer: bool = False) -> None:
        """A site says who holds the register by now, or how the job has ended.

        A holder's word of the end is taken. Else it takes two that say the same: one that lies could name itself,
        and then what it likes. Where only one is left to ask it has to say so for long, and no holder to answer.

        Args:
            teller: who says it.
            word: what it says.
            now: monotonic time, seconds.
            is_answer: it was asked, since the holders did not answer.
        """
        if isinstance(word, Roster) and (
            not word.is_sound or word.generation <= self._known.roster.generation
        ):
            return
        last, answers = self._heard.pop(teller, (word, 0))
        answers = is_answer + (answers if last == word else 0)
        self._heard[teller] = word, answers
        alike = sum(one == word for one, _ in self._heard.values())
        is_holder = not isinstance(word, Roster) and teller in self.voters().everyone
        if is_holder or alike >= TELLERS_MIN or answers >= ANSWERS_MIN:
            self._heard.clear()
            if isinstance(word, Roster):
                self.learn(word)
            elif isinstance(word, mesh.Buried):
                self._buried(word, now)
            else:
                self._ended(word, now)
        elif len(self._heard) > HEARD_MAX:
            del self._heard[next(iter(self._heard))]

    def _replied(self, number: int, site: SiteId, reply: mesh.Reply | None, now: float) -> None:
        self._told(site, reply, now)
        if isinstance(reply, mesh.Buried):
            reply = None
        if (conversation := self._conversations.get(number)) is not None:
            self._perform(number, conversation[0].step(Replied(site, reply), now), now)

    def _close(self, number: int, outcome: Outcome, now: float) -> None:
        if (conversation := self._conversations.pop(number, None)) is not None:
            _, then, asked_at = conversation
            if isinstance(outcome, Settled):
                self.lease.renewed(asked_at)
            then(outcome, now)

    def _settled(self, value: bytes | None, *, is_ours: bool) -> Outcome:
        try:
            decoded = decode(value)
        except Malformed as error:
            return Unknown(f"the register's value is of another version: {error.what}")
        self._heard.clear()  # the holders answer
        if decoded is not None:
            self.learn(decoded.roster)
        return Settled(decoded, is_ours)


def _readable(change: Change) -> Change:
    """A value of a newer version is refused, not overwritten."""

    def apply(value: bytes | None) -> bytes | Refusal:
        try:
            return change(value)
        except Malformed as error:
            return Refusal(f"the value is of another version: {error.what}", value)

    return apply
