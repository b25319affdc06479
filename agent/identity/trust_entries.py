"""Entries of the trust log: the actions, what is signed, and the one packed form.

Rule: an entry has exactly one packed form, and its hash covers what is signed and nothing else, so
that no relay can make two entries out of one.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.foundation.errors import Malformed
from agent.identity.certificates import key_id
from agent.wire.limits import TRUST_ENTRIES_MAX, TRUST_ENTRY_BYTES_MAX
from agent.wire.records import Counter, Identifier, Name, Site
from agent.wire.schema import AtMost, Length, Range, Tagged, pack, unpack

HEIGHT_MAX = TRUST_ENTRIES_MAX
ENTRY_BYTES_MAX = TRUST_ENTRY_BYTES_MAX

_DOMAIN = b"atoll trust entry 1\0"
"""Starts with a byte that no packed document or record starts with, so a signature fits one use."""

Der = Annotated[bytes, AtMost(2048)]
Vocabulary = Annotated[tuple[Name, ...], AtMost(64)]
Holder = Annotated[bytes, AtMost(32)]
"""The site that keeps an issuer's key, so that a person finds it by name; decides nothing."""
MEND_REVOKED_MAX = 200
"""A mend that restates this many revocations fits ``ENTRY_BYTES_MAX``."""


@dataclass(frozen=True, slots=True)
class Genesis:
    """The cluster exists."""

    root: Der
    issuer: Der
    admin: Identifier
    """Raw Ed25519 public key."""
    jurisdictions: Vocabulary
    site: Holder = b""


@dataclass(frozen=True, slots=True)
class AddIssuer:
    """This certificate's holder may admit and renew."""

    certificate: Der
    site: Holder = b""


@dataclass(frozen=True, slots=True)
class RemoveIssuer:
    """This issuer (SHA-256 of its SPKI) and every certificate it signed are refused."""

    issuer: Identifier


@dataclass(frozen=True, slots=True)
class AddAdmin:
    """This key (raw Ed25519) may sign documents and revocations."""

    key: Identifier


@dataclass(frozen=True, slots=True)
class RemoveAdmin:
    """This admin (SHA-256 of its SPKI) may sign nothing more."""

    admin: Identifier


@dataclass(frozen=True, slots=True)
class RevokeSite:
    """This site's key is refused, whatever certificate it shows."""

    site: Site
    reason: Annotated[str, AtMost(200)] = ""
    name: Name = ""
    """What the site was called; nobody who refuses it need remember its certificate."""


@dataclass(frozen=True, slots=True)
class SetJurisdictions:
    """The labels that issuers may put into certificates; empty = any."""

    jurisdictions: Vocabulary


@dataclass(frozen=True, slots=True)
class SetGroup:
    """These jurisdictions may be named together in labels; without members there is no such group."""

    name: Name
    members: Vocabulary


@dataclass(frozen=True, slots=True)
class MendFork:
    """The entry before this one is in the log, and nothing else of its height or above is."""

    revoked: Annotated[tuple[Identifier, ...], AtMost(MEND_REVOKED_MAX)]
    """What only the dropped branch revoked: it stays revoked."""


Action = (
    Genesis
    | AddIssuer
    | RemoveIssuer
    | AddAdmin
    | RemoveAdmin
    | RevokeSite
    | SetJurisdictions
    | MendFork
    | SetGroup
)
ACTIONS = Tagged(
    {
        1: Genesis,
        2: AddIssuer,
        3: RemoveIssuer,
        4: AddAdmin,
        5: RemoveAdmin,
        6: RevokeSite,
        7: SetJurisdictions,
        8: MendFork,
        9: SetGroup,
    }
)


@dataclass(frozen=True, slots=True)
class UnsignedEntry:
    """What the author signs; its hash is the entry's."""

    height: Annotated[int, Range(1, HEIGHT_MAX)]
    previous: Identifier
    """Hash of the entry before; the cluster id for the genesis."""
    author: Identifier
    """The cluster id for the root, otherwise the admin's id (SHA-256 of its SPKI)."""
    at_ms: Counter
    """Unix time, for a person; decides nothing."""
    action: Annotated[bytes, AtMost(ENTRY_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Entry:
    """One link of the chain."""

    content: UnsignedEntry
    signature: Annotated[bytes, Length(64)]


def seal_entry(
    height: int, previous: bytes, action: Action, key: Ed25519PrivateKey, now: datetime
) -> bytes:
    """The packed entry at ``height`` after ``previous``, signed with ``key``."""
    content = UnsignedEntry(
        height=height,
        previous=previous,
        author=key_id(key.public_key()),
        at_ms=int(now.timestamp() * 1000),
        action=ACTIONS.pack(action),
    )
    return pack(Entry(content, key.sign(_DOMAIN + pack(content))))


def read_entry(data: bytes) -> tuple[Entry, Action]:
    """The entry and its action; says nothing about the signature.

    Raises:
        Malformed: not an entry, or not in its one packed form.
    """
    entry = unpack(Entry, data, ENTRY_BYTES_MAX)
    if pack(entry) != data:
        # A relay could otherwise append fields, change nothing that is signed, and fake a fork.
        raise Malformed("trust log entry is not in its one packed form")
    action: Action = ACTIONS.unpack(entry.content.action, ENTRY_BYTES_MAX)
    return entry, action


def is_signed(entry: Entry, key: Ed25519PublicKey) -> bool:
    """Whether ``key`` signed the entry."""
    try:
        key.verify(entry.signature, _DOMAIN + pack(entry.content))
    except InvalidSignature:
        return False
    return True


def hash_of(content: UnsignedEntry) -> bytes:
    """The hash that the next entry names."""
    return hashlib.sha256(_DOMAIN + pack(content)).digest()


def revocation_of(action: Action) -> frozenset[bytes]:
    """The ids that an action revokes."""
    match action:
        case RevokeSite():
            return frozenset((bytes(action.site),))
        case RemoveIssuer():
            return frozenset((action.issuer,))
        case MendFork():
            return frozenset(action.revoked)
        case _:
            return frozenset()
