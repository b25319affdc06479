"""Whose offers a round takes, where a job has regions."""

import pytest
from federated_site import ANNA, BERT, CARL, JOB, ME, Around, desk, digest, job, of, value

from agent.federation.cohort import Cohort
from agent.federation.custody import Custody
from agent.federation.events import Doubt, FetchBlob
from agent.federation.region import party
from agent.foundation.ids import SiteId
from agent.wire.documents import Job, Region
from agent.wire.mesh import Offer

WITH_A_REGION = job(regions=(Region("north", (ANNA,)),), staleness_max=2, local_rounds_max=2)


class Bench:
    def __init__(self, wanted: Job = WITH_A_REGION) -> None:
        self.desk, self.around = desk(), Around(ANNA, BERT, CARL)
        self.around.regions = {ANNA: "north", BERT: "north", CARL: "elsewhere"}
        custody = Custody(wanted, ME, self.desk, self.around, lambda: None)
        self.cohort = Cohort(wanted, ME, self.desk, self.around, custody, lambda _: None)
        self.cohort.open(0.0)

    def offer(
        self,
        sender: SiteId,
        after: int = 0,
        until: int = 0,
        name: str = "u",
        *,
        is_open: bool = True,
    ) -> str:
        offer = Offer(JOB, 1, 1, digest("p0"), digest(name), 5, (), after, until)
        return self.cohort.collect(sender, offer, value(), 1.0, is_open=is_open).outcome

    def arrived(self, sender: SiteId, name: str) -> None:
        """Its update was offered and is here."""
        assert self.offer(sender, name=name) == "collected"
        self.around.held.add(digest(name))
        self.cohort.blob_arrived(digest(name), 1.0)


def test_a_region_is_waited_for_as_one_and_invited_by_nobody() -> None:
    bench, told = Bench(), list[SiteId]()
    bench.cohort.invite(0.0, told.append)
    assert told == [CARL]
    assert set(bench.cohort.entries) == {party("north"), CARL, ME}
    assert set(bench.cohort.standing().open) == {party("north"), CARL, ME}
    bench.around.living.pop(ANNA)
    assert party("north") in bench.cohort.standing().open, "another of its sites lives"
    bench.around.living.pop(BERT)
    assert party("north") not in bench.cohort.standing().open


@pytest.mark.parametrize(
    ("sender", "after", "until", "outcome"),
    [
        (ANNA, 0, 1, "collected"),
        (ANNA, 4, 7, "collected"),
        (ANNA, 0, 0, "elsewhere"),
        (ANNA, 0, 4, "elsewhere"),
        (ANNA, 3, 3, "elsewhere"),
        (ANNA, 5, 4, "elsewhere"),
        (ANNA, 0, 2**60, "elsewhere"),
        (CARL, 0, 0, "collected"),
        (CARL, 0, 1, "elsewhere"),
    ],
    ids=[
        "a region's round", "with two made alone", "a site beside its region", "more than it may make",
        "of no round", "backwards", "of rounds without end", "a site of no region", "for another's region",
    ],
)  # fmt: skip
def test_who_may_offer_what(sender: SiteId, after: int, until: int, outcome: str) -> None:
    assert Bench().offer(sender, after, until) == outcome


def test_whoever_speaks_for_a_region_next_takes_its_place() -> None:
    bench = Bench()
    assert bench.offer(ANNA, 0, 1) == "collected"
    assert [f.sources for f in of(bench.desk.take(), FetchBlob)] == [(ANNA,)]
    assert bench.offer(BERT, 0, 1) == "collected", "the same update, from who lives"
    assert [f.sources for f in of(bench.desk.take(), FetchBlob)] == [(BERT,)]
    assert bench.cohort.entries[party("north")].site == BERT
    assert bench.offer(BERT, 0, 1) == "collected"
    assert of(bench.desk.take(), FetchBlob) == [], "it is on its way"
    assert bench.offer(BERT, 0, 1, is_open=False) == "collected"
    assert bench.offer(BERT, 0, 2, "other", is_open=False) == "stale"
    assert len([entry for entry in bench.cohort.entries.values() if entry.region]) == 1


def doubted(bench: Bench) -> list[SiteId]:
    return [effect.site for effect in bench.desk.take() if isinstance(effect, Doubt)]


def test_the_last_that_a_round_waits_for_are_looked_for_once() -> None:
    bench = Bench(job())
    bench.cohort.invite(0.0, lambda _: None)
    bench.arrived(ME, "mine")
    assert doubted(bench) == [], "three of four are still training"
    bench.arrived(ANNA, "hers")
    assert doubted(bench) == [BERT, CARL]
    bench.arrived(BERT, "his")
    assert doubted(bench) == []
    bench.cohort.open(5.0)
    bench.cohort.invite(5.0, lambda _: None)
    for sender in (ANNA, BERT, CARL):
        bench.arrived(sender, f"next of {sender.hex()[:2]}")
    assert doubted(bench) == [CARL], "never this site itself"
