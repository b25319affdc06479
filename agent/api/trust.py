"""The trust log over the admin API: what it says, its entries, and new ones.

======  ==========================  ================================================
GET     /1/trust                    ``report`` of the log, and what this site knows of names
GET     /1/trust/entries            ``{"entries": [base64]}``, in an order to append
POST    /1/trust/entries            ``{"entries": [base64]}`` -> ``{"results": [...]}``
POST    /1/trust/issuer-request     ``{"site": hex}`` -> ``{"request": base64}``
======  ==========================  ================================================

Nothing secret passes here: entries are signed by the operator's command line, wherever its keys are.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol, assert_never

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.api.bodies import Json, answer, read_object
from agent.foundation.errors import UsageError
from agent.foundation.ids import ID_BYTES, SiteId, short
from agent.identity.certificates import issuer_end, key_id
from agent.identity.trust import TrustLog
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
    read_entry,
)
from agent.wire.documents import Policy
from agent.wire.residency import law_digest

ENTRIES_PER_REQUEST_MAX = 64
"""An operator's change is one entry."""
NAMES_SHOWN_MAX = 200


class TrustOperations(Protocol):
    """What the daemon offers of the trust log; failures are ``AtollError``."""

    def trust(self) -> Json:
        """``report`` of the log."""
        ...

    def trust_entries(self) -> tuple[bytes, ...]:
        """Every entry known here, packed."""
        ...

    async def submit_trust(self, entries: Sequence[bytes]) -> list[str]:
        """Take an operator's entries; why each was not taken (empty: durable and announced).

        Raises:
            Malformed: one does not decode. None is taken.
        """
        ...

    async def issuer_request(self, site: SiteId | None) -> bytes:
        """The packed ``IssuerRequest`` of a member (None: of this site).

        Raises:
            NotFound: no such member. Unreachable: it does not answer. Refused: it does not want to.
        """
        ...


def routes(operations: TrustOperations) -> list[web.RouteDef]:
    """To be added to the admin server."""

    async def show(_: web.Request) -> web.Response:
        return answer(operations.trust())

    async def entries(_: web.Request) -> web.Response:
        found = operations.trust_entries()
        return answer({"entries": [base64.b64encode(entry).decode() for entry in found]})

    async def submit(request: web.Request) -> web.Response:
        given = (await read_object(request)).get("entries")
        if not isinstance(given, list) or not 0 < len(given) <= ENTRIES_PER_REQUEST_MAX:
            raise UsageError(f"entries: expected a list of 1 to {ENTRIES_PER_REQUEST_MAX}")
        try:
            decoded = [base64.b64decode(text, validate=True) for text in given]
        except (binascii.Error, TypeError, ValueError):
            raise UsageError("entries: expected base64 text") from None
        reasons = await operations.submit_trust(decoded)
        return answer({"results": [{"accepted": not why, "reason": why} for why in reasons]})

    async def issuer_request(request: web.Request) -> web.Response:
        given = (await read_object(request)).get("site", "")
        site = None
        if given:
            try:
                site = SiteId(bytes.fromhex(given))
            except (TypeError, ValueError):
                site = SiteId(b"")
            if len(site) != ID_BYTES:
                raise UsageError("site: expected the 64 hex digits of a site's id")
        packed = await operations.issuer_request(site)
        return answer({"request": base64.b64encode(packed).decode()})

    return [
        web.get("/1/trust", show),
        web.get("/1/trust/entries", entries),
        web.post("/1/trust/entries", submit),
        web.post("/1/trust/issuer-request", issuer_request),
    ]


# --- what the log says, for a person or a script -------------------------------------------------
def report(
    log: TrustLog,
    names: Mapping[bytes, str],
    certified: Mapping[bytes, Sequence[str]],
    policies: Sequence[Policy] = (),
) -> Json:
    """The log as plain values.

    Args:
        log: as known here.
        names: of sites, by id.
        certified: the names of the sites whose present certificate an issuer signed, by its id.
        policies: the active ones of the catalog, which belong to the law by which requests go.

    Returns:
        Keys: height, head, doubt (why it may be older than it was; empty is good), fork (None or
        {height, branches [{number, first, tip, height, is_shown, entries}]}), issuers [{id, site,
        name, expires_at, certified [name]}], admins [id], revoked [{id, name, reason, kind}],
        jurisdictions, groups {name: [jurisdiction]}, law (digest of
        both and of the policies, as audit entries have it), entries [{height, at, by, action, text}].
    """
    reasons = log.reasons()
    removed, called = _past(log)
    names = {**called, **names}
    return {
        "height": log.height,
        "head": log.head.hex(),
        "doubt": log.trouble,
        "fork": _fork(log, names),
        "issuers": [
            {
                "id": key.hex(),
                "site": one.site.hex(),
                "name": names.get(one.site, ""),
                "expires_at": issuer_end(one.certificate, log.root).timestamp(),
                "certified": list(certified.get(key, ()))[:NAMES_SHOWN_MAX],
            }
            for key, one in sorted(log.holders().items())
        ],
        "admins": sorted(key.hex() for key in log.admins()),
        "revoked": [
            {
                "id": key.hex(),
                "name": names.get(key, ""),
                "reason": reasons.get(key, ""),
                "kind": "issuer" if key in removed else "site",
            }
            for key in sorted(log.revoked())
        ],
        "jurisdictions": list(log.jurisdictions),
        "law": law_digest(log.jurisdictions, log.groups, policies).hex(),
        "groups": {group.name: list(group.members) for group in log.groups},
        "entries": [
            _entry(
                entry.content.height, entry.content.at_ms, entry.content.author, action, log, names
            )
            for entry, action in log.shown()
        ],
    }


def _past(log: TrustLog) -> tuple[set[bytes], dict[bytes, str]]:
    """Issuers that were removed, and what sites were called when they were revoked."""
    removed: set[bytes] = set()
    called: dict[bytes, str] = {}
    for data in log.entries():
        action = read_entry(data)[1]
        if isinstance(action, RemoveIssuer):
            removed.add(action.issuer)
        elif isinstance(action, RevokeSite) and action.name:
            called[action.site] = action.name
    return removed, called


def _fork(log: TrustLog, names: Mapping[bytes, str]) -> Json | None:
    if log.fork is None:
        return None
    branches = []
    for number, branch in enumerate(log.fork.branches, start=1):
        entries = []
        for data in branch.entries:
            entry, action = read_entry(data)
            content = entry.content
            entries.append(
                _entry(content.height, content.at_ms, content.author, action, log, names)
            )
        branches.append(
            {
                "number": number,
                "first": branch.first.hex(),
                "tip": branch.tip.hex(),
                "height": branch.tip_height,
                "is_shown": number == 1,
                "entries": entries,
            }
        )
    return {"height": log.fork.height, "branches": branches}


def _entry(
    height: int,
    at_ms: int,
    author: bytes,
    action: Action,
    log: TrustLog,
    names: Mapping[bytes, str],
) -> Json:
    by = "root" if author == log.cluster else f"admin {short(author)}"
    return {
        "height": height,
        "at": at_ms / 1000,
        "by": by,
        "action": type(action).__name__,
        "text": text_of(action, names),
    }


def text_of(action: Action, names: Mapping[bytes, str]) -> str:  # noqa: C901, PLR0911 - one case for each action
    """One action in words."""

    def named(site: bytes) -> str:
        name = names.get(site, "")
        return f"{name} ({short(site)})" if name else short(site)

    match action:
        case Genesis():
            return f"the cluster was founded by {named(action.site)}" if action.site else "founded"
        case AddIssuer():
            return f"{named(action.site)} may admit and renew" if action.site else "a new issuer"
        case RemoveIssuer():
            return f"issuer key {short(action.issuer)} and all it signed are refused"
        case AddAdmin():
            return f"admin key {_raw_id(action.key)} may sign"
        case RemoveAdmin():
            return f"admin {short(action.admin)} may sign nothing more"
        case RevokeSite():
            who = f"{action.name} ({short(action.site)})" if action.name else named(action.site)
            return f"{who} is refused{f': {action.reason}' if action.reason else ''}"
        case SetJurisdictions():
            return f"jurisdictions: {', '.join(action.jurisdictions) or 'any'}"
        case SetGroup():
            return f"group {action.name}: {', '.join(action.members) or 'is no more'}"
        case MendFork():
            return f"the fork is mended; {len(action.revoked)} revocations restated"
        case _:
            assert_never(action)


def _raw_id(raw: bytes) -> str:
    return short(key_id(Ed25519PublicKey.from_public_bytes(raw)))


def day(at: float) -> str:
    """A Unix time as a person reads it."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
