"""The gate before the multicast DNS library: fair among senders, and cheap."""

import asyncio

from agent.drivers.mdns_gate import (
    SENDER_BURST,
    SENDER_RATE,
    SENDERS_MAX,
    TOTAL_BURST,
    TOTAL_RATE,
    Gate,
    Gated,
)

RESPONSE = b"\0\0\x84\0" + bytes(8)
QUERY = bytes(12)
OURS = RESPONSE + b"\x06_atoll\x04_udp\x05local\0"


def test_what_is_not_about_us_is_not_read() -> None:
    gate = Gate()
    assert not gate.admits(RESPONSE + b"\x08_airplay", "a", 0)
    assert not gate.admits(QUERY + b"\x08_airplay", "a", 0)
    assert not gate.admits(b"atoll", "a", 0), "shorter than a header"
    assert not gate.admits(OURS + bytes(9000), "a", 0)
    assert gate.foreign == 4
    assert gate.admits(OURS.replace(b"_atoll", b"_ATOLL"), "a", 0)
    assert gate.admits(QUERY + b"\x09_services\x07_dns-sd", "a", 0), "which services are there?"
    assert not gate.admits(RESPONSE + b"\x09_services\x07_dns-sd", "a", 0)


def test_one_sender_cannot_use_up_what_the_others_may_send() -> None:
    gate = Gate()
    flood = sum(gate.admits(OURS, "flooder", 0.0) for _ in range(10_000))
    assert flood == SENDER_BURST
    assert gate.admits(OURS, "honest", 0.0)
    later = sum(gate.admits(OURS, "flooder", 1.0) for _ in range(10_000))
    assert later == SENDER_RATE
    assert gate.excess == 20_000 - flood - later


def test_many_senders_together_are_bounded_too_in_time_and_memory() -> None:
    gate = Gate()
    passed = sum(gate.admits(OURS, f"10.0.{n % 250}.{n // 250}", 0.0) for n in range(20_000))
    assert passed == TOTAL_BURST
    assert len(gate._senders) <= SENDERS_MAX
    again = sum(gate.admits(OURS, f"10.1.{n % 250}.{n // 250}", 1.0) for n in range(20_000))
    assert again == TOTAL_RATE


async def test_the_library_gets_what_passes_and_the_senders_address_without_a_prefix() -> None:
    class Inner(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.heard: list[tuple[bytes, tuple[object, ...]]] = []
            self.errors: list[Exception] = []
            self.is_lost = False

        def datagram_received(self, data: bytes, addr: tuple[object, ...]) -> None:
            self.heard.append((data, addr))

        def error_received(self, exc: Exception) -> None:
            self.errors.append(exc)

        def connection_lost(self, exc: Exception | None) -> None:
            self.is_lost = exc is None

    inner, gate = Inner(), Gate()
    gated = Gated(inner, gate)
    gated.datagram_received(OURS, ("::ffff:10.0.0.9", 5353, 0, 0))
    gated.datagram_received(b"noise", ("10.0.0.8", 5353))
    gated.error_received(OSError("gone"))
    gated.connection_lost(None)
    assert inner.heard == [(OURS, ("::ffff:10.0.0.9", 5353, 0, 0))]
    assert gate.sender == "10.0.0.9"
    assert len(inner.errors) == 1
    assert inner.is_lost
