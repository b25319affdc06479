"""The gateway's talk with the control process: views and workers come in, audits and counters go out."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from agent.drivers.channel import FRAME_BYTES_MAX, Channel
from agent.drivers.clock import monotonic_s
from agent.drivers.shared_memory import SharedSlots
from agent.foundation.errors import Busy, Malformed, Unreachable
from agent.foundation.ids import Digest, SiteId, short
from agent.gateway.figures import Figures
from agent.gateway.site import SiteState
from agent.gateway.worker_link import WorkerLink
from agent.serving.access import Access
from agent.serving.failures import error_of
from agent.wire.inside import (
    FROM_GATEWAY,
    KNOWN_MAX,
    TO_GATEWAY,
    Applications,
    ApplicationsTaken,
    AttachWorker,
    AuditBlob,
    Audited,
    AuditForward,
    AuditOutcome,
    BlobLabel,
    CertificateRenewed,
    ClaimKey,
    ControlFigures,
    Counted,
    DetachWorker,
    FiguresAsked,
    GatewayReady,
    KeyClaimed,
    KnownModel,
    ReleaseKey,
    RepositoryAnswered,
    RepositoryAsked,
    Traffic,
    View,
    WorkerHolds,
)

AUDIT_TIMEOUT_S = 5.0
"""A commit takes milliseconds; a control process that needs longer cannot vouch for the entry."""
TRAFFIC_EVERY_S = 1.0
FIGURES_TIMEOUT_S = 0.25
"""Whoever reads counters is not to wait longer for those of a control process that stands still."""
REPOSITORY_TIMEOUT_S = 58.0
"""Longer than the control process waits for a model; clients give up after 60 s."""

_log = logging.getLogger(__name__)

T = TypeVar("T")
_Reply = Audited | RepositoryAnswered | KeyClaimed


class Control:
    """One end of the channel; implements ``inference.Audit``, ``blob_endpoints.Audit``, ``once.Ledger``, ``repository.Control``."""

    def __init__(self, channel: Channel, state: SiteState) -> None:
        """``on_view`` may be set by whoever must follow the view."""
        self._channel = channel
        self._state = state
        self._asked: dict[int, asyncio.Future[_Reply]] = {}
        """By number of the call."""
        self._figures: asyncio.Future[str] | None = None
        self._last_figures = ""
        self._number = 0
        self.on_view: Callable[[View], None] = lambda _: None
        self.on_renewed: Callable[[], None] = lambda: None
        """The identity folder holds a renewed certificate."""

    async def say_ready(
        self, http_port: int, data_port: int, grpc_port: int, metrics_port: int
    ) -> None:
        """All doors are open; the last two are 0 where there is none."""
        ready = GatewayReady(http_port, data_port, grpc_port, metrics_port)
        await self._channel.send(FROM_GATEWAY.pack(ready))

    async def serve(self) -> None:
        """Take messages until the control process is gone."""
        while (frame := await self._channel.receive()) is not None:
            data, descriptors = frame
            message = TO_GATEWAY.unpack(data, FRAME_BYTES_MAX)
            if isinstance(message, Applications):
                await self._take_applications(message)
            else:
                self._take(message, descriptors)

    async def _take_applications(self, message: Applications) -> None:
        required = self._state.limits.is_token_required
        self._state.access = Access(is_required=required, tokens=message.tokens)
        with contextlib.suppress(Busy):  # a control process that is behind has ceased to wait
            await self._channel.send(FROM_GATEWAY.pack(ApplicationsTaken(message.call)))

    def _take(
        self,
        message: View
        | AttachWorker
        | DetachWorker
        | Audited
        | BlobLabel
        | CertificateRenewed
        | RepositoryAnswered
        | KeyClaimed
        | ControlFigures
        | WorkerHolds,
        descriptors: list[int],
    ) -> None:
        match message:
            case View():
                self._state.replace_view(message)
                self.on_view(message)
            case CertificateRenewed():
                self.on_renewed()
            case BlobLabel():
                self._state.residency_of_blob[message.manifest] = message.residency
            case AttachWorker():
                self._attach(message.index, descriptors)
            case WorkerHolds():
                self._state.hold(message.index, frozenset(message.models))
            case DetachWorker():
                self._state.figures.workers_lost += 1
                self._state.detach(message.index, is_blameless=message.is_blameless)
            case Audited() | KeyClaimed() | RepositoryAnswered():
                _answer(self._asked.get(message.call), message)
            case ControlFigures():
                self._last_figures = message.text
                _answer(self._figures, message.text)
                self._figures = None

    def _attach(self, index: int, descriptors: list[int]) -> None:
        if len(descriptors) != 2:  # noqa: PLR2004 - doorbell and memory
            for descriptor in descriptors:
                os.close(descriptor)
            raise Malformed("a worker needs a doorbell and memory")
        doorbell, memory = descriptors
        self._state.attach(WorkerLink(index, socket.socket(fileno=doorbell), SharedSlots(memory)))

    async def forward(
        self,
        request_id: str,
        model: KnownModel,
        receiver: SiteId,
        label: tuple[str, ...],
        size: int,
        trace: str,
    ) -> None:
        """Have the audit entry written; return when it is on disk.

        Raises:
            Unreachable: it could not be written: the request must not leave.
        """
        entry = partial(
            AuditForward, request=request_id, model=f"{model.name}:{model.version}",
            receiver=receiver, label=label, bytes=size, trace=trace,
            policy=self._state.law_digest,
        )  # fmt: skip
        await self._write(entry, "the request")

    async def blob(
        self, digest: Digest, receiver: SiteId, label: tuple[str, ...], size: int
    ) -> None:
        """As ``forward``, before parts of a blob of ``size`` bytes are given to a member."""
        entry = partial(
            AuditBlob, blob=digest, receiver=receiver, label=label, bytes=size,
            policy=self._state.law_digest,
        )  # fmt: skip
        await self._write(entry, f"blob {short(digest)}")

    async def _write(self, entry: Callable[[int], AuditForward | AuditBlob], what: str) -> None:
        answer = await self._ask(entry, AUDIT_TIMEOUT_S)
        error = answer.error if isinstance(answer, Audited) else "it was not written in time"
        if error:
            raise Unreachable(f"{what} may not leave without an audit entry", why=error)

    def outcome(
        self, request_id: str, receiver: SiteId, label: tuple[str, ...], size: int, text: str
    ) -> None:
        """Have written down what became of a forward; nobody waits for it."""
        told = AuditOutcome(request_id, receiver, label, size, text)
        try:
            self._channel.post(FROM_GATEWAY.pack(told))
        except (Busy, Unreachable) as error:
            _log.warning("no audit entry of the outcome of %s: %s", request_id, error)

    async def repository(self, model: str, who: str, *, is_load: bool) -> None:
        """Have a model loaded or unloaded here; returns when it is so and the view shows it.

        Raises:
            AtollError: it is not; says why.
        """
        asked = partial(RepositoryAsked, model=model, is_load=is_load, who=who)
        answer = await self._ask(asked, REPOSITORY_TIMEOUT_S)
        if not isinstance(answer, RepositoryAnswered):
            raise Unreachable(
                "the control process does not answer", why="it is busy or its disk is"
            )
        if answer.error:
            raise error_of(answer.status, answer.error)

    async def claim(self, key: bytes) -> bool:
        """See ``agent.gateway.once.Ledger``."""
        answer = await self._ask(partial(ClaimKey, key=key), AUDIT_TIMEOUT_S)
        error = answer.error if isinstance(answer, KeyClaimed) else "it was not written in time"
        if error:
            raise Unreachable("the idempotency key cannot be written down", why=error)
        return isinstance(answer, KeyClaimed) and answer.is_new

    def release(self, key: bytes) -> None:
        """See ``agent.gateway.once.Ledger``."""
        try:
            self._channel.post(FROM_GATEWAY.pack(ReleaseKey(key)))
        except (Busy, Unreachable) as error:
            _log.warning("an idempotency key stays claimed though nothing ran: %s", error)

    async def _ask(
        self,
        made: Callable[[int], AuditForward | AuditBlob | RepositoryAsked | ClaimKey],
        timeout_s: float,
    ) -> _Reply | None:
        """The answer to the message that ``made`` gives for the number of the call; None if late.

        Raises:
            Busy: the control process is behind.
            Unreachable: it is gone.
        """
        self._number += 1
        call = self._number
        answered: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        self._asked[call] = answered
        try:
            await self._channel.send(FROM_GATEWAY.pack(made(call)))
            async with asyncio.timeout(timeout_s):
                return await answered
        except TimeoutError:
            return None
        finally:
            self._asked.pop(call, None)

    async def figures(self) -> str:
        """The control process's counters, or those it gave last if it does not answer at once.

        Asked for when somebody reads them, and once for all who do at a time.
        """
        asked = self._figures
        if asked is None:
            asked = self._figures = asyncio.get_running_loop().create_future()
            with contextlib.suppress(Busy, Unreachable):
                self._channel.post(FROM_GATEWAY.pack(FiguresAsked()))
        await asyncio.wait({asked}, timeout=FIGURES_TIMEOUT_S)
        return self._last_figures

    async def report(self) -> None:
        """Send the counters once a second, when they have changed; runs until cancelled."""
        former: Traffic | None = None
        while True:
            traffic = self._traffic()
            if traffic != former:
                with contextlib.suppress(Busy):  # a control process that is behind gets the next
                    await self._channel.send(FROM_GATEWAY.pack(traffic))
                    former = traffic
            await asyncio.sleep(TRAFFIC_EVERY_S)

    def _counted(self) -> Iterator[Counted]:
        if not self._state.has_view:
            return
        for model in self._state.view.local:
            tally = self._state.tallies.get(model.key)
            if model.is_counted and tally is not None:
                times = tuple(tally.times.counts)
                yield Counted(model.key, tally.requests, tally.errors, times, tally.invalid)

    def _traffic(self) -> Traffic:
        state = self._state
        figures: Figures = state.figures
        peers, pairs = state.outlook.known(monotonic_s())
        return Traffic(
            requests=figures.requests,
            errors=figures.errors,
            forwarded=figures.forwarded,
            received=figures.received,
            in_flight=state.admission.in_flight,
            slots=state.slots,
            service=tuple(state.admission.known_services().items()),
            wait_us=round(state.admission.wait_s(state.runners) * 1e6),
            peers=peers,
            pairs=pairs,
            counted=tuple(self._counted())[:KNOWN_MAX],
        )


def _answer(waiter: "asyncio.Future[T] | None", answer: T) -> None:
    """Whoever asked may be gone."""
    if waiter is not None and not waiter.done():
        waiter.set_result(answer)
