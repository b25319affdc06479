from federated_site import (
    ANNA,
    BERT,
    CARL,
    JOB,
    ME,
    Around,
    answered,
    contributions,
    desk,
    digest,
    job,
    of,
    value,
)

from agent.federation.custody import GUESTS_MAX, KEEPING_MAX, Custody
from agent.federation.events import FetchBlob, ForgetBlob, Label
from agent.federation.value import JobValue
from agent.wire.mesh import Declined, Done, Keep


class Bench:
    def __init__(self) -> None:
        self.desk, self.around = desk(), Around(ANNA)
        self.value: JobValue | None = value()
        self.custody = Custody(job(), ME, self.desk, self.around, lambda: self.value)

    def move(self, held: JobValue) -> set[bytes]:
        self.value = held
        self.custody.moved(held)
        return self.forgotten()

    def forgotten(self) -> set[bytes]:
        """What would be forgotten, as the machine lets it."""
        gone = {
            f.digest for f in of(self.desk.take(), ForgetBlob) if not self.custody.needs(f.digest)
        }
        self.around.held -= gone
        return set(gone)


def test_a_keep_call_is_answered_when_everything_is_here() -> None:
    bench = Bench()
    bench.around.held.add(digest("b"))
    bench.custody.keep(1, ANNA, Keep(JOB, (digest("a"), digest("b"))))
    assert [f.digest for f in of(bench.desk.take(), FetchBlob)] == [digest("a")]
    bench.custody.blob_arrived(digest("a"), 1.0)
    effects = bench.desk.take()
    assert answered(effects) == Done()
    assert {label.digest for label in of(effects, Label)} == {digest("a"), digest("b")}


def test_a_keep_call_whose_blob_cannot_be_had_is_declined() -> None:
    bench = Bench()
    bench.custody.keep(1, ANNA, Keep(JOB, (digest("a"),)))
    bench.desk.take()
    bench.custody.blob_missing(digest("a"), 1.0)
    assert isinstance(answered(bench.desk.take()), Declined)


def test_calls_to_keep_are_bounded() -> None:
    bench = Bench()
    for call in range(KEEPING_MAX):
        bench.custody.keep(call, ANNA, Keep(JOB, (digest(f"{call}"),)))
    bench.desk.take()
    bench.custody.keep(999, ANNA, Keep(JOB, (digest("one more"),)))
    assert isinstance(answered(bench.desk.take()), Declined)


def test_a_site_outside_the_residency_keeps_nothing() -> None:
    bench = Bench()
    bench.around.outlaws = {ME}
    bench.custody.keep(1, ANNA, Keep(JOB, (digest("a"),)))
    assert isinstance(answered(bench.desk.take()), Declined)


def test_what_was_promised_stays_until_the_history_tells_that_it_was_not_committed() -> None:
    bench = Bench()
    bench.around.held |= {digest("a")}
    bench.custody.keep(1, ANNA, Keep(JOB, (digest("a"),)))
    bench.desk.take()
    assert bench.custody.needs(digest("a"))
    assert bench.move(value(round=1, parameters=digest("p1"))) == set()
    bench.value = value(round=1, parameters=digest("p1"), state="finished")
    bench.custody.end([])
    assert digest("a") in bench.forgotten()


def test_the_parameters_of_this_round_and_the_last_stay() -> None:
    bench = Bench()
    bench.around.held |= {digest(f"p{n}") for n in range(4)}
    assert bench.move(value()) == set()
    assert bench.move(value(round=1, parameters=digest("p1"))) == set()
    assert bench.move(value(round=2, parameters=digest("p2"))) == {digest("p0")}
    assert bench.move(value(round=3, parameters=digest("p3"))) == {digest("p1")}


def test_old_parameters_that_arrive_late_are_forgotten() -> None:
    bench = Bench()
    for round_ in (0, 1, 2):
        bench.move(value(round=round_, parameters=digest(f"p{round_}")))
    bench.around.held.add(digest("p0"))
    bench.custody.blob_arrived(digest("p0"), 1.0)
    assert bench.forgotten() == {digest("p0")}


def test_a_restart_forgets_what_has_served_meanwhile() -> None:
    bench = Bench()
    bench.around.held |= {digest(f"p{n}") for n in range(4)}
    bench.value = value(round=3, parameters=digest("p3"))
    contents = [contributions(n)[2] for n in (1, 2, 3)]
    bench.custody.restore(bench.value, contents)
    assert bench.forgotten() == {digest("p0"), digest("p1")}


def test_borrowed_updates_go_back_even_those_that_arrive_later() -> None:
    bench = Bench()
    bench.around.held.add(digest("u1"))
    bench.custody.borrow(digest("u1"))
    bench.custody.borrow(digest("u2"))
    bench.custody.give_back()
    assert bench.forgotten() == {digest("u1")}
    bench.custody.blob_arrived(digest("u2"), 1.0)
    assert bench.forgotten() == {digest("u2")}


def test_a_result_that_was_committed_is_not_given_back() -> None:
    bench = Bench()
    bench.around.held |= {digest("p1"), digest("lost")}
    bench.custody.made(digest("p1"))
    bench.custody.made(digest("lost"))
    bench.value = value(round=1, parameters=digest("p1"))
    bench.custody.give_back()
    assert bench.forgotten() == {digest("lost")}


def test_what_an_aggregator_had_kept_before_it_was_known_stays() -> None:
    """Its claim was decided by others; many more ask in vain afterwards."""
    bench = Bench()
    kept = Keep(JOB, (digest("p1"), digest("c1")))
    bench.around.held |= set(kept.blobs)
    bench.custody.keep(1, BERT, kept)
    bench.move(
        value(
            round=1, epoch=2, aggregator=BERT, parameters=digest("p1"), contributions=digest("c1")
        )
    )
    for call in range(2, 30):
        blobs = tuple(digest(f"junk {call} {n}") for n in range(8))
        bench.around.held |= set(blobs)
        bench.custody.keep(call, CARL, Keep(JOB, blobs))
    bench.forgotten()
    assert {digest("p1"), digest("c1")} <= bench.around.held
    assert sum(bench.custody.needs(blob) for blob in bench.around.held) <= GUESTS_MAX + 3
