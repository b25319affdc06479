from federated_site import BERT, asked, desk, job, of, value

from agent.federation.events import Answer
from agent.federation.value import JobValue
from agent.federation.watch import (
    HELD_LEAST_S,
    NO_CHANGE,
    PAUSE_MAX_S,
    PAUSE_S,
    WATCH_HOLD_S,
    Watchers,
    Watching,
)
from agent.foundation.machine import NEVER
from agent.wire.mesh import Declined, Done, Reply, Watch


class Bench:
    def __init__(self) -> None:
        self.desk = desk()
        self.value: JobValue | None = value()
        self.pauses: list[float] = []
        self.doubts: list[int] = []
        self.resigned = 0
        self.watching = Watching(
            job(), self.desk, lambda: self.value, lambda _, pause: self.pauses.append(pause),
            lambda _, doubts: self.doubts.append(doubts), self._on_resigned,
        )  # fmt: skip

    def _on_resigned(self, now: float) -> None:  # noqa: ARG002
        self.resigned += 1

    def watch(self) -> list[int]:
        assert self.value is not None
        self.watching.watch(self.value, 0.0)
        return [ask.call for ask in asked(self.desk.take(), Watch)]

    def answer(self, reply: Reply | None, now: float = 0.0) -> None:
        (call,) = self.watch()
        self.desk.replied(call, reply, now)


def test_an_aggregator_is_watched_once() -> None:
    bench = Bench()
    assert len(bench.watch()) == 1
    assert bench.watch() == []


def test_news_is_looked_at_once_and_the_same_news_after_a_pause() -> None:
    bench = Bench()
    bench.answer(Done())
    bench.answer(Done())
    assert bench.pauses[0] == 0.0
    assert bench.pauses[1] > 0.0
    bench.value = value(round=1)
    bench.answer(Done())
    assert bench.pauses[2] == 0.0


def test_pauses_double_while_nothing_works_and_end_at_a_bound() -> None:
    bench = Bench()
    for _ in range(12):
        bench.answer(None)
    assert bench.pauses[:3] == [0.5, 1.0, 2.0]
    assert bench.pauses[-1] == PAUSE_MAX_S
    assert bench.doubts[:3] == [1, 2, 3]


def test_a_held_watch_that_found_no_change_is_renewed_without_a_read() -> None:
    bench = Bench()
    bench.answer(Declined(NO_CHANGE), WATCH_HOLD_S)
    assert bench.pauses == []
    assert len(asked(bench.desk.take(), Watch)) == 1


def test_a_watch_that_is_answered_at_once_is_renewed_after_pauses_that_double() -> None:
    """An aggregator with as many watchers as it may have, or one that is wrong."""
    bench = Bench()
    for _ in range(12):
        bench.answer(Declined(NO_CHANGE), HELD_LEAST_S / 2)
    assert bench.pauses[:3] == [PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S]
    assert bench.pauses[-1] == PAUSE_MAX_S
    assert bench.doubts == []


def test_a_resignation_is_no_doubt() -> None:
    bench = Bench()
    bench.answer(Declined("resigned: out of memory"))
    assert bench.resigned == 1
    assert bench.doubts == []


def test_an_answer_about_an_epoch_that_is_over_changes_nothing() -> None:
    bench = Bench()
    (call,) = bench.watch()
    bench.value = value(epoch=2, aggregator=BERT)
    (newer,) = bench.watch()
    bench.desk.replied(call, None, 0.0)
    assert (bench.pauses, bench.doubts) == ([], [])
    assert bench.watch() == []
    bench.desk.replied(newer, None, 0.0)
    assert bench.doubts == [1]


def test_watchers_are_answered_when_something_changes_or_after_a_while() -> None:
    outbox = desk()
    watchers = Watchers(outbox)
    watchers.hold(1, 0.0)
    watchers.hold(2, 5.0)
    assert watchers.wake_at() == WATCH_HOLD_S
    watchers.woke(WATCH_HOLD_S)
    assert of(outbox.take(), Answer) == [Answer(1, Declined(NO_CHANGE))]
    watchers.answer(Done())
    assert of(outbox.take(), Answer) == [Answer(2, Done())]
    assert watchers.wake_at() == NEVER
