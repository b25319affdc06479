"""Whatever is heard, in whatever order: no exception, no forged belief, one outcome."""

import hashlib
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.foundation.ids import SiteId
from agent.membership.events import Heard, Introduced
from agent.membership.settings import Settings
from agent.membership.swim import Swim
from agent.wire.gossip import Gossip
from agent.wire.records import STATEMENTS, Accusation, Endpoint, Signed, SiteRecord

NAMES = "abcdef"
BOOT = 1 << 32


def site(name: str) -> SiteId:
    return SiteId(hashlib.sha256(name.encode()).digest())


def signature(speaker: SiteId, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=speaker, digest_size=64).digest()


class Notary:
    def sign(self, body: bytes) -> bytes:
        return signature(site("me"), body)

    def is_signed_by(self, speaker: SiteId, body: bytes, given: bytes) -> bool:
        return given == signature(speaker, body)


def record(name: str, sequence: int, incarnation: int, *, has_left: bool = False) -> SiteRecord:
    status = "left" if has_left else "alive"
    return SiteRecord(
        site(name),
        BOOT + sequence,
        1,
        BOOT + incarnation,
        status,  # type: ignore[arg-type]
        Endpoint("10.0.0.1", 7411, 7412),
        0.0,
        1.0,
        (),
        bytes(8),
    )


def machine() -> Swim:
    swim = Swim(
        record=record("me", 0, 0),
        notary=Notary(),
        settings=Settings.lan(),
        rng=Random(1),
        now=0.0,
    )
    first = tuple(sealed(record(name, 0, 0)) for name in NAMES)
    swim.step(Introduced(first), 0.0)
    return swim


def sealed(statement: SiteRecord | Accusation) -> Signed:
    body = STATEMENTS.pack(statement)
    speaker = statement.site if isinstance(statement, SiteRecord) else statement.accuser
    return Signed(body, signature(speaker, body))


names = st.sampled_from(NAMES)
# One owner makes one record of each sequence, and its incarnation follows from it.
records = st.builds(
    lambda name, number: record(name, number, number // 2 * 2), names, st.integers(1, 9)
)
accusations = st.builds(
    lambda accuser, subject, number: Accusation(site(accuser), site(subject), BOOT + number),
    names,
    names,
    st.integers(0, 9),
)
statements = st.lists(st.one_of(records, accusations), max_size=16)


@given(statements, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_records_heard_in_any_order_end_in_the_same_belief(
    heard: list[SiteRecord | Accusation], random: Random
) -> None:
    shuffled = heard.copy()
    random.shuffle(shuffled)
    ends = []
    for order in (heard, shuffled):
        swim = machine()
        for index, statement in enumerate(order):
            swim.step(Heard(site("a"), Gossip((sealed(statement),))), 0.001 * (index + 1))
        ends.append({member.site: member.record for member in swim.members().values()})
    assert ends[0] == ends[1]


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.binary(min_size=64, max_size=64)), max_size=8)
)
@settings(max_examples=150, deadline=None)
def test_no_bytes_can_hurt(pairs: list[tuple[bytes, bytes]]) -> None:
    swim = machine()
    before = dict(swim.members())
    swim.step(Heard(site("a"), Gossip(tuple(Signed(*pair) for pair in pairs))), 0.1)
    assert {m.site: m.state for m in before.values()} == {
        m.site: m.state for m in swim.members().values()
    }


@given(statements)
@settings(max_examples=150, deadline=None)
def test_statements_with_wrong_signatures_change_nothing(
    heard: list[SiteRecord | Accusation],
) -> None:
    swim = machine()
    before = dict(swim.members())
    forged = tuple(Signed(sealed(statement).body, bytes(64)) for statement in heard)
    for index, signed in enumerate(forged):
        swim.step(Heard(site("a"), Gossip((signed,))), 0.001 * (index + 1))
    after = swim.members()
    assert {s: (m.state, m.record) for s, m in before.items()} == {
        s: (m.state, m.record) for s, m in after.items()
    }
