from mesh_of_statements import BOOT, Notary, record, signature, site

from agent.foundation.machine import NEVER
from agent.membership.events import LocalChanged
from agent.membership.own_record import OwnRecord
from agent.membership.settings import Settings
from agent.wire.records import STATEMENTS, Served


def own(serving: tuple[Served, ...] = ()) -> OwnRecord:
    return OwnRecord(record("me", serving=serving), Notary(site("me")), Settings.lan(), 100.0)


def test_the_first_record_is_signed() -> None:
    mine = own()
    assert mine.signed.body == STATEMENTS.pack(mine.record)
    assert mine.signed.signature == signature(site("me"), mine.signed.body)
    assert mine.due_at == NEVER


def test_a_change_of_models_is_told_almost_at_once() -> None:
    mine = own()
    mine.change(LocalChanged(serving=(Served(bytes(8), 900),)), 200.0)
    assert mine.due_at == 200.0
    mine.publish(200.0)
    assert mine.record.sequence == BOOT + 1
    assert mine.record.incarnation == BOOT
    assert len(mine.record.serving) == 1


def test_changes_in_quick_succession_become_one_record() -> None:
    mine = own()
    mine.change(LocalChanged(capacity=2.0), 200.0)
    mine.publish(200.0)
    mine.change(LocalChanged(capacity=3.0), 200.01)
    mine.change(LocalChanged(catalog=b"12345678"), 200.02)
    assert mine.due_at == 200.2
    mine.publish(200.2)
    assert (mine.record.sequence, mine.record.capacity) == (BOOT + 2, 3.0)


def test_a_small_change_of_load_is_not_worth_a_record() -> None:
    mine = own()
    mine.change(LocalChanged(load=0.09), 200.0)
    assert mine.due_at == NEVER
    mine.change(LocalChanged(load=0.11), 200.0)
    assert mine.due_at == 200.0


def test_load_is_told_at_most_every_two_seconds() -> None:
    mine = own()
    mine.change(LocalChanged(load=0.5), 200.0)
    mine.publish(200.0)
    mine.change(LocalChanged(load=0.9), 200.5)
    assert mine.due_at == 202.0
    mine.change(LocalChanged(load=0.52), 201.0)
    assert mine.due_at == NEVER


def test_a_service_time_is_told_when_it_changes_by_a_quarter() -> None:
    mine = own(serving=(Served(bytes(8), 1000),))
    mine.change(LocalChanged(serving=(Served(bytes(8), 1200),)), 200.0)
    assert mine.due_at == NEVER
    mine.change(LocalChanged(serving=(Served(bytes(8), 1300),)), 200.0)
    assert mine.due_at == 200.0


def test_a_refutation_raises_the_incarnation_beyond_every_sequence_used() -> None:
    mine = own()
    mine.change(LocalChanged(capacity=2.0), 200.0)
    mine.publish(200.0)
    mine.refute(BOOT, 201.0)
    assert mine.record.incarnation == mine.record.sequence == BOOT + 2


def test_a_refutation_carries_waiting_changes() -> None:
    mine = own()
    mine.change(LocalChanged(capacity=7.0), 100.05)
    mine.refute(BOOT, 100.1)
    assert mine.record.capacity == 7.0
    assert mine.due_at == NEVER


def test_goodbye_is_the_newest_incarnation() -> None:
    mine = own()
    mine.leave(200.0)
    assert mine.record.status == "left"
    assert mine.record.incarnation == mine.record.sequence > BOOT
