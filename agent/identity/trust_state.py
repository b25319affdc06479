"""What the entries of one path of the trust log add up to.

Rule: the state after an entry depends on that entry and its ancestors alone, never on what else a
site happens to know, so that every site judges an entry alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar, assert_never

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.foundation.errors import Malformed, Refused
from agent.foundation.ids import short
from agent.identity.certificates import key_id, read_issuer, read_root
from agent.identity.claims import is_jurisdiction
from agent.identity.trust_entries import (
    Action,
    AddAdmin,
    AddIssuer,
    Genesis,
    MendFork,
    RemoveAdmin,
    RemoveIssuer,
    RevokeSite,
    SetGroup,
    SetJurisdictions,
)
from agent.wire.residency import GROUPS_MAX, Group

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who may admit and renew."""

    certificate: bytes
    """DER."""
    site: bytes
    """The site that holds its key, for a person; empty in entries of older versions."""


@dataclass(frozen=True, slots=True)
class State:
    """After one entry; replaced whole by the next."""

    root: bytes = b""
    root_key: Ed25519PublicKey | None = None
    issuers: Mapping[bytes, Issuer] = field(default_factory=dict)
    admins: Mapping[bytes, Ed25519PublicKey] = field(default_factory=dict)
    gone: frozenset[bytes] = frozenset()
    """Removed issuers and admins: they never come back. Revoked sites are not counted here, because
    a set for each of 10,000 entries would fill the memory."""
    jurisdictions: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    """By name."""


def applied(state: State, action: Action) -> State:  # noqa: PLR0911 - one case for each action
    """The state after ``action``.

    Raises:
        Refused: it cannot follow (a second genesis, a removed key comes back).
        Malformed: it holds an impossible key, certificate or label.
    """
    match action:
        case Genesis():
            return _founded(state, action)
        case AddIssuer():
            issuer = read_issuer(action.certificate, state.root)
            _require_fresh(state, issuer, "issuer")
            entry = Issuer(action.certificate, action.site)
            return replace(state, issuers=_with(state.issuers, issuer, entry))
        case RemoveIssuer():
            gone = frozenset((action.issuer,))
            return replace(state, issuers=_without(state.issuers, gone), gone=state.gone | gone)
        case AddAdmin():
            admin = _public(action.key)
            _require_fresh(state, key_id(admin), "admin")
            return replace(state, admins=_with(state.admins, key_id(admin), admin))
        case RemoveAdmin():
            gone = frozenset((action.admin,))
            return replace(state, admins=_without(state.admins, gone), gone=state.gone | gone)
        case SetJurisdictions():
            _check_vocabulary(action.jurisdictions)
            return replace(state, jurisdictions=action.jurisdictions)
        case SetGroup():
            return replace(state, groups=_with_group(state.groups, action))
        case RevokeSite() | MendFork():
            return state
        case _:
            assert_never(action)


def _founded(state: State, action: Genesis) -> State:
    if state.root:
        raise Refused("a trust log has one genesis")
    _check_vocabulary(action.jurisdictions)
    admin = _public(action.admin)
    issuer = read_issuer(action.issuer, action.root)
    return State(
        root=action.root,
        root_key=read_root(action.root)[1],
        issuers=MappingProxyType({issuer: Issuer(action.issuer, action.site)}),
        admins=MappingProxyType({key_id(admin): admin}),
        jurisdictions=action.jurisdictions,
    )


def _require_fresh(state: State, key: bytes, what: str) -> None:
    if key in state.gone:
        raise Refused(
            f"{what} {short(key)} was removed",
            why="a removed key never comes back",
            mend=f"use a new {what} key",
        )


def _with(table: Mapping[bytes, V], key: bytes, value: V) -> Mapping[bytes, V]:
    return MappingProxyType({**table, key: value})


def _without(table: Mapping[bytes, V], gone: frozenset[bytes]) -> Mapping[bytes, V]:
    return MappingProxyType({key: value for key, value in table.items() if key not in gone})


def _public(raw: bytes) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        raise Malformed("not an Ed25519 public key") from None


def _with_group(groups: tuple[Group, ...], action: SetGroup) -> tuple[Group, ...]:
    _check_vocabulary((action.name, *action.members))
    found = [one for one in groups if one.name != action.name]
    if action.members:
        found.append(Group(action.name, tuple(sorted(set(action.members)))))
    if len(found) > GROUPS_MAX:
        raise Refused("the trust log has too many groups", why=f"the bound is {GROUPS_MAX}")
    return tuple(sorted(found, key=lambda one: one.name))


def _check_vocabulary(labels: tuple[str, ...]) -> None:
    if not all(is_jurisdiction(label) for label in labels):
        raise Malformed("trust log names an impossible jurisdiction")
