"""Requests with an idempotency key: the model runs at most once for each, and who asks again hears the same.

Source: draft-ietf-httpapi-idempotency-key-header-07. A key belongs to an application at one site. It is
on disk before the request is given to anybody, so that it holds across the end of this process and of
the site; it is taken back where the request certainly did not run (refused, no room). A request with a
key goes on when its caller is gone, who will ask again; it is not hedged, and not given to another
worker or site where the first may have begun (``inference``).

What a bound costs: an answer that is not kept any more is refused (409), never made again. Beyond
``ONCE_KEYS_MAX`` newer keys a key is forgotten, and would run again.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from agent.drivers.clock import monotonic_s
from agent.foundation.errors import AtollError, Busy, Unreachable
from agent.gateway.asked import Answered, Asked
from agent.serving.failures import DeadlineExceeded, KeyReused, KeySpent, status_of
from agent.wire.limits import ONCE_KEYS_MAX

RUNNING_MAX = 256
"""Each holds its request's body."""
ANSWER_LIFE_S = 600.0
"""Longer than a caller tries again by itself."""
ANSWERS_BYTES_MAX = 16 << 20
KEY_BYTES = 16
CLIENT_ERROR, SERVER_ERROR = 400, 500


class Ledger(Protocol):
    """Keys on disk."""

    async def claim(self, key: bytes) -> bool:
        """Return when the key is on disk; whether it is new. ``Unreachable`` if it cannot be written."""
        ...

    def release(self, key: bytes) -> None:
        """The request did not run: the key may be claimed again."""
        ...


@dataclass(slots=True)
class _Known:
    request: bytes
    """Digest of what was asked."""
    running: "asyncio.Task[Answered] | None"
    answer: Answered | None = None
    kept_until: float = 0.0


class Once:
    """The keys that this process has seen, and their answers."""

    def __init__(self, ledger: Ledger) -> None:
        """Needs a running loop when it is used."""
        self._ledger = ledger
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._answers: OrderedDict[bytes, int] = OrderedDict()
        """Bytes of those that are kept, the oldest first."""
        self._answers_bytes = 0
        self._running = 0
        self.replayed = 0
        """Requests that were answered as before."""

    async def answer(self, asked: Asked, run: Callable[[], Awaitable[Answered]]) -> Answered:
        """What ``run`` gives, now or when the same was asked before.

        Raises:
            KeyReused: the key was used for another request.
            KeySpent: its request was run, or may have been, and there is no answer to give.
            AtollError: as ``run``.
        """
        key = _digest(asked.application, asked.once)
        request = _digest(asked.model.key, asked.header, asked.body)
        known = self._known.get(key)
        if known is None:
            return await _to_its_end(self._begin(key, request, run))
        if known.request != request:
            raise KeyReused(
                "the idempotency key was used for another request",
                mend="make a new key for each request, and use it again only to ask the same again",
            )
        if known.running is not None:
            answered = await _within(asked.deadline, known.running)
        elif known.answer is not None and monotonic_s() < known.kept_until:
            answered = known.answer
        else:
            raise _spent()
        self.replayed += 1
        return replace(answered, run_us=0, queue_us=0, together=1, is_first=False, is_replayed=True)

    def _begin(
        self, key: bytes, request: bytes, run: Callable[[], Awaitable[Answered]]
    ) -> "asyncio.Task[Answered]":
        if self._running >= RUNNING_MAX:
            raise Busy(
                "too many requests with idempotency keys at once", why=f"the bound is {RUNNING_MAX}"
            )
        if len(self._known) >= ONCE_KEYS_MAX:
            oldest = next(key for key, known in self._known.items() if known.running is None)
            del self._known[oldest]
            self._let_go(oldest)
        self._running += 1
        running = asyncio.create_task(self._run(key, run))
        self._known[key] = _Known(request, running)
        return running

    async def _run(self, key: bytes, run: Callable[[], Awaitable[Answered]]) -> Answered:
        may_have_run = True
        try:
            if not await self._ledger.claim(key):
                raise _spent()
            answered = await run()
            may_have_run = not CLIENT_ERROR <= answered.status < SERVER_ERROR
            if answered.status < CLIENT_ERROR:
                self._keep(key, answered)
        except AtollError as error:
            is_refused = status_of(error) < SERVER_ERROR and not isinstance(error, KeySpent)
            may_have_run = not is_refused and not isinstance(error, Busy | Unreachable)
            raise
        finally:
            self._running -= 1
            self._known[key].running = None
            if not may_have_run:
                del self._known[key]
                self._ledger.release(key)
        return answered

    def _keep(self, key: bytes, answered: Answered) -> None:
        known = self._known[key]
        known.answer, known.kept_until = answered, monotonic_s() + ANSWER_LIFE_S
        self._answers[key] = len(answered.body)
        self._answers_bytes += len(answered.body)
        while self._answers_bytes > ANSWERS_BYTES_MAX:
            oldest = next(iter(self._answers))
            self._known[oldest].answer = None
            self._let_go(oldest)

    def _let_go(self, key: bytes) -> None:
        self._answers_bytes -= self._answers.pop(key, 0)


def _spent() -> KeySpent:
    return KeySpent(
        "the request of this idempotency key was run before, or may have been",
        why="its answer is not kept: it never came, is older than ten minutes, or the site has"
        " restarted since",
        mend="ask with a new key if it may be run again",
    )


def _digest(*parts: str | bytes | None) -> bytes:
    """Of texts of any length, told apart from all others."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part or b""
        found.update(b"%d:" % (-1 if part is None else len(content)))
        found.update(content)
    return found.digest()[:KEY_BYTES]


async def _to_its_end(running: "asyncio.Task[Answered]") -> Answered:
    """Its result. Cancelled once, this still waits for the end, and so holds the request's memory."""
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


async def _within(deadline: float, running: "asyncio.Task[Answered]") -> Answered:
    try:
        async with asyncio.timeout(max(0.0, deadline - monotonic_s())):
            return await asyncio.shield(running)
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the answer was there") from None
