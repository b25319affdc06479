"""The committee of a job, and what was counted, from the command line."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite

ID = "digits-00000001"


def test_what_was_counted_is_shown_and_a_wrong_round_is_an_error(
    canned: "CannedSite", atoll: "Atoll"
) -> None:
    found = atoll("job", "audit", ID)
    assert found.code == 0
    assert "counted" in found.out
    assert "1 of 1 committed rounds checked" in found.out
    canned.inclusion_findings = ["round 1: what it counted is not here yet"]
    found = atoll("job", "audit", ID)
    assert found.code == 1
    assert "WRONG: round 1: what it counted is not here yet" in found.out
    assert json.loads(atoll("job", "audit", ID, "--json").out)["findings"]


def test_a_member_is_replaced_by_whom_the_operator_names(
    canned: "CannedSite", atoll: "Atoll"
) -> None:
    found = atoll("job", "replace", ID, "rome", "--by", "oslo")
    assert (found.code, canned.committee_calls) == (0, [("replace", ID, "rome", "oslo")])
    assert "berlin, paris, oslo" in found.out
    atoll("job", "replace", ID, "rome")
    assert canned.committee_calls[-1] == ("replace", ID, "rome", "")
    answer = json.loads(atoll("job", "replace", ID, "rome", "--by", "oslo", "--json").out)
    assert answer == {"committee": ["berlin", "paris", "oslo"]}


def test_a_job_is_taken_over_at_the_sites_that_are_named(
    canned: "CannedSite", atoll: "Atoll"
) -> None:
    found = atoll("job", "recover", ID, "berlin", "oslo", "kiel")
    assert canned.committee_calls == [("recover", ID, ("berlin", "oslo", "kiel"))]
    assert "taken over at round 4, epoch 1048578" in found.out
    assert atoll("job", "recover", ID, "berlin", "oslo").code != 0
    assert len(canned.committee_calls) == 1, "two members are no committee"


def test_a_change_that_waits_and_a_take_over_are_shown_with_the_job(
    canned: "CannedSite", atoll: "Atoll"
) -> None:
    canned.job_troubles = {"committee_trouble": "no majority has answered", "recoveries": 1}
    found = atoll("job", "show", ID).out
    assert "waits: no majority has answered" in found
    assert "TAKEN OVER" in found
