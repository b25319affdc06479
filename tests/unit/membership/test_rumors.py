from mesh_of_statements import site

from agent.foundation.ids import SiteId
from agent.membership.rumors import BUDGET_BYTES, PER_PACKET_MAX, Rumors, wire_bytes
from agent.wire.gossip import GOSSIP, Ack
from agent.wire.limits import PACKET_BYTES_MAX
from agent.wire.records import Signed


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
