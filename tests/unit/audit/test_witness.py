"""Witnesses: the end of a log cannot go back, or be another, unnoticed by those who have seen it."""

import hashlib

import pytest

from agent.audit.witness import WITNESSES, Witness, check_receipt, choose, sworn
from agent.foundation.errors import Malformed, Refused
from agent.foundation.ids import SiteId
from agent.wire import audit as wire

ME, OTHER, THIRD = (SiteId(bytes([number]) * 32) for number in (1, 2, 3))


class Seal:
    """A stand-in for Ed25519 with the same contract."""

    def __init__(self, site: SiteId) -> None:
        self.site = site

    def sign(self, body: bytes) -> bytes:
        return hashlib.sha512(self.site + body).digest()

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        return signature == hashlib.sha512(site + body).digest()


def said(
    sequence: int, at_ms: int, by: SiteId = OTHER, digest: bytes = b"h" * 32
) -> wire.Testimony:
    return sworn(by, sequence, digest, at_ms, Seal(by))


@pytest.fixture
def witness() -> Witness:
    return Witness(ME, Seal(ME), [])


def test_a_receipt_proves_what_was_said_and_who_saw_it(witness: Witness) -> None:
    receipt, (row,) = witness.take(OTHER, said(5, 1), 77)
    check_receipt(receipt, Seal(THIRD))
    assert (receipt.witness, receipt.seen_ms, receipt.testimony) == (ME, 77, said(5, 1))
    assert row.row["site"] == OTHER
    for forged in (
        wire.Receipt(said(6, 1), ME, 77, receipt.signature),
        wire.Receipt(receipt.testimony, THIRD, 77, receipt.signature),
        wire.Receipt(receipt.testimony, ME, 78, receipt.signature),
        wire.Receipt(wire.Testimony(said(5, 1).head, bytes(64)), ME, 77, receipt.signature),
    ):
        with pytest.raises(Malformed, match="is not signed by"):
            check_receipt(forged, Seal(THIRD))


def test_nobody_can_testify_for_another(witness: Witness) -> None:
    with pytest.raises(Refused, match="for its own log only"):
        witness.take(THIRD, said(5, 1), 0)
    with pytest.raises(Refused, match="for its own log only"):
        witness.take(OTHER, wire.Testimony(said(5, 1).head, said(6, 1).signature), 0)


def test_what_grows_is_witnessed_and_what_is_known_costs_no_row(witness: Witness) -> None:
    witness.take(OTHER, said(5, 1), 0)
    assert witness.take(OTHER, said(5, 2), 9)[1] == []
    receipt, rows = witness.take(OTHER, said(9, 3, digest=b"i" * 32), 9)
    assert receipt.testimony.head.sequence == 9
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (said(4, 2), "ended at entry 5 before and ends at 4 now"),
        (said(5, 2, digest=b"x" * 32), "entry 5 of its audit log was one entry before"),
    ],
)
def test_an_end_that_goes_back_or_is_another_is_an_alarm_that_outlives_a_restart(
    witness: Witness, after: wire.Testimony, told: str
) -> None:
    witness.take(OTHER, said(5, 1), 0)
    with pytest.raises(Refused, match=told):
        witness.take(OTHER, after, 1)
    (row,) = witness.contradiction(OTHER)
    again = Witness(ME, Seal(ME), [(row.row["receipt"], row.row["contradiction"])])  # type: ignore[list-item]
    assert told in again.alarms[OTHER].text
    assert again.alarms[OTHER].latter == after
    known = again.of(OTHER)
    assert known is not None
    assert known.testimony == said(5, 1), "the furthest end stays known"


def test_a_call_that_was_overtaken_contradicts_nothing(witness: Witness) -> None:
    witness.take(OTHER, said(9, 50), 0)
    witness.take(OTHER, said(5, 10), 1)
    assert witness.alarms == {}


def test_a_site_keeps_its_witnesses_while_they_are_there() -> None:
    others = [SiteId(bytes([number]) * 32) for number in range(10, 30)]
    chosen = choose(ME, others)
    assert len(chosen) == WITNESSES
    assert choose(ME, reversed(others)) == chosen
    assert choose(ME, [one for one in others if one != chosen[0]])[:2] == chosen[1:]
