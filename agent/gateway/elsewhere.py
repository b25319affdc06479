"""Requests that other sites answer: whom to ask, when to ask a second one, when to stop.

Inference is idempotent, so a request may be asked of another site when one does not answer: after
a failure within the retry budget, and beside a late one within the hedge budget (Dean and Barroso
2013, "The tail at scale"). All candidates passed the filter for the request's labels; the caller's
``send`` writes the audit entry of each before a byte leaves. The deadline is never extended.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

from agent.drivers.clock import monotonic_s
from agent.foundation.errors import AtollError, Unreachable
from agent.foundation.ids import SiteId
from agent.gateway.members import MemberAnswer, Members, NotConnected
from agent.gateway.site import SiteState
from agent.routing.budget import Budget
from agent.routing.outlook import expected
from agent.routing.policy import Question, Verdict, judge_remote
from agent.routing.score import Prediction, predict
from agent.serving.failures import DeadlineExceeded

ATTEMPTS_MAX = 3
"""Sites asked for one request: more would only add load where there is too much of it."""
TRY_ELSEWHERE = frozenset({403, 404, 429, 502, 503})
"""The other site may not, has lost the model or has no room; anything else would fail everywhere."""
RETRY_SHARE, RETRIES_SAVED_MAX = 0.2, 10.0
"""Finagle's defaults: a fifth more requests, and some for a site that sends few."""
HEDGE_SHARE, HEDGES_SAVED_MAX = 0.05, 5.0
RETRY_HEADER = "Retry-After"
RETRY_DIGITS_MAX = 6
BUSY = frozenset({429, 503})
OK = 200


class Answer(Protocol):
    """What ``send`` returns."""

    @property
    def status(self) -> int:
        """HTTP status of the other site."""
        ...

    @property
    def body(self) -> bytes:
        """Its answer or error."""
        ...


AnswerT = TypeVar("AnswerT", bound=Answer)
Send = Callable[[Question, Verdict], Awaitable[AnswerT]]


class Elsewhere:
    """The other sites, as this one's requests find them."""

    def __init__(self, state: SiteState, members: Members | None) -> None:
        """``members`` is None on a site without identity: there is nobody else."""
        self._state = state
        self._members = members
        self._outlook = state.outlook
        self._retries = Budget(RETRY_SHARE, RETRIES_SAVED_MAX, RETRIES_SAVED_MAX)
        self._under_way = Counter[tuple[SiteId, bytes]]()
        """Requests that are not answered, by site and model."""
        self._hedges = Budget(HEDGE_SHARE, HEDGES_SAVED_MAX, HEDGES_SAVED_MAX)

    def candidates(self, question: Question) -> list[tuple[Verdict, Prediction]]:
        """Other sites that may answer, in the order to ask them."""
        if self._members is None:
            return []
        view, key = self._state.view, question.model.key
        verdicts = [judge_remote(view, question, remote) for remote in self._state.serving(key)]
        return self._outlook.order(key, verdicts, self._members.under_way, monotonic_s())

    def is_better(self, question: Question, local: Verdict) -> bool:
        """Whether a request of this site's own, that it could answer, is better sent away."""
        if self._members is None or question.hops:
            return False
        key, state = question.model.key, self._state
        wait_ms = state.admission.wait_s(state.runners) * 1000
        home = predict(local, local_wait_ms=wait_ms, under_way=0)
        best_ms = None
        if wait_ms and (found := self.candidates(question)):
            verdict, prediction = found[0]
            if self._outlook.is_trusted(verdict.site, monotonic_s()):
                best_ms = prediction.total_ms
        is_away = self._outlook.is_better_away(key, home.total_ms, best_ms)
        state.figures.routing["away"] += is_away
        return is_away

    async def ask(
        self, question: Question, deadline: float, send: Send[AnswerT], *, may_hedge: bool = True
    ) -> AnswerT | AtollError | None:
        """The first good answer; else why there is none: the last failure, or None if nobody may.

        ``may_hedge``: a second site may be asked while the first may still answer.

        Raises:
            AtollError: a failure that another site would not mend.
        """
        self._retries.deposit()
        self._hedges.deposit()
        failure: AtollError | None = None
        asked: list[Verdict] = []
        while len(asked) < ATTEMPTS_MAX:
            question = replace(
                question, excluded=question.excluded | {verdict.site for verdict in asked}
            )
            found = [verdict for verdict, _ in self.candidates(question)]
            if not found:
                break
            if monotonic_s() >= deadline:
                raise DeadlineExceeded("the deadline passed before the answer was there")
            if asked:
                if not self._retries.withdraw():
                    self._state.figures.routing["retry refused"] += 1
                    break
                self._state.figures.routing["retried"] += 1
            outcome = await self._first(question, found[: None if may_hedge else 1], asked, send)
            if not isinstance(outcome, AtollError):
                return outcome
            failure = outcome
        return failure

    async def call(
        self,
        verdict: Verdict,
        key: bytes,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
    ) -> MemberAnswer:
        """As ``Members.call``; what the call tells of the site is remembered."""
        assert self._members is not None
        assert verdict.remote is not None
        outlook, site, begun_s = self._outlook, verdict.site, monotonic_s()
        sent = expected(verdict, self._under_way[site, key])
        outlook.sent(site, begun_s)
        self._under_way[site, key] += 1
        try:
            answer = await self._members.call(
                verdict.remote, method, path, headers=headers, body=body, deadline=deadline
            )
        except Unreachable as error:
            is_connected = not isinstance(error, NotConnected)
            is_broken = outlook.failed(site, monotonic_s(), is_connected=is_connected)
            self._state.figures.routing["broken"] += is_broken
            raise
        except (DeadlineExceeded, asyncio.CancelledError):
            now_s = monotonic_s()
            outlook.given_up(site, key, sent, (now_s - begun_s) * 1000, now_s)
            raise
        finally:
            self._under_way[site, key] -= 1
            if not self._under_way[site, key]:
                del self._under_way[site, key]
        now_s = monotonic_s()
        if answer.status == OK and method == "POST" and not answer.is_cold:
            outlook.answered(site, key, sent, (now_s - begun_s) * 1000, now_s)
        else:
            outlook.reached(site)
        after = answer.headers.get(RETRY_HEADER, "")
        if answer.status in BUSY and after.isdecimal() and len(after) <= RETRY_DIGITS_MAX:
            outlook.rests(site, int(after), now_s)
        return answer

    async def _first(
        self,
        question: Question,
        found: list[Verdict],
        asked: list[Verdict],
        send: Send[AnswerT],
    ) -> AnswerT | AtollError:
        """The answer of the best site, or of the next if that one is late; the other is cancelled."""
        asked.append(found[0])
        patience_s = self._patience_s(question, found[0])
        first = asyncio.create_task(self._one(question, found[0], send))
        running = {first}
        outcome: AnswerT | AtollError | None = None
        try:
            done, running = await asyncio.wait(running, timeout=patience_s)
            if not done and self._may_hedge(found, asked):
                asked.append(found[1])
                running = {first, asyncio.create_task(self._one(question, found[1], send))}
            while True:
                for task in done:
                    outcome = task.result()
                    if not isinstance(outcome, AtollError):
                        self._state.figures.routing["hedge won"] += task is not first
                        return outcome
                if not running:
                    break
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        assert outcome is not None
        return outcome

    def _patience_s(self, question: Question, verdict: Verdict) -> float:
        assert self._members is not None
        under_way = self._members.under_way.get(verdict.site, 0)
        return self._outlook.patience_ms(question.model.key, verdict, under_way) / 1000

    def _may_hedge(self, found: list[Verdict], asked: list[Verdict]) -> bool:
        if len(found) == 1 or len(asked) >= ATTEMPTS_MAX:
            return False
        if not self._outlook.is_trusted(found[1].site, monotonic_s()):
            return False
        is_allowed = self._hedges.withdraw()
        self._state.figures.routing["hedged" if is_allowed else "hedge refused"] += 1
        return is_allowed

    async def _one(
        self, question: Question, verdict: Verdict, send: Send[AnswerT]
    ) -> AnswerT | AtollError:
        """A good answer, or a failure that another site may mend."""
        try:
            answer = await send(question, verdict)
        except Unreachable as error:
            return error
        if answer.status not in TRY_ELSEWHERE:
            return answer
        return Unreachable(
            f"site {verdict.name} did not take the request",
            why=answer.body.decode("utf-8", "replace")[:300],
        )
