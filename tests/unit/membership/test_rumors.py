from mesh_of_statements import site

from agent.foundation.ids import SiteId
from agent.membership.rumors import BUDGET_BYTES, PER_PACKET_MAX, Rumors, wire_bytes
from agent.wire.gossip import GOSSIP, Ack
from agent.wire.limits import PACKET_BYTES_MAX
from agent.wire.records import Signed


def of_itself(number: int) -> tuple[SiteId, SiteId]:
    return site(f"subject {number}"), site(f"subject {number}")


def statement(number: int, size: int = 150) -> Signed:
    return Signed(b"%06d" % number + bytes(size - 6), bytes(64))


def key(number: int) -> tuple[SiteId, SiteId]:
    return site(f"subject {number}"), site("speaker")


def test_a_rumor_is_sent_a_bounded_number_of_times() -> None:
    rumors = Rumors(100)
    rumors.put(key(1), statement(1))
    assert [len(rumors.take([], 3)) for _ in range(5)] == [1, 1, 1, 0, 0]
    assert len(rumors) == 0


def test_fresh_news_goes_before_what_was_sent() -> None:
    rumors = Rumors(100)
    for number in range(6):
        rumors.put(key(number), statement(number))
    first = rumors.take([], 10)
    rumors.put(key(9), statement(9))
    second = rumors.take([], 10)
    assert statement(9) in second
    assert statement(5) in first or statement(5) in second


def test_a_newer_statement_replaces_the_older_one() -> None:
    rumors = Rumors(100)
    rumors.put(key(1), statement(1))
    rumors.put(key(1), statement(2))
    assert rumors.take([], 10) == (statement(2),)


def test_a_dropped_rumor_is_not_sent() -> None:
    rumors = Rumors(100)
    rumors.put(key(1), statement(1))
    rumors.take([], 10)
    rumors.drop(key(1))
    rumors.drop(key(2))
    assert rumors.take([], 10) == ()


def test_what_the_receiver_needs_is_sent_always_and_once() -> None:
    rumors = Rumors(100)
    rumors.put(key(1), statement(1))
    assert rumors.take([statement(1), statement(7)], 10) == (statement(1), statement(7))


def test_a_full_packet_fits_the_limit_of_the_wire() -> None:
    rumors = Rumors(1000)
    for size in (150, 200, 330, 500, 900):
        for number in range(40):
            rumors.put((site(f"{number} {size}"), site("me")), statement(number, size))
    for _ in range(60):
        chosen = rumors.take([statement(99, 160)], 99)
        packet = GOSSIP.pack(Ack(2**62, site("me"), chosen))
        assert len(packet) + 37 <= PACKET_BYTES_MAX
        assert len(chosen) <= PER_PACKET_MAX
        assert sum(map(wire_bytes, chosen)) <= BUDGET_BYTES


def test_a_full_queue_drops_what_was_sent_most() -> None:
    rumors = Rumors(3)
    rumors.put(key(1), statement(1))
    rumors.take([], 10)
    for number in (2, 3, 4):
        rumors.put(key(number), statement(number))
    assert len(rumors) == 3
    assert statement(1) not in rumors.take([], 10)


def test_records_have_a_bound_of_their_own_and_leave_accusations_alone() -> None:
    rumors = Rumors(10, records_max=2)
    for number in range(5):
        assert rumors.put(key(number), statement(number))
    assert rumors.put(of_itself(10), statement(10))
    assert rumors.put(of_itself(11), statement(11))
    rumors.take([], 10)
    assert not rumors.put(of_itself(12), statement(12))
    assert len(rumors) == 7
    told = [one for _ in range(3) for one in rumors.take([], 10)]
    assert {statement(number) for number in range(5)} <= set(told)
    assert statement(12) in told


def test_a_full_queue_of_unsent_records_keeps_the_oldest() -> None:
    rumors = Rumors(10, records_max=3)
    for number in range(6):
        rumors.put(of_itself(number), statement(number))
    assert rumors.take([], 10) == (statement(0), statement(1), statement(5))


def test_a_newer_record_of_the_same_site_takes_nobody_elses_place() -> None:
    rumors = Rumors(10, records_max=2)
    rumors.put(of_itself(1), statement(1))
    rumors.put(of_itself(2), statement(2))
    assert rumors.put(of_itself(1), statement(3))
    assert len(rumors) == 2
