"""Placement of replicas by everybody alone: agreement, little movement, and views that differ."""

from hypothesis import given
from hypothesis import strategies as st

from agent.catalog.replicas import TIERS, Candidate, holders
from agent.foundation.ids import SiteId

candidates = st.lists(
    st.builds(
        Candidate,
        st.binary(min_size=32, max_size=32).map(SiteId),
        st.sampled_from(TIERS),
        st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    ),
    max_size=24,
    unique_by=lambda one: one.site,
)
replicas = st.integers(1, 6)
names = st.sampled_from(["m", "magika", "vad"])


@given(candidates, replicas, names, st.randoms(use_true_random=False))
def test_sites_with_one_view_choose_alike(
    known: list[Candidate], wanted: int, name: str, rng: object
) -> None:
    import random  # noqa: PLC0415 - the type of hypothesis' own generator

    assert isinstance(rng, random.Random)
    shuffled = list(known)
    rng.shuffle(shuffled)
    chosen = holders(name, wanted, known)
    assert holders(name, wanted, shuffled) == chosen
    assert len(chosen) == min(wanted, sum(one.capacity > 0 for one in known))


@given(candidates, replicas, names, st.data())
def test_a_loss_moves_only_the_replicas_of_those_who_are_lost(
    known: list[Candidate], wanted: int, name: str, data: st.DataObject
) -> None:
    lost = data.draw(st.sets(st.sampled_from(known)) if known else st.just(set()))
    before = set(holders(name, wanted, known))
    after = set(holders(name, wanted, [one for one in known if one not in lost]))
    assert before - {one.site for one in lost} <= after, "who lives keeps what it holds"


@given(candidates, replicas, names, st.data())
def test_with_views_that_differ_nobody_steps_back_whom_those_who_live_would_choose(
    known: list[Candidate], wanted: int, name: str, data: st.DataObject
) -> None:
    """Each site decides by what it sees; all see themselves and perhaps not all of the others."""
    serving = set()
    for me in known:
        unseen = data.draw(st.sets(st.sampled_from(known))) - {me}
        view = [one for one in known if one not in unseen]
        if me.site in holders(name, wanted, view):
            serving.add(me.site)
    assert set(holders(name, wanted, known)) <= serving, "seeing fewer others adds holders only"


@given(candidates, replicas, names)
def test_nothing_is_at_the_core_while_an_edge_site_is_free(
    known: list[Candidate], wanted: int, name: str
) -> None:
    tiers = {one.site: TIERS.index(one.tier) for one in known}
    chosen = holders(name, wanted, known)
    free = [one for one in known if one.capacity > 0 and one.site not in chosen]
    for one in free:
        assert all(tiers[site] <= tiers[one.site] for site in chosen)
