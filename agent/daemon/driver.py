"""Runs the site's machine: gives it events with the time, carries out its effects in order.

Rule (the Ready rule): whatever follows a ``Persist`` in a list of effects waits for its commit. Lists
that wait are carried out first in, first out; their rows are committed together. Gossip never waits:
it promises nothing. Rows that the disk refuses stay owed (see ``debt``).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, assert_never

from agent.daemon.debt import Debt, is_promise
from agent.daemon.outside import Outside
from agent.drivers.clock import monotonic_s
from agent.drivers.lag import LoopLag
from agent.drivers.store import Store
from agent.federation import events as job
from agent.foundation.errors import AtollError, StoreFault
from agent.foundation.machine import NEVER, Woke
from agent.membership.events import LoopLagged, SendGossip
from agent.site.events import (
    Answer,
    Ask,
    BlobStored,
    CallEnded,
    FetchBlob,
    GatewayChanged,
    IsolationChanged,
    LoadModel,
    MeshLeft,
    Noted,
    Persist,
    Resolved,
    SiteEffect,
    SiteEvent,
    TrustChanged,
    UnloadModel,
)
from agent.site.site import Site

LAG_WORTH_TELLING_S = 0.2
"""Below this a late timer is ordinary scheduling noise of a loaded machine."""
TICK_S = 0.001
"""No machine is woken more often than this, whatever it asks for."""
BACKLOG_MAX = 10_000
"""Lists of effects that wait for the disk; reached only when the disk has stopped."""
OWED_RETRY_S = 1.0
"""A full disk is tried again this often; an operator has freed space or has not."""

_log = logging.getLogger("atoll.site")


class Driver:
    """One site's machine and its outside world."""

    def __init__(self, site: Site, store: Store, outside: Outside) -> None:
        """``outside`` carries out what is not persistence; it feeds results back."""
        self.site, self._store, self._outside = site, store, outside
        self._backlog: deque[list[SiteEffect]] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watchers: set[Callable[[], None]] = set()
        self._debt = Debt()
        self._retrying: asyncio.TimerHandle | None = None
        self.lag = LoopLag(
            "atoll_control_loop_lag_seconds", "Delay of the control process's timers"
        )
        """Of the machine's own timer: this process does not wake to look at the clock."""
        self.is_isolated = False
        self.fault = ""
        """Why the disk refuses writes just now; empty when it takes them. For ``atoll status``."""
        outside.connect(self.feed, self.spawn)

    def start(self) -> None:
        """Arm the first timer."""
        self._rearm()

    def feed(self, event: SiteEvent) -> None:
        """One event, now."""
        now = monotonic_s()
        self._tell_lag(now)
        self._take(self.site.step(event, now))
        self._rearm()

    def _take(self, effects: list[SiteEffect]) -> None:
        if not effects:
            return
        waiting: list[SiteEffect] = []
        for effect in effects:
            if isinstance(effect, SendGossip):
                self._outside.gossip(effect)
            else:
                waiting.append(effect)
        if not waiting:
            return
        needs_disk = any(isinstance(effect, (Persist, job.StoreBytes)) for effect in waiting)
        is_owing = bool(self._debt) and any(is_promise(effect) for effect in waiting)
        if needs_disk or is_owing or self._backlog or self._writing is not None:
            assert len(self._backlog) < BACKLOG_MAX
            self._backlog.append(waiting)
            if self._writing is None:
                self._writing = self.spawn(self._write_out())
        else:
            for effect in waiting:
                self._perform(effect)

    async def _write_out(self) -> None:
        try:
            while self._backlog:
                lists = list(self._backlog)
                self._backlog.clear()
                await self._write(lists)
        finally:
            self._writing = None

    async def _write(self, lists: Sequence[list[SiteEffect]]) -> None:
        for effects in lists:
            self._debt.take(effects)
        try:
            stored = await self._debt.pay(self._outside.store_bytes, self._store.commit)
        except AtollError as fault:
            self._refused(fault, lists)
            return
        if self.fault:
            _log.info("the disk takes writes again")
            self.fault = ""
        for digest in stored.blobs:
            self.feed(BlobStored(digest))
        for effects in lists:
            for effect in effects:
                if not isinstance(effect, (Persist, job.StoreBytes)):
                    self._perform(effect)
        for token in stored.tokens:
            self.feed(job.Persisted(token))

    def _refused(self, fault: AtollError, lists: Sequence[list[SiteEffect]]) -> None:
        """The disk said no: the rows stay owed, and what rests on them does not leave.

        Everything else goes on: the site serves, trains and gossips with a full disk.
        """
        if isinstance(fault, StoreFault) and fault.is_fatal:
            raise fault  # what is on disk is unknown: the process must end and start anew
        if not self.fault:
            _log.error(
                "the disk refuses writes: %s; trying again every %.0f s", fault, OWED_RETRY_S
            )
        self.fault = str(fault)
        for effects in lists:
            for effect in effects:
                if isinstance(effect, (Persist, job.StoreBytes)):
                    continue
                if not is_promise(effect):
                    self._perform(effect)
                elif isinstance(effect, Ask):
                    self.feed(CallEnded(effect.call, effect.site, None, str(fault)))
                else:
                    self._outside.fail(effect, fault)
        if self._retrying is None:
            loop = asyncio.get_running_loop()
            self._retrying = loop.call_later(OWED_RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retrying = None
        if self._debt:
            self._backlog.append([])
            if self._writing is None:
                self._writing = self.spawn(self._write_out())

    def _perform(self, effect: SiteEffect) -> None:  # noqa: C901, PLR0912 - one case an effect
        outside = self._outside
        match effect:
            case Ask():
                outside.ask(effect)
            case Answer():
                outside.answer(effect)
            case Resolved():
                outside.resolve(effect)
            case FetchBlob():
                outside.fetch(effect)
            case job.ReadBlob():
                outside.read(effect)
            case job.ForgetBlob():
                outside.forget(effect)
            case (
                job.Train() | job.Initialise() | job.Aggregate() | job.AggregateRange() | job.Join() | job.Export()
                | job.ReleaseTrainer()
            ):  # fmt: skip
                outside.work(effect)
            case LoadModel() | UnloadModel():
                outside.model(effect)
            case GatewayChanged():
                outside.gateway_changed()
            case MeshLeft(reason):
                outside.leave_mesh(reason)
            case TrustChanged():
                outside.trust_changed()
            case job.Label():
                outside.label(effect)
            case IsolationChanged(is_isolated):
                self.is_isolated = is_isolated
                _log.warning("isolated: nobody is heard" if is_isolated else "no longer isolated")
            case Noted(text, is_warning):
                _log.log(logging.WARNING if is_warning else logging.INFO, "%s", text)
            case job.Progressed():
                for watcher in list(self._watchers):
                    watcher()
            case SendGossip() | Persist() | job.StoreBytes():
                raise AssertionError("carried out before")
            case _:
                assert_never(effect)

    # --- time ------------------------------------------------------------------------------------
    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.site.wake_at()
        if at != NEVER:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(at, loop.time() + TICK_S), self._wake)

    def _wake(self) -> None:
        self._tell_lag(monotonic_s())
        self._timer = None
        self._take(self.site.step(Woke(), max(monotonic_s(), self.site.wake_at())))
        self._rearm()

    def _tell_lag(self, now: float) -> None:
        """Tell membership first when this process stood still: what it missed then proves nothing.

        A stall in which the machine wanted nothing made it miss nothing, so its own timer is measure
        enough, and the process need not wake to look at the clock.
        """
        if self._timer is None:
            return
        lag_s = now - self._timer.when()
        if lag_s < 0:
            return
        self._timer.cancel()  # it is due: whoever called sets the next
        self._timer = None
        self.lag.note(lag_s)
        if lag_s > LAG_WORTH_TELLING_S:
            self._take(self.site.step(LoopLagged(lag_s), now))

    # --- tasks and watchers ----------------------------------------------------------------------
    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run beside the loop; an unexpected exception is a defect and ends the daemon."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # reaches the loop's exception handler, which stops the daemon

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call ``changed`` whenever a job moves; call the result to stop."""
        self._watchers.add(changed)
        return lambda: self._watchers.discard(changed)

    async def stop(self) -> None:
        """Finish what waits for the disk, then end every task."""
        for timer in (self._timer, self._retrying):
            if timer is not None:
                timer.cancel()
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=1.0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
