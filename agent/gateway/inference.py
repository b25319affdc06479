"""One inference request from its arrival to its answer: here, or at the best site that may.

Order: which model; may this site answer; is another clearly better; is there room; else the next best
site, its audit entry written first. A request is passed on again only because inference is idempotent: a site that could
not be reached or had no room is left out and the next one asked, within the request's own deadline.
"""

import asyncio
import os
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from agent.drivers.clock import monotonic_s
from agent.foundation.errors import AtollError, Busy, Refused, Unreachable, UsageError
from agent.foundation.ids import SiteId
from agent.gateway.asked import Answered, Asked
from agent.gateway.elsewhere import ATTEMPTS_MAX, RETRY_HEADER, Elsewhere
from agent.gateway.members import (
    HOPS_HEADER,
    ID_HEADER,
    LOST_HEADER,
    RESIDENCY_HEADER,
    SERVED_BY_HEADER,
    MemberAnswer,
    Members,
    NotConnected,
)
from agent.gateway.once import Ledger, Once
from agent.gateway.precedence import PRIORITY_HEADER
from agent.gateway.remarks import Remarks
from agent.gateway.site import SiteState
from agent.gateway.worker_link import Reply, WorkerGone
from agent.routing.explain import nobody
from agent.routing.law import narrowed
from agent.routing.policy import (
    Question,
    Verdict,
    judge,
    judge_local,
    resolve,
)
from agent.serving.failures import RequestLost, status_of, told_in
from agent.serving.fair import Priority, Turn
from agent.serving.request import HEADER_NAME, header_length
from agent.serving.trace import SPAN_BYTES
from agent.wire.inside import KnownModel, RemoteSite

WORKERS_LOST_MAX = 2
"""A request that has lost so many workers is unlucky, or why: it goes to no third, and no other site."""
UNAVAILABLE = 503
OUTCOME_CHARS_MAX = 200


class Audit(Protocol):
    """Writes down what leaves the site, before it leaves."""

    async def forward(
        self,
        request_id: str,
        model: KnownModel,
        receiver: SiteId,
        label: tuple[str, ...],
        size: int,
        trace: str,
    ) -> None:
        """Return when the entry is on disk; ``Unreachable`` if it cannot be written."""
        ...

    def outcome(
        self, request_id: str, receiver: SiteId, label: tuple[str, ...], size: int, text: str
    ) -> None:
        """Have written down soon what became of it: the answer's bytes, and its status or a reason."""
        ...


def _json_bytes(remote: RemoteSite, answer: MemberAnswer) -> int | None:
    try:
        return header_length(answer.headers.get(HEADER_NAME), len(answer.body))
    except UsageError as error:
        raise Unreachable(f"site {remote.name} answers nonsense", why=str(error)) from None


class Inference:
    """Answers requests by the site's own workers and by other sites."""

    def __init__(
        self, state: SiteState, members: Members | None, audit: Audit, ledger: Ledger
    ) -> None:
        """``members`` is None on a site without identity: everything is answered here or not."""
        self._state = state
        self._audit = audit
        self._elsewhere = Elsewhere(state, members)
        self._remarks = Remarks()
        self._once = Once(ledger)

    async def answer(self, asked: Asked) -> Answered:
        """The answer, of this site or another; a failed or slow one gets a line in the log.

        Raises:
            AtollError: nobody may or can answer; the status follows from its kind.
        """
        begun = monotonic_s()
        status, text = 500, "a defect"
        try:
            if asked.once is None:
                answered = await self._answer(asked)
            else:
                answered = await self._once.answer(asked, lambda: self._answer(asked))
                self._state.figures.replayed += answered.is_replayed
            status, text = answered.status, ""
            if status >= 500:  # noqa: PLR2004 - server errors
                text = told_in(answered.body)
        except asyncio.CancelledError:
            status, text = 499, ""  # the client is gone
            raise
        except AtollError as error:
            status, text = status_of(error), str(error)
            raise
        finally:
            model, took_s = f"{asked.model.name}:{asked.model.version}", monotonic_s() - begun
            self._remarks.answered(asked.id, model, asked.trace, status, took_s, text)
        return answered

    async def _answer(self, asked: Asked) -> Answered:
        """Here, if this site may and no other is clearly better; then wherever it can be."""
        view, is_worker_up = self._state.view, self._state.is_worker_up
        local = judge_local(view, asked.question, is_worker_up=is_worker_up)
        if local.removed.ground == "absent" and asked.is_default:
            # Another version may have taken its place while the body came.
            model = resolve(view, asked.model.name, None)
            asked = replace(asked, model=model, question=replace(asked.question, model=model))
            local = judge_local(view, asked.question, is_worker_up=is_worker_up)
        if local.removed:
            return await self._run_elsewhere(asked)
        if self._elsewhere.is_better(asked.question, local):
            with suppress(Unreachable, Refused):
                return await self._run_elsewhere(asked)
            return await self._run_here(asked)
        try:
            return await self._run_here(asked)
        except (Busy, Unreachable) as error:
            try:
                return await self._run_elsewhere(asked)
            except (Unreachable, Refused):
                raise error from None

    async def fetch(
        self, question: Question, path: str, request_id: str, deadline: float
    ) -> tuple[int, bytes]:
        """A small answer about a model (its metadata) from the best site that serves it.

        Raises:
            AtollError: as ``answer``.
        """
        failure: AtollError | None = None
        for verdict, _ in self._elsewhere.candidates(question)[:ATTEMPTS_MAX]:
            try:
                answer = await self._elsewhere.call(
                    verdict,
                    question.model.key,
                    "GET",
                    path,
                    headers={ID_HEADER: request_id, HOPS_HEADER: str(question.hops + 1)},
                    body=None,
                    deadline=deadline,
                )
            except Unreachable as error:
                failure = error
            else:
                return answer.status, answer.body
        raise failure or self._nobody(question)

    async def _run_here(self, asked: Asked) -> Answered:
        state = self._state
        admission = state.admission
        header_bytes = header_length(asked.header, len(asked.body))
        try:
            ticket = admission.admit(
                asked.model.key,
                asked.application,
                asked.priority,
                runners=state.runners,
                left_s=asked.deadline - monotonic_s(),
            )
        except Busy:
            state.waits.refuse(admission.name_of(asked.application), asked.priority)
            raise
        run_us = None
        try:
            reply = await self._counted(asked, header_bytes, ticket.turn)
            run_us = reply.run_us // reply.together  # its part of the runner's time
            state.waits.note(ticket.application, asked.priority, reply.queue_us)
        finally:
            admission.release(ticket, run_us)
        if reply.status == UNAVAILABLE:  # the worker lacks the model or memory
            raise Busy("the model worker cannot take the request now", why="it is changing models")
        return Answered(
            status=reply.status,
            body=reply.body,
            json_bytes=reply.json_bytes,
            served_by=state.view.name,
            queue_us=reply.queue_us,
            run_us=reply.run_us,
            together=reply.together,
            is_first=reply.is_first,
        )

    async def _counted(self, asked: Asked, header_bytes: int | None, turn: Turn) -> Reply:
        """As ``_ask_workers``; what became of it counts for or against the model version."""
        begun, status, is_lost = monotonic_s(), 0, False
        try:
            reply = await self._ask_workers(asked, header_bytes, turn)
            status = reply.status
        except AtollError as error:
            status, is_lost = status_of(error), isinstance(error, RequestLost)
            raise
        else:
            return reply
        finally:
            if (tally := self._state.tallies.get(asked.model.key)) is not None:
                tally.note(status, monotonic_s() - begun, is_lost=is_lost)

    async def _ask_workers(self, asked: Asked, header_bytes: int | None, turn: Turn) -> Reply:
        """The answer of the least busy worker, or of another if that one ends meanwhile.

        What was in the model when its worker ended is run again only if somebody else ended that:
        otherwise it would take the next worker along, and all that this one serves.
        """
        state, key = self._state, asked.model.key
        lost: list[int] = []
        while True:
            link = state.worker_for(key, lost)
            state.figures.rerun += bool(lost)
            try:
                return await link.infer(asked.body, header_bytes, key, asked.deadline, turn)
            except WorkerGone as error:
                lost.append(link.index)
                if len(lost) >= WORKERS_LOST_MAX:
                    raise RequestLost(
                        "the model worker has stopped", why="so did the one before it"
                    ) from error
                if error.was_running and (asked.once or not await link.is_blameless()):
                    raise RequestLost(
                        "the model worker has stopped", why="it was running this request"
                    ) from error

    async def _run_elsewhere(self, asked: Asked) -> Answered:
        async def send(question: Question, verdict: Verdict) -> Answered:
            return await self._pass_on(asked, question, verdict)

        is_once = asked.once is not None
        outcome = await self._elsewhere.ask(
            asked.question, asked.deadline, send, may_hedge=not is_once
        )
        if isinstance(outcome, Answered):
            return outcome
        raise outcome or self._nobody(asked.question)

    async def _pass_on(self, asked: Asked, question: Question, verdict: Verdict) -> Answered:
        remote = verdict.remote
        assert remote is not None
        label = narrowed(question.residency, question.bounds, self._state.view.groups)
        await self._audit.forward(
            asked.id,
            asked.model,
            remote.site,
            label,
            len(asked.body),
            "" if asked.trace is None else asked.trace.id,
        )
        self._state.figures.forwarded += 1
        headers = {
            ID_HEADER: asked.id,
            HOPS_HEADER: str(question.hops + 1),
            "Content-Type": "application/octet-stream" if asked.header else "application/json",
        }
        if asked.header is not None:
            headers[HEADER_NAME] = asked.header
        if asked.trace is not None:
            headers |= asked.trace.passed_on(os.urandom(SPAN_BYTES)).headers()
        if asked.priority is not Priority.NORMAL:
            headers[PRIORITY_HEADER] = str(int(asked.priority))
        if label:
            headers[RESIDENCY_HEADER] = ",".join(label)
        size, told = 0, "given up"  # the caller is gone, or another site was faster
        try:
            answer = await self._elsewhere.call(
                verdict,
                asked.model.key,
                "POST",
                f"/v2/models/{asked.model.name}/versions/{asked.model.version}/infer",
                headers=headers,
                body=asked.body,
                deadline=asked.deadline,
            )
            size, told = len(answer.body), str(answer.status)
        except AtollError as error:
            told = str(error)[:OUTCOME_CHARS_MAX]
            if (
                asked.once
                and isinstance(error, Unreachable)
                and not isinstance(error, NotConnected)
            ):
                raise RequestLost(
                    f"site {remote.name} has not answered",
                    why="it may have run the request, whose idempotency key forbids a second time",
                ) from error
            raise
        finally:
            self._audit.outcome(asked.id, remote.site, label, size, told)
        if answer.status == UNAVAILABLE and LOST_HEADER in answer.headers:
            raise RequestLost(f"site {remote.name}: {told_in(answer.body)}")
        return Answered(
            status=answer.status,
            body=answer.body,
            json_bytes=_json_bytes(remote, answer),
            served_by=answer.headers.get(SERVED_BY_HEADER, remote.name),
            retry_after=answer.headers.get(RETRY_HEADER),
        )

    def _nobody(self, question: Question) -> AtollError:
        view = self._state.view
        return nobody(question.model, judge(view, question, is_worker_up=self._state.is_worker_up))
