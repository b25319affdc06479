"""Whatever the policies, sites and failures: the filter lets nothing go where a label does not allow it.

The filter itself, without sockets: both ends of it against sets, on generated policies.
"""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.foundation.errors import Refused
from agent.foundation.ids import SiteId
from agent.routing.policy import Question, check_received, judge
from agent.wire.inside import KnownModel, RemoteSite, View, model_key
from agent.wire.records import Served
from agent.wire.residency import Group

KEY = model_key("m", "1")
PLACES = ("", "DE", "FR", "US", "de", "EU", "D", "DE.BY")
LABELS = st.lists(st.sampled_from(PLACES[1:]), max_size=3, unique=True).map(tuple)
GROUPS = st.dictionaries(
    st.sampled_from(("EU", "US", "D", "ASIA")),
    st.sets(st.sampled_from(PLACES[1:]), min_size=1),
    max_size=3,
)
SITES = st.lists(st.tuples(st.sampled_from(PLACES), st.booleans(), st.booleans()), max_size=8)
"""Jurisdiction, whether it is revoked, whether it was tried and failed."""


def site_id(number: int) -> SiteId:
    return SiteId(number.to_bytes(32, "big"))


def remote(number: int, place: str) -> RemoteSite:
    return RemoteSite(
        site_id(number), f"s{number}", "r", "edge", place, "h", 1, "alive",
        False, 1.0, 0.0, (Served(KEY, 1),),
    )  # fmt: skip


def allows(label: tuple[str, ...], place: str, groups: dict[str, set[str]]) -> bool:
    meant = set(label).union(*(groups.get(name, set()) for name in label))
    return not label or place in meant - {""}


@settings(max_examples=500, deadline=None)
@given(LABELS, LABELS, SITES, st.integers(0, 3), st.sampled_from(PLACES), GROUPS)
def test_no_site_outside_a_label_is_a_candidate_and_none_takes_what_a_liar_sends(
    asked: tuple[str, ...],
    bound: tuple[str, ...],
    sites: list[tuple[str, bool, bool]],
    hops: int,
    here: str,
    groups: dict[str, set[str]],
) -> None:
    numbered = list(enumerate(sites, start=2))
    view = View(
        site=site_id(1), name="here", jurisdiction=here, is_draining=False, local=(), known=(),
        sites=tuple(remote(number, place) for number, (place, _, _) in numbered), blobs=(),
        revoked=tuple(site_id(number) for number, (_, is_revoked, _) in numbered if is_revoked),
        groups=tuple(Group(name, tuple(sorted(places))) for name, places in groups.items()),
    )  # fmt: skip
    question = Question(
        KnownModel(KEY, "m", "1", is_default=True, residency=bound),
        asked,
        hops,
        frozenset(site_id(number) for number, (_, _, failed) in numbered if failed),
    )
    candidates = {v.site for v in judge(view, question, is_worker_up=True) if not v.removed}
    assert candidates == {
        site_id(number)
        for number, (place, is_revoked, failed) in numbered
        if allows(asked, place, groups) and allows(bound, place, groups)
        and not is_revoked and not failed and hops < 2
    }  # fmt: skip
    # A sender that lies sends anyway: every receiver looks for itself.
    for number, (place, _, _) in numbered:
        received = replace(view, site=site_id(number), jurisdiction=place, revoked=())
        try:
            check_received(received, question, site_id(1))
            taken = True
        except Refused:
            taken = False
        assert taken == (
            allows(asked, place, groups) and allows(bound, place, groups) and hops <= 2
        )
