import itertools

import pytest

from agent.catalog import catalog as catalog_module
from agent.catalog.catalog import Catalog, Difference, row_of
from agent.foundation.errors import Busy, Malformed
from agent.foundation.ids import Digest, JobId, SiteId
from agent.wire.documents import (
    BODIES,
    Body,
    Deployment,
    Document,
    Job,
    Key,
    ModelVersion,
    Stamp,
)
from agent.wire.mesh import PRINT_BYTES
from agent.wire.schema import unpack

ALICE, BOB = bytes([1]) * 32, bytes([2]) * 32


def model(name: str = "m", version: str = "1", size: int = 10) -> ModelVersion:
    return ModelVersion(name, version, Digest(bytes(32)), size, "onnx", ())


def signed(
    body: Body, wall_ms: int, author: bytes = ALICE, count: int = 0
) -> tuple[Document, Body]:
    return Document(Stamp(wall_ms, count), author, BODIES.pack(body), bytes(64)), body


def job(identifier: str) -> Job:
    return Job(
        id=JobId(identifier),
        recipe="mnist-2nn",
        dataset="digits",
        committee=(SiteId(bytes(32)),),
        rounds=1,
        epochs=1,
        batch=10,
        learning_rate=0.1,
        seed=1,
        sites_min=1,
        round_timeout_s=10.0,
        publish="",
        residency=(),
    )


def test_the_newer_document_of_a_key_wins_in_any_order() -> None:
    documents = [
        signed(model(size=1), 1),
        signed(model(size=2), 2),
        signed(model(size=3), 2, BOB),
        signed(model(size=4), 2, ALICE, 1),
        signed(model(size=5), 2, ALICE, 1),
        signed(model("other"), 1),
    ]
    digests = set()
    for order in itertools.permutations(documents):
        catalog = Catalog(order)
        digests.add(catalog.digest8)
        found = catalog.model("m", "1")
        assert found is not None
        assert found.bytes in (4, 5)
        assert len(catalog) == 2
    assert len(digests) == 1


def test_merging_says_whether_it_was_news() -> None:
    catalog = Catalog()
    assert catalog.merge(*signed(model(), 5))
    assert not catalog.merge(*signed(model(), 5))
    assert not catalog.merge(*signed(model(size=9), 4))
    assert catalog.merge(*signed(model(size=9), 6))
    assert catalog.latest == Stamp(6, 0)


def test_the_digest_changes_with_every_change_and_only_then() -> None:
    catalog = Catalog()
    empty = catalog.digest8
    catalog.merge(*signed(model(), 5))
    first = catalog.digest8
    catalog.merge(*signed(model(), 4))
    assert len({empty, first, catalog.digest8}) == 2
    catalog.merge(*signed(model(size=9), 5))  # another body, same stamp and author
    catalog.merge(*signed(model(size=8), 5))
    assert catalog.digest8 != first
    assert len(first) == 8


def test_one_sync_makes_two_catalogs_equal() -> None:
    here = Catalog([signed(model("a"), 1), signed(model("b"), 9), signed(model("c", size=1), 5)])
    there = Catalog([signed(model("b"), 2), signed(model("c", size=2), 5), signed(job("j-1"), 3)])
    difference = there.missing(here.heads())
    bodies = [(document, BODIES.unpack(document.body)) for document in difference.newer_here]
    for document, body in bodies:
        here.merge(document, body)
    for document in here.of_keys(difference.wanted):
        there.merge(document, BODIES.unpack(document.body))
    assert here.digest8 == there.digest8
    assert here.missing(there.heads()) == there.missing(here.heads())
    assert here.missing(there.heads()).wanted == ()
    assert len(here) == 4


def test_a_sync_reply_is_bounded_and_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "SYNC_BYTES_MAX", 1000)
    catalog = Catalog([signed(model(f"m{n}"), 100 - n) for n in range(50)])
    sent = catalog.missing(()).newer_here
    assert 1 <= len(sent) < 5
    assert [document.stamp.wall_ms for document in sent] == sorted(range(51, 51 + len(sent)))


def test_prints_name_just_what_is_held_and_a_rest_at_the_end_names_nothing() -> None:
    catalog = Catalog([signed(model("a"), 1), signed(model("b"), 2)])
    prints = catalog.prints()
    assert len(prints) == 2 * PRINT_BYTES
    assert catalog.missing_prints(prints + b"1234567") == Difference(())
    stranger = bytes(PRINT_BYTES)
    difference = catalog.missing_prints(stranger + prints[:PRINT_BYTES] * 3)
    assert difference.wanted_prints == stranger
    assert [document.stamp.wall_ms for document in difference.newer_here] == [2]
    assert [one.stamp.wall_ms for one in catalog.of_prints(prints[PRINT_BYTES:])] == [2]
    catalog.merge(*signed(model("a", size=7), 3))
    assert catalog.prints() != prints


def test_what_is_listed_follows_every_change() -> None:
    catalog = Catalog([signed(model("b", size=1), 1)])
    assert [body.bytes for body in catalog.of_kind(ModelVersion)] == [1]
    catalog.merge(*signed(model("b", size=2), 2))
    catalog.merge(*signed(model("a", size=3), 2))
    assert [body.bytes for body in catalog.of_kind(ModelVersion)] == [3, 2]
    assert [head.key.name for head in catalog.heads()] == ["a:1", "b:1"]


def test_a_head_that_is_told_twice_counts_once() -> None:
    catalog = Catalog([signed(model("a"), 9)])
    older = Catalog([signed(model("a"), 1)]).heads()
    assert len(catalog.missing((*older, *older)).newer_here) == 1


def test_bodies_are_listed_by_kind_in_one_order() -> None:
    documents = [
        signed(model("b"), 1),
        signed(model("a"), 2),
        signed(Deployment("a", "1", ()), 3),
        signed(job("j-1"), 4),
    ]
    catalog = Catalog(reversed(documents))
    assert [body.name for body in catalog.of_kind(ModelVersion)] == ["a", "b"]
    assert [body.model for body in catalog.of_kind(Deployment)] == ["a"]
    assert [body.id for body in catalog.of_kind(Job)] == ["j-1"]
    assert [entry.head.key.kind for entry in catalog] == ["deployment", "job", "model", "model"]
    assert catalog.get(Key("job", "j-2")) is None
    assert catalog.model("c", "1") is None


def test_the_catalog_is_bounded_but_known_keys_can_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "DOCUMENTS_MAX", 2)
    catalog = Catalog([signed(model("a"), 1), signed(model("b"), 1)])
    with pytest.raises(Busy, match="full"):
        catalog.merge(*signed(model("c"), 1))
    assert catalog.merge(*signed(model("a"), 2))


@pytest.mark.parametrize(
    "body",
    [
        model("a:b"),
        model("a", "../1"),
        model(""),
        model("a b"),
        model(".hidden"),
        Deployment("a/b", "1", ()),
        Deployment("a", "", ()),
        job("j:1"),
    ],
)
def test_a_name_that_is_none_is_refused(body: Body) -> None:
    with pytest.raises(Malformed, match="not a name"):
        Catalog().merge(*signed(body, 1))


def test_an_entry_becomes_a_row_and_comes_back() -> None:
    document, body = signed(model("a"), 1)
    (entry,) = Catalog([(document, body)])
    row = row_of(entry).row
    assert (row["kind"], row["name"]) == ("model", "a:1")
    stored = row["document"]
    assert isinstance(stored, bytes)
    assert unpack(Document, stored) == document
