"""Renewal at a running site: carries out the plan, and answers those who ask here.

A renewed certificate is proven, then durable, then shown: by the mesh listener and the calls of this
process, by the gateway, which is told to read it, and in the passport that members sync.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, assert_never

from agent.api.bodies import Json
from agent.daemon.joining import Joining
from agent.drivers import keystore
from agent.drivers.clock import monotonic_s, wall, wall_s
from agent.drivers.keystore import SiteKeys
from agent.drivers.mesh import JOIN_BODY_BYTES_MAX, MeshClient, MeshServer
from agent.drivers.renewal_call import RenewalCalls
from agent.foundation.errors import AtollError, Unreachable
from agent.foundation.ids import SiteId, short
from agent.foundation.machine import NEVER, Woke
from agent.identity.certificates import issuer_end, key_id, read_passport
from agent.identity.registry import Roll
from agent.identity.renewal import (
    REFERRALS_MAX,
    Referral,
    RenewalReply,
    RenewalRequest,
    check_renewal,
    check_renewed,
    renew,
    renew_myself,
    with_trust,
)
from agent.identity.renewal_plan import (
    AskIssuer,
    Candidate,
    CertifyMyself,
    ClockMoved,
    Granted,
    PlanEffect,
    PlanEvent,
    Refusal,
    RenewalPlan,
    RoundEnded,
    Wanted,
)
from agent.identity.trust import TrustLog
from agent.site.events import Recertified, TrustFetched
from agent.site.site import Site
from agent.wire.mesh import Introduction
from agent.wire.records import STATEMENTS, Endpoint, SiteRecord
from agent.wire.schema import pack, unpack

CLOCK_CHECK_S = 30.0
"""How often the plan is told where the wall clock stands; also its longest sleep."""
NOW_TIMEOUT_S = 25.0
"""The command line waits 30 s."""
ISSUER_WARNING_S = 90 * 86_400
"""The root key lies in a safe: the operator needs time to fetch it."""

_log = logging.getLogger("atoll.renewal")


@dataclass(frozen=True, slots=True)
class Shown:
    """Everything in this process that shows the certificate."""

    client: MeshClient
    server: MeshServer
    joining: Joining
    feed: Callable[[Recertified | TrustFetched], None]
    tell_gateway: Callable[[], None]


class Renewing:
    """One site's certificate, kept fresh."""

    def __init__(
        self,
        keys: SiteKeys,
        trust: TrustLog,
        roll: Roll,
        book: Sequence[Introduction],
        rng: Random,
        spawn: Callable[[Coroutine[Any, Any, Any]], object],
    ) -> None:
        """``book``: the peer book as of the start: it knows issuers whose passports have ended."""
        self.keys = keys
        self._trust, self._roll, self._rng, self._spawn = trust, roll, rng, spawn
        self._book = _places(book, keys.root)
        self._calls = RenewalCalls(lambda: self.keys, lambda: trust.head)
        self._site: Site | None = None
        self._shown: Shown | None = None
        self._plan: RenewalPlan | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[asyncio.Future[str]] = []
        self.renewed_by = ""
        """Who renewed it last in this run."""

    def start(self, site: Site, shown: Shown) -> None:
        """Follow the plan from now on."""
        self._site, self._shown = site, shown
        now = monotonic_s()
        self._plan = RenewalPlan(
            self.keys.identity, candidates=self._candidates, may_certify=self._may_certify,
            rng=self._rng, now=now, wall_offset_s=wall_s() - now,
        )  # fmt: skip
        if problem := self._plan.problem(now):
            _log.warning("%s", problem)
        self._step(Woke())

    async def stop(self) -> None:
        """Ask nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
        for waiter in self._waiting:
            waiter.cancel()

    # --- the plan --------------------------------------------------------------------------------
    def _step(self, event: PlanEvent) -> None:
        assert self._plan is not None, "started"
        now = monotonic_s()
        for effect in self._plan.step(event, now):
            self._carry_out(effect)
        if self._timer is not None:
            self._timer.cancel()
        at = min(self._plan.wake_at(), now + CLOCK_CHECK_S)
        assert at != NEVER
        self._timer = asyncio.get_running_loop().call_at(max(at, now + 0.01), self._wake)

    def _wake(self) -> None:
        now = monotonic_s()
        self._step(ClockMoved(wall_s() - now))
        self._step(Woke())

    def _carry_out(self, effect: PlanEffect) -> None:
        match effect:
            case AskIssuer(candidate):
                self._spawn(self._ask(candidate))
            case CertifyMyself():
                self._spawn(self._certify_myself())
            case RoundEnded(error):
                if error:
                    _log.warning("the certificate was not renewed: %s", error)
                for waiter in self._waiting:
                    if not waiter.done():
                        waiter.set_result(error)
                self._waiting.clear()
            case _:
                assert_never(effect)

    async def _ask(self, candidate: Candidate) -> None:
        try:
            reply = await self._calls.ask(candidate.endpoint)
            if reply.trust_entries and self._shown is not None:
                self._shown.feed(TrustFetched(reply.trust_entries))
            if not reply.chain:
                named = [Candidate(one.endpoint, one.site, is_issuer=True) for one in reply.issuers]
                said = f"no issuer; it names {len(named)}" if named else "no issuer, knows of none"
                self._step(Refusal(candidate, said, tuple(named)))
                return
            await self._take(reply.chain)
        except AtollError as error:
            self._step(Refusal(candidate, str(error)))
        else:
            where = f"{candidate.endpoint.host}:{candidate.endpoint.mesh_port}"
            self._granted(self._named(candidate.site) or where)

    async def _certify_myself(self) -> None:
        try:
            assert self.keys.issuer is not None, "asked before"
            await self._take(renew_myself(self.keys.issuer, self.keys.identity, wall()))
        except AtollError as error:
            self._step(Refusal(None, str(error)))
        else:
            self._granted("this site itself")

    async def _take(self, chain: tuple[bytes, ...]) -> None:
        """Prove it, make it durable, then show it."""
        assert self._shown is not None, "started"
        check_renewed(self.keys.identity, chain, self._trust, wall())
        self.keys = keys = await asyncio.to_thread(keystore.store_chain, self.keys, chain)
        shown = self._shown
        shown.joining.recertified(keys)
        shown.client.recertified(keys)
        shown.server.recertified(keys, shown.joining.shown_chain)
        shown.feed(Recertified(keys.identity, keys.passport))
        shown.tell_gateway()

    def _granted(self, by: str) -> None:
        self.renewed_by = by
        _log.info("certificate renewed by %s, good until %s", by, self.keys.identity.not_after)
        self._step(Granted(self.keys.identity, by))

    def _may_certify(self) -> bool:
        issuer = self.keys.issuer
        return (
            issuer is not None
            and key_id(issuer.private_key.public_key()) in self._trust.issuers()
            and issuer_end(issuer.certificate, self.keys.root) > wall()
        )

    # --- whom to ask -----------------------------------------------------------------------------
    def _candidates(self) -> list[Candidate]:
        """Members, the peer book and every hint; an address once, the best knowledge of it first."""
        assert self._site is not None, "started"
        holders = self._holders()
        found: dict[tuple[str, int], Candidate] = {}
        for endpoint, site, is_alive in (*self._members(), *self._book, *self._hints()):
            key = (endpoint.host, endpoint.mesh_port)
            if site != self._site.me and key not in found:
                found[key] = Candidate(endpoint, site, site in holders, is_alive)
        return list(found.values())

    def _members(self) -> list[tuple[Endpoint, SiteId | None, bool]]:
        assert self._site is not None, "started"
        members = self._site.swim.members().values()
        return [(one.record.endpoint, one.site, one.state == "alive") for one in members]

    def _hints(self) -> list[tuple[Endpoint, SiteId | None, bool]]:
        assert self._site is not None, "started"
        return [(hint.endpoint, hint.site, False) for hint in self._site.discovery.hints]

    def _holders(self) -> frozenset[bytes]:
        """Sites that keep an issuer's key, as the trust log says."""
        return frozenset(one.site for one in self._trust.holders().values() if one.site)

    def _named(self, site: SiteId | None) -> str:
        if site is None:
            return ""
        identity = self._roll.get(site)
        return identity.claims.name if identity is not None else short(site)

    # --- answering -------------------------------------------------------------------------------
    async def answer(self, body: bytes) -> bytes:
        """The packed answer to a packed ``RenewalRequest``: a certificate, or where to ask.

        Raises:
            Malformed: not a request.
            Refused: the certificate may not be renewed; says why.
        """
        request = unpack(RenewalRequest, body, JOIN_BODY_BYTES_MAX)
        me, issuer = self.keys.site, self.keys.issuer
        asker = check_renewal(me, request, self._trust, wall())
        self._roll.learn_retired(asker)
        self._roll.require_current(asker)
        if issuer is None or not self._may_certify():
            referred = RenewalReply((), tuple(self._referrals()))
            return pack(with_trust(referred, request, self._trust))
        reply = renew(issuer, me, request, self._trust, wall())
        _log.info("certificate of %s (%s) renewed", asker.claims.name, short(asker.site))
        return pack(with_trust(reply, request, self._trust))

    def _referrals(self) -> list[Referral]:
        issuers = [one for one in self._candidates() if one.is_issuer and one.site is not None]
        issuers.sort(key=lambda one: not one.is_alive)
        return [
            Referral(one.site, one.endpoint)
            for one in issuers[:REFERRALS_MAX]
            if one.site is not None
        ]

    # --- for the operator ------------------------------------------------------------------------
    async def renew_now(self) -> Json:
        """Ask everybody once, now.

        Raises:
            Unreachable: nobody has renewed it; each is named with its reason.
        """
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._step(Wanted())
        try:
            async with asyncio.timeout(NOW_TIMEOUT_S):
                error = await waiter
        except TimeoutError:
            error = "some sites have not answered yet"
        if error:
            raise Unreachable(
                "the certificate was not renewed",
                why=error,
                mend="start an issuer, or the network to it; the site goes on trying by itself",
            )
        return self.summary()

    def summary(self) -> Json:
        """Of ``atoll status``."""
        identity, plan = self.keys.identity, self._plan
        return {
            "expires_at": identity.not_after.timestamp(),
            "begins_at": identity.not_before.timestamp(),
            "renew_at": plan.due_at if plan is not None else identity.renew_at().timestamp(),
            "renewed_by": self.renewed_by,
            "problem": self.problem(),
        }

    def problem(self) -> str:
        """What is wrong with the certificate; empty if nothing is."""
        return self._plan.problem(monotonic_s()) if self._plan is not None else ""

    def reasons(self, members: Collection[object]) -> list[str]:
        """Why the mesh does not work, as far as it is a matter of certificates; for ``atoll status``."""
        found = [self.problem()]
        if self._shown is not None and self._shown.client.refusals:
            where, said = next(reversed(self._shown.client.refusals.items()))
            count = len(self._shown.client.refusals)
            found.append(
                f"{count} of {len(members)} members refuse this site; {where} says: {said}"
            )
        return [one for one in found if one]

    def checks(self) -> list[tuple[str, bool, str, str]]:
        """Of ``atoll doctor``: check, ok, evidence, mend (advice if it is ok)."""
        identity, problem = self.keys.identity, self.problem()
        text = f"until {identity.not_after:%Y-%m-%d %H:%M} UTC"
        found = [(
            "renewal", not problem, problem or f"certificate good {text}",
            "set the clock, or start an issuer (atoll members); atoll renew tries at once",
        )]  # fmt: skip
        for key, issuer in self._trust.holders().items():
            end = issuer_end(issuer.certificate, self.keys.root)
            left_s = (end - wall()).total_seconds()
            name = self._named(SiteId(issuer.site)) if issuer.site else short(SiteId(key))
            found.append((
                f"issuer {name}", left_s > ISSUER_WARNING_S,
                f"its certificate ends {end:%Y-%m-%d}",
                "certify an issuer key again with the root key (atoll issuer add)",
            ))  # fmt: skip
        return found


def _places(
    book: Sequence[Introduction], root: bytes
) -> tuple[tuple[Endpoint, SiteId | None, bool], ...]:
    """Where the members of the peer book were last; their passports may have ended."""
    found: list[tuple[Endpoint, SiteId | None, bool]] = []
    for introduction in book:
        try:
            record = STATEMENTS.unpack(introduction.record.body)
            identity = read_passport(introduction.passport, root)
        except AtollError:
            continue
        if isinstance(record, SiteRecord) and record.site == identity.site:
            found.append((record.endpoint, identity.site, False))
    return tuple(found)
