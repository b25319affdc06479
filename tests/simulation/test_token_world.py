"""One token under crashes, theft and guessing; and the issuers that get it wrong."""

from dataclasses import replace
from datetime import datetime

import pytest

from agent.foundation.errors import Refused
from agent.identity.claims import Claims
from agent.identity.tokens import JoinRequest, TokenRow, redeem
from agent.simulation.token_world import Parts, tell

SEEDS = 1000


def test_a_token_admits_one_key_whatever_happens() -> None:
    stories = [tell(seed) for seed in range(SEEDS)]
    assert [story.broken for story in stories if story.broken] == []
    assert sum(bool(story.admitted) for story in stories) > SEEDS // 2
    assert sum(story.wrong_answered >= 5 for story in stories) > SEEDS // 10


def keeps_its_row(
    row: TokenRow | None, request: JoinRequest, now: datetime
) -> tuple[TokenRow | None, Claims | Refused]:
    _, outcome = redeem(row, request, now)
    return row, outcome


def counts_no_tries(
    row: TokenRow | None, request: JoinRequest, now: datetime
) -> tuple[TokenRow | None, Claims | Refused]:
    changed, outcome = redeem(row, request, now)
    if changed is not None and changed.state != "spent":
        changed = replace(changed, wrong_tries=0, state="open")
    return changed, outcome


def burns_for_its_owner(
    row: TokenRow | None, request: JoinRequest, now: datetime
) -> tuple[TokenRow | None, Claims | Refused]:
    changed, outcome = redeem(row, request, now)
    is_spent = changed is not None and changed.state == "spent"
    return (replace(changed, state="burned") if is_spent and changed else changed), outcome


MUTANTS = {
    "row not synced to disk": (Parts(is_synced=False), "single use"),
    "answer before the row": (Parts(answers_first=True), "single use"),
    "token not burned when spent": (Parts(judge=keeps_its_row), "single use"),
    "wrong tries not counted": (Parts(judge=counts_no_tries), "burning"),
    "an admitted key may not ask again": (Parts(judge=burns_for_its_owner), "repeat"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_an_issuer_without_this_guard_is_caught_and_one_with_it_is_not(name: str) -> None:
    parts, rule = MUTANTS[name]
    caught = next((seed for seed in range(SEEDS) if tell(seed, parts).broken), None)
    assert caught is not None
    assert tell(caught, parts).broken.startswith(rule), tell(caught, parts).account
    assert [tell(seed).broken for seed in range(caught + 1)] == [""] * (caught + 1)


def test_one_seed_tells_one_story() -> None:
    assert tell(7) == tell(7)
