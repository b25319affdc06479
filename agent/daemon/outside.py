"""Carries out what the site's machine asks for, one method an effect, and feeds results back."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, assert_never

from agent.config.settings import DatasetPart
from agent.daemon.inference import Inference
from agent.drivers.blobs import BlobStore
from agent.drivers.gossip import GossipSocket
from agent.drivers.mesh import MeshClient, RemoteBlobs
from agent.drivers.trainers import Trainers, Weighed
from agent.federation import events as job
from agent.foundation.errors import AtollError, OutcomeUnknown, Unreachable
from agent.foundation.ids import Digest, SiteId
from agent.membership.events import SendGossip
from agent.site.causes import Cause
from agent.site.events import (
    Answer,
    Ask,
    BlobFailed,
    BlobLoaded,
    BlobStored,
    CallEnded,
    CallReceived,
    FetchBlob,
    JobEnded,
    JobWork,
    LoadModel,
    Resolved,
    SiteEvent,
    UnloadModel,
)
from agent.training.contract import UpdatesRejected
from agent.training.ranges import cut, parts_of
from agent.wire.documents import Job
from agent.wire.mesh import Call, Cut, Declined, Reply
from agent.wire.schema import pack

SMALL_BLOB_BYTES_MAX = 4 << 20
"""Contributions of 10,000 sites; larger blobs are never read into this process."""

Feed = Callable[[SiteEvent], None]
Work = job.Initialise | job.Aggregate | job.AggregateRange | job.Join | job.Export
Spawn = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]

_log = logging.getLogger("atoll.site")


class Outside:
    """The outside world of one site."""

    def __init__(
        self,
        *,
        me: SiteId,
        gossip: GossipSocket,
        mesh: MeshClient,
        blobs: BlobStore,
        trainers: Trainers,
        datasets: dict[str, DatasetPart],
    ) -> None:
        """``inference`` is connected later: it needs the site's view."""
        self._me, self._gossip, self._mesh = me, gossip, mesh
        self._blobs, self._trainers, self._datasets = blobs, trainers, datasets
        self.inference: Inference | None = None
        self.on_trust: list[Callable[[], object]] = []
        """Called when the trust log has grown, durably."""
        self._shelf_watchers: set[Callable[[], object]] = set()
        self._feed: Feed = lambda _: None
        self._spawn: Spawn | None = None
        self._answers: dict[int, asyncio.Future[Reply]] = {}
        self._resolutions: dict[int, asyncio.Future[tuple[str, ...]]] = {}
        self._last = 0
        self._left_because = ""

    def connect(self, feed: Feed, spawn: Spawn) -> None:
        """Where results go, and how to run beside the loop."""
        self._feed, self._spawn = feed, spawn

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        assert self._spawn is not None, "connected before the first effect"
        self._spawn(work)

    # --- mesh ------------------------------------------------------------------------------------
    def gossip_counts(self) -> dict[str, int]:
        """Datagrams since the start: sent, received, and why those that were not heard were not."""
        gossip = self._gossip
        return {
            "sent": gossip.sent, "received": gossip.received, "dropped": gossip.dropped,
            "limited": gossip.limited,
        }  # fmt: skip

    def gossip(self, effect: SendGossip) -> None:
        """One packet."""
        if not self._left_because:
            self._gossip.send(effect.target, effect.endpoint, effect.message)

    def ask(self, effect: Ask) -> None:
        """One call; always ends in ``CallEnded``."""
        if self._left_because:
            self._run(self._end_unasked(effect))
        else:
            self._run(self._ask(effect))

    def leave_mesh(self, reason: str) -> None:
        """From now on no packet and no call leaves, and members are told why; until a new start."""
        self._left_because = reason[:400]

    async def _end_unasked(self, effect: Ask) -> None:
        self._feed(CallEnded(effect.call, effect.site, None, self._left_because))

    async def _ask(self, effect: Ask) -> None:
        try:
            site, reply = await self._mesh.call(
                effect.site, effect.endpoint, effect.message, effect.timeout_s
            )
        except AtollError as error:
            cause = getattr(error, "cause", "") or Cause.OTHER
            self._feed(CallEnded(effect.call, effect.site, None, str(error), Cause(cause)))
        else:
            self._feed(CallEnded(effect.call, site, reply))

    async def handle(self, sender: SiteId, message: Call) -> Reply:
        """A member's call: what the site answers."""
        if self._left_because:
            return Declined(self._left_because)
        self._last += 1
        call = self._last
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._answers[call] = answer
        try:
            self._feed(CallReceived(call, sender, message))
            return await answer
        finally:
            self._answers.pop(call, None)

    def answer(self, effect: Answer) -> None:
        """Answer a member's call; the caller may be gone."""
        future = self._answers.get(effect.call)
        if future is not None and not future.done():
            future.set_result(effect.reply)

    def resolve(self, effect: Resolved) -> None:
        """Answer the admin's submission."""
        future = self._resolutions.pop(effect.token, None)
        if future is not None and not future.done():
            future.set_result(effect.errors)

    def expect(self) -> "tuple[int, asyncio.Future[tuple[str, ...]]]":
        """A token for ``Submitted`` and the future of its answer."""
        self._last += 1
        future: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        self._resolutions[self._last] = future
        return self._last, future

    def fail(self, effect: Answer | Resolved, fault: AtollError) -> None:
        """What should have been answered is not durable: say so."""
        if isinstance(effect, Answer):
            answer = self._answers.get(effect.call)
            if answer is not None and not answer.done():
                answer.set_exception(fault)
            return
        resolution = self._resolutions.pop(effect.token, None)
        if resolution is not None and not resolution.done():
            resolution.set_exception(
                OutcomeUnknown(
                    "the change is not on disk yet",
                    why=str(fault),
                    mend="free disk space: it is then written without another word; if the agent "
                    "ends before, submit it again",
                )
            )

    # --- blobs -----------------------------------------------------------------------------------
    def fetch(self, effect: FetchBlob) -> None:
        """Ends in ``BlobStored`` or ``BlobFailed``."""
        self._run(self._fetch(effect))

    async def _fetch(self, effect: FetchBlob) -> None:
        sources = [RemoteBlobs(self._mesh, site, endpoint) for site, endpoint in effect.sources]
        try:
            if not sources and not self._blobs.is_held(effect.digest):
                raise Unreachable("no living site is known to have it")
            await self._blobs.fetch(effect.digest, sources)
        except (AtollError, OSError) as error:  # of the disk: one blob is not worth the site
            self._feed(BlobFailed(effect.digest, str(error)))
        else:
            self._feed(BlobStored(effect.digest))

    def read(self, effect: job.ReadBlob) -> None:
        """Ends in ``BlobLoaded`` or ``BlobFailed``."""
        self._run(self._read(effect.digest))

    async def _read(self, digest: Digest) -> None:
        try:
            if self._blobs.size(digest) > SMALL_BLOB_BYTES_MAX:
                raise Unreachable("the blob is too large to be read whole")
            data = await asyncio.to_thread(self._blobs.path(digest).read_bytes)
        except (AtollError, OSError) as error:
            self._feed(BlobFailed(digest, str(error)))
        else:
            self._feed(BlobLoaded(digest, data))

    async def store_bytes(self, digest: Digest, data: bytes) -> None:
        """Keep a small blob; durable when this returns."""
        stored = await self._blobs.put_bytes(data)
        assert stored == digest, "the machine and the store name blobs alike"

    def forget(self, effect: job.ForgetBlob) -> None:
        """Remove a blob that has served."""
        self._run(self._forget(effect.digest))

    async def _forget(self, digest: Digest) -> None:
        try:
            await self._blobs.remove(digest)
        except AtollError as error:
            _log.info("a blob that has served stays for now: %s", error)

    # --- jobs ------------------------------------------------------------------------------------
    def work(
        self,
        effect: JobWork,
    ) -> None:
        """Ends in the ``JobEnded`` that the effect's text names."""
        match effect:
            case job.Train():
                self._run(self._train(effect))
            case (
                job.Initialise() | job.Aggregate() | job.AggregateRange() | job.Join() | job.Export()
            ):  # fmt: skip
                self._run(self._work(effect))
            case job.ReleaseTrainer():
                self._run(self._trainers.release(effect.job.id))
            case _:
                assert_never(effect)

    async def _train(self, effect: job.Train) -> None:
        the_job = effect.job
        try:
            dataset = self._datasets[the_job.dataset].path
            base = self._blobs.path(effect.base)
            seed = int.from_bytes(self._me[:4], "big")
            trained = await self._trainers.train(
                the_job, dataset, effect.round, base, seed, self._path(effect.carried)
            )
            digest, parts = await self._store_update(the_job, trained.update)
            event: job.JobEvent = job.Trained(
                effect.round, effect.base, digest, trained.samples, trained.metrics, parts
            )
        except (AtollError, OSError) as error:
            event = job.AttemptEnded(effect.round, str(error))
        self._feed(JobEnded(the_job.id, event))

    async def _store_update(self, the_job: Job, path: Path) -> tuple[Digest, tuple[Digest, ...]]:
        """Keep an update; where the job cuts updates its parts, and what names them."""
        most = parts_of(the_job)
        if most == 1:
            return await self._store(path), ()
        stored: list[Digest] = []
        try:
            for chunks in cut((await asyncio.to_thread(path.stat)).st_size, most):
                stored.append(await self._blobs.put_file(path, chunks))  # noqa: PERF401 - one may fail
            digest = await self._blobs.put_bytes(pack(Cut(tuple(stored))))
        except (AtollError, OSError):
            for part in stored:  # of no use without the others
                await self._forget(part)
            raise
        for blob in (*stored, digest):
            self._feed(BlobStored(blob))
        return digest, tuple(stored)

    async def _work(self, effect: Work) -> None:
        culprits: tuple[Digest, ...] = ()
        try:
            path, left = await self._made(effect)
            try:
                carried = None if left is None else await self._store(left)
                size = path.stat().st_size
                digest = await self._store(path)
            finally:
                if isinstance(effect, (job.Aggregate, job.AggregateRange, job.Join)):
                    await asyncio.to_thread(_unlink, path, left)
            event: job.JobEvent = job.WorkDone(effect.token, digest, size, carried)
        except (AtollError, OSError) as error:
            if isinstance(effect, (job.Aggregate, job.AggregateRange)):
                culprits = _culprits(error, effect)
            event = job.WorkFailed(effect.token, str(error), culprits)
        self._feed(JobEnded(effect.job.id, event))

    async def _made(self, effect: Work) -> tuple[Path, Path | None]:
        """The result's file, and that of what the outer optimizer carries on."""
        trainers, the_job = self._trainers, effect.job
        match effect:
            case job.Initialise():
                bound = self._datasets.get(the_job.dataset)
                return await trainers.initialise(
                    the_job, None if bound is None else bound.path
                ), None
            case job.Aggregate():
                made = await trainers.aggregate(
                    the_job, effect.round, [self._weighed(one) for one in effect.updates],
                    self._blobs.path(effect.base), self._path(effect.carried),
                )  # fmt: skip
                return made.parameters, made.carried
            case job.AggregateRange():
                return await trainers.aggregate_range(
                    the_job, effect.round, [self._weighed(one) for one in effect.updates],
                    self._blobs.path(effect.base), effect.part,
                ), None  # fmt: skip
            case job.Join():
                made = await trainers.join(
                    the_job, effect.round, [self._blobs.path(one) for one in effect.ranges],
                    self._blobs.path(effect.base), self._path(effect.carried),
                )  # fmt: skip
                return made.parameters, made.carried
            case job.Export():
                exported = await trainers.export(the_job, self._blobs.path(effect.parameters))
                _log.info(
                    "job %s: ONNX model agrees with PyTorch within %.1e",
                    the_job.id, exported.error_max,
                )  # fmt: skip
                return exported.path, None
            case _:
                assert_never(effect)

    def _path(self, digest: Digest | None) -> Path | None:
        return None if digest is None else self._blobs.path(digest)

    def _weighed(self, one: job.Counting) -> Weighed:
        return Weighed(self._blobs.path(one.update), one.weight, self._path(one.started_from))

    async def _store(self, path: Path) -> Digest:
        digest = await self._blobs.put_file(path)
        self._feed(BlobStored(digest))
        return digest

    # --- models ----------------------------------------------------------------------------------
    def model(self, effect: LoadModel | UnloadModel) -> None:
        """Tell the model worker."""
        if self.inference is not None:
            self.inference.workers.model(effect)

    def watch_shelf(self, told: Callable[[], object]) -> Callable[[], None]:
        """Call ``told`` whenever a model may have moved; call the result to stop."""
        self._shelf_watchers.add(told)
        return lambda: self._shelf_watchers.discard(told)

    def label(self, effect: job.Label) -> None:
        """Let the gateway give a blob to other sites from now on."""
        if self.inference is not None:
            self.inference.label(effect.digest, effect.residency)

    def trust_changed(self) -> None:
        """Tell everybody who keeps connections or keys that the trust log has grown."""
        for told in self.on_trust:
            told()

    def gateway_changed(self) -> None:
        """Push the view to the gateway soon."""
        for told in tuple(self._shelf_watchers):
            told()
        if self.inference is not None:
            self.inference.view_changed()


def _unlink(*paths: Path | None) -> None:
    """What is in the store by now, or never will be."""
    for path in paths:
        if path is not None:
            path.unlink(missing_ok=True)


def _culprits(
    error: AtollError | OSError, effect: job.Aggregate | job.AggregateRange
) -> tuple[Digest, ...]:
    if not isinstance(error, UpdatesRejected):
        return ()
    return tuple(effect.updates[index].update for index, _ in error.rejected)
