"""The gateway, and what passes between it and the site; the model workers are beside it."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, assert_never

from agent.audit.chain import Decision
from agent.catalog.gates import Counts
from agent.daemon.child import Callbacks, Child
from agent.daemon.once_keys import OnceKeys
from agent.daemon.workers import WorkerPlan, Workers
from agent.drivers.blobs import BlobStore
from agent.drivers.channel import Channel
from agent.drivers.clock import monotonic_s, wall_s
from agent.foundation.errors import AtollError, Busy
from agent.foundation.ids import Digest
from agent.serving.failures import status_of
from agent.site.events import LoadMeasured, SiteEvent
from agent.wire import inside

VIEW_DELAY_S = 0.02
"""Changes that come together make one view."""
VIEW_REFRESH_S = 1.0
VIEW_REFRESH_REST = 100.0
"""Looking for changed round trips takes at most one part in this many of the loop."""
VIEW_REST = 20.0
"""Composing views takes at most one part in this many of the loop: 20 ms each with 1,000 sites, whose
records change hundreds of times a second."""
APPLICATIONS_TIMEOUT_S = 2.0
"""A gateway that has not taken the tokens by then hangs or is very busy: the operator is told so."""

_log = logging.getLogger("atoll.processes")

Feed = Callable[[SiteEvent], None]


class Audit(Protocol):
    """What is needed of ``agent.drivers.audit_log.AuditLog``."""

    async def write(self, decision: Decision, at_ms: int) -> object:
        """The decision's entry is durable; ``AtollError`` if not."""
        ...

    def note(self, outcome: Decision, at_ms: int) -> None:
        """How one ended is written down soon."""
        ...


class Control(Protocol):
    """What is needed of ``agent.daemon.model_desk.ModelDesk``."""

    def __call__(self, model: str, who: str, *, is_load: bool) -> Awaitable[None]:
        """The model is ready, or not served any more, and the gateway knows; ``AtollError`` if not."""
        ...


async def _not_yet(model: str, who: str, *, is_load: bool) -> None:  # noqa: ARG001 - as ``Control``
    raise Busy("the site is starting", mend="try again later")


class Inference:
    """Supervises gateway and model workers."""

    def __init__(
        self,
        *,
        gateway_arguments: Sequence[str],
        plan: WorkerPlan,
        blobs: BlobStore,
        audit: Audit,
        once_keys: OnceKeys,
        view: Callable[[], inside.View],
        applications: Callable[[], tuple[inside.ApplicationToken, ...]],
        feed: Feed,
        spawn: Callable[..., "asyncio.Task[object]"],
    ) -> None:
        """Starts nothing yet.

        ``plan``: of the model workers. ``applications``: the tokens that are valid now.
        """
        self._once_keys = once_keys
        self._audit_log, self._view, self._feed, self._spawn = audit, view, feed, spawn
        self._view_timer: asyncio.TimerHandle | None = None
        self._is_view_stale = self._is_view_under_way = False
        self._view_cost_s = 0.0
        self._view_sent = b""
        self._applications = applications
        self._applications_sent: tuple[inside.ApplicationToken, ...] | None = None
        """None until the first gateway starts, which is sent them before all else."""
        self._told = 0
        self._taken: dict[int, asyncio.Future[bool]] = {}
        """Those who wait until the gateway decides by the tokens of their number."""
        self.control: Control = _not_yet
        """Carries out what applications want loaded and unloaded."""
        self.figures: Callable[[], str] = str
        """This process's counters, in the Prometheus text format."""
        self.gateway_ready = asyncio.Event()
        self.http_port = 0
        self.traffic: inside.Traffic | None = None
        self.gateway = Child(
            "gateway", "agent.gateway", gateway_arguments,
            Callbacks(self._gateway_started, self._from_gateway, self._gateway_gone),
        )  # fmt: skip
        self.workers = Workers(plan, blobs=blobs, to_gateway=self._post, feed=feed, spawn=spawn)

    def _post(self, data: bytes, descriptors: Sequence[int]) -> bool:
        return self.gateway.post(data, descriptors)

    # --- gateway ---------------------------------------------------------------------------------
    def _gateway_started(self, _: Channel) -> None:
        self._view_sent = b""
        self._post_applications()
        self.push_view()
        self.workers.gateway_started()

    def _gateway_gone(self, _: str) -> None:
        self.gateway_ready.clear()
        for number in tuple(self._taken):
            self._applications_taken(number)  # the next one begins with what holds by then

    def _from_gateway(self, data: bytes, descriptors: list[int]) -> None:
        _close_all(descriptors)
        message = inside.FROM_GATEWAY.unpack(data)
        match message:
            case inside.GatewayReady():
                self.http_port = message.http_port
                self.gateway_ready.set()
            case inside.ApplicationsTaken():
                self._applications_taken(message.call)
            case inside.AuditForward() | inside.AuditBlob():
                self._spawn(self._audit(message.call, _decision(message)))
            case inside.AuditOutcome():
                outcome = Decision(
                    "outcome", message.request[:200], message.receiver, message.label,
                    message.bytes, message.outcome[:200],
                )  # fmt: skip
                self._audit_log.note(outcome, int(wall_s() * 1000))
            case inside.ClaimKey():
                self._spawn(self._claim(message))
            case inside.ReleaseKey():
                self._spawn(self._release(message.key))
            case inside.FiguresAsked():
                answer = inside.ControlFigures(self.figures())
                self.gateway.post(inside.TO_GATEWAY.pack(answer))
            case inside.RepositoryAsked():
                self._spawn(self._repository(message))
            case inside.Traffic():
                self.traffic = message
                load = message.in_flight / message.slots if message.slots else 0.0
                counts = {
                    one.key: Counts(one.requests, one.errors, one.times, one.invalid)
                    for one in message.counted
                }
                self._feed(LoadMeasured(load, dict(message.service), counts))
            case _:
                assert_never(message)

    async def _audit(self, call: int, decision: Decision) -> None:
        error = ""
        try:
            await self._audit_log.write(decision, int(wall_s() * 1000))
        except AtollError as fault:
            error = f"the audit entry cannot be written: {fault}"
        self.gateway.post(inside.TO_GATEWAY.pack(inside.Audited(call, error[:1000])))

    async def _claim(self, message: inside.ClaimKey) -> None:
        is_new, error = False, ""
        try:
            is_new = await self._once_keys.claim(message.key)
        except AtollError as fault:
            error = str(fault)
        answer = inside.KeyClaimed(message.call, is_new, error[:1000])
        self.gateway.post(inside.TO_GATEWAY.pack(answer))

    async def _release(self, key: bytes) -> None:
        try:
            await self._once_keys.release(key)
        except AtollError as fault:
            _log.warning("an idempotency key stays claimed though nothing ran: %s", fault)

    async def _repository(self, message: inside.RepositoryAsked) -> None:
        status, error = 200, ""
        try:
            await self.control(message.model, message.who, is_load=message.is_load)
        except AtollError as fault:
            status, error = status_of(fault), str(fault)
        answer = inside.RepositoryAnswered(message.call, status, error[:1000])
        self.gateway.post(inside.TO_GATEWAY.pack(answer))

    def view_changed(self) -> None:
        """Push the view soon."""
        self._is_view_stale = True
        if self._view_timer is None and not self._is_view_under_way:
            delay_s = max(VIEW_DELAY_S, VIEW_REST * self._view_cost_s)
            loop = asyncio.get_running_loop()
            self._view_timer = loop.call_later(delay_s, self.push_view)

    def label(self, digest: Digest, residency: tuple[str, ...]) -> None:
        """Tell the gateway of one blob at once; whoever is told of it next may ask for it next."""
        message = inside.BlobLabel(digest, residency)
        self.gateway.post(inside.TO_GATEWAY.pack(message))

    def certificate_renewed(self) -> None:
        """The gateway, if it runs, is to show the renewed certificate; a new one reads it anyway."""
        self.gateway.post(inside.TO_GATEWAY.pack(inside.CertificateRenewed()))

    async def tell_applications(self) -> bool:
        """Have the gateway decide by the tokens that are valid now; whether it has confirmed that."""
        if not self._post_applications():
            return self.gateway.pid is None  # nobody is let in, and the next one begins with them
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        number = self._told
        self._taken[number] = taken
        try:
            async with asyncio.timeout(APPLICATIONS_TIMEOUT_S):
                return await taken
        except TimeoutError:
            return False
        finally:
            self._taken.pop(number, None)

    def _post_applications(self) -> bool:
        self._told += 1
        self._applications_sent = self._applications()
        message = inside.Applications(self._told, self._applications_sent)
        return self.gateway.post(inside.TO_GATEWAY.pack(message))

    def _applications_taken(self, number: int) -> None:
        if (waiter := self._taken.get(number)) is not None and not waiter.done():
            waiter.set_result(True)

    def push_view(self) -> None:
        """Push the view now; one at a time, so that a gateway that is behind gets only the last."""
        if self._view_timer is not None:
            self._view_timer.cancel()
            self._view_timer = None
        self._is_view_stale = True
        if not self._is_view_under_way:
            self._is_view_under_way = True
            self._spawn(self._send_view())

    async def _refresh_view(self) -> None:
        """Round trips move without any event: keep what the gateway knows of them fresh."""
        while True:
            await asyncio.sleep(max(VIEW_REFRESH_S, VIEW_REFRESH_REST * self._view_cost_s))
            self.view_changed()

    async def _send_view(self) -> None:
        self._is_view_stale = False
        try:
            await self.show()
        finally:
            self._is_view_under_way = False
        if self._is_view_stale:
            self.view_changed()

    async def show(self) -> None:
        """The gateway is told how things are now before anything that is sent to it hereafter."""
        if self._applications_sent not in (None, self._applications()):
            self._post_applications()  # a document of the catalog has changed them
        began = monotonic_s()
        packed = inside.TO_GATEWAY.pack(self._view())
        self._view_cost_s = monotonic_s() - began
        if packed != self._view_sent:
            self._view_sent = packed  # before the wait: another view may be sent meanwhile
            await self.gateway.send(packed)

    # --- life ------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start all; they are kept alive until ``stop``."""
        self._spawn(self.gateway.run())
        self._spawn(self._refresh_view())
        self.workers.start()

    async def stop(self) -> None:
        """End all."""
        if self._view_timer is not None:
            self._view_timer.cancel()
        await asyncio.gather(self.gateway.stop(), self.workers.stop())


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _decision(message: inside.AuditForward | inside.AuditBlob) -> Decision:
    """What is written down of it."""
    if isinstance(message, inside.AuditBlob):
        return Decision(
            "blob", message.blob.hex(), message.receiver, message.label, message.bytes,
            policy=message.policy,
        )  # fmt: skip
    detail = f"{message.model} trace {message.trace}" if message.trace else message.model
    return Decision(
        "forward", message.request[:200], message.receiver, message.label, message.bytes, detail[:200],
        message.policy,
    )  # fmt: skip
