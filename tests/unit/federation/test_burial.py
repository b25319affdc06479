"""Tombstones: how small, what they say, and of what they may be made."""

import pytest
from federated_site import JOB, ME, digest, value
from hypothesis import given
from hypothesis import strategies as st

from agent.federation.burial import BYTES_MAX, Tombstone, ended, key_of, of, read, writes
from agent.foundation.errors import Malformed
from agent.foundation.ids import Digest
from agent.foundation.writes import Delete, Put
from agent.wire.mesh import REPLIES, Buried

ENDS = st.sampled_from(("finished", "failed", "cancelled"))
STONES = st.builds(
    Tombstone, ENDS, st.integers(0, 10_000),
    st.none() | st.binary(min_size=32, max_size=32).map(Digest), st.integers(0, 2**40),
)  # fmt: skip


@given(STONES)
def test_a_tombstone_takes_at_most_64_bytes_and_says_what_was_written(stone: Tombstone) -> None:
    row = stone.row(JOB)
    size = sum(len(part) for part in row.values() if isinstance(part, bytes))
    assert size <= BYTES_MAX
    assert read(row) == (key_of(JOB), stone)
    assert REPLIES.unpack(REPLIES.pack(stone.told(JOB))) == stone.told(JOB)


@pytest.mark.parametrize(
    "content", [b"", b"\x93\x00\x01\x02", b"\x94\x09\x01\xc0\x00", b"\x94\x00\x01\xc4\x01x\x00"]
)
def test_a_row_that_is_no_tombstone_is_refused(content: bytes) -> None:
    with pytest.raises(Malformed, match="tombstone"):
        read({"job": key_of(JOB), "content": content})


def test_only_an_end_is_buried() -> None:
    done = value(state="finished", round=3, exported=digest("m"), exported_bytes=9)
    assert of(done, is_cancelled=False) == Tombstone("finished", 3, digest("m"), 9)
    bare = value(state="failed", round=2)
    assert of(bare, is_cancelled=True) == Tombstone("failed", 2, digest("p0"), 0)
    assert of(value(round=1), is_cancelled=True) == Tombstone("cancelled", 1, digest("p0"), 0)
    assert of(None, is_cancelled=True) == Tombstone("cancelled", 0, None, 0)
    with pytest.raises(AssertionError, match="that runs"):
        of(value(round=1), is_cancelled=False)


def test_who_was_away_learns_the_end() -> None:
    told = Buried(JOB, "finished", 3, digest("m"), 9)
    read_last = value(round=1, contributions=digest("c"))
    late = ended(told, read_last, JOB, ME, has_history=False)
    assert (late.state, late.round, late.exported, late.exported_bytes) == (
        "finished",
        3,
        digest("m"),
        9,
    )
    assert late.contributions is None, "those of an earlier round"
    assert ended(told, read_last, JOB, ME, has_history=True).contributions == digest("c")
    fresh = ended(Buried(JOB, "failed", 0, None, 0), None, JOB, ME, has_history=True)
    assert (fresh.state, fresh.round, fresh.parameters, fresh.exported) == ("failed", 0, None, None)


def test_one_transaction_puts_the_tombstone_for_every_row() -> None:
    made = writes(JOB, Tombstone("finished", 2, None, 0), 2)
    assert isinstance(made[0], Put)
    gone = {(one.table, one.key) for one in made[1:] if isinstance(one, Delete)}
    assert gone >= {
        ("register", (JOB,)), ("jobs", (JOB,)), ("rounds", (JOB, 1)), ("rounds", (JOB, 2)),
        ("updates", (JOB, 1)), ("updates", (JOB, 3)),
    }  # fmt: skip
