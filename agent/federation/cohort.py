"""The sites, and regions, of one round as its aggregator knows them: who is waited for, whose update is here.

Rule: what is counted is here. An update that is to be counted is fetched first, with the parameters that it
started from if those are not the round's own; both stay until the round is over. An update that is cut into
parts is the exception: who makes the mean of a range fetches the parts of it, and says so.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from agent.federation.custody import Custody
from agent.federation.deadline import Paces, patience_s
from agent.federation.desk import Desk, Surroundings
from agent.federation.events import Doubt, FetchBlob, Progressed
from agent.federation.lateness import late_by
from agent.federation.region import late_by as region_late_by
from agent.federation.region import party
from agent.federation.value import Contributions, JobValue, blob_digest
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.training.ranges import parts_of
from agent.wire.documents import Job
from agent.wire.mesh import Cut, Offer, OfferReply
from agent.wire.schema import pack

INVITE_TIMEOUT_S = 5.0
FETCH_TIMEOUT_S = 20.0
"""Should nothing ever be heard of a fetch."""
FETCH_RETRY_S = 0.2
RETRY_MAX_S = 8.0
FETCHES_COUNTED_MAX = 8
DOUBTED_MAX = 8
"""Of the last that a round waits for: one packet each, once a round."""
LEFT_LOOKED_AT = 64
"""While more than so many are not here, it is not looked who of them is still waited for: each look goes over the
whole round, and at every arrival of a thousand that is a second."""
State = Literal["invited", "training", "offered", "fetched", "withdrawn", "out"]


@dataclass(slots=True)
class Entry:
    """What the aggregator knows of one site, or region, in this round."""

    state: State
    site: SiteId
    """Who has offered, or may."""
    region: str = ""
    offer: Offer | None = None
    reason: str = ""
    fetches: int = 0
    late_by: int = 0
    """Rounds between the one that its update was made for and this one."""

    @property
    def blobs(self) -> tuple[Digest, ...]:
        """What has to be here to count it; of one that is cut nothing: others fetch its parts."""
        if self.offer is None or self.offer.parts:
            return ()
        return (self.offer.update, self.offer.base) if self.late_by else (self.offer.update,)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a round is."""

    fetched: tuple[SiteId, ...]
    """Whose updates are here, in the order of their ids."""
    open: tuple[SiteId, ...]
    """Who is still waited for."""
    close_at: float
    """When the round goes on without them."""


class Cohort:
    """Collects the updates of one round after the other."""

    def __init__(
        self, job: Job, me: SiteId, desk: Desk, surroundings: Surroundings, custody: Custody,
        known: Callable[[int], Contributions | None],
    ) -> None:  # fmt: skip
        """``known``: what a committed round counted, as far as it was read here."""
        self._job, self._me, self._desk = job, me, desk
        self._surroundings, self._custody, self._known = surroundings, custody, known
        self._regions = {region.name: party(region.name) for region in job.regions}
        self.entries: dict[SiteId, Entry] = {}
        """By site; by ``region.party`` for a region."""
        self._paces = Paces()
        self._opened_at = 0.0
        self._arrived_s: list[float] = []
        self._refetch: dict[SiteId, float] = {}
        self._has_doubted = False

    def open(self, now: float) -> None:
        """A round begins."""
        self.entries, self._arrived_s, self._opened_at = {}, [], now
        self._refetch.clear()
        self._has_doubted = False

    def close(self) -> None:
        """The round is over here."""
        self._refetch.clear()

    # --- who takes part --------------------------------------------------------------------------
    def invite(self, now: float, notify: Callable[[SiteId], None]) -> None:
        """Tell every living site that may take part and was not asked yet, by ``notify``."""
        for site in self._surroundings.alive():
            if region := self.region(site):  # whoever speaks for it finds this site
                self.entries.setdefault(self._regions[region], Entry("training", site, region))
                continue
            known = self.entries.get(site)
            if known is not None and known.state != "out":
                continue
            if not self._surroundings.may_hold(self._job, site):
                self.entries[site] = Entry("out", site, reason="its jurisdiction is not allowed")
            elif site == self._me:
                reason = self._surroundings.refusal(self._job)
                self.entries[site] = Entry("out" if reason else "training", site, reason=reason)
            elif known is None or now - self._opened_at > INVITE_TIMEOUT_S:
                self.entries[site] = Entry("invited", site)
                notify(site)

    def region(self, site: SiteId) -> str:
        """The region for which ``site`` may speak; empty if it takes part by itself."""
        name = self._surroundings.region(site) if self._regions else ""
        return name if name in self._regions else ""

    def withdrawn(self, sender: SiteId, reason: str) -> None:
        """The site will have no update for this round; a region has one as soon as any of its sites has."""
        if not self.region(sender):
            self.entries[sender] = Entry("withdrawn", sender, reason=reason[:400])

    def refuse(self, updates: Collection[Digest], reason: str) -> bool:
        """No mean can be made with these; whether one of them was to be counted."""
        guilty = [one for one in self.entries.values() if one.offer and one.offer.update in updates]
        for entry in guilty:
            entry.state, entry.reason = "withdrawn", f"update refused: {reason}"[:400]
        return bool(guilty)

    def cut_otherwise(self, places: Collection[SiteId]) -> set[Digest]:
        """Updates of these that are cut into other parts than most: their files are of another size."""
        offers = {p: offer for p in places if (offer := self.entries[p].offer) is not None}
        own = offers.get(self._me)
        counts = Counter(len(offer.parts) for offer in offers.values())
        # This site's own is right; of as many the larger: nobody can cut a file finer than it goes.
        usual = (
            max(counts, key=lambda parts: (counts[parts], parts)) if own is None else len(own.parts)
        )
        return {offer.update for offer in offers.values() if len(offer.parts) != usual}

    # --- updates ---------------------------------------------------------------------------------
    def collect(
        self, sender: SiteId, offer: Offer, value: JobValue, now: float, *, is_open: bool
    ) -> OfferReply:
        """Take note of an update and fetch it; nothing is promised by ``collected``.

        Args:
            sender: who offers.
            offer: the update.
            value: what the open round starts from.
            now: monotonic time, seconds.
            is_open: more may still be counted.
        """
        region = self.region(sender)
        if not self._may_offer(sender, region, offer):
            return OfferReply("elsewhere")
        late = self._late_by(sender, region, offer, value)
        place = self._regions[region] if region else sender
        entry = self.entries.get(place) or Entry("training", sender, region)
        is_known = entry.offer is not None and entry.offer.update == offer.update
        is_newer_here = entry.offer is not None and not entry.late_by and not is_known
        if region and entry.state == "fetched" and entry.offer is not None and not is_known:
            # It says at least as much: whoever made it was told that it is here, and offers it no more.
            is_newer_here = entry.offer.until >= offer.until
            late = None if is_newer_here else late
        if late is None or (not is_open and not is_known) or (late and is_newer_here):
            return OfferReply("stale")
        if is_open:
            self.entries[place] = entry
            was_from, entry.site = entry.site, sender
            # What is here is here; what was refused stays as bad as it is.
            if not is_known or (entry.state == "offered" and was_from != sender):
                self._take(place, entry, offer, late, now)
        return OfferReply("collected")

    def _may_offer(self, sender: SiteId, region: str, offer: Offer) -> bool:
        """A region speaks with one voice, of as many rounds as it may make alone; nobody else for one."""
        if not self._surroundings.may_hold(self._job, sender) or not self._is_cut_right(offer):
            return False
        if not region:
            return not offer.until
        return 0 < offer.until - offer.after <= 1 + self._job.local_rounds_max

    def _is_cut_right(self, offer: Offer) -> bool:
        most = parts_of(self._job)
        if most == 1 or not offer.parts:
            return most == 1 and not offer.parts
        return len(offer.parts) <= most and offer.update == blob_digest(pack(Cut(offer.parts)))

    def _take(self, place: SiteId, entry: Entry, offer: Offer, late: int, now: float) -> None:
        entry.state, entry.offer, entry.late_by, entry.fetches = "offered", offer, late, 0
        for blob in entry.blobs:  # this site's own, too: it may make a newer one meanwhile
            self._custody.borrow(blob)
        if all(self._surroundings.is_held(blob) for blob in entry.blobs):
            self._fetched(place, entry, now)
        else:
            self._fetch(place, entry, now)

    def _late_by(self, sender: SiteId, region: str, offer: Offer, value: JobValue) -> int | None:
        """How many rounds late an update is; None: this round may not count it."""
        open_round, most = value.round + 1, self._job.staleness_max
        if offer.round == open_round and offer.base == value.parameters:
            return 0
        if region:
            return region_late_by(region, offer, open_round, most, self._known)
        return late_by(sender, offer.round, offer.base, open_round, most, self._known)

    def blob_arrived(self, digest: Digest, now: float) -> None:
        """A blob is here; an update may be complete."""
        for place, entry in self.entries.items():
            if entry.state != "offered" or digest not in entry.blobs:
                continue
            if all(one == digest or self._surroundings.is_held(one) for one in entry.blobs):
                self._refetch.pop(place, None)
                self._fetched(place, entry, now)

    def blob_missing(self, digest: Digest, now: float) -> None:
        """It cannot be had just now: try again, less and less often."""
        for place, entry in self.entries.items():
            if entry.state == "offered" and digest in entry.blobs:
                self._refetch[place] = now + min(FETCH_RETRY_S * 2**entry.fetches, RETRY_MAX_S)

    def unreachable(self, updates: Collection[Digest], now: float) -> None:
        """Parts of these could not be had: they wait until whoever made them is seen again."""
        for place, entry in self.entries.items():
            if entry.state == "fetched" and entry.offer and entry.offer.update in updates:
                entry.state = "offered"
                entry.fetches = min(entry.fetches + 1, FETCHES_COUNTED_MAX)
                self._refetch[place] = now + min(FETCH_RETRY_S * 2**entry.fetches, RETRY_MAX_S)

    def _fetch(self, place: SiteId, entry: Entry, now: float) -> None:
        if entry.offer is not None and entry.offer.parts:
            if entry.site in self._surroundings.alive():
                self._fetched(place, entry, now)
            else:
                self._refetch[place] = now + RETRY_MAX_S
            return
        missing = [blob for blob in entry.blobs if not self._surroundings.is_held(blob)]
        entry.fetches = min(entry.fetches + 1, FETCHES_COUNTED_MAX)
        self._refetch[place] = now + FETCH_TIMEOUT_S
        self._desk.emit(*(FetchBlob(blob, (entry.site,)) for blob in missing))

    def _fetched(self, place: SiteId, entry: Entry, now: float) -> None:
        entry.state = "fetched"
        was_counted_on = bool(entry.fetches and not entry.blobs)
        if not (entry.late_by or was_counted_on):  # those say nothing of how long this round takes
            self._arrived_s.append(now - self._opened_at)
            self._paces.arrived(place, now - self._opened_at)
        self._desk.emit(Progressed())
        self._doubt_the_last()

    def _doubt_the_last(self) -> None:
        """Once most have come: a site whose process was killed is found out before its turn to be probed."""
        if self._has_doubted or len(self.entries) - len(self._arrived_s) > LEFT_LOOKED_AT:
            return
        open_ = self.standing().open
        if len(open_) > min(DOUBTED_MAX, len(self._arrived_s)):
            return
        self._has_doubted = True
        entries = (self.entries[place] for place in open_)
        self._desk.emit(*(Doubt(one.site) for one in entries if one.site != self._me))

    # --- how far it is ---------------------------------------------------------------------------
    def standing(self) -> Standing:
        """Who is here, who is waited for, and how long."""
        alive = self._places(self._surroundings.alive())
        fetched = sorted(place for place, one in self.entries.items() if one.state == "fetched")
        open_ = tuple(
            place
            for place, entry in self.entries.items()
            if entry.state in ("invited", "training", "offered") and place in alive
        )
        wait_s = patience_s(self._arrived_s, self._paces.of(open_)) if open_ else 0.0
        close_at = self._opened_at + min(wait_s, self._job.round_timeout_s)
        return Standing(tuple(fetched), open_, close_at)

    def _places(self, alive: Mapping[SiteId, float]) -> set[SiteId]:
        if not self._regions:
            return set(alive)
        return {self._regions.get(self._surroundings.region(site), site) for site in alive}

    def closed(self, standing: Standing, now: float) -> None:
        """The round goes on with who is here."""
        self._paces.closed(standing.open, now - self._opened_at)

    def woke(self, now: float, *, is_open: bool) -> None:
        """Fetch again what is due."""
        for place in [place for place, at in self._refetch.items() if now >= at]:
            del self._refetch[place]
            entry = self.entries.get(place)
            if entry is not None and entry.state == "offered" and is_open:
                self._fetch(place, entry, now)

    def wake_at(self) -> float:
        """When the next fetch is due again."""
        return min(self._refetch.values(), default=NEVER)
