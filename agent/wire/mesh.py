"""Calls between sites over mutual TLS (control port): one request, one reply, MessagePack bodies.

Each is ``POST /mesh/1/call`` with ``CALLS.pack(request)``; the answer is ``REPLIES.pack(reply)``.
The caller is who its certificate says; no message names its sender.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from agent.wire.audit import Receipt, Testimony
from agent.wire.documents import RANGES_MAX, BlobDigest, Document, Key, Stamp
from agent.wire.limits import (
    DOCUMENTS_MAX,
    MEMBERS_MAX,
    REGISTER_VALUE_BYTES_MAX,
    TRUST_ENTRIES_MAX,
    TRUST_ENTRY_BYTES_MAX,
)
from agent.wire.records import Counter, Identifier, Passport, Signed, Site
from agent.wire.schema import AtMost, Range, Tagged, omitted

JobName = Annotated[str, AtMost(80)]


# --- state sync (anti-entropy) -------------------------------------------------------------------
PRINT_BYTES = 8
"""Of 10,000 documents two look alike once in 10^11 catalogs."""


@dataclass(frozen=True, slots=True)
class MemberHead:
    """How far the caller's knowledge of one member goes."""

    site: Site
    sequence: Counter
    issued_at: Counter = omitted(0)
    """When the passport known of it begins, Unix seconds: a renewed one is worth an introduction too.
    0: not told (older versions)."""


@dataclass(frozen=True, slots=True)
class DocumentHead:
    """How far the caller's knowledge of one document goes."""

    key: Key
    stamp: Stamp
    author: Identifier
    body8: Annotated[bytes, AtMost(8)] = b""
    """First 8 bytes of SHA-256 of the body: two bodies of one author with one stamp still differ."""


TrustEntries = Annotated[tuple[Annotated[bytes, AtMost(TRUST_ENTRY_BYTES_MAX)], ...], AtMost(1024)]
"""Packed entries of the trust log (``agent.identity.trust_entries``), each after those it builds on."""


@dataclass(frozen=True, slots=True)
class TrustHeads:
    """How far the sender's copy of the trust log goes."""

    height: Annotated[int, Range(0, TRUST_ENTRIES_MAX)]
    head: Identifier
    """Hash of the log's last entry."""
    known: Annotated[tuple[Identifier, ...], AtMost(TRUST_ENTRIES_MAX)] = ()
    """Hashes of entries it has, with all that comes before each: the ends of all branches, and marks
    on the way there."""
    is_full: bool = False
    """It can hold no more: do not go on sending."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """A member with the proof of who it is."""

    passport: Passport
    record: Signed


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Everything I know, as heads, and who I am."""

    me: Introduction
    members: Annotated[tuple[MemberHead, ...], AtMost(MEMBERS_MAX)]
    documents: Annotated[tuple[DocumentHead, ...], AtMost(DOCUMENTS_MAX)]
    trust: TrustHeads | None = None
    """None: an older version, which is sent no entries."""
    prints: Annotated[bytes, AtMost(PRINT_BYTES * DOCUMENTS_MAX)] = omitted(b"")
    """In place of ``documents``, to who has said ``knows_prints``: the first 8 bytes of SHA-256 of each packed
    head. Thousands of heads take too long to decode, in every sync."""


@dataclass(frozen=True, slots=True)
class SyncReply:
    """What you lack, and the heads of what I lack (send it with Push)."""

    members: Annotated[tuple[Introduction, ...], AtMost(MEMBERS_MAX)]
    documents: Annotated[tuple[Document, ...], AtMost(DOCUMENTS_MAX)]
    wanted_members: Annotated[tuple[Site, ...], AtMost(MEMBERS_MAX)]
    wanted_documents: Annotated[tuple[Key, ...], AtMost(DOCUMENTS_MAX)]
    has_more: bool = False
    """This is a page: ask again."""
    trust: TrustHeads | None = None
    """Before ``trust_entries``: send what I lack with Push."""
    trust_entries: TrustEntries = ()
    """What your trust log lacks; taken before anything else of this message."""
    wall_ms: Counter = omitted(0)
    """What my clock shows (Unix time), so that you can judge yours; 0: an older version."""
    wanted_prints: Annotated[bytes, AtMost(PRINT_BYTES * DOCUMENTS_MAX)] = omitted(b"")
    """In place of ``wanted_documents``, where prints were sent."""
    knows_prints: bool = omitted(False)
    """Send prints the next time."""


@dataclass(frozen=True, slots=True)
class Push:
    """What you said you lack."""

    members: Annotated[tuple[Introduction, ...], AtMost(MEMBERS_MAX)]
    documents: Annotated[tuple[Document, ...], AtMost(DOCUMENTS_MAX)]
    trust_entries: TrustEntries = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The call was carried out."""


@dataclass(frozen=True, slots=True)
class Declined:
    """The call was understood and not carried out."""

    reason: Annotated[str, AtMost(400)]


# --- the register (CASPaxos) ---------------------------------------------------------------------
@dataclass(frozen=True, slots=True, order=True)
class Ballot:
    """Totally ordered; ``proposer`` is unique for ever (site, boot epoch, nonce)."""

    number: Annotated[int, Range(0, 2**62)]
    proposer: Annotated[bytes, AtMost(48)]


Value = Annotated[bytes, AtMost(REGISTER_VALUE_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Prepare:
    """CASPaxos phase 1."""

    job: JobName
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Promise:
    """The acceptor will refuse lower ballots; ``value`` is what it accepted last, under ``accepted``."""

    ballot: Ballot
    accepted: Ballot | None
    value: Value | None


@dataclass(frozen=True, slots=True)
class Accept:
    """CASPaxos phase 2."""

    job: JobName
    ballot: Ballot
    value: Value


@dataclass(frozen=True, slots=True)
class Accepted:
    """The value is on this acceptor's disk."""

    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Conflict:
    """A higher ballot was promised here."""

    promised: Ballot


@dataclass(frozen=True, slots=True)
class Read:
    """What did you accept last? A majority with one ballot is a committed value."""

    job: JobName


@dataclass(frozen=True, slots=True)
class ReadReply:
    """The last accepted value, if any."""

    accepted: Ballot | None
    value: Value | None
    generation: Counter = omitted(0)
    """Of the holders that this site knows to be the last ones that were put in place, or are to be."""
    members: Annotated[tuple[Site, ...], AtMost(5)] = omitted(())
    others: Annotated[tuple[Site, ...], AtMost(5)] = omitted(())
    end: Value | None = omitted(None)
    """The job's last value, if this site has read that it was committed; whether it held the register or not."""


# --- rounds --------------------------------------------------------------------------------------
Parts = Annotated[tuple[BlobDigest, ...], AtMost(RANGES_MAX)]


@dataclass(frozen=True, slots=True)
class Cut:
    """Body of a blob: the parts of an update, in their order."""

    parts: Parts


@dataclass(frozen=True, slots=True)
class Notice:
    """The job's register has moved (a hint: the receiver reads the register before it believes it)."""

    job: JobName
    epoch: Counter
    round: Counter
    """Rounds committed so far."""
    aggregator: Site
    generation: Counter = omitted(0)
    """Of the register's holders, by a committed value (``election.roster``)."""
    members: Annotated[tuple[Site, ...], AtMost(5)] = omitted(())
    """Who holds the register; empty: those pinned in the job."""
    others: Annotated[tuple[Site, ...], AtMost(5)] = omitted(())


@dataclass(frozen=True, slots=True)
class NoticeReply:
    """Whether this site takes part in the job, or why not."""

    participates: bool
    reason: Annotated[str, AtMost(400)] = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """My update for ``round`` (counted from 1), computed from the parameters ``base``; pull it from me."""

    job: JobName
    epoch: Counter
    round: Counter
    base: BlobDigest
    update: BlobDigest
    samples: Annotated[int, Range(1, 2**40)]
    metrics: Annotated[tuple[tuple[Annotated[str, AtMost(32)], float], ...], AtMost(16)]
    """Of the base parameters on this site's hold-out, e.g. ("accuracy", 0.91), ("holdout", 1200.0)."""
    after: Counter = omitted(0)
    until: Counter = omitted(0)
    """A region's: made of its own rounds from the one after ``after`` up to this one; 0: a site's."""
    parts: Parts = omitted(())
    """Where several sites make a round's mean: blobs that are the update's file together, each to be had alone.
    ``update`` is then a blob that names them (``Cut``)."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """I shall have no update for this round (the attempt failed, data is gone)."""

    job: JobName
    epoch: Counter
    round: Counter
    reason: Annotated[str, AtMost(400)]


@dataclass(frozen=True, slots=True)
class OfferReply:
    """``counted``: collected; ``stale``: the job moved on, read the register; ``elsewhere``: not aggregator."""

    outcome: Literal["collected", "stale", "elsewhere"]


End = Literal["finished", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Buried:
    """The job is over, and this is all that is left of it here; see ``agent.federation.burial``."""

    job: JobName
    end: End
    round: Counter
    result: BlobDigest | None
    """The exported model if there is one, else the last parameters."""
    model_bytes: Counter
    """Of the exported model; 0: ``result`` is none."""


@dataclass(frozen=True, slots=True)
class Summand:
    """One part of one update, as it is to be counted."""

    part: BlobDigest
    site: Site
    """Who has it."""
    weight: Annotated[int, Range(1, 2**40)]
    started_from: BlobDigest | None
    """Older parameters than the round's: what the update changed is counted then."""


@dataclass(frozen=True, slots=True)
class SumRange:
    """Fetch these parts of a round's updates and make that part of their mean.

    Answered when it is made; whoever asks the same again joins what is under way.
    """

    job: JobName
    epoch: Counter
    round: Counter
    base: BlobDigest
    """The parameters that the round started from."""
    part: Annotated[int, Range(0, RANGES_MAX - 1)]
    parts: Annotated[int, Range(1, RANGES_MAX)]
    summands: Annotated[tuple[Summand, ...], AtMost(MEMBERS_MAX)]


@dataclass(frozen=True, slots=True)
class RangeSummed:
    """It is made: pull it from me."""

    range: BlobDigest


@dataclass(frozen=True, slots=True)
class RangeNotSummed:
    """These parts make it impossible; nothing is made."""

    missing: Annotated[tuple[BlobDigest, ...], AtMost(MEMBERS_MAX)]
    """Could not be had."""
    spoiled: Annotated[tuple[BlobDigest, ...], AtMost(MEMBERS_MAX)]
    """Cannot be counted."""
    reason: Annotated[str, AtMost(400)]


@dataclass(frozen=True, slots=True)
class Keep:
    """Fetch and keep these blobs durably; I am about to commit a round that names them."""

    job: JobName
    blobs: Annotated[tuple[BlobDigest, ...], AtMost(8)]


@dataclass(frozen=True, slots=True)
class Watch:
    """Answer when the job moves beyond (epoch, round) or after 20 s; a broken call means: look."""

    job: JobName
    epoch: Counter
    round: Counter


@dataclass(frozen=True, slots=True)
class Have:
    """Which of these blobs do you hold completely?"""

    blobs: Annotated[tuple[BlobDigest, ...], AtMost(256)]


@dataclass(frozen=True, slots=True)
class HaveReply:
    """One answer for each question, in order."""

    held: Annotated[tuple[bool, ...], AtMost(256)]


@dataclass(frozen=True, slots=True)
class IssuerKeyWanted:
    """An operator thinks of you as an issuer: have a key ready, and say what is to be certified."""


@dataclass(frozen=True, slots=True)
class IssuerKeyOffer:
    """A packed ``IssuerRequest`` (``agent.identity.issuing``)."""

    request: Annotated[bytes, AtMost(TRUST_ENTRY_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Testify:
    """This is where my audit log ends: remember it."""

    testimony: Testimony


@dataclass(frozen=True, slots=True)
class Witnessed:
    """It is on my disk."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class ReceiptWanted:
    """What do you know of where this site's audit log ends?"""

    site: Site


@dataclass(frozen=True, slots=True)
class ReceiptKnown:
    """The furthest end that I have witnessed."""

    receipt: Receipt | None


Call = (
    SyncRequest | Push | Prepare | Accept | Read | Notice | Offer | Withdraw | Keep | Watch | Have
    | IssuerKeyWanted | Testify | ReceiptWanted | SumRange
)  # fmt: skip
Reply = (
    SyncReply
    | Done
    | Declined
    | Promise
    | Accepted
    | Conflict
    | ReadReply
    | NoticeReply
    | OfferReply
    | HaveReply
    | IssuerKeyOffer
    | Witnessed
    | ReceiptKnown
    | Buried
    | RangeSummed
    | RangeNotSummed
)
CALLS = Tagged(
    {
        1: SyncRequest,
        2: Push,
        3: Prepare,
        4: Accept,
        5: Read,
        6: Notice,
        7: Offer,
        8: Withdraw,
        9: Keep,
        10: Watch,
        11: Have,
        12: IssuerKeyWanted,
        13: Testify,
        14: ReceiptWanted,
        15: SumRange,
    }
)
REPLIES = Tagged(
    {
        1: SyncReply,
        2: Done,
        3: Declined,
        4: Promise,
        5: Accepted,
        6: Conflict,
        7: ReadReply,
        8: NoticeReply,
        9: OfferReply,
        10: HaveReply,
        11: IssuerKeyOffer,
        12: Witnessed,
        13: ReceiptKnown,
        14: Buried,
        15: RangeSummed,
        16: RangeNotSummed,
    }
)
