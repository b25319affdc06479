from hypothesis import given
from hypothesis import strategies as st

from agent.catalog.catalog import Catalog
from agent.foundation.ids import Digest
from agent.wire.documents import BODIES, Body, Document, ModelVersion, Stamp

documents = st.lists(
    st.builds(
        lambda name, size, wall, count, author: (
            Document(
                Stamp(wall, count),
                bytes([author]) * 32,
                BODIES.pack(ModelVersion(name, "1", Digest(bytes(32)), size, "onnx", ())),
                bytes(64),
            ),
            ModelVersion(name, "1", Digest(bytes(32)), size, "onnx", ()),
        ),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 1),
        st.integers(0, 1),
    ),
    max_size=12,
)


def winners(pairs: list[tuple[Document, Body]]) -> dict[str, tuple[Stamp, bytes]]:
    """The dumb model: for each name, the largest stamp and author."""
    best: dict[str, tuple[Stamp, bytes]] = {}
    for document, body in pairs:
        assert isinstance(body, ModelVersion)
        mine = (document.stamp, document.author)
        best[body.name] = max(best.get(body.name, mine), mine)
    return best


@given(documents, st.randoms(use_true_random=False))
def test_every_order_of_arrival_gives_one_catalog(
    pairs: list[tuple[Document, Body]], rng: object
) -> None:
    import random  # noqa: PLC0415 - the type of hypothesis' own generator

    assert isinstance(rng, random.Random)
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    first, second = Catalog(pairs), Catalog([*shuffled, *pairs])
    assert first.digest8 == second.digest8
    assert [entry.document for entry in first] == [entry.document for entry in second]
    found = {e.head.key.name.split(":")[0]: (e.head.stamp, e.head.author) for e in first}
    assert found == winners(pairs)


@given(documents, documents)
def test_one_exchange_makes_any_two_catalogs_equal(
    mine: list[tuple[Document, Body]], theirs: list[tuple[Document, Body]]
) -> None:
    here, there = Catalog(mine), Catalog(theirs)
    difference = there.missing(here.heads())
    given_back = here.of_keys(difference.wanted)
    for document in difference.newer_here:
        assert here.merge(document, BODIES.unpack(document.body))
    for document in given_back:
        assert there.merge(document, BODIES.unpack(document.body))
    assert here.digest8 == there.digest8
    assert here.digest8 == Catalog([*mine, *theirs]).digest8


@given(documents, documents)
def test_one_exchange_by_prints_makes_any_two_catalogs_equal(
    mine: list[tuple[Document, Body]], theirs: list[tuple[Document, Body]]
) -> None:
    here, there = Catalog(mine), Catalog(theirs)
    difference = there.missing_prints(here.prints())
    given_back = here.of_prints(difference.wanted_prints)
    for document in difference.newer_here:
        here.merge(document, BODIES.unpack(document.body))
    for document in given_back:
        there.merge(document, BODIES.unpack(document.body))
    assert here.digest8 == there.digest8
    assert here.digest8 == Catalog([*mine, *theirs]).digest8
    settled = there.missing_prints(here.prints())
    assert (settled.newer_here, settled.wanted_prints) == ((), b"")
