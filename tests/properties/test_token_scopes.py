"""Whatever tokens there are and whatever is sent: nobody gets in but by a scope that covers it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.foundation.errors import UsageError
from agent.serving.access import Access, check_scopes, infer, mint
from agent.serving.failures import ScopeLacking, Unauthenticated
from agent.wire.inside import ApplicationToken

MODELS = st.text("ab*", min_size=1, max_size=2)
SCOPES = st.sets(
    st.sampled_from(["read", "repository", "infer:*"]) | st.text("ab", min_size=1).map(infer),
    min_size=1,
    max_size=5,
)
NEEDS = st.lists(
    st.sampled_from(["read", "repository"]) | MODELS.map(infer), min_size=1, max_size=2
)


def covers(has: str, need: str) -> bool:
    """The rule once more, written the slow way."""
    return has == need or (has == "infer:*" and need.partition(":")[0] == "infer")


@given(st.lists(SCOPES, max_size=6), st.integers(0, 7), NEEDS)
def test_a_request_passes_if_and_only_if_its_own_token_covers_it(
    held: list[set[str]], which: int, needs: list[str]
) -> None:
    secrets = [mint(bytes([number]) * 32) for number in range(8)]
    tokens = [
        ApplicationToken(f"a{number}", secrets[number][1], check_scopes(scopes), 0.0)
        for number, scopes in enumerate(held)
    ]
    for is_required in (True, False):
        judge = Access(is_required=is_required, tokens=tokens)
        if which >= len(held):
            with pytest.raises(Unauthenticated):
                judge.authenticate([f"Bearer {secrets[which][0]}"], 1.0)
            continue
        application = judge.authenticate([f"Bearer {secrets[which][0]}"], 1.0)
        assert application.name == f"a{which}"
        if any(covers(has, need) for has in held[which] for need in needs):
            application.require(needs)
        else:
            with pytest.raises(ScopeLacking):
                application.require(needs)


@given(st.lists(st.text() | st.text("atol_AZ09- Be", max_size=60), max_size=3))
def test_no_header_but_a_token_lets_anybody_in(headers: list[str]) -> None:
    _, known = mint(b"k" * 32)
    token = ApplicationToken("shop", known, ("infer:*",), 0.0)
    with pytest.raises(Unauthenticated):
        Access(is_required=True, tokens=[token]).authenticate(headers, 1.0)


@given(st.lists(st.text(max_size=80), max_size=4))
def test_scopes_from_outside_are_known_ones_or_refused(given_scopes: list[str]) -> None:
    try:
        scopes = check_scopes(given_scopes)
    except UsageError:
        return
    assert set(scopes) == set(given_scopes)
    assert all(one in ("read", "repository") or one.startswith("infer:") for one in scopes)
