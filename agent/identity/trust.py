"""The trust log: who may issue, who may administer, and which keys are revoked.

Rule: the log only grows. Every entry names the hash of the one before and is signed by a key that
the log itself already trusts; the first (genesis) by the root, whose hash is the cluster's id.

=====================  ===============  ============================================================
action                 signed by        afterwards
=====================  ===============  ============================================================
Genesis                root             the first issuer, the first admin, the vocabulary
AddIssuer              root             one more issuer may admit and renew
RemoveIssuer           root             what it signed is revoked, for ever
AddAdmin, RemoveAdmin  root             who may sign catalog documents and revocations
SetJurisdictions       root             the labels an issuer may use; empty = any
RevokeSite             root or admin    that key is refused, for ever
MendFork               root             the branch it names is the log, what conflicts is settled
=====================  ===============  ============================================================

Fork: two different entries of one height, both signed by a key trusted now. Then the log freezes:
nothing more is appended but the root's MendFork, the evidence is kept, and the revocations of *both*
branches hold for good, because a key that anybody trusted has revoked must not come back. A removed
admin cannot freeze the log.

The idea is that of a key authority log (Tailscale's tailnet lock), reduced to one root.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import TypeVar, assert_never

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.foundation.errors import (
    AtollError,
    Corruption,
    Malformed,
    Refused,
    RemoteFault,
    UsageError,
)
from agent.foundation.ids import SiteId, short
from agent.foundation.writes import Delete, Put, Write
from agent.identity.certificates import key_id, read_issuer, read_root
from agent.identity.claims import is_jurisdiction
from agent.identity.trust_entries import (
    HEIGHT_MAX,
    Action,
    AddAdmin,
    AddIssuer,
    Entry,
    Genesis,
    MendFork,
    RemoveAdmin,
    RemoveIssuer,
    RevokeSite,
    SetJurisdictions,
    hash_of,
    is_signed,
    read_entry,
    revocation_of,
    seal_entry,
)

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Fork:
    """Proof that two trusted keys, or one twice, continued the log in different ways."""

    height: int
    ours: bytes
    theirs: bytes
    """The two entries, packed."""


@dataclass(frozen=True, slots=True)
class _Trust:
    """What the applied entries add up to; replaced whole by each."""

    root: bytes = b""
    root_key: Ed25519PublicKey | None = None
    issuers: Mapping[bytes, bytes] = field(default_factory=dict)
    admins: Mapping[bytes, Ed25519PublicKey] = field(default_factory=dict)
    revoked: frozenset[bytes] = frozenset()
    jurisdictions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Link:
    """One applied entry and the state after it."""

    data: bytes
    digest: bytes
    after: _Trust


class TrustLog:
    """One site's copy of the trust log."""

    def __init__(self, cluster: bytes) -> None:
        """An empty log that accepts only the genesis of ``cluster``."""
        self._cluster = cluster
        self._links: list[_Link] = []
        self._fork: Fork | None = None
        self._settled = 0  # height of the last MendFork: conflicts up to there are decided
        self._revoked: frozenset[bytes] = frozenset()  # of all branches ever seen

    @classmethod
    def restore(cls, cluster: bytes, rows: Iterable[tuple[int, bytes]]) -> "TrustLog":
        """The log from the rows (height, entry) of table ``trust``, in any order.

        Raises:
            Corruption: a row is damaged or missing. The rows can be fetched again from any member.
        """
        log = cls(cluster)
        try:
            # Evidence has negative height and is judged after the chain it contradicts.
            for _, entry in sorted(rows, key=lambda row: (row[0] < 0, abs(row[0]))):
                log.append(entry)
        except (RemoteFault, UsageError) as error:
            raise Corruption(
                f"trust log entry {log.height + 1} is damaged",
                why=str(error),
                mend="empty the table trust; the log is fetched again from a member",
            ) from error
        return log

    @property
    def cluster(self) -> bytes:
        """The cluster this log is of."""
        return self._cluster

    @property
    def height(self) -> int:
        """Entries applied; 0 before the genesis."""
        return len(self._links)

    @property
    def head(self) -> bytes:
        """Hash of the last entry; the cluster id before the genesis."""
        return self._links[-1].digest if self._links else self._cluster

    @property
    def root(self) -> bytes:
        """The root certificate (DER); empty before the genesis."""
        return self._trust.root

    @property
    def fork(self) -> Fork | None:
        """Why the log is frozen, or None."""
        return self._fork

    @property
    def jurisdictions(self) -> tuple[str, ...]:
        """The labels issuers may use; empty = any."""
        return self._trust.jurisdictions

    def issuers(self) -> Mapping[bytes, bytes]:
        """Certificate (DER) by id of the issuers that may admit and renew."""
        return self._trust.issuers

    def admins(self) -> Mapping[bytes, Ed25519PublicKey]:
        """Public key by id of those who may sign documents and revocations."""
        return self._trust.admins

    def revoked(self) -> frozenset[bytes]:
        """Ids (SHA-256 of SPKI) of revoked sites and removed issuers; never shrinks."""
        return self._revoked

    def revoked_below(self, height: int) -> frozenset[bytes]:
        """What the entries below ``height`` revoke."""
        return self._links[height - 2].after.revoked if height > 1 else frozenset()

    def entries(self, after: int = 0) -> tuple[bytes, ...]:
        """The packed entries above height ``after``, then the evidence of a fork if there is one."""
        evidence = () if self._fork is None else (self._fork.theirs,)
        return tuple(link.data for link in self._links[after:]) + evidence

    def append(self, data: bytes) -> tuple[Write, ...]:
        """Apply one packed entry; the writes that make it durable, none if it is known already.

        A proof of a fork is not an error: it freezes the log (see ``fork``) and is written too.

        Raises:
            Malformed: not an entry.
            Refused: not signed by a key that may, does not link to what is known here (ask for the
                entries between), or the log is frozen.
        """
        entry, action = read_entry(data)
        content, digest = entry.content, hash_of(entry.content)
        if content.height <= self.height and self._links[content.height - 1].digest == digest:
            return ()
        if content.height > self.height + 1:
            raise Refused(
                f"trust log entry {content.height} does not fit",
                why=f"the last one known here is {self.height}",
                mend="fetch the entries between",
            )
        self._check_author(entry, action)
        if isinstance(action, MendFork) and content.height > self._settled:
            return self._mend(entry, action, data)
        if content.height <= self.height or content.previous != self.head:
            return self._freeze(content.height, action, data)
        if self._fork is not None:
            raise Refused(
                "the trust log is frozen",
                why=f"two entries of height {self._fork.height} exist",
                mend="decide with the root key which one holds (MendFork); remove who signed both",
            )
        self._push(data, digest, action)
        return (Put("trust", {"height": content.height, "entry": data}),)

    @property
    def _trust(self) -> _Trust:
        return self._links[-1].after if self._links else _Trust()

    def _push(self, data: bytes, digest: bytes, action: Action) -> None:
        self._links.append(_Link(data, digest, _applied(self._trust, action, self._revoked)))
        self._revoked |= revocation_of(action)

    def _check_author(self, entry: Entry, action: Action) -> None:
        content, trust = entry.content, self._trust
        if isinstance(action, Genesis):
            cluster, key = read_root(action.root)
            if not cluster == self._cluster == content.previous or content.height != 1:
                raise Refused("this is the genesis of another cluster's trust log")
            allowed: Ed25519PublicKey | None = key
        else:
            allowed = trust.root_key
        if content.author != self._cluster:
            allowed = trust.admins.get(content.author) if isinstance(action, RevokeSite) else None
        if allowed is None:
            raise Refused(
                f"{type(action).__name__} by {short(content.author)} is not allowed",
                why="only the root may sign it, and an admin only revocations",
            )
        if not is_signed(entry, allowed):
            raise Refused(f"trust log entry {content.height} is not signed by its author")

    def _freeze(self, height: int, action: Action, data: bytes) -> tuple[Write, ...]:
        self._revoked |= revocation_of(action)
        if height <= self._settled or (self._fork is not None and self._fork.height <= height):
            return ()
        put = Put("trust", {"height": -height, "entry": data})
        former, self._fork = (
            self._fork,
            Fork(height, self._links[min(height, self.height) - 1].data, data),
        )
        # The lowest evidence is kept: it is the one that can be mended.
        return (put,) if former is None else (Delete("trust", (-former.height,)), put)

    def _mend(self, entry: Entry, action: MendFork, data: bytes) -> tuple[Write, ...]:
        height, kept = entry.content.height, entry.content.previous
        former, fork = self._links, self._fork
        if height < 2:  # noqa: PLR2004 - nothing stands before the genesis
            raise Refused("a trust log cannot be mended before its genesis")
        try:
            if former[height - 2].digest == kept:
                self._links = former[: height - 1]
            else:
                adopted = self._evidence(height - 1, kept)
                theirs, theirs_action = read_entry(adopted)
                self._links = former[: height - 2]
                self._push(adopted, hash_of(theirs.content), theirs_action)
            self._push(data, hash_of(entry.content), action)
        except AtollError:
            self._links = former
            raise
        self._fork, self._settled = None, height
        gone = [*range(height + 1, len(former) + 1), *(() if fork is None else (-fork.height,))]
        return (
            *(Delete("trust", (row,)) for row in gone),
            *(
                Put("trust", {"height": row, "entry": self._links[row - 1].data})
                for row in (height - 1, height)
            ),
        )

    def _evidence(self, height: int, digest: bytes) -> bytes:
        """The other branch's entry, if it is known here and continues the part both share."""
        if self._fork is not None and self._fork.height == height:
            content = read_entry(self._fork.theirs)[0].content
            shared = self._links[height - 2].digest if height > 1 else self._cluster
            if hash_of(content) == digest and content.previous == shared:
                return self._fork.theirs
        raise Refused(
            f"the trust log cannot be mended at {height}",
            why="the entry to keep is not known here",
            mend="fetch the entries of that branch first",
        )


def _applied(trust: _Trust, action: Action, revoked: frozenset[bytes]) -> _Trust:  # noqa: C901, PLR0911 - one case for each action
    gone = trust.revoked | revocation_of(action)
    match action:
        case Genesis():
            if trust.root:
                raise Refused("a trust log has one genesis")
            _check_vocabulary(action.jurisdictions)
            admin = _public(action.admin)
            return _Trust(
                root=action.root,
                root_key=read_root(action.root)[1],
                issuers=MappingProxyType({read_issuer(action.issuer, action.root): action.issuer}),
                admins=MappingProxyType({key_id(admin): admin}),
                jurisdictions=action.jurisdictions,
            )
        case AddIssuer():
            issuer = read_issuer(action.certificate, trust.root)
            if issuer in revoked:
                raise Refused(
                    f"issuer {short(issuer)} was removed",
                    why="a removed key never comes back",
                    mend="certify a new issuer key",
                )
            return replace(trust, issuers=_with(trust.issuers, issuer, action.certificate))
        case RemoveIssuer():
            return replace(trust, issuers=_without(trust.issuers, gone), revoked=gone)
        case AddAdmin():
            admin = _public(action.key)
            return replace(trust, admins=_with(trust.admins, key_id(admin), admin))
        case RemoveAdmin():
            return replace(trust, admins=_without(trust.admins, frozenset((action.admin,))))
        case RevokeSite():
            return replace(trust, revoked=gone)
        case SetJurisdictions():
            _check_vocabulary(action.jurisdictions)
            return replace(trust, jurisdictions=action.jurisdictions)
        case MendFork():
            return replace(trust, issuers=_without(trust.issuers, gone), revoked=gone)
        case _:
            assert_never(action)


def sign_entry(log: TrustLog, action: Action, key: Ed25519PrivateKey, now: datetime) -> bytes:
    """The packed next entry of ``log``, signed by the root or an admin; append it next.

    Raises:
        Refused: the key may not sign this action, the log is full or frozen.
    """
    if log.fork is not None or log.height >= HEIGHT_MAX:
        raise Refused(
            "the trust log takes no more entries",
            why="it is frozen" if log.fork else f"it holds {HEIGHT_MAX}",
            mend="mend the fork with the root key" if log.fork else "found a new cluster",
        )
    signer = key_id(key.public_key())
    is_admin = isinstance(action, RevokeSite) and signer in log.admins()
    if signer != log.cluster and not is_admin:
        raise Refused(
            f"{type(action).__name__} cannot be signed with this key",
            why="only the root may, and an admin only revocations",
            mend="use the operator's root key",
        )
    return seal_entry(log.height + 1, log.head, action, key, now)


def sign_revocation(
    log: TrustLog, site: SiteId, reason: str, key: Ed25519PrivateKey, now: datetime
) -> bytes:
    """The packed entry that revokes ``site``, signed by an admin (or the root); append it next."""
    return sign_entry(log, RevokeSite(site, reason[:200]), key, now)


def sign_mend(log: TrustLog, *, keep_ours: bool, root: Ed25519PrivateKey, now: datetime) -> bytes:
    """The packed entry with which the root decides the fork of ``log``; append it at any site.

    Raises:
        Refused: there is no fork, or ``root`` is not the root key.
    """
    fork = log.fork
    if fork is None or key_id(root.public_key()) != log.cluster:
        raise Refused("nothing to mend" if fork is None else "only the root key mends a fork")
    kept, kept_action = read_entry(fork.ours if keep_ours else fork.theirs)
    below = log.revoked_below(fork.height)
    revoked = tuple(sorted(log.revoked() - below - revocation_of(kept_action)))
    return seal_entry(kept.content.height + 1, hash_of(kept.content), MendFork(revoked), root, now)


def _with(table: Mapping[bytes, V], key: bytes, value: V) -> Mapping[bytes, V]:
    return MappingProxyType({**table, key: value})


def _without(table: Mapping[bytes, V], gone: frozenset[bytes]) -> Mapping[bytes, V]:
    return MappingProxyType({key: value for key, value in table.items() if key not in gone})


def _public(raw: bytes) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        raise Malformed("not an Ed25519 public key") from None


def _check_vocabulary(labels: tuple[str, ...]) -> None:
    if not all(is_jurisdiction(label) for label in labels):
        raise Malformed("trust log names an impossible jurisdiction")
