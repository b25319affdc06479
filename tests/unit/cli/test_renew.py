"""``atoll renew`` against a site with canned answers."""

import json
from typing import TYPE_CHECKING

from agent.foundation.errors import Unreachable

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite


def test_the_operator_learns_who_renewed_it_and_until_when(
    atoll: "Atoll", canned: "CannedSite"
) -> None:
    found = atoll("renew")
    assert (found.code, found.out) == (0, "renewed by rome: good until 2033-05-18 03:33 UTC\n")
    assert canned.asked == ["renew"]
    assert json.loads(atoll("renew", "--json").out)["renewed_by"] == "rome"


def test_why_it_was_not_renewed_is_told(atoll: "Atoll", canned: "CannedSite") -> None:
    canned.error = Unreachable("the certificate was not renewed", why="10.0.0.1:7411: no answer")
    found = atoll("renew")
    assert found.code == 1
    assert "10.0.0.1:7411: no answer" in found.err
