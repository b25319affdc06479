"""What is kept of documents that were replaced."""

from agent.catalog.catalog import Catalog, Entry
from agent.catalog.history import FORMER_MAX, History
from agent.wire.documents import BODIES, Deployment, Document, Key, Stamp, key_of
from agent.wire.schema import unpack


def entry(at: int, model: str = "m") -> Entry:
    body = Deployment(model, str(at), ())
    document = Document(Stamp(at, 0), bytes(32), BODIES.pack(body), bytes(64))
    found = Catalog([(document, body)]).get(key_of(body))
    assert found is not None
    return found


def test_each_former_document_has_a_row_of_its_own() -> None:
    history = History()
    rows = [history.note(entry(at)).row for at in range(3)]
    assert [row["slot"] for row in rows] == [0, 1, 2]
    assert unpack(Document, rows[2]["document"]) == entry(2).document  # type: ignore[arg-type]
    assert history.note(entry(0, "other")).row["slot"] == 0


def test_when_all_slots_are_taken_the_oldest_goes() -> None:
    history = History()
    slots = [history.note(entry(at)).row["slot"] for at in range(3 * FORMER_MAX)]
    assert slots == [*range(FORMER_MAX)] * 3


def test_after_a_restart_it_goes_on_where_it_was() -> None:
    key = Key("deployment", "m")
    stored = [(key, slot, Stamp((slot + 5) % FORMER_MAX, 0)) for slot in range(FORMER_MAX)]
    assert History(stored).note(entry(99)).row["slot"] == 5
    assert History(stored[:3]).note(entry(99)).row["slot"] == 3
