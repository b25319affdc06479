"""The connections of one door: how long each may take, and who gives way when all are taken.

Whoever holds a connection and sends or reads nothing keeps it from somebody else. So each state of a
connection has a bound: ``HEADERS_TIMEOUT_S`` to its first whole request, ``bodies`` for the rest of a
request, an answer that is read at ``BODY_BYTES_PER_S_MIN`` after ``BODY_TIMEOUT_S``, and aiohttp's
keep-alive in between. And when all connections are taken, a new one takes the place of the one that has
kept the door waiting longest: first of those that have not asked yet (after ``SPARED_S``), then of those
that are idle, then of those whose request is not whole (both after ``GIVE_WAY_AFTER_S``), then of the
newest. Only a door full of requests at work turns anybody away. Two thousand silent connections thus cost
an honest client nothing but their accepting.
"""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any, cast

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from agent.gateway.bodies import BODY_BYTES_PER_S_MIN, BODY_TIMEOUT_S
from agent.serving.failures import error_body

CONNECTIONS_MAX = 1024
"""Of each door; below the usual limit of open files together with everything else."""
HEADERS_TIMEOUT_S = 10.0
"""To a connection's first request; aiohttp itself never ends one that sends nothing."""
SPARED_S = 0.1
"""A new connection's request may be on its way, or unread yet, where many come at once."""
GIVE_WAY_AFTER_S = 1.0
"""A client that means it has sent its request, or its next one, by then."""
REVIEW_S = 2.0
"""How often connections are looked at, while there are any."""

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"Retry-After: 1\r\nContent-Length: 32\r\nConnection: close\r\n\r\n"
    b'{"error":"too many connections"}'
)
_log = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """One client's connection, known to its crowd; what is no HTTP is answered in the protocol's form."""

    __slots__ = ("_crowd",)

    def __init__(self, crowd: "Crowd", server: web.Server, **settings: Any) -> None:
        """``settings`` are those of aiohttp's own class."""
        settings |= {"access_log": None, "loop": asyncio.get_running_loop()}
        super().__init__(server, **settings)
        self._crowd = crowd

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client is there: it gets a place, or a short answer and the door."""
        if self._crowd.came(self):
            super().connection_made(transport)
            return
        self.close()  # reads nothing more
        stream = cast("asyncio.WriteTransport", transport)  # uvloop's own class is no subclass
        stream.write(_FULL)
        stream.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Its place is free."""
        self._crowd.left(self)
        super().connection_lost(exc)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """A refused body that does not even inflate is the client's mistake, and was answered."""
        if isinstance(kw.get("exc_info"), web.RequestPayloadError):
            _log.debug("the rest of a body cannot be read", exc_info=kw["exc_info"])
        else:
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The protocol's error object for what never became a request; a stranger's noise is no error."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun; another one cannot follow")
        if status == 500:  # noqa: PLR2004 - HTTP internal server error
            _log.error("request failed outside its handler", exc_info=exc)
            text = "internal error of the gateway; see its log"
        else:
            _log.debug("not HTTP", exc_info=exc)
            why = (message or "").strip().splitlines() or ["it breaks off"]
            text = f"the request is not valid HTTP; {why[0][:100].rstrip(':')}"
        response = web.Response(
            status=status, body=error_body(text), content_type="application/json"
        )
        response.force_close()
        return response


class Crowd:
    """All connections of a door, each in one of three states."""

    def __init__(self) -> None:
        self._new: dict[Connection, float] = {}
        """No whole request yet, and since when; oldest first, as in the others."""
        self._asking: dict[Connection, tuple[float, web.Request]] = {}
        """A request is being read or answered."""
        self._idle: dict[Connection, float] = {}
        """Between requests; the last answer may not have been read."""
        self._unread: dict[Connection, tuple[float, float]] = {}
        """Of those with an answer that is not read: of which request, and when that is too late."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._new) + len(self._asking) + len(self._idle)

    def came(self, one: Connection) -> bool:
        """A connection is made; False if there is no place for it."""
        now = _now()
        if len(self) >= CONNECTIONS_MAX and not self._give_way(now):
            return False
        self._new[one] = now
        if self._timer is None:
            self._wait()
        return True

    def left(self, one: Connection) -> None:
        """A connection is gone."""
        for state in (self._new, self._asking, self._idle, self._unread):
            state.pop(one, None)

    def middleware(self) -> Middleware:
        """Notes who is asking."""

        @web.middleware
        async def noted(request: web.Request, handler: Handler) -> web.StreamResponse:
            one = cast("Connection", request.protocol)
            self._new.pop(one, None)
            self._idle.pop(one, None)
            self._asking[one] = (_now(), request)
            try:
                return await handler(request)
            finally:
                if self._asking.pop(one, None) is not None:
                    self._idle[one] = _now()

        return noted

    def _give_way(self, now: float) -> bool:
        """End the connection that has kept the door waiting longest; False if none has."""
        one = next(self._dispensable(now), None)
        if one is None:
            return False
        self._end(one)
        return True

    def _dispensable(self, now: float) -> Iterator[Connection]:
        for one, since in self._new.items():
            if now - since < SPARED_S:
                break
            yield one
        for one, since in self._idle.items():
            if now - since < GIVE_WAY_AFTER_S:
                break
            if _unsent(one) == 0:
                yield one
        for one, (since, request) in self._asking.items():
            if now - since < GIVE_WAY_AFTER_S:
                break
            if not request.content.is_eof():
                yield one
        yield from self._new

    def _end(self, one: Connection) -> None:
        self.left(one)
        transport = one.transport
        if transport is not None:
            cast("asyncio.WriteTransport", transport).abort()  # closing would wait for its reader
        one.force_close()

    def _wait(self) -> None:
        delay_s = min(REVIEW_S, HEADERS_TIMEOUT_S)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._review)

    def _review(self) -> None:
        now, self._timer = _now(), None
        for one, since in tuple(self._new.items()):
            if now - since >= HEADERS_TIMEOUT_S:
                self._end(one)
        asked = [(one, since) for one, (since, _) in self._asking.items()]
        for one, since in (*self._idle.items(), *asked):
            self._review_answer(one, since, now)
        if len(self):
            self._wait()

    def _review_answer(self, one: Connection, since: float, now: float) -> None:
        unsent = _unsent(one)
        if not unsent:
            self._unread.pop(one, None)
            return
        of, until = self._unread.get(one, (-1.0, 0.0))
        if of != since:
            until = now + BODY_TIMEOUT_S + unsent / BODY_BYTES_PER_S_MIN
            self._unread[one] = (since, until)
        if now >= until:
            self._end(one)


def _unsent(one: Connection) -> int:
    """Bytes that the client has not taken; TLS counts its own as well."""
    transport = cast("asyncio.WriteTransport | None", one.transport)
    return 0 if transport is None else transport.get_write_buffer_size()


def _now() -> float:
    return asyncio.get_running_loop().time()
