"""Reading a request's headers, and the choice between here and elsewhere without other sites."""

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from agent.foundation.errors import AtollError, Busy, NotFound, Refused, Unreachable, UsageError
from agent.foundation.ids import SiteId
from agent.gateway.asked import (
    Answered,
    Asked,
    read_deadline,
    read_once,
    read_question,
    read_request_id,
)
from agent.gateway.inference import Inference
from agent.gateway.members import MemberAnswer, NotConnected
from agent.gateway.site import Limits, SiteState
from agent.gateway.worker_link import Reply, WorkerGone
from agent.routing.law import Bound
from agent.serving.failures import RequestLost, status_of
from agent.wire.documents import Policy
from agent.wire.inside import KnownModel, LocalModel, RemoteSite, View, model_key
from agent.wire.records import Served

KEY = model_key("m", "1")
NEXT = model_key("m", "2")
HOME, OTHER = SiteId(bytes(32)), SiteId(b"o" * 32)
VIEW = View(
    site=HOME,
    name="home",
    jurisdiction="DE",
    is_draining=False,
    local=(LocalModel(KEY, "m", "1", True, "", (), "{}", 1000),),
    known=(KnownModel(KEY, "m", "1", True, ()),),
    sites=(),
    blobs=(),
    revoked=(),
)


REMOTE = RemoteSite(
    OTHER, "other", "eu", "edge", "DE", "127.0.0.1", 7412, "alive", False, 1.0, 0.0,
    (Served(KEY, 1000),),
)  # fmt: skip


class NoAudit:
    async def forward(self, *_: object) -> None:
        raise AssertionError("nothing may leave")

    def outcome(self, *_: object) -> None:
        raise AssertionError("nothing has left")


class NoKeys:
    async def claim(self, key: bytes) -> bool:
        raise AssertionError(key)

    def release(self, key: bytes) -> None:
        raise AssertionError(key)


class Keys(NoKeys):
    async def claim(self, key: bytes) -> bool:
        return len(key) == 16


@pytest.fixture
def state() -> SiteState:
    state = SiteState(Limits(deadline_max_s=30))
    state.replace_view(VIEW)
    return state


def test_before_the_first_view_the_site_is_starting() -> None:
    state = SiteState(Limits())
    assert state.why_not_ready == "the site is starting"
    with pytest.raises(Busy, match="starting"):
        read_question(state, "m", None, {}, None)


def test_readiness_follows_view_and_worker(state: SiteState) -> None:
    assert state.why_not_ready == "the model worker is restarting"
    state.replace_view(replace(VIEW, local=()))
    assert state.why_not_ready == ""
    state.replace_view(replace(VIEW, is_draining=True))
    assert state.why_not_ready == "the site is draining"


def test_an_application_cannot_state_hops(state: SiteState) -> None:
    question = read_question(state, "m", None, {"Atoll-Hops": "2", "Atoll-Residency": "DE"}, None)
    assert (question.hops, question.residency) == (0, ("DE",))


def test_a_members_request_was_passed_on_and_does_not_go_back(state: SiteState) -> None:
    assert read_question(state, "m", "1", {}, OTHER).hops == 1
    question = read_question(state, "m", "1", {"Atoll-Hops": "2"}, OTHER)
    assert question.hops == 2
    assert question.excluded == {OTHER}
    with pytest.raises(Refused):
        read_question(state, "m", "1", {"Atoll-Hops": "3"}, OTHER)
    with pytest.raises(Refused, match="only in FR"):
        read_question(state, "m", "1", {"Atoll-Residency": "FR"}, OTHER)
    with pytest.raises(UsageError, match="Atoll-Hops"):
        read_question(state, "m", "1", {"Atoll-Hops": "-1"}, OTHER)
    with pytest.raises(NotFound):
        read_question(state, "n", None, {}, OTHER)


def test_policies_bind_a_request_where_it_comes_in_and_again_where_it_is_received(
    state: SiteState,
) -> None:
    places = Policy("policy", "places", ("FR",), ("m",), ("DE",), ("camera",))
    labelled = Policy("policy", "labelled", (), ("m",), needs_label=True)
    state.replace_view(replace(VIEW, policies=(labelled, places)))
    asked = {"Atoll-Residency": "DE,FR"}
    mine = read_question(state, "m", None, asked, None, "camera", is_data=True)
    assert mine.bounds == (Bound("places", ("FR",)),)
    assert read_question(state, "m", None, asked, None, is_data=True).bounds == ()
    with pytest.raises(Refused, match="policy labelled wants one"):
        read_question(state, "m", None, {}, None, is_data=True)
    with pytest.raises(Refused, match="policy labelled wants one"):
        read_question(state, "m", "1", {}, OTHER, is_data=True)
    assert read_question(state, "m", None, {}, None).bounds == ()  # about the model, not to it
    everyone = replace(places, applications=())
    state.replace_view(replace(VIEW, sites=(REMOTE,), policies=(everyone,)))
    with pytest.raises(Refused, match="policy places lets it be answered only in FR"):
        read_question(state, "m", "1", {}, OTHER)
    assert read_question(state, "m", "1", {"Atoll-Hops": "2"}, OTHER).bounds == ()


def test_a_deadline_is_never_extended(state: SiteState) -> None:
    for given, expected in ((None, 30), ("500", 0.5), ("90000", 30), ("0", 0)):
        headers = {} if given is None else {"Atoll-Deadline-Ms": given}
        left = read_deadline(state, headers, "Atoll-Deadline-Ms") - time.monotonic()
        assert left == pytest.approx(expected, abs=0.1)
    for wrong in ("", "-1", "1.5", "soon", "9" * 40):
        with pytest.raises(UsageError, match="Atoll-Deadline-Ms"):
            read_deadline(state, {"Atoll-Deadline-Ms": wrong}, "Atoll-Deadline-Ms")


def test_a_request_id_is_kept_if_it_is_harmless() -> None:
    assert read_request_id({"Atoll-Request-Id": "r-1:2"}) == "r-1:2"
    for given in ("", "x" * 65, "a b", "a\nb", "ä"):
        made = read_request_id({"Atoll-Request-Id": given})
        assert made != given
        assert len(made) == 16


async def test_a_version_that_has_given_way_meanwhile_is_answered_by_the_one_in_its_place(
    state: SiteState,
) -> None:
    """The view changes while the request's body comes; only who named a version is refused."""
    state.workers = {0: worker(0, ANSWER, ANSWER, models=frozenset({NEXT}))}
    inference = Inference(state, None, NoAudit(), Keys())
    questions = {version: read_question(state, "m", version, {}, None) for version in (None, "1")}
    state.replace_view(
        replace(
            VIEW, local=(LocalModel(NEXT, "m", "2", True, "", ("DE",), "{}", 1000),),
            known=(
                KnownModel(KEY, "m", "1", False, ()), KnownModel(NEXT, "m", "2", True, ("DE",)),
            ),
        )
    )  # fmt: skip
    deadline = time.monotonic() + 1
    asked = Asked("r", questions[None].model, questions[None], None, b"{}", deadline)
    assert (await inference.answer(replace(asked, is_default=True))).status == 200
    with pytest.raises(Unreachable, match="does not serve the model"):
        await inference.answer(asked)
    elsewhere = replace(questions[None], residency=("FR",))
    with pytest.raises(Refused):
        await inference.answer(replace(asked, question=elsewhere, is_default=True))


async def test_without_other_sites_the_error_says_what_removed_this_one(state: SiteState) -> None:
    inference = Inference(state, None, NoAudit(), NoKeys())
    question = read_question(state, "m", None, {}, None)
    asked = Asked("r", question.model, question, None, b"{}", time.monotonic() + 1)
    with pytest.raises(Unreachable, match="home: model worker is restarting"):
        await inference.answer(asked)
    elsewhere = replace(asked, question=replace(question, residency=("FR",)))
    with pytest.raises(Refused, match="only in FR"):
        await inference.answer(elsewhere)


class Willing:
    def __init__(self) -> None:
        self.outcomes: list[tuple[int, str]] = []

    async def forward(self, *_: object) -> None:
        pass

    def outcome(
        self, _: str, receiver: SiteId, label: tuple[str, ...], size: int, text: str
    ) -> None:
        assert (receiver, label) == (OTHER, ())
        self.outcomes.append((size, text))


@pytest.mark.parametrize("length", ["\xb2", "-1", "3", "1e0"])
async def test_a_member_that_lies_about_its_answer_has_not_answered(
    state: SiteState, length: str
) -> None:
    headers = {"Inference-Header-Content-Length": length}
    members = Mock(under_way={}, is_avoided=lambda _: False)
    members.call = AsyncMock(return_value=MemberAnswer(200, headers, b"{}"))
    state.replace_view(replace(VIEW, local=(), sites=(REMOTE,)))
    inference = Inference(state, members, Willing(), NoKeys())
    question = read_question(state, "m", None, {}, None)
    asked = Asked("r", question.model, question, None, b"{}", time.monotonic() + 1)
    with pytest.raises(Unreachable, match="site other answers nonsense"):
        await inference.answer(asked)


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        ({"return_value": MemberAnswer(200, {}, b"{}")}, (2, "200")),
        ({"return_value": MemberAnswer(503, {}, b"full")}, (4, "503")),
        ({"side_effect": Unreachable("it is gone")}, (0, "it is gone")),
        ({"side_effect": asyncio.CancelledError}, (0, "given up")),
    ],
)
async def test_what_becomes_of_a_request_that_left_is_written_down(
    state: SiteState, act: dict[str, Any], outcome: tuple[int, str]
) -> None:
    members, audit = Mock(under_way={}), Willing()
    members.call = AsyncMock(**act)
    state.replace_view(replace(VIEW, local=(), sites=(REMOTE,)))
    question = read_question(state, "m", None, {}, None)
    asked = Asked("r", question.model, question, None, b"{}", time.monotonic() + 1)
    with contextlib.suppress(Unreachable, asyncio.CancelledError):
        await Inference(state, members, audit, NoKeys()).answer(asked)
    assert audit.outcomes == [outcome]


async def test_what_has_ended_a_worker_of_another_site_is_given_to_no_third(
    state: SiteState,
) -> None:
    members = Mock(under_way={}, is_avoided=lambda _: False)
    lost = MemberAnswer(503, {"Atoll-Request-Lost": "true"}, b'{"error":"it has stopped"}')
    members.call = AsyncMock(return_value=lost)
    third = replace(REMOTE, site=SiteId(b"3" * 32), name="third", rtt_ms=900.0)
    state.replace_view(replace(VIEW, local=(), sites=(REMOTE, third)))
    question = read_question(state, "m", None, {}, None)
    asked = Asked("r", question.model, question, None, b"{}", time.monotonic() + 1)
    with pytest.raises(RequestLost, match="site other: it has stopped") as raised:
        await Inference(state, members, Willing(), NoKeys()).answer(asked)
    assert status_of(raised.value) == 503
    assert members.call.await_count == 1


def worker(
    index: int,
    *answers: Reply | Exception,
    models: frozenset[bytes] = frozenset({KEY}),
    is_blameless: bool = True,
) -> Any:
    """A link that gives one of ``answers`` after the other."""
    link = Mock(index=index, is_up=True, models=models, busy=index, runners=1, slots=1)
    link.infer = AsyncMock(side_effect=answers)
    link.is_blameless = AsyncMock(return_value=is_blameless)
    return link


ANSWER = Reply(200, 2, b"{}", 0, 1, 1, is_first=True)


async def answered(state: SiteState, once: str | None = None) -> Answered:
    question = read_question(state, "m", None, {}, None)
    asked = Asked("r", question.model, question, None, b"{}", time.monotonic() + 5, once=once)
    return await Inference(state, None, NoAudit(), Keys()).answer(asked)


async def test_what_was_with_a_worker_that_ends_is_run_by_another(state: SiteState) -> None:
    state.workers = {0: worker(0, WorkerGone(was_running=True)), 1: worker(1, ANSWER)}
    assert (await answered(state)).status == 200
    assert state.figures.rerun == 1


async def test_a_worker_without_the_model_is_not_asked(state: SiteState) -> None:
    state.workers = {0: worker(0, models=frozenset()), 1: worker(1, ANSWER)}
    assert (await answered(state)).status == 200
    del state.workers[1]
    with pytest.raises(Unreachable, match="no model worker has the model now"):
        await answered(state)


async def test_a_request_that_loses_two_workers_is_given_to_no_third(state: SiteState) -> None:
    gone = WorkerGone(was_running=False)
    state.workers = {0: worker(0, gone), 1: worker(1, gone), 2: worker(2, ANSWER)}
    with pytest.raises(RequestLost):
        await answered(state)
    assert state.admission.in_flight == 0


@pytest.mark.parametrize(("was_running", "is_rerun"), [(True, False), (False, True)])
async def test_what_may_have_ended_its_worker_takes_no_other_along_and_what_waited_is_run(
    state: SiteState, *, was_running: bool, is_rerun: bool
) -> None:
    other = worker(1, ANSWER)
    gone = worker(0, WorkerGone(was_running=was_running), is_blameless=False)
    state.workers = {0: gone, 1: other}
    if is_rerun:
        assert (await answered(state)).status == 200
    else:
        with pytest.raises(RequestLost, match="it was running this request"):
            await answered(state)
    assert other.infer.called is is_rerun


async def test_with_an_idempotency_key_what_a_worker_had_begun_is_run_by_no_other(
    state: SiteState,
) -> None:
    state.workers = {0: worker(0, WorkerGone(was_running=False)), 1: worker(1, ANSWER)}
    assert (await answered(state, "k")).status == 200
    state.workers = {0: worker(0, WorkerGone(was_running=True)), 1: worker(1, ANSWER)}
    with pytest.raises(RequestLost, match="it was running this request"):
        await answered(state, "k")


@pytest.mark.parametrize(
    ("failure", "error"),
    [(Unreachable("it is gone"), RequestLost), (NotConnected("it is gone"), Unreachable)],
)
async def test_with_an_idempotency_key_a_site_that_may_have_run_it_is_the_last(
    state: SiteState, failure: Unreachable, error: type[AtollError]
) -> None:
    members = Mock(under_way={}, is_avoided=lambda _: False)
    members.call = AsyncMock(side_effect=failure)
    third = replace(REMOTE, site=SiteId(b"3" * 32), name="third", rtt_ms=900.0)
    state.replace_view(replace(VIEW, local=(), sites=(REMOTE, third)))
    question = read_question(state, "m", None, {}, None)
    asked = Asked("r", question.model, question, None, b"{}", time.monotonic() + 1, once="k")
    claims = Mock(claim=AsyncMock(return_value=True))
    with pytest.raises(error):
        await Inference(state, members, Mock(forward=AsyncMock()), claims).answer(asked)
    is_run = error is RequestLost
    assert members.call.await_count == (1 if is_run else 2)
    assert claims.release.called is not is_run


@pytest.mark.parametrize(
    ("given", "key"), [(None, None), ("a-1", "a-1"), ('"a-1"', "a-1"), ("x" * 128, "x" * 128)]
)
def test_an_idempotency_key_is_read_plain_or_quoted(given: str | None, key: str | None) -> None:
    assert read_once({} if given is None else {"Idempotency-Key": given}) == key


@pytest.mark.parametrize("given", ["", '""', '"', "a b", "ä", "x" * 129, "a\tb"])
def test_what_is_no_idempotency_key_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="Idempotency-Key is no key"):
        read_once({"Idempotency-Key": given})


async def test_what_the_site_runs_is_counted_for_its_version(state: SiteState) -> None:
    gone = WorkerGone(was_running=True)
    answers = [replace(ANSWER, status=status) for status in (200, 400, 500)]
    state.workers = {0: worker(0, *answers, gone, is_blameless=False)}
    for _ in answers:
        await answered(state)
    with pytest.raises(RequestLost):
        await answered(state)
    tally = state.tallies[KEY]
    assert (tally.requests, tally.errors) == (3, 2)
    state.replace_view(replace(VIEW, local=()))
    assert state.tallies == {}
