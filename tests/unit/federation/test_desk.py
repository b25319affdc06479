from federated_site import ANNA, JOB, desk, digest

from agent.federation.events import Ask, ForgetBlob
from agent.wire.mesh import Done, Read, Reply


def test_a_reply_goes_to_who_asked_and_only_once() -> None:
    one, heard = desk(), list[tuple[Reply | None, float]]()
    one.ask(ANNA, Read(JOB), 2.0, lambda reply, now: heard.append((reply, now)))
    (ask,) = one.take()
    assert isinstance(ask, Ask)
    one.replied(ask.call, Done(), 1.0)
    one.replied(ask.call, None, 2.0)
    one.replied(12345, None, 3.0)
    assert heard == [(Done(), 1.0)]


def test_effects_leave_in_order_and_once() -> None:
    one = desk()
    assert desk().is_empty
    one.emit(ForgetBlob(digest("a")), ForgetBlob(digest("b")))
    assert not one.is_empty
    assert [e.digest for e in one.take() if isinstance(e, ForgetBlob)] == [digest("a"), digest("b")]
    assert one.take() == []


def test_operation_ids_are_never_repeated() -> None:
    one = desk()
    assert len({one.operation() for _ in range(100)}) == 100
