"""What passes between the site and its gateway; the process is the test's own."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from agent.audit.chain import Decision
from agent.daemon import inference as inference_module
from agent.daemon.inference import Inference
from agent.daemon.workers import WorkerPlan
from agent.drivers.blobs import BlobStore
from agent.foundation.errors import NotFound, StoreFault
from agent.foundation.ids import Digest, SiteId
from agent.site.events import LoadMeasured, SiteEvent
from agent.wire import inside

SITE = SiteId(b"\1" * 32)
TOKEN = inside.ApplicationToken("shop", bytes(32), ("read",), 0.0)
PLAN = WorkerPlan((), ("",), 2, 4096, ("CPU",), "berlin", 0.01)
VIEW = inside.View(SITE, "berlin", "DE", False, (), (), (), (), ())


class Audit:
    def __init__(self) -> None:
        self.written: list[Decision] = []
        self.noted: list[Decision] = []
        self.fault: StoreFault | None = None

    async def write(self, decision: Decision, at_ms: int) -> object:
        assert at_ms > 0
        if self.fault is not None:
            raise self.fault
        self.written.append(decision)
        return None

    def note(self, outcome: Decision, at_ms: int) -> None:
        assert at_ms > 0
        self.noted.append(outcome)


class Rig:
    """``Inference`` with children that only remember what they are sent."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[SiteEvent] = []
        self.tokens: tuple[inside.ApplicationToken, ...] = (TOKEN,)
        self.audit = Audit()
        self.once_keys: Any = Mock(claim=AsyncMock(return_value=True), release=AsyncMock())
        self.views = 0
        self.is_changing = True
        self.tasks: set[asyncio.Task[Any]] = set()
        self.inference = Inference(
            gateway_arguments=(), plan=PLAN, blobs=BlobStore(folder, reserve_bytes=0),
            audit=self.audit, once_keys=self.once_keys, view=self._view, applications=lambda: self.tokens,
            feed=self.events.append, spawn=self._spawn,
        )  # fmt: skip
        self.to_gateway: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()

        async def send(data: bytes) -> None:
            await self.gate.wait()
            self.to_gateway.append(inside.TO_GATEWAY.unpack(data))

        monkeypatch.setattr(self.inference.gateway, "send", send)
        monkeypatch.setattr(
            self.inference.gateway, "post", self._taker(self.to_gateway, inside.TO_GATEWAY)
        )

    @staticmethod
    def _taker(sent: list[Any], union: Any) -> Callable[..., bool]:
        def post(data: bytes, _: object = ()) -> bool:
            sent.append(union.unpack(data))
            return True

        return post

    def _view(self) -> inside.View:
        self.views += 1
        return replace(VIEW, is_draining=self.is_changing and self.views % 2 == 0)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        return task

    async def settled(self) -> None:
        async with asyncio.timeout(5):
            await asyncio.gather(*self.tasks)

    def from_gateway(self, message: Any) -> None:
        self.inference._from_gateway(inside.FROM_GATEWAY.pack(message), [])


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path / "blobs", monkeypatch)


async def test_a_request_leaves_only_with_an_entry_on_disk(rig: Rig) -> None:
    leaving = inside.AuditForward(4, "r-1", "m:1", SITE, ("DE",), 10)
    rig.from_gateway(replace(leaving, trace="4bf9", policy=b"law"))
    await rig.settled()
    rig.audit.fault = StoreFault("the disk is full")
    rig.from_gateway(leaving)
    await rig.settled()
    good, bad = rig.to_gateway
    assert good == inside.Audited(4, "")
    assert "the disk is full" in bad.error
    (entry,) = rig.audit.written
    assert (entry.subject, entry.detail) == ("r-1", "m:1 trace 4bf9")
    assert entry.policy == b"law"


async def test_a_key_that_cannot_be_released_stays_claimed_and_ends_nothing(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.once_keys.release.side_effect = StoreFault("the disk is full")
    rig.from_gateway(inside.ReleaseKey(bytes(16)))
    await rig.settled()
    assert "an idempotency key stays claimed though nothing ran: the disk is full" in caplog.text


async def test_a_blob_is_given_only_with_an_entry_on_disk(rig: Rig) -> None:
    blob = Digest(b"b" * 32)
    rig.from_gateway(inside.AuditBlob(7, blob, SITE, ("DE",), 10, b"law"))
    await rig.settled()
    assert rig.to_gateway == [inside.Audited(7, "")]
    (entry,) = rig.audit.written
    assert entry == Decision("blob", blob.hex(), SITE, ("DE",), 10, policy=b"law")


async def test_an_idempotency_key_is_claimed_and_released(rig: Rig) -> None:
    rig.from_gateway(inside.ClaimKey(4, bytes(16)))
    await rig.settled()
    rig.once_keys.claim.side_effect = StoreFault("the disk is full")
    rig.from_gateway(inside.ClaimKey(5, bytes(16)))
    rig.from_gateway(inside.ReleaseKey(bytes(16)))
    await rig.settled()
    assert rig.to_gateway[0] == inside.KeyClaimed(4, True, "")
    assert "the disk is full" in rig.to_gateway[1].error
    rig.once_keys.release.assert_awaited_once_with(bytes(16))


async def test_what_became_of_a_request_is_noted(rig: Rig) -> None:
    rig.from_gateway(inside.AuditOutcome("r-1", SITE, ("DE",), 7, "200"))
    assert rig.audit.noted == [Decision("outcome", "r-1", SITE, ("DE",), 7, "200")]


async def test_what_came_of_a_load_is_answered_with_the_status_of_its_error(rig: Rig) -> None:
    async def control(model: str, who: str, *, is_load: bool) -> None:
        done.append((model, who, is_load))
        if model == "nope":
            raise NotFound("there is none")

    done: list[tuple[str, str, bool]] = []
    rig.from_gateway(inside.RepositoryAsked(1, "m", True, "me"))
    await rig.settled()
    rig.inference.control = control
    rig.from_gateway(inside.RepositoryAsked(2, "m", True, "me"))
    rig.from_gateway(inside.RepositoryAsked(3, "nope", False, "you"))
    await rig.settled()
    early, good, bad = rig.to_gateway
    assert (early.status, early.error) == (503, "the site is starting; try again later")
    assert good == inside.RepositoryAnswered(2, 200, "")
    assert bad == inside.RepositoryAnswered(3, 404, "there is none")
    assert done == [("m", "me", True), ("nope", "you", False)]


async def test_figures_are_given_when_they_are_asked_for(rig: Rig) -> None:
    rig.from_gateway(inside.FiguresAsked())
    rig.inference.figures = lambda: "x 1\n"
    rig.from_gateway(inside.FiguresAsked())
    assert rig.to_gateway == [inside.ControlFigures(""), inside.ControlFigures("x 1\n")]


async def test_a_view_that_is_shown_at_once_is_sent_before_what_follows(rig: Rig) -> None:
    await rig.inference.show()
    await rig.inference.show()
    assert len(rig.to_gateway) == 2, "the rig's views differ"
    rig.is_changing = False
    await rig.inference.show()
    await rig.inference.show()
    assert len(rig.to_gateway) == 3, "the same is not sent twice"


async def test_changes_that_come_together_make_one_view_and_a_slow_reader_gets_only_the_last(
    rig: Rig,
) -> None:
    rig.gate.clear()
    for _ in range(100):
        rig.inference.view_changed()
    rig.inference.push_view()
    await asyncio.sleep(0)
    for _ in range(100):
        rig.inference.view_changed()
        rig.inference.push_view()
    await asyncio.sleep(0)
    assert rig.views == 1, "one under way, however often it changes"
    rig.gate.set()
    async with asyncio.timeout(5):
        while len(rig.to_gateway) < 2:  # noqa: ASYNC110 - the code under test has no event
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    assert rig.views == 2
    await rig.inference.stop()


async def test_a_view_that_says_nothing_new_is_not_sent(rig: Rig) -> None:
    rig.is_changing = False
    for _ in range(3):
        rig.inference.push_view()
        await rig.settled()
    assert (rig.views, len(rig.to_gateway)) == (3, 1)
    rig.is_changing = True
    rig.inference.push_view()
    await rig.settled()
    assert len(rig.to_gateway) == 2
    await rig.inference.stop()


async def test_tokens_that_the_catalog_has_changed_are_told_before_the_view(rig: Rig) -> None:
    rig.is_changing = False
    telling = asyncio.ensure_future(rig.inference.tell_applications())
    await asyncio.sleep(0)
    rig.from_gateway(inside.ApplicationsTaken(1))
    assert await telling
    rig.inference.push_view()
    await rig.settled()
    assert [type(one) for one in rig.to_gateway] == [inside.Applications, inside.View]
    rig.tokens = (inside.ApplicationToken("till", bytes(32), ("read",), 0.0),)
    rig.is_changing = True
    rig.inference.push_view()
    await rig.settled()
    told, view = rig.to_gateway[2:]
    assert told == inside.Applications(2, rig.tokens)
    assert isinstance(view, inside.View)
    await rig.inference.stop()


async def test_what_moves_without_an_event_is_looked_at_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_module, "VIEW_REFRESH_S", 0.01)
    looking = asyncio.ensure_future(rig.inference._refresh_view())
    async with asyncio.timeout(5):
        while len(rig.to_gateway) < 3:  # noqa: ASYNC110 - the code under test has no event
            await asyncio.sleep(0.005)
    looking.cancel()
    await rig.inference.stop()


async def test_large_views_are_composed_less_often(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.1])
    monkeypatch.setattr(inference_module, "monotonic_s", lambda: next(clock))
    rig.inference.push_view()
    await rig.settled()
    rig.inference.view_changed()
    timer = rig.inference._view_timer
    assert timer is not None
    assert timer.when() - asyncio.get_running_loop().time() > 1.9
    await rig.inference.stop()


async def test_counters_become_load(rig: Rig) -> None:
    rig.from_gateway(inside.GatewayReady(8000, 7412))
    assert rig.inference.gateway_ready.is_set()
    rig.from_gateway(inside.Traffic(1, 0, 0, 0, 3, 6, ((b"12345678", 50),)))
    assert rig.events == [LoadMeasured(0.5, {b"12345678": 50})]
    rig.inference._gateway_gone("killed")
    assert not rig.inference.gateway_ready.is_set()


async def test_a_gateway_knows_the_tokens_before_its_first_view(rig: Rig) -> None:
    nobody: Any = None
    rig.inference._gateway_started(nobody)
    await rig.settled()
    first, second = rig.to_gateway
    assert isinstance(first, inside.Applications)
    assert first.tokens == (TOKEN,)
    assert isinstance(second, inside.View)


async def test_a_revocation_is_in_force_when_the_gateway_says_so(rig: Rig) -> None:
    telling = asyncio.ensure_future(rig.inference.tell_applications())
    rig.tokens = ()
    again = asyncio.ensure_future(rig.inference.tell_applications())
    await asyncio.sleep(0)
    first, second = rig.to_gateway
    assert (first.tokens, second.tokens) == ((), ()), "each message holds what is valid by then"
    rig.from_gateway(inside.ApplicationsTaken(first.call))
    assert await telling
    assert not again.done()
    rig.from_gateway(inside.ApplicationsTaken(second.call))
    assert await again


async def test_a_gateway_that_ends_lets_nobody_in_with_old_tokens(rig: Rig) -> None:
    telling = asyncio.ensure_future(rig.inference.tell_applications())
    await asyncio.sleep(0)
    rig.inference._gateway_gone("exit code 1")
    assert await telling


async def test_a_gateway_that_hangs_is_told_to_the_operator(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_module, "APPLICATIONS_TIMEOUT_S", 0.01)
    assert not await rig.inference.tell_applications()
    assert rig.inference._taken == {}
