import hashlib
from typing import Any

import pytest

from agent.audit import chain as chain_module
from agent.audit.chain import (
    FINDINGS_MAX,
    START,
    AuditChain,
    Decision,
    Head,
    head_of,
    verify,
)
from agent.foundation.errors import Corruption
from agent.foundation.ids import SiteId
from agent.foundation.writes import Delete, Put, Scalar

ME, OTHER = SiteId(bytes([1]) * 32), SiteId(bytes([2]) * 32)


class Seal:
    """A stand-in for Ed25519 with the same contract."""

    def __init__(self, site: SiteId = ME) -> None:
        self.site = site

    def sign(self, body: bytes) -> bytes:
        return hashlib.sha512(self.site + body).digest()

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        return signature == hashlib.sha512(site + body).digest()


def decision(subject: str) -> Decision:
    return Decision("forward", subject, OTHER, ("DE",), 100, "model m:1")


def build(count: int) -> tuple[list[dict[str, Scalar]], AuditChain]:
    chain = AuditChain(notary=Seal())
    rows: list[dict[str, Scalar]] = []
    for n in range(count):
        (put,), head = chain.append(decision(f"request {n}"), 1000 + n)
        assert isinstance(put, Put)
        assert head == chain.head
        rows.append(dict(put.row))
    return rows, chain


def check(rows: list[dict[str, Scalar]], head: Head | None = None) -> list[str]:
    return verify(rows, site=ME, notary=Seal(), heads=() if head is None else (head,))


def test_an_untouched_chain_is_sound() -> None:
    rows, chain = build(10)
    assert check(rows, chain.head) == []
    assert check([], START) == []
    assert head_of(rows[-1]) == chain.head
    assert head_of(None) == START


def test_a_chain_goes_on_after_a_restart() -> None:
    rows, chain = build(3)
    again = AuditChain(notary=Seal(), head=head_of(rows[-1]))
    (put,), _ = again.append(decision("next"), 5)
    assert isinstance(put, Put)
    assert check([*rows, dict(put.row)], chain.head) == []


@pytest.mark.parametrize("column", ["entry", "hash"])
def test_any_changed_byte_is_found(column: str) -> None:
    rows, _ = build(4)
    value = rows[1][column]
    assert isinstance(value, bytes)
    for at in range(len(value)):
        changed: list[dict[str, Any]] = [dict(row) for row in rows]
        changed[1][column] = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
        assert check(changed), at


def test_a_removed_a_swapped_and_an_added_entry_are_found() -> None:
    rows, chain = build(5)
    assert "are missing" in check([*rows[:2], *rows[3:]])[0]
    assert check([rows[0], rows[2], rows[1], *rows[3:]])
    forged, _ = build(6)
    assert check([*rows[:2], *forged[2:]]) == []  # the same content is the same chain
    other = AuditChain(notary=Seal(), head=chain.head)
    other.append(decision("x"), 1)
    assert "lacks its entry 6" in check(rows, other.head)[0]


def test_a_cut_off_end_is_found_by_the_known_head() -> None:
    rows, chain = build(5)
    assert check(rows[:3]) == []
    assert "lacks its entry 5" in check(rows[:3], chain.head)[0]


def test_a_rewritten_history_is_found_by_the_known_head() -> None:
    _, chain = build(5)
    rewriter = AuditChain(notary=Seal())
    rows: list[dict[str, Scalar]] = []
    for n in range(5):
        (put,), _ = rewriter.append(decision(f"nicer request {n}"), 1000 + n)
        assert isinstance(put, Put)
        rows.append(dict(put.row))
    assert check(rows) == []
    assert "not the one known elsewhere" in check(rows, chain.head)[0]


def test_a_chain_of_another_site_is_not_ours() -> None:
    rows, _ = build(1)
    chain = AuditChain(notary=Seal(OTHER))
    (put,), _ = chain.append(decision("x"), 1)
    assert isinstance(put, Put)
    assert check([dict(put.row)]) == ["audit entry 1 is not signed by this site"]
    assert check(rows) == []


def test_an_old_entry_leaves_when_the_chain_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "ENTRIES_MAX", 3)
    chain = AuditChain(notary=Seal())
    rows: dict[int, dict[str, Scalar]] = {}
    for n in range(8):
        writes, _ = chain.append(decision(f"{n}"), n)
        for write in writes:
            match write:
                case Put():
                    rows[chain.head.sequence] = dict(write.row)
                case Delete():
                    (gone,) = write.key
                    assert isinstance(gone, int)
                    del rows[gone]
    assert sorted(rows) == [6, 7, 8]
    assert check([rows[n] for n in sorted(rows)], chain.head) == []


def test_rewinding_forgets_what_was_not_written() -> None:
    rows, chain = build(2)
    before = chain.head
    chain.append(decision("lost"), 1)
    chain.rewind(before)
    (put,), _ = chain.append(decision("kept"), 2)
    assert isinstance(put, Put)
    assert check([*rows, dict(put.row)]) == []


def test_findings_are_bounded_and_a_damaged_last_row_is_corruption() -> None:
    rows, _ = build(50)
    for row in rows:
        row["hash"] = bytes(32)
    assert len(check(rows)) == FINDINGS_MAX
    with pytest.raises(Corruption):
        head_of(rows[-1])
    with pytest.raises(Corruption):
        head_of({"sequence": 1, "entry": b"garbage", "hash": b""})
