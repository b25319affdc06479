"""A line in the log for a request that failed here or took long, with what finds it elsewhere.

It names the request id, which other sites' logs and the audit trail have too, and the caller's trace.
Bound: ``LINES_MAX`` in ``EVERY_S``; what is beyond is counted and told with the next line.
"""

import logging
from collections.abc import Callable

from agent.drivers.clock import monotonic_s
from agent.serving.trace import Trace

SLOW_S = 5.0
"""Nobody waits in front of a screen that long; a model that needs it shows in the metrics anyway."""
LINES_MAX = 10
EVERY_S = 10.0
TEXT_CHARS_MAX = 300

_log = logging.getLogger("gateway.requests")


class Remarks:
    """Decides which requests are worth a line, and writes it."""

    def __init__(self, now_s: Callable[[], float] = monotonic_s) -> None:
        """``now_s`` gives monotonic seconds."""
        self._now_s = now_s
        self._since = float("-inf")
        self._lines = self._unlogged = 0

    def answered(
        self, request: str, model: str, trace: Trace | None, status: int, took_s: float, text: str
    ) -> None:
        """A request ended.

        Args:
            request: its id.
            model: name and version.
            trace: the caller's.
            status: HTTP status.
            took_s: seconds.
            text: the error; empty if there is none.
        """
        if status < 500 and took_s < SLOW_S:  # noqa: PLR2004 - server errors
            return
        now = self._now_s()
        if now - self._since >= EVERY_S:
            self._since, self._lines = now, 0
        if self._lines >= LINES_MAX:
            self._unlogged += 1
            return
        self._lines += 1
        of = f" of trace {trace.id} (span {trace.span})" if trace is not None else ""
        why = f": {ascii(text)[1:-1]:.{TEXT_CHARS_MAX}}" if text else ""
        more = f" ({self._unlogged} more were not logged)" if self._unlogged else ""
        self._unlogged = 0
        _log.warning(
            "request %s%s for %s: %d after %.0f ms%s%s",
            request, of, model, status, 1000 * took_s, why, more,
        )  # fmt: skip
