"""The audit log over the admin API.

======  ===================  ==========================================================
GET     /1/audit/verify      what is wrong with it, also by what others have witnessed
GET     /1/audit/report      ``?jurisdiction=DE&since=T&until=T``: ``{"rows": [...]}``
GET     /1/audit/entries     ``?after=N``: ``{"rows": [...]}``, at most a thousand
GET     /1/audit/proof       whose log it is, and its witnesses' receipts
GET     /1/audit/witnessed   ``?site=HEX``: what this site has witnessed of another's log
======  ===================  ==========================================================
"""

import math
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from agent.api.bodies import Json, answer
from agent.api.names import LABEL
from agent.foundation.errors import UsageError
from agent.foundation.ids import SiteId

SITE_HEX_CHARS = 64


@dataclass(frozen=True, slots=True)
class Period:
    """Unix seconds, both ends included."""

    since_s: float = 0.0
    until_s: float = math.inf

    def has(self, at_s: float) -> bool:
        """Whether a moment is in it."""
        return self.since_s <= at_s <= self.until_s


class AuditOperations(Protocol):
    """What the daemon offers of the audit log; failures are ``AtollError``."""

    async def verify(self) -> Json:
        """Check every entry and every end that others have witnessed.

        Keys: site, findings [str] (empty: sound), first, last (entry numbers), alarms [str],
        witnesses [{witness, name, sequence, hash, seen_at}].
        """
        ...

    async def report(self, period: Period, jurisdiction: str) -> list[Json]:
        """What left, summed by kind, label and receiver; ``jurisdiction``: with that label only.

        Keys: kind, label [str], receiver, name, jurisdiction (of the receiver, by its certificate),
        entries, bytes, is_within (whether the label names that jurisdiction).
        """
        ...

    async def entries(self, after: int) -> Json:
        """Rows behind entry ``after`` as they are stored; sequence, and entry and hash in base64."""
        ...

    async def proof(self) -> Json:
        """Keys: site, root, passport, receipts [{receipt, passport}] (base64)."""
        ...

    async def witnessed(self, site: SiteId) -> Json:
        """Keys: receipt (as in ``verify``, or None), alarm (empty: none)."""
        ...


def routes(operations: AuditOperations) -> list[web.RouteDef]:
    """To be added to the admin server."""

    async def verify(_: web.Request) -> web.Response:
        return answer(await operations.verify())

    async def report(request: web.Request) -> web.Response:
        period = Period(_number(request, "since", 0.0), _number(request, "until", math.inf))
        label = request.query.get("jurisdiction", "")
        if label and not LABEL.fullmatch(label):
            raise UsageError(f"jurisdiction: {label!r:.80} is none (such as DE)")
        return answer({"rows": await operations.report(period, label)})

    async def entries(request: web.Request) -> web.Response:
        return answer(await operations.entries(int(_number(request, "after", 0.0))))

    async def proof(_: web.Request) -> web.Response:
        return answer(await operations.proof())

    async def witnessed(request: web.Request) -> web.Response:
        text = request.query.get("site", "")
        try:
            site = SiteId(bytes.fromhex(text))
        except ValueError:
            site = SiteId(b"")
        if len(text) != SITE_HEX_CHARS or not site:
            raise UsageError(f"site: {text!r:.80} is not the id of a site")
        return answer(await operations.witnessed(site))

    handlers = (verify, report, entries, proof, witnessed)
    return [web.get(f"/1/audit/{handler.__name__}", handler) for handler in handlers]


def _number(request: web.Request, name: str, default: float) -> float:
    text = request.query.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise UsageError(f"{name}: {text!r:.40} is not a number from 0 on")
    return value
