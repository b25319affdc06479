"""What goes into one packet: it fits, whoever made its parts."""

import msgpack
from mesh_of_statements import BOOT, accusation, signature, site
from one_site import OneSite

from agent.identity.envelope import BODY_BYTES_MAX
from agent.membership.events import Heard, LocalChanged, SendGossip
from agent.membership.post import fitting
from agent.membership.rumors import BUDGET_BYTES, PER_PACKET_MAX, wire_bytes
from agent.wire.gossip import GOSSIP, Gossip
from agent.wire.limits import RUMOR_BYTES_MAX
from agent.wire.records import Served, Signed


def padded_accusation(accuser: str, subject: str) -> Signed:
    """Valid, signed by its accuser, and as long as a statement may be."""
    fields = [site(accuser), site(subject), BOOT, False]
    room = RUMOR_BYTES_MAX - 3 - len(msgpack.packb([2, fields], use_bin_type=True))
    body = msgpack.packb([2, [*fields, bytes(room)]], use_bin_type=True)
    assert len(body) == RUMOR_BYTES_MAX
    return Signed(body, signature(site(accuser), body))


def longest(one: OneSite) -> int:
    return max(len(GOSSIP.pack(effect.message)) for effect in one.made(SendGossip))


def test_an_accuser_cannot_silence_us_towards_the_accused() -> None:
    """Evidence goes first into a packet: were it too long, no packet would leave at all."""
    one = OneSite()
    one.step(LocalChanged(serving=tuple(Served(bytes((n,)) * 8, 2**60) for n in range(24))))
    one.run(10)
    one.effects.clear()
    one.step(Heard(site("b"), Gossip((padded_accusation("b", "a"),))))
    one.hear("c", accusation("c", "a"))
    one.hear("d", accusation("d", "a"))
    one.run(2)
    assert any(effect.target == site("a") for effect in one.made(SendGossip))
    assert longest(one) <= BODY_BYTES_MAX
    assert padded_accusation("b", "a").body not in {
        statement.body for effect in one.made(SendGossip) for statement in effect.message.rumors
    }


def test_statements_are_taken_in_order_as_far_as_they_fit() -> None:
    small, large = Signed(b"small", bytes(64)), Signed(bytes(RUMOR_BYTES_MAX), bytes(64))
    assert fitting([small, large, large, small]) == [small, large]
    assert fitting([large, large, small]) == [large, small]
    assert len(fitting([Signed(b"x", bytes(64))] * 40)) <= PER_PACKET_MAX
    assert sum(map(wire_bytes, fitting([small] * 40))) <= BUDGET_BYTES
