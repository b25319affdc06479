"""Request bodies from clients that may be large, slow, compressed or lying about their size."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agent.foundation.errors import Busy, UsageError
from agent.serving.failures import TooLarge, TooSlow

BODY_TIMEOUT_S = 10.0
"""Before this nobody is too slow; afterwards a body must have come at ``BODY_BYTES_PER_S_MIN``."""
BODY_BYTES_PER_S_MIN = 128 << 10
"""1 Mbit/s: below that a request is not made for this site."""
ENCODINGS = ("identity", "gzip", "deflate")
"""What clients of the protocol send; others would be taken for plain bytes by some and not by others."""
BODIES_AT_ONCE = 4
"""Bodies of the largest allowed size that may lie in memory together."""
BODIES_OF_ONE = 3
"""Of these, one application's: another one's requests are read however many large ones it sends."""


class Bodies:
    """Reads bodies within bounds of size, time and memory of all together."""

    def __init__(self, bytes_max: int) -> None:
        """``bytes_max`` bounds one body, after decompression."""
        self.bytes_max = bytes_max
        self._held = 0
        self._held_by: Counter[str] = Counter()
        """By application."""

    @contextlib.asynccontextmanager
    async def body(
        self, request: web.Request, application: str, bytes_max: int | None = None
    ) -> AsyncIterator[bytes]:
        """The whole body, inflated; its memory counts until the block ends.

        Args:
            request: whose body it is.
            application: whose request it is.
            bytes_max: if that is less than all bodies may have.

        Raises:
            TooLarge: more than ``bytes_max``, as announced or as it came.
            TooSlow: slower than ``BODY_BYTES_PER_S_MIN``.
            UsageError: it breaks off, does not decompress, or is encoded in an unknown way.
            Busy: the bodies of other requests fill the memory set aside.
        """
        bytes_max = self.bytes_max if bytes_max is None else bytes_max
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        if encoding not in ENCODINGS:
            raise UsageError(
                f"the body's encoding {encoding!r:.40} is not supported",
                why=f"it may be {', '.join(ENCODINGS)}",
            )
        if (request.content_length or 0) > bytes_max:
            raise self._too_large(bytes_max)
        chunks: list[bytes] = []
        try:
            await self._read(request, chunks, application, bytes_max)
            yield chunks[0] if len(chunks) == 1 else b"".join(chunks)
        finally:
            size = sum(map(len, chunks))
            self._held -= size
            self._held_by[application] -= size
            if not self._held_by[application]:
                del self._held_by[application]

    async def _read(
        self, request: web.Request, chunks: list[bytes], application: str, bytes_max: int
    ) -> None:
        size = 0
        begun = asyncio.get_running_loop().time()
        try:
            if request.content.is_eof():  # all of it is there: nobody is waited for
                self._take(request.content.read_nowait(), chunks, 0, application, bytes_max)
                return
            async with asyncio.timeout(BODY_TIMEOUT_S) as limit:
                while chunk := await request.content.readany():
                    size = self._take(chunk, chunks, size, application, bytes_max)
                    limit.reschedule(begun + BODY_TIMEOUT_S + size / BODY_BYTES_PER_S_MIN)
        except TimeoutError:
            raise TooSlow(
                "the body comes too slowly",
                why=f"{size} bytes in {asyncio.get_running_loop().time() - begun:.0f} s, the least is"
                f" {BODY_BYTES_PER_S_MIN} bytes a second after {BODY_TIMEOUT_S:.0f} s",
            ) from None
        except (web.RequestPayloadError, HttpProcessingError) as error:
            raise UsageError("the body cannot be read", why=_text(error)) from None
        except RuntimeError as error:  # aiohttp's word for a connection that is gone already
            raise UsageError("the body breaks off", why=str(error)) from None

    def _take(
        self, chunk: bytes, chunks: list[bytes], size: int, application: str, bytes_max: int
    ) -> int:
        chunks.append(chunk)
        size += len(chunk)
        self._held += len(chunk)
        self._held_by[application] += len(chunk)
        if size > bytes_max:
            raise self._too_large(bytes_max)
        if (
            self._held > BODIES_AT_ONCE * self.bytes_max
            or self._held_by[application] > BODIES_OF_ONE * self.bytes_max
        ):
            raise Busy("too many large requests at once", mend="try again later")
        return size

    def _too_large(self, bytes_max: int) -> TooLarge:
        can_be_raised = bytes_max == self.bytes_max
        return TooLarge(
            "the body is too large",
            why=f"the limit is {bytes_max} bytes, after decompression",
            mend="raise serving.request_bytes_max or send less at once" if can_be_raised else "",
        )


def _text(error: Exception) -> str:
    cause = error.__cause__ or error
    text = cause.message if isinstance(cause, HttpProcessingError) else str(cause)
    return text.splitlines()[0][:200] if text else type(cause).__name__
