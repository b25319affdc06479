"""``agent.cli.reading``: the tables."""

import json
from typing import TYPE_CHECKING

import pytest

from agent.foundation.ids import Digest
from agent.wire.documents import ModelVersion

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite


def test_members_are_shown_with_what_matters(atoll: "Atoll") -> None:
    found = atoll("members")
    here, other = found.out.splitlines()[-2:]
    assert "berlin (here)" in here
    assert here.split()[0] == "abababab"
    assert "~12.3" in other
    assert "dead" in other
    assert "\x1b" not in found.out


def test_peers_say_why_when_asked(atoll: "Atoll") -> None:
    assert "connection refused" not in atoll("peers").out
    found = atoll("peers", "--why").out
    assert "connection refused" in found
    assert "is the agent there running?" in found
    assert "10.0.0.9:7411" in found


def test_models_show_where_they_are_ready(canned: "CannedSite", atoll: "Atoll") -> None:
    assert atoll("model", "list").out == "No models; `atoll model push` publishes one.\n"
    canned.bodies = [ModelVersion("magika", "1", Digest(b"\1" * 32), 3 << 20, "onnx", ("DE",))]
    canned.model_states = [("refused", "opset 99")]
    row = atoll("model", "list").out.splitlines()[-1]
    assert "berlin refused (opset 99)" in row
    assert "3.0 MiB" in row
    assert "DE" in row


def test_a_route_names_every_candidate_and_what_removed_it(atoll: "Atoll") -> None:
    found = atoll("route", "explain", "magika", "--residency", "DE,FR").out
    assert found.splitlines()[:3] == [
        "magika:1",
        "may be answered: DE, FR; the model may be: anywhere",
        "goes to: berlin",
    ]
    boston = next(line for line in found.splitlines() if "boston" in line)
    assert "US is not in the request's label" in boston
    assert "1.50" in next(line for line in found.splitlines() if "berlin (here)" in line)


@pytest.mark.parametrize(
    ("words", "key"),
    [(["members"], "members"), (["peers"], "peers"), (["model", "list"], "models")],
)
def test_scripts_get_json(atoll: "Atoll", words: list[str], key: str) -> None:
    assert isinstance(json.loads(atoll(*words, "--json").out)[key], list)


def test_scripts_get_the_explanation_as_json(canned: "CannedSite", atoll: "Atoll") -> None:
    assert json.loads(atoll("route", "explain", "m:1", "--json").out) == canned.explain(
        "m:1", [], "local"
    )
