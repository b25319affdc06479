"""The porter of the applications' doors."""

import logging
from typing import Any

import pytest

from agent.foundation.errors import Busy
from agent.gateway import applications, grpc_door
from agent.gateway.applications import Porter, needs
from agent.gateway.grpc_messages import METHODS
from agent.gateway.openapi import OPERATIONS
from agent.gateway.site import Limits, SiteState
from agent.serving.access import Access, mint
from agent.serving.failures import ScopeLacking, Unauthenticated
from agent.wire.inside import ApplicationToken

TOKEN, HASH = mint(b"s" * 32)
GIVEN = [f"Bearer {TOKEN}"]


def state(*, is_required: bool) -> SiteState:
    made = SiteState(Limits(is_token_required=is_required))
    shop = ApplicationToken("shop", HASH, ("infer:m",), 0.0)
    made.access = Access(is_required=is_required, tokens=[shop])
    return made


def test_a_gateway_that_was_told_nothing_demands_a_token() -> None:
    assert Porter(SiteState(Limits())).is_token_required


def test_before_the_tokens_are_known_nobody_is_judged_by_them() -> None:
    strict, easy = (Porter(SiteState(Limits(is_token_required=one))) for one in (True, False))
    for porter, given in ((strict, GIVEN), (easy, GIVEN), (strict, [])):
        with pytest.raises(Busy, match="starting"):
            porter.authenticate(given, None)
    assert easy.authenticate([], None).name == "local"


def test_who_is_turned_away_is_counted_by_reason_and_logged_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(applications, "monotonic_s", lambda: now)
    site = state(is_required=True)
    porter = Porter(site)
    with caplog.at_level(logging.WARNING):
        for given in ([], ["Bearer x"], [f"Bearer {mint(bytes(32))[0]}"]):
            with pytest.raises(Unauthenticated):
                porter.admit(given, needs("infer", "m"), "192.0.2.7")
        with pytest.raises(ScopeLacking):
            porter.admit(GIVEN, needs("read", ""), "192.0.2.7")
        now = 161.0
        with pytest.raises(Unauthenticated):
            porter.admit([], needs("read", ""))
    assert dict(site.figures.turned_away) == {
        "missing": 2, "malformed": 1, "unknown": 1, "scope": 1,
    }  # fmt: skip
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("turned away 1, the last from 192.0.2.7: this site takes")
    assert second.startswith("turned away 4, the last: this site takes")


def test_the_name_of_the_application_is_that_of_its_token() -> None:
    porter = Porter(state(is_required=True))
    assert porter.admit(GIVEN, needs("infer", "m")) == "shop"
    assert porter.admit(GIVEN, needs("model", "m")) == "shop"
    assert Porter(state(is_required=False)).admit([], needs("infer", "n")) == "local"


def test_every_operation_says_what_a_token_must_be_for_alike_over_http_and_grpc() -> None:
    over_http = {one.answers_by: one.scope for one in OPERATIONS}
    assert set(METHODS) == set(grpc_door._SCOPES)
    alike = {
        "ServerLive": "live", "ServerReady": "ready", "ServerMetadata": "server_metadata",
        "ModelReady": "model_ready", "ModelMetadata": "model_metadata",
        "ModelConfig": "model_config", "ModelStatistics": "statistics", "ModelInfer": "infer",
        "ModelStreamInfer": "infer", "RepositoryIndex": "repository_index",
    }  # fmt: skip
    for method, handler in alike.items():
        assert grpc_door._SCOPES[method] == over_http[handler], method
    for one in OPERATIONS:
        if one.scope:
            assert needs(one.scope, "m")


def test_who_loads_a_model_is_told_by_the_tokens_name() -> None:
    assert applications.told("local", "127.0.0.1") == "an application at 127.0.0.1"
    assert applications.told("shop", "192.0.2.7") == "the application 'shop' at 192.0.2.7"
    assert applications.told("shop", "") == "the application 'shop' at this machine"


async def test_an_open_operation_asks_nobody() -> None:
    async def live(_: Any) -> Any:
        raise AssertionError("nobody is asked")

    assert Porter(SiteState(Limits())).guard("", live) is live
