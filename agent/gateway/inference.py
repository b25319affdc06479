"""One inference request from its arrival to its answer: here, or at the best site that may.

Order: which model; may this site answer; is another clearly better; is there room; else the next best
site, its audit entry written first. A request is passed on again only because inference is idempotent: a site that could
not be reached or had no room is left out and the next one asked, within the request's own deadline.
"""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from agent.drivers.clock import monotonic_s
from agent.foundation.errors import AtollError, Busy, Refused, Unreachable, UsageError
from agent.foundation.ids import SiteId
from agent.gateway.elsewhere import ATTEMPTS_MAX, RETRY_HEADER, Elsewhere
from agent.gateway.members import (
    HOPS_HEADER,
    ID_HEADER,
    LOST_HEADER,
    RESIDENCY_HEADER,
    SERVED_BY_HEADER,
    MemberAnswer,
    Members,
)
from agent.gateway.precedence import PRIORITY_HEADER
from agent.gateway.remarks import Remarks
from agent.gateway.site import SiteState
from agent.gateway.worker_link import Reply, WorkerGone
from agent.routing.explain import nobody
from agent.routing.policy import (
    Question,
    Verdict,
    check_received,
    judge,
    judge_local,
    parse_residency,
    resolve,
)
from agent.serving.access import LOCAL
from agent.serving.failures import RequestLost, status_of, told_in
from agent.serving.fair import Priority, Turn
from agent.serving.request import HEADER_NAME, header_length
from agent.serving.trace import SPAN_BYTES, Trace
from agent.wire.inside import KnownModel, RemoteSite

WORKERS_LOST_MAX = 2
"""A request that has lost so many workers is unlucky, or why: it goes to no third, and no other site."""
REQUEST_ID_CHARS_MAX = 64
UNAVAILABLE = 503
OUTCOME_CHARS_MAX = 200

_ID_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:")


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


@dataclass(frozen=True, slots=True)
class Asked:
    """An inference request, read."""

    id: str
    model: KnownModel
    question: Question
    header: str | None
    """``Inference-Header-Content-Length`` as given."""
    body: bytes
    deadline: float
    """Monotonic seconds."""
    application: str = LOCAL
    """Who asks: see ``agent.gateway.applications``."""
    priority: Priority = Priority.NORMAL
    trace: Trace | None = None
    """Of the caller."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What goes back to the caller."""

    status: int
    body: bytes
    json_bytes: int | None
    served_by: str
    retry_after: str | None = None
    queue_us: int = 0
    run_us: int = 0
    together: int = 1
    """Requests that shared the run."""
    is_first: bool = True


def read_question(
    state: SiteState,
    name: str,
    version: str | None,
    headers: Mapping[str, str],
    caller: SiteId | None,
) -> Question:
    """What is asked for and within which bounds; ``caller`` is the member that passed it on.

    Raises:
        NotFound: unknown model or version.
        Refused: this site must not answer a request that was passed on to it.
        UsageError: a header does not parse.
        Busy: the site is starting.
    """
    view = state.view
    model = resolve(view, name, version)
    residency = parse_residency(headers.get(RESIDENCY_HEADER))
    if caller is None:
        return Question(model, residency)
    question = Question(model, residency, _number(headers, HOPS_HEADER, 1), frozenset({caller}))
    check_received(view, question, caller)
    return question


def read_request_id(headers: Mapping[str, str]) -> str:
    """The caller's id for the request, or a new one."""
    given = headers.get(ID_HEADER, "")
    if given and len(given) <= REQUEST_ID_CHARS_MAX and _ID_CHARS.issuperset(given):
        return given
    return os.urandom(8).hex()


def read_deadline(state: SiteState, headers: Mapping[str, str], header: str) -> float:
    """When the answer is of no use any more, monotonic seconds.

    Raises:
        UsageError: the header is not a number of milliseconds.
    """
    allowed_ms = round(state.limits.deadline_max_s * 1000)
    return monotonic_s() + min(_number(headers, header, allowed_ms), allowed_ms) / 1000


def _number(headers: Mapping[str, str], header: str, default: int) -> int:
    text = headers.get(header)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(1 << 53))):
        raise UsageError(f"{header} is not a number", why=f"given {text[:40]!r}")
    return int(text)


def _json_bytes(remote: RemoteSite, answer: MemberAnswer) -> int | None:
    try:
        return header_length(answer.headers.get(HEADER_NAME), len(answer.body))
    except UsageError as error:
        raise Unreachable(f"site {remote.name} answers nonsense", why=str(error)) from None


class Inference:
    """Answers requests by the site's own workers and by other sites."""

    def __init__(self, state: SiteState, members: Members | None, audit: Audit) -> None:
        """``members`` is None on a site without identity: everything is answered here or not."""
        self._state = state
        self._audit = audit
        self._elsewhere = Elsewhere(state, members)
        self._remarks = Remarks()

    async def answer(self, asked: Asked) -> Answered:
        """The answer, of this site or another; a failed or slow one gets a line in the log.

        Raises:
            AtollError: nobody may or can answer; the status follows from its kind.
        """
        begun = monotonic_s()
        status, text = 500, "a defect"
        try:
            answered = await self._answer(asked)
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
        local = judge_local(self._state.view, asked.question, is_worker_up=self._state.is_worker_up)
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
            reply = await self._ask_workers(asked, header_bytes, ticket.turn)
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
                if error.was_running and not await link.is_blameless():
                    raise RequestLost(
                        "the model worker has stopped", why="it was running this request"
                    ) from error

    async def _run_elsewhere(self, asked: Asked) -> Answered:
        async def send(question: Question, verdict: Verdict) -> Answered:
            return await self._pass_on(asked, question, verdict)

        outcome = await self._elsewhere.ask(asked.question, asked.deadline, send)
        if isinstance(outcome, Answered):
            return outcome
        raise outcome or self._nobody(asked.question)

    async def _pass_on(self, asked: Asked, question: Question, verdict: Verdict) -> Answered:
        remote = verdict.remote
        assert remote is not None
        await self._audit.forward(
            asked.id,
            asked.model,
            remote.site,
            question.residency,
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
        if question.residency:
            headers[RESIDENCY_HEADER] = ",".join(question.residency)
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
            raise
        finally:
            self._audit.outcome(asked.id, remote.site, question.residency, size, told)
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
