"""What a full disk refused stays owed, the last write for each row."""

from collections.abc import Sequence

import pytest

from agent.daemon.debt import Debt, Paid, is_promise
from agent.federation.events import StoreBytes, Train
from agent.foundation.errors import StoreFault
from agent.foundation.ids import Digest, SiteId
from agent.foundation.writes import Delete, Put, Write
from agent.site.events import Answer, Ask, GatewayChanged, Persist, Resolved, SiteEffect
from agent.wire.mesh import Done, Have, HaveReply, Prepare, Push, SyncReply, SyncRequest
from agent.wire.records import Endpoint

DIGEST = Digest(b"\1" * 32)


class Disk:
    def __init__(self) -> None:
        self.is_full = False
        self.rows: list[Sequence[Write]] = []
        self.blobs: list[Digest] = []

    async def store(self, digest: Digest, _: bytes) -> None:
        self._check()
        self.blobs.append(digest)

    async def commit(self, writes: Sequence[Write]) -> None:
        self._check()
        self.rows.append(list(writes))

    def _check(self) -> None:
        if self.is_full:
            raise StoreFault("the disk is full")


def meta(key: str, value: int) -> Put:
    return Put("meta", {"key": key, "value": value})


async def test_rows_are_committed_once_in_order_with_their_tokens() -> None:
    debt, disk = Debt(), Disk()
    debt.take([Persist((meta("a", 1),), token=7), Persist((meta("b", 1), meta("a", 2)))])
    assert len(debt) == 2
    assert await debt.pay(disk.store, disk.commit) == Paid((), (7,))
    assert disk.rows == [[meta("b", 1), meta("a", 2)]]
    assert not debt
    assert await debt.pay(disk.store, disk.commit) == Paid((), ())
    assert len(disk.rows) == 1, "nothing to write"


async def test_what_a_full_disk_refuses_is_written_when_it_has_room() -> None:
    debt, disk = Debt(), Disk()
    disk.is_full = True
    for value in range(100):
        debt.take([Persist((meta("a", value),), token=value), StoreBytes(DIGEST, b"x")])
        with pytest.raises(StoreFault):
            await debt.pay(disk.store, disk.commit)
    assert len(debt) == 2, "one row and one blob, however often"
    disk.is_full = False
    debt.take([Persist((Delete("meta", ("b",)),))])
    paid = await debt.pay(disk.store, disk.commit)
    assert paid == Paid((DIGEST,), tuple(range(100)))
    assert disk.rows == [[meta("a", 99), Delete("meta", ("b",))]]


def ask(message: object) -> Ask:
    return Ask(1, SiteId(b"\1" * 32), Endpoint("127.0.0.1", 1, 2), message, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        (Resolved(1, ()), True),
        (Answer(1, Done()), True),
        (ask(Prepare("j", None)), True),  # type: ignore[arg-type]
        (ask(SyncRequest(None, (), ())), False),  # type: ignore[arg-type]
        (ask(Push((), ())), False),
        (ask(Have(())), True),
        (Answer(1, SyncReply((), (), (), ())), False),
        (Answer(1, HaveReply(())), False),
        (GatewayChanged(), False),
        (Train(None, 1, DIGEST), False),  # type: ignore[arg-type]
    ],
)
def test_promises_are_told_from_news(effect: SiteEffect, expected: object) -> None:
    assert is_promise(effect) is expected
