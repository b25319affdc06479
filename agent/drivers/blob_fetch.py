"""One fetch under way: the pure schedule (``agent.distribution.fetch``) driven over real sources."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol, assert_never

from agent.distribution.fetch import (
    SOURCES_MAX,
    ChunkArrived,
    ChunkFailed,
    Complete,
    Drop,
    Failed,
    Fetch,
    FetchEffect,
    FetchEvent,
    Look,
    Looked,
    LookFailed,
    RequestChunk,
    SourceAdded,
)
from agent.distribution.holding import Holding
from agent.distribution.manifest import Manifest, parse
from agent.foundation.errors import (
    AtollError,
    Corruption,
    NotFound,
    Refused,
    Unreachable,
)
from agent.foundation.ids import Digest, short
from agent.foundation.machine import Woke
from agent.foundation.randomness import Rng

CHUNK_TIMEOUT_S: Final = 15.0
"""A chunk of 256 KiB at 150 kbit/s: slower than that, another source is the better one."""

MANIFEST_TIMEOUT_S: Final = 15.0
"""A manifest of 2 MiB at 1.1 Mbit/s; the usual one has a few KiB."""

MANIFEST_STAGGER_S: Final = 0.5
"""How long one source may think about the manifest before the next is asked too."""


class ChunkSource(Protocol):
    """Another site, as a place from which chunks come.

    All methods raise ``NotFound`` if it does not have that, and ``Unreachable`` or another
    ``RemoteFault`` if it does not answer properly. Answers are checked by whoever asked.
    """

    @property
    def name(self) -> str:
        """Tells this source from others, and names it to people."""
        ...

    async def manifest(self, digest: Digest) -> bytes:
        """The encoded manifest of the blob."""
        ...

    async def held(self, digest: Digest) -> Holding:
        """Which chunks it has now."""
        ...

    async def chunk(self, digest: Digest, index: int) -> bytes:
        """The bytes of one chunk."""
        ...


class ChunkSink(Protocol):
    """Where chunks go (synchronous; called in threads, ``write`` from several at once)."""

    def known_manifest(self) -> bytes | None:
        """The encoded manifest, if it is here already."""
        ...

    def open(self, encoded: bytes, manifest: Manifest) -> set[int]:
        """Keep the manifest and say which chunks are here."""
        ...

    def write(self, manifest: Manifest, index: int, data: bytes) -> bool:
        """Check and store one chunk; False if it is not the right one."""
        ...

    def publish(self) -> None:
        """Every chunk is here: make the blob whole and durable."""
        ...

    def close(self) -> None:
        """Let go of the file; called once at the end, whatever happened."""
        ...


class BlobFetch:
    """The fetch of one blob, for all callers that want it."""

    def __init__(self, sink: ChunkSink, digest: Digest, bytes_max: int, rng: Rng) -> None:
        """Nothing happens before ``start``."""
        self._sink = sink
        self._digest = digest
        self._bytes_max = bytes_max
        self._rng = rng
        self._sources: dict[str, ChunkSource] = {}
        self._events: asyncio.Queue[FetchEvent | Exception] = asyncio.Queue()
        """Bounded by the requests under way and ``SOURCES_MAX``."""
        self._requests: dict[asyncio.Task[None], str] = {}
        """What is under way, and from which source."""
        self._task: asyncio.Task[None] | None = None
        self._on_end: Callable[[], object] = lambda: None
        self._waiting = 0

    def start(self, on_end: Callable[[], object]) -> None:
        """Begin in the running loop; ``on_end`` is called when nobody may join any more."""
        self._on_end = on_end

        def ended(task: asyncio.Task[None]) -> None:
            on_end()
            if not task.cancelled():
                task.exception()  # every waiter may be gone; the loop need not complain

        self._task = asyncio.create_task(self._run(), name=f"fetch-{short(self._digest)}")
        self._task.add_done_callback(ended)

    def add(self, sources: Sequence[ChunkSource]) -> None:
        """Let these be asked too."""
        for source in sources:
            if source.name not in self._sources and len(self._sources) < SOURCES_MAX:
                self._sources[source.name] = source
                self._events.put_nowait(SourceAdded(source.name))

    async def wait(self) -> None:
        """Return when the blob is here, or raise why not; the last one who gives up ends the fetch."""
        assert self._task is not None, "start comes first"
        self._waiting += 1
        try:
            await asyncio.shield(self._task)
        finally:
            self._waiting -= 1
            if not self._waiting and not self._task.done():
                self._on_end()
                self._task.cancel()
                await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            encoded = await asyncio.to_thread(self._sink.known_manifest)
            if encoded is None:
                encoded = await self._manifest()
            manifest = await asyncio.to_thread(parse, self._digest, encoded)
            if manifest.bytes > self._bytes_max:
                raise Refused(
                    f"blob {short(self._digest)} has {manifest.bytes} bytes",
                    why=f"at most {self._bytes_max} are allowed here",
                )
            held = await asyncio.to_thread(self._sink.open, encoded, manifest)
            await self._chunks(manifest, held)
            await asyncio.to_thread(self._sink.publish)
        finally:
            await self._ended()
            await asyncio.to_thread(self._sink.close)

    async def _ended(self) -> None:
        for task in self._requests:
            task.cancel()
        if self._requests:
            await asyncio.wait(tuple(self._requests))

    # --- the manifest ----------------------------------------------------------------------------
    async def _manifest(self) -> bytes:
        """The first valid manifest; the sources are asked one after the other, overlapping."""
        reasons: dict[str, str] = {}
        asked: set[str] = set()
        under_way: dict[asyncio.Task[bytes], str] = {}
        try:
            while True:
                fresh = next((name for name in self._sources if name not in asked), None)
                if fresh is None and not under_way:
                    raise Unreachable(
                        f"no source has blob {short(self._digest)}",
                        why="; ".join(f"{name}: {why}" for name, why in sorted(reasons.items()))
                        or "no source is known",
                    )
                if fresh is not None:
                    asked.add(fresh)
                    under_way[asyncio.create_task(self._one_manifest(fresh))] = fresh
                done, _ = await asyncio.wait(
                    under_way, timeout=MANIFEST_STAGGER_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    name = under_way.pop(task)
                    if (error := task.exception()) is None:
                        return task.result()
                    if not isinstance(error, (AtollError, OSError)):
                        raise error
                    reasons[name] = str(error) or type(error).__name__
        finally:
            for task in under_way:
                task.cancel()
            if under_way:
                await asyncio.wait(under_way)

    async def _one_manifest(self, name: str) -> bytes:
        async with asyncio.timeout(MANIFEST_TIMEOUT_S):
            encoded = await self._sources[name].manifest(self._digest)
        await asyncio.to_thread(parse, self._digest, encoded)
        return encoded

    # --- the chunks ------------------------------------------------------------------------------
    async def _chunks(self, manifest: Manifest, held: set[int]) -> None:
        loop = asyncio.get_running_loop()
        machine = Fetch(chunks=len(manifest.chunks), held=held, rng=self._rng, now=loop.time())
        effects: list[FetchEffect] = machine.step(Woke(), loop.time())
        while not any(self._carry_out(manifest, effect) for effect in effects):
            event: FetchEvent | Exception = Woke()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(machine.wake_at()):
                    event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            effects = machine.step(event, loop.time())

    def _carry_out(self, manifest: Manifest, effect: FetchEffect) -> bool:
        """Whether that was the last; ``Unreachable`` if the fetch has failed."""
        match effect:
            case RequestChunk():
                self._begin(effect.source, partial(self._outcome, manifest, effect))
            case Look():
                self._begin(effect.source, partial(self._seen, effect.source))
            case Drop():
                for task, source in self._requests.items():
                    if source == effect.source:
                        task.cancel()
            case Complete():
                return True
            case Failed():
                raise Unreachable(
                    f"blob {short(self._digest)} could not be fetched", why=effect.reason
                )
            case _:
                assert_never(effect)
        return False

    def _begin(self, source: str, ask: Callable[[], Awaitable[FetchEvent | Exception]]) -> None:
        async def report() -> None:
            self._events.put_nowait(await ask())

        task = asyncio.create_task(report())
        self._requests[task] = source
        task.add_done_callback(self._requests.pop)

    async def _seen(self, source: str) -> FetchEvent | Exception:
        try:
            async with asyncio.timeout(CHUNK_TIMEOUT_S):
                holding = await self._sources[source].held(self._digest)
        except (NotFound, Corruption):
            return Looked(source, 0)
        except (AtollError, OSError) as error:
            return LookFailed(source, str(error) or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - as in ``_outcome``
            return error
        return Looked(source, holding.mask, holding.readers, holding.place)

    async def _outcome(self, manifest: Manifest, request: RequestChunk) -> FetchEvent | Exception:
        source, index = request.source, request.index
        try:
            async with asyncio.timeout(CHUNK_TIMEOUT_S):
                data = await self._sources[source].chunk(self._digest, index)
        except (NotFound, Corruption):
            return ChunkFailed(source, index, "missing")
        except (AtollError, OSError) as error:  # TimeoutError is an OSError
            return ChunkFailed(source, index, "failed", str(error) or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - a defect of the source ends the fetch, loudly
            return error
        try:
            is_right = await asyncio.to_thread(self._sink.write, manifest, index, data)
        except Exception as error:  # noqa: BLE001 - the disk's: asking another source is no cure
            return error
        return ChunkArrived(source, index) if is_right else ChunkFailed(source, index, "bad")
