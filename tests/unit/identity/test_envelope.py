"""The gossip envelope: only what was sealed for this boot of this site comes out, once."""

from collections.abc import Callable

import pytest
from cluster_of_keys import Cluster, Member
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.foundation.errors import Malformed, NotFound, UsageError
from agent.foundation.ids import SiteId
from agent.identity import envelope
from agent.identity.envelope import (
    BODY_BYTES_MAX,
    COUNTER_START_MAX,
    HEADER_BYTES,
    OVERHEAD_BYTES,
    REPLAY_WINDOW,
    TAG_BYTES,
    Sealer,
)
from agent.wire.limits import PACKET_BYTES_MAX

CLUSTER = Cluster()
ANNA, BERTA, CARLA = CLUSTER.site("anna"), CLUSTER.site("berta"), CLUSTER.site("carla")
EVERYBODY = (ANNA, BERTA, CARLA)


class World:
    """What the three sites know of each other: keys and boot epochs."""

    def __init__(self) -> None:
        self.keys = {member.site: member.claims.gossip_key for member in EVERYBODY}
        self.epochs = dict.fromkeys(self.keys, 1)

    def sealer(self, me: Member, boot_epoch: int = 1) -> Sealer:
        return Sealer(
            me.site,
            me.gossip,
            boot_epoch,
            self.keys.get,
            lambda s: self.epochs.get(s, 0),
            self.resolve,
        )

    def resolve(self, short_id: bytes) -> SiteId | None:
        return next((site for site in self.keys if site.startswith(short_id)), None)


def pair() -> tuple[World, Sealer, Sealer]:
    world = World()
    return world, world.sealer(ANNA), world.sealer(BERTA)


def test_the_receiver_gets_the_body_and_the_proven_sender() -> None:
    _, anna, berta = pair()
    assert berta.open(anna.seal(BERTA.site, b"hello")) == (ANNA.site, b"hello")
    assert anna.open(berta.seal(ANNA.site, b"")) == (BERTA.site, b"")


def test_a_full_body_fills_the_packet_and_one_byte_more_is_refused() -> None:
    _, anna, berta = pair()
    packet = anna.seal(BERTA.site, bytes(BODY_BYTES_MAX))
    assert len(packet) == PACKET_BYTES_MAX
    assert berta.open(packet)[1] == bytes(BODY_BYTES_MAX)
    with pytest.raises(UsageError, match="fewer rumors"):
        anna.seal(BERTA.site, bytes(BODY_BYTES_MAX + 1))


def test_a_replayed_packet_is_refused() -> None:
    _, anna, berta = pair()
    packet = anna.seal(BERTA.site, b"once")
    berta.open(packet)
    with pytest.raises(Malformed, match="came before"):
        berta.open(packet)


def test_a_packet_for_another_site_does_not_open_and_a_reflected_one_neither() -> None:
    world, anna, berta = pair()
    packet = anna.seal(BERTA.site, b"for berta")
    with pytest.raises(Malformed, match="not authentic"):
        world.sealer(CARLA).open(packet)
    with pytest.raises(Malformed, match="unknown sender"):
        anna.open(packet)
    reflected = packet[:1] + BERTA.site[:8] + packet[9:]
    with pytest.raises(Malformed, match="not authentic"):
        anna.open(reflected)
    assert berta.open(packet)[1] == b"for berta"


def test_the_two_directions_share_no_key_stream() -> None:
    """Both sites count from one, so one key for both would use each nonce twice."""
    _, anna, berta = pair()
    there, back = anna.seal(BERTA.site, bytes(64)), berta.seal(ANNA.site, bytes(64))
    assert there[9:HEADER_BYTES] == back[9:HEADER_BYTES]
    assert there[HEADER_BYTES:-TAG_BYTES] != back[HEADER_BYTES:-TAG_BYTES]


def test_a_packet_sealed_for_an_earlier_boot_of_the_receiver_does_not_open() -> None:
    world, anna, berta = pair()
    packet = anna.seal(BERTA.site, b"old")
    berta.open(packet)
    with pytest.raises(Malformed, match="not authentic"):
        world.sealer(BERTA, boot_epoch=2).open(packet)


def test_a_restarted_receiver_is_understood_again_as_soon_as_it_has_sent_one_packet() -> None:
    world, anna, _ = pair()
    berta = world.sealer(BERTA, boot_epoch=2)
    with pytest.raises(Malformed):
        berta.open(anna.seal(BERTA.site, b"to the old boot"))
    anna.open(berta.seal(ANNA.site, b"I am back"))
    assert anna.epoch_heard(BERTA.site) == 2
    assert berta.open(anna.seal(BERTA.site, b"welcome"))[1] == b"welcome"


def test_packets_of_an_earlier_boot_of_the_sender_are_refused_after_a_newer_one() -> None:
    world, anna, berta = pair()
    late = anna.seal(BERTA.site, b"late")
    berta.open(world.sealer(ANNA, boot_epoch=2).seal(BERTA.site, b"new boot"))
    with pytest.raises(Malformed, match="earlier boot"):
        berta.open(late)


def test_reordered_packets_within_the_window_open_once_each_and_older_ones_do_not() -> None:
    _, anna, berta = pair()
    packets = [anna.seal(BERTA.site, bytes([i % 256])) for i in range(REPLAY_WINDOW + 1)]
    berta.open(packets[-1])
    for packet in reversed(packets[1:-1]):
        berta.open(packet)
    for packet in packets:
        with pytest.raises(Malformed):
            berta.open(packet)


def test_a_forged_counter_does_not_move_the_window() -> None:
    _, anna, berta = pair()
    first, second = anna.seal(BERTA.site, b"1"), anna.seal(BERTA.site, b"2")
    forged = second[:13] + (2**64 - 1).to_bytes(8) + second[21:]
    with pytest.raises(Malformed, match="not authentic"):
        berta.open(forged)
    forged = second[:9] + (2**32 - 1).to_bytes(4) + second[13:]
    with pytest.raises(Malformed, match="not authentic"):
        berta.open(forged)
    assert berta.open(first)[1] == b"1"
    assert berta.open(second)[1] == b"2"


def test_no_nonce_is_used_twice_even_when_all_derived_keys_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(envelope, "LINKS_MAX", 1)
    _, anna, _ = pair()
    packets = [anna.seal(m.site, b"x") for _ in range(50) for m in (BERTA, CARLA)]
    assert len({packet[9:HEADER_BYTES] for packet in packets}) == 100


def test_a_site_that_is_unknown_or_revoked_is_neither_sealed_for_nor_opened() -> None:
    world, anna, berta = pair()
    packet = berta.seal(ANNA.site, b"x")
    del world.keys[BERTA.site]
    with pytest.raises(NotFound, match="sync with it over TLS"):
        anna.seal(BERTA.site, b"x")
    with pytest.raises(Malformed, match="unknown sender"):
        anna.open(packet)


def test_a_changed_gossip_key_counts_from_the_next_packet_on() -> None:
    world, anna, berta = pair()
    berta.open(anna.seal(BERTA.site, b"old key"))
    world.keys[BERTA.site] = CARLA.claims.gossip_key
    with pytest.raises(Malformed, match="not authentic"):
        berta.open(anna.seal(BERTA.site, b"new key"))


def test_a_gossip_key_of_small_order_is_no_key() -> None:
    world, anna, _ = pair()
    world.keys[BERTA.site] = bytes(32)
    with pytest.raises(NotFound):
        anna.seal(BERTA.site, b"x")
    packet = world.sealer(CARLA).seal(ANNA.site, b"x")
    with pytest.raises(Malformed, match="key is not known"):
        anna.open(packet[:1] + BERTA.site[:8] + packet[9:])


def test_a_replay_window_is_forgotten_only_for_a_site_that_may_not_send_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(envelope, "LINKS_MAX", 1)
    world, anna, berta = pair()
    carla = world.sealer(CARLA)
    anna.open(berta.seal(ANNA.site, b"x"))
    with pytest.raises(Malformed, match="1 senders are known already"):
        anna.open(carla.seal(ANNA.site, b"x"))
    world.keys[BERTA.site] = bytes(32)  # not usable, and yet it might come back
    with pytest.raises(Malformed):
        anna.open(carla.seal(ANNA.site, b"x"))
    del world.keys[BERTA.site]
    assert anna.open(carla.seal(ANNA.site, b"y")) == (CARLA.site, b"y")


def opener() -> Callable[[bytes], tuple[SiteId, bytes]]:
    return pair()[2].open


@given(st.binary(max_size=PACKET_BYTES_MAX + 10))
def test_arbitrary_bytes_are_malformed(packet: bytes) -> None:
    with pytest.raises(Malformed):
        opener()(packet)


@given(st.binary(max_size=60), st.data())
def test_no_change_of_a_bit_opens(body: bytes, data: st.DataObject) -> None:
    _, anna, berta = pair()
    packet = bytearray(anna.seal(BERTA.site, body))
    bit = data.draw(st.integers(0, len(packet) * 8 - 1))
    packet[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Malformed):
        berta.open(bytes(packet))
    assert len(packet) == len(body) + OVERHEAD_BYTES


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2500), max_size=60))
def test_the_window_agrees_with_a_plain_set(order: list[int]) -> None:
    _, anna, berta = pair()
    packets = [anna.seal(BERTA.site, b"") for _ in range(max(order, default=0) + 1)]
    seen: set[int] = set()
    for index in order:
        is_expected = index not in seen and index > max(seen, default=0) - REPLAY_WINDOW
        if is_expected:
            berta.open(packets[index])
            seen.add(index)
        else:
            with pytest.raises(Malformed):
                berta.open(packets[index])


def test_two_copies_of_one_boot_do_not_repeat_a_nonce() -> None:
    """Copies of a state folder have the same keys and the same boot epoch; only chance differs."""
    world = World()
    berta = world.sealer(BERTA)
    packets = []
    for start in (0, 2**40, COUNTER_START_MAX - 1):
        copy = Sealer(
            ANNA.site, ANNA.gossip, 1, world.keys.get, lambda _: 1, world.resolve, counter=start
        )
        packets.append(copy.seal(BERTA.site, b"hello"))
    nonces = {packet[9:21] for packet in packets}
    assert len(nonces) == len(packets)
    assert berta.open(packets[0]) == (ANNA.site, b"hello")
    assert berta.open(packets[-1]) == (ANNA.site, b"hello")
