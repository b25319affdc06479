from typing import Any

from federated_site import ANNA, Around, contributions, desk, job, of, value

from agent.federation.events import FetchBlob, ForgetBlob, Persist, ReadBlob
from agent.federation.history import (
    RETRY_AFTER_S,
    ROUNDS_BACK,
    TRIES_CANCELLED_MAX,
    Counted,
    Figures,
    History,
    Outline,
)
from agent.federation.value import Contribution, Contributions
from agent.foundation.ids import Digest
from agent.foundation.machine import NEVER
from agent.wire.documents import Region

FIRST = contributions(1)
SECOND = contributions(2, FIRST[0])
THIRD = contributions(3, SECOND[0])
DATA = {digest: data for digest, data, _ in (FIRST, SECOND, THIRD)}


class Bench:
    def __init__(self, *known: tuple[Digest, bytes, Contributions], **terms: Any) -> None:
        self.desk, self.around = desk(), Around(ANNA)
        self.settled: list[int] = []
        self.history = History(
            job(**terms),
            self.desk,
            self.around,
            lambda: (ANNA,),
            lambda c: self.settled.append(c.round),
        )
        for digest, _, content in known:
            self.history.restore(Counted(digest, content))

    def serve(self) -> list[Digest]:
        """Every fetch succeeds; returns what was fetched."""
        fetched: list[Digest] = []
        while effects := self.desk.take():
            for fetch in of(effects, FetchBlob):
                fetched.append(fetch.digest)
                self.around.held.add(fetch.digest)
                self.history.blob_arrived(fetch.digest, 1.0)
            for read in of(effects, ReadBlob):
                self.history.blob_read(read.digest, DATA[read.digest], 1.0)
        return fetched


def test_a_site_that_was_away_follows_the_chain_back_to_the_start() -> None:
    bench = Bench()
    bench.history.follow(value(round=3, contributions=THIRD[0]))
    assert bench.serve() == [THIRD[0], SECOND[0], FIRST[0]]
    assert sorted(bench.history.rounds) == [1, 2, 3]
    assert bench.settled == [3, 2, 1]


def test_a_gap_before_a_known_round_is_filled() -> None:
    bench = Bench(THIRD, FIRST)
    bench.history.follow(value(round=3, contributions=THIRD[0]))
    assert bench.serve() == [SECOND[0]]


def test_a_round_committed_while_an_older_one_is_sought_is_not_forgotten() -> None:
    bench = Bench()
    bench.history.follow(value(round=1, contributions=FIRST[0]))
    bench.history.follow(value(round=3, contributions=THIRD[0]))
    bench.serve()
    assert sorted(bench.history.rounds) == [1, 2, 3]


def test_what_cannot_be_fetched_is_tried_again_later() -> None:
    bench = Bench()
    bench.history.follow(value(round=1, contributions=FIRST[0]))
    bench.desk.take()
    bench.history.blob_missing(FIRST[0], 5.0)
    assert bench.history.wake_at() == 5.0 + RETRY_AFTER_S
    bench.history.woke(bench.history.wake_at())
    assert bench.serve() == [FIRST[0]]
    assert bench.history.wake_at() == NEVER


def test_what_is_nowhere_is_asked_for_less_and_less_often() -> None:
    bench, now, pauses = Bench(), 0.0, []
    bench.history.follow(value(round=1, contributions=FIRST[0]))
    for _ in range(9):
        bench.history.blob_missing(FIRST[0], now)
        pauses.append(bench.history.wake_at() - now)
        now = bench.history.wake_at()
        bench.history.woke(now)
        if len(pauses) == 4:
            bench.history.end()
    assert pauses == [2.0, 4.0, 8.0, 8.0, 32.0, 60.0, 60.0, 60.0, 60.0]


def test_of_a_cancelled_job_what_is_nowhere_is_given_up() -> None:
    bench, now, tries = Bench(), 0.0, 0
    bench.history.follow(value(round=1, contributions=FIRST[0]))
    bench.history.end(TRIES_CANCELLED_MAX)
    while not bench.history.has_given_up:
        bench.history.blob_missing(FIRST[0], now)
        now, tries = bench.history.wake_at(), tries + 1
        bench.history.woke(now)
    assert tries == TRIES_CANCELLED_MAX
    assert bench.history.wake_at() == NEVER
    assert bench.history.sought() == set()


def test_bytes_that_are_not_the_named_ones_are_dropped_and_fetched_anew() -> None:
    bench = Bench()
    bench.around.held.add(FIRST[0])
    bench.history.follow(value(round=1, contributions=FIRST[0]))
    bench.history.blob_read(FIRST[0], b"damaged", 1.0)
    assert [f.digest for f in of(bench.desk.take(), ForgetBlob)] == [FIRST[0]]
    bench.around.held.clear()
    bench.history.woke(bench.history.wake_at())
    assert bench.serve() == [FIRST[0]]


def test_a_round_is_recorded_once() -> None:
    bench = Bench()
    bench.history.record(FIRST[0], FIRST[2], 1.0)
    assert len(of(bench.desk.take(), Persist)) == 1
    bench.history.record(FIRST[0], FIRST[2], 1.0)
    assert bench.desk.take() == []
    assert bench.settled == [1]


def test_accuracy_is_weighted_by_the_size_of_the_hold_out() -> None:
    entries = [
        Contribution(ANNA, FIRST[0], 1, (("accuracy", accuracy), ("holdout", holdout)))
        for accuracy, holdout in ((1.0, 300.0), (0.0, 100.0))
    ]
    digest, _, content = contributions(1, None, *entries)
    assert Counted(digest, content).figures.accuracy == 0.75
    assert Counted(FIRST[0], FIRST[2]).figures.accuracy is None


# --- who was counted is on disk ------------------------------------------------------------------
def lived_through(bench: Bench, rounds: int) -> list[tuple[Digest, bytes, Contributions]]:
    """Rounds whose set this site learns as each is committed."""
    entry = Contribution(ANNA, FIRST[0], 7, (("accuracy", 0.5), ("holdout", 10.0), ("loss", 2.0)))
    made: list[tuple[Digest, bytes, Contributions]] = []
    for number in range(1, rounds + 1):
        made.append(contributions(number, made[-1][0] if made else None, entry))
        bench.history.follow(value(round=number, contributions=made[-1][0]))
        bench.history.record(made[-1][0], made[-1][2], float(number))
    return made


def test_who_was_counted_is_let_go_of_when_no_update_can_be_counted_late_any_more() -> None:
    bench = Bench(rounds=40, staleness_max=2)
    made = lived_through(bench, 40)
    let_go = [n for n, one in bench.history.rounds.items() if isinstance(one, Outline)]
    assert let_go == list(range(1, 40 - 2 - ROUNDS_BACK + 1))
    for number, one in bench.history.rounds.items():
        digest, _, content = made[number - 1]
        assert one.contributions == digest
        assert one.previous == content.previous
        assert one.figures == Counted(digest, content).figures
        assert one.figures == Figures(
            1, 7, 2.0, (("accuracy", 0.5), ("loss", 2.0), ("holdout", 10.0))
        )
        assert bench.history.content(number) == (None if number in let_go else content)
    assert bench.history.sought() <= {digest for digest, _, _ in made}


def test_of_a_job_with_regions_it_stays_until_the_job_is_over() -> None:
    bench = Bench(rounds=40, regions=(Region("north", (ANNA,)),))
    lived_through(bench, 40)
    assert not any(isinstance(one, Outline) for one in bench.history.rounds.values())
    bench.history.let_go()
    assert all(isinstance(one, Outline) for one in bench.history.rounds.values())


def test_a_round_before_a_gap_is_kept_whole_until_the_gap_is_closed() -> None:
    bench = Bench()
    made = lived_through(Bench(), 30)
    DATA.update({digest: data for digest, data, _ in made})
    bench.around.held.update(digest for digest, _, _ in made[1:])
    bench.history.follow(value(round=30, contributions=made[-1][0]))
    for _ in range(29):
        for read in of(bench.desk.take(), ReadBlob):
            bench.history.blob_read(read.digest, DATA[read.digest], 1.0)
    assert sorted(bench.history.rounds) == list(range(2, 31))
    assert bench.history.content(2) == made[1][2]
    assert bench.serve() == [made[0][0]]
    assert bench.history.content(2) is None
    assert bench.history.content(30) == made[29][2]


def test_after_a_recovery_the_rounds_that_are_made_anew_are_known_whole() -> None:
    bench = Bench(rounds=40)
    made = lived_through(bench, 30)
    bench.history.follow(value(round=5, contributions=made[4][0], recoveries=1))
    assert sorted(bench.history.rounds) == [1, 2, 3, 4, 5]
    again = contributions(6, made[4][0])
    bench.history.follow(value(round=6, contributions=again[0], recoveries=1))
    bench.history.record(again[0], again[2], 50.0)
    assert bench.history.content(6) == again[2]
    assert bench.history.sought() <= {digest for digest, _, _ in (*made[:5], again)}
