"""Which of a job's blobs this site keeps, for whom, and which have served.

Rule: what the register names, or is about to name, stays on a majority of the committee; everything else
goes as soon as nobody can need it. Blobs are named by content, so one digest may have several reasons
to stay (the mean of a single update *is* that update): ``needs`` is asked before anything is forgotten.

Parameters of the round before the present one stay too: a slower site may be fetching them, and this
site's own trainer may be reading them.
"""

from collections.abc import Callable, Collection, Iterable

from agent.federation.desk import Desk, Surroundings
from agent.federation.events import Answer, FetchBlob, ForgetBlob, Label
from agent.federation.value import Contributions, JobValue
from agent.foundation.ids import Digest, SiteId
from agent.wire.documents import Job
from agent.wire.mesh import Declined, Done, Keep

KEEPING_MAX = 64
"""Keep calls under way; an aggregator has one a committee member, and few aggregators run at once."""
STEPS_REMEMBERED = 8
"""A fetch of older parameters that ends so much later is not worth remembering."""
RETURNED_MAX = 20_000
"""Updates of two rounds of the largest mesh, whose fetch may still be under way."""
GUESTS_MAX = 24
"""Blobs kept for sites that are not the aggregator, as far as is known here: three who may be, of 8 each. Any member
of the mesh may ask, and what it asks for stays until the job is over."""


class Custody:
    """The blobs of one job at one site."""

    def __init__(
        self,
        job: Job,
        me: SiteId,
        desk: Desk,
        surroundings: Surroundings,
        value: Callable[[], JobValue | None],
    ) -> None:
        """``value`` gives the newest committed value that this site has read."""
        self._job, self._me, self._desk, self._surroundings = job, me, desk, surroundings
        self._value = value
        self._keeping: dict[int, tuple[set[Digest], tuple[Digest, ...]]] = {}
        self._step = 0
        """Counts parameters that the register has named: a round has others, and so has a region's that takes
        those of the whole job."""
        self._promised: dict[Digest, int] = {}
        """With the step at which it was."""
        self._history: set[Digest] = set()
        """Of what was promised, what committed rounds name: it stays."""
        self._guests: dict[Digest, None] = {}
        """Of these, what was asked for by sites that are not known to aggregate."""
        self._parameters: dict[Digest, int] = {}
        """By step."""
        self._borrowed: dict[Digest, None] = {}
        self._returned: dict[Digest, None] = {}
        self._made: dict[Digest, None] = {}
        self._has_result = True

    def needs(self, digest: Digest) -> bool:
        """Whether the register names the blob, or will when it moves on."""
        value = self._value()
        if value is not None:
            is_recent = self._parameters.get(digest, self._step - 2) >= self._step - 1
            if digest in self._named_by(value) or (
                is_recent and value.state in ("running", "exporting")
            ):
                return True
        return digest in self._promised or digest in self._borrowed or digest in self._history

    def _named_by(self, value: JobValue) -> set[Digest]:
        """What the register names and is to stay."""
        if self._has_result:
            return value.blobs
        return set() if value.contributions is None else {value.contributions}

    def kept(self) -> set[Digest]:
        """What a commit under way may name, or is made of."""
        recent = (digest for digest, at in self._parameters.items() if at >= self._step - 1)
        asked_for = (blob for _, blobs in self._keeping.values() for blob in blobs)
        return {*self._promised, *self._history, *self._borrowed, *self._made, *recent, *asked_for}

    # --- Keep ------------------------------------------------------------------------------------
    def keep(self, call: int, sender: SiteId, message: Keep) -> None:
        """Answer ``Done`` when the blobs are on this site's disk."""
        if not self._surroundings.may_hold(self._job, self._me):
            self._desk.emit(Answer(call, Declined("the job's residency does not allow it here")))
            return
        self._take_in(sender, message.blobs)
        missing = {blob for blob in message.blobs if not self._surroundings.is_held(blob)}
        if not missing:
            self._kept(call, message.blobs)
        elif len(self._keeping) >= KEEPING_MAX:
            self._desk.emit(Answer(call, Declined(f"{KEEPING_MAX} calls to keep are under way")))
        else:
            self._keeping[call] = missing, message.blobs
            residency = self._job.residency
            self._desk.emit(*(Label(blob, residency) for blob in sorted(missing)))
            self._desk.emit(*(FetchBlob(blob, (sender,)) for blob in sorted(missing)))

    def _take_in(self, sender: SiteId, blobs: tuple[Digest, ...]) -> None:
        """Whoever is not known to aggregate may be about to: but for few of them there is room."""
        value = self._value()
        # From now on, not to be forgotten between its arrival and the answer.
        fresh = [blob for blob in blobs if blob not in self._promised]
        self._promised.update(dict.fromkeys(blobs, self._step))
        if value is not None and value.aggregator == sender:
            for blob in blobs:
                self._guests.pop(blob, None)
            return
        named = set() if value is None else value.blobs
        for blob in blobs:
            if blob not in named and (blob in self._guests or blob in fresh):
                self._guests[blob] = self._guests.pop(blob, None)
        while len(self._guests) > GUESTS_MAX:
            oldest = next(iter(self._guests))
            del self._guests[oldest]
            self._promised.pop(oldest, None)
            self._desk.emit(ForgetBlob(oldest))

    def _kept(self, call: int, blobs: tuple[Digest, ...]) -> None:
        if any(blob not in self._promised for blob in blobs):
            self._desk.emit(*(ForgetBlob(blob) for blob in blobs))
            self._desk.emit(Answer(call, Declined("others have asked for too much since")))
            return
        self._desk.emit(*(Label(blob, self._job.residency) for blob in blobs))
        self._desk.emit(Answer(call, Done()))

    def blob_arrived(self, digest: Digest, _now: float) -> None:
        """Answer who waits for it; forget it if it came too late to be of use."""
        for call, (missing, blobs) in list(self._keeping.items()):
            missing.discard(digest)
            if not missing:
                del self._keeping[call]
                self._kept(call, blobs)
        if self._parameters.get(digest, self._step) < self._step - 1:
            self._desk.emit(ForgetBlob(digest))
        if digest in self._returned:
            del self._returned[digest]
            self._desk.emit(ForgetBlob(digest))

    def blob_missing(self, digest: Digest, _now: float) -> None:
        """Tell the aggregators that wait for it; they ask again."""
        for call, (missing, _) in list(self._keeping.items()):
            if digest in missing:
                del self._keeping[call]
                self._desk.emit(Answer(call, Declined("the blob could not be fetched")))

    # --- parameters, round by round --------------------------------------------------------------
    def restore(self, value: JobValue | None, contents: Iterable[Contributions]) -> None:
        """What this site's database names: forget what has served meanwhile."""
        for content in contents:
            for digest, round_ in (
                (content.base, content.round - 1),
                (content.parameters, content.round),
                (content.carried, content.round),
            ):
                if digest is not None and self._surroundings.is_held(digest):
                    self._parameters[digest] = max(round_, self._parameters.get(digest, -1))
        self._step = max(self._parameters.values(), default=0)
        if value is not None:
            self.moved(value)

    def moved(self, value: JobValue) -> None:
        """The register holds ``value``: parameters before the last ones serve nobody any more."""
        if value.parameters is not None and self._parameters.get(value.parameters) != self._step:
            self._step += 1
        for blob in value.blobs:
            self._guests.pop(blob, None)  # whoever asked has come to aggregate
        for made in (value.parameters, value.carried):
            if made is not None:
                self._parameters[made] = self._step
                self._desk.emit(Label(made, self._job.residency))
        for digest, at in list(self._parameters.items()):
            if at >= self._step - 1:
                continue
            self._promised.pop(digest, None)
            if self._surroundings.is_held(digest):
                self._desk.emit(ForgetBlob(digest))
            if at < self._step - STEPS_REMEMBERED:
                del self._parameters[digest]

    def settled(self, history: Collection[Digest]) -> None:
        """``history`` is what every committed round names: what was promised for others, and is old, goes.

        An aggregator that was overtaken had it kept.
        """
        value = self._value()
        named = set() if value is None else value.blobs
        for digest, at in list(self._promised.items()):
            if digest in history:
                del self._promised[digest]
                self._history.add(digest)
            elif at < self._step - 1 and digest not in named:
                del self._promised[digest]
                self._desk.emit(ForgetBlob(digest))

    # --- the aggregator's ------------------------------------------------------------------------
    def borrow(self, update: Digest) -> None:
        """What an update that is to be counted consists of stays until the round is over here."""
        self._borrowed[update] = None
        self._returned.pop(update, None)
        self._desk.emit(Label(update, self._job.residency))

    def made(self, digest: Digest) -> None:
        """Parameters or a model of this site's own making, which a commit may name."""
        self._made[digest] = None

    def promise(self, digest: Digest) -> None:
        """A small blob that a commit may name: it stays until the whole history is known."""
        self._promised[digest] = self._step

    def give_back(self) -> None:
        """The round is over here: forget borrowed updates, and results that were not committed."""
        for digest in (*self._borrowed, *self._made):
            if self._surroundings.is_held(digest):
                self._desk.emit(ForgetBlob(digest))
            elif len(self._returned) < RETURNED_MAX:
                self._returned[digest] = None
        self._borrowed.clear()
        self._made.clear()

    def end(self, history: Collection[Digest | None], *, has_result: bool = True) -> None:
        """The job is over and its history known: only what the register and the history name stays.

        ``history``: what its rounds name. ``has_result``: what the register names is the job's result; a
        region's is in the whole job's.
        """
        self._has_result = has_result
        value = self._value()
        named = {*history, *(set() if value is None else self._named_by(value))}
        for digest in (*self._parameters, *self._promised, *self._history):
            if digest not in named and self._surroundings.is_held(digest):
                self._desk.emit(ForgetBlob(digest))
        self._promised.clear()
        self._history.clear()
        self._parameters.clear()
