"""Load and unload as applications ask for them: what is taken, what is refused in words."""

from typing import Any

import pytest

from agent.foundation.errors import NotFound, Refused, UsageError
from agent.foundation.ids import SiteId
from agent.gateway.repository import Repository, read_parameters
from agent.gateway.site import Limits, SiteState
from agent.wire.inside import KnownModel, View, model_key

ME = SiteId(b"\1" * 32)


class Control:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bool]] = []

    async def repository(self, model: str, who: str, *, is_load: bool) -> None:
        self.asked.append((model, who, is_load))


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def repository(control: Control) -> Repository:
    state = SiteState(Limits())
    known = KnownModel(model_key("m", "1"), "m", "1", True, ())
    state.replace_view(View(ME, "a", "DE", False, (), (known,), (), (), ()))
    return Repository(state, control)


async def test_a_load_and_an_unload_reach_the_control_process(
    repository: Repository, control: Control
) -> None:
    await repository.load("m", {}, "me")
    await repository.unload("m", {"unload_dependents": True}, "me")
    await repository.unload("m", {}, "me")
    assert control.asked == [("m", "me", True), ("m", "me", False), ("m", "me", False)]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"config": "{}"}, "a load takes no 'config'.*signed catalog.*atoll model push"),
        ({"file:1/model.onnx": b"x"}, "a load takes no 'file:1/model.onnx'.*atoll model push"),
        ({"fast": True}, "a load has no parameter 'fast'"),
    ],
)
async def test_a_load_brings_nothing_of_its_own(
    repository: Repository, control: Control, parameters: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        await repository.load("m", parameters, "me")
    assert control.asked == []


@pytest.mark.parametrize("parameters", [{"unload_dependents": 1}, {"config": "{}"}])
async def test_an_unload_has_one_parameter_and_it_is_a_boolean(
    repository: Repository, control: Control, parameters: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        await repository.unload("m", parameters, "me")
    assert control.asked == []


async def test_a_model_outside_the_catalog_is_not_found_and_how_to_publish_it_is_said(
    repository: Repository, control: Control
) -> None:
    for ask in (repository.load, repository.unload):
        with pytest.raises(NotFound, match=r"unknown model 'x'.*atoll model push"):
            await ask("x", {}, "me")
    assert control.asked == []


async def test_another_site_may_neither_load_nor_unload(
    repository: Repository, control: Control
) -> None:
    for ask in (repository.load, repository.unload):
        with pytest.raises(Refused, match="at another"):
            await ask("m", {}, "me", SiteId(b"\2" * 32))
    assert control.asked == []


def test_parameters_are_read_from_an_object_or_are_none() -> None:
    assert read_parameters(b"") == {}
    assert read_parameters(b"{}") == {}
    assert read_parameters(b'{"parameters":{"a":1}}') == {"a": 1}
    for body in (b"{", b"[]", b"3", b'{"parameters":[]}', b'{"parameters":null}'):
        with pytest.raises(UsageError):
            read_parameters(body)
