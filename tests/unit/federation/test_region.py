"""Regions: what they are derived from, whom they see, and which of their updates may be counted."""

from federated_site import ANNA, BERT, CARL, ME, Around, contributions, digest, job

from agent.federation.region import Within, late_by, overlaps, party, region_of, regional
from agent.federation.value import Contribution, Contributions
from agent.foundation.ids import SiteId
from agent.wire.documents import BODIES, Region
from agent.wire.mesh import Offer

NORTH, SOUTH = Region("north", (ANNA, BERT)), Region("south", (CARL,))
WHOLE = job(
    regions=(NORTH, SOUTH), publish="model", outer="adam", region_sites_min=2, residency=("DE",)
)


def test_every_site_derives_the_same_job_of_a_region() -> None:
    north = regional(WHOLE, NORTH)
    assert north == regional(WHOLE, Region("north", (ANNA, BERT)))
    assert north.id != regional(WHOLE, SOUTH).id
    assert north.id.startswith(f"{WHOLE.id}.")
    assert len(north.id) <= 80
    assert (north.committee, north.sites_min, north.rounds) == ((ANNA, BERT), 2, 10_000)
    assert (north.publish, north.outer, north.regions) == ("", "none", ())
    assert north.residency == ("DE",)
    assert BODIES.unpack(BODIES.pack(WHOLE)) == WHOLE
    assert region_of(WHOLE, "north") == NORTH
    assert region_of(WHOLE, "west") is None
    assert len({party("north"), party("south"), ANNA}) == 3


def test_a_region_sees_its_own_sites_only() -> None:
    around = Around(ANNA, BERT, CARL)
    around.regions = {ME: "north", ANNA: "north", BERT: "south", CARL: ""}
    within = Within(around, WHOLE, "north")
    assert set(within.alive()) == {ME, ANNA}
    assert within.may_hold(WHOLE, ANNA)
    assert not within.may_hold(WHOLE, BERT)
    around.outlaws.add(ANNA)
    assert not within.may_hold(WHOLE, ANNA), "residency holds within a region, too"
    assert within.substitute(WHOLE, (ANNA,), ANNA) == ME
    assert within.substitute(WHOLE, (ANNA, ME), ANNA) is None


def counted(
    round_: int, after: int, until: int, update: str, site: SiteId = ANNA, made_for: int = 0
) -> Contributions:
    entry = Contribution(site, digest(update), 9, (), made_for, None, "north", after, until)
    return contributions(round_, None, entry)[2]


def offer(round_: int, after: int, until: int, base: str) -> Offer:
    return Offer(WHOLE.id, 1, round_, digest(base), digest(f"n{until}"), 9, (), after, until)


def test_what_was_counted_of_a_region_is_found_by_its_rounds() -> None:
    rounds = {1: counted(1, 0, 1, "n1"), 2: counted(2, 1, 4, "n4")}
    assert [one.until for one in overlaps("north", 0, rounds.values())] == [1, 4]
    assert [one.until for one in overlaps("north", 1, rounds.values())] == [4]
    assert overlaps("north", 4, rounds.values()) == []
    assert overlaps("south", 0, rounds.values()) == []


def test_a_region_that_was_away_counts_late_and_once() -> None:
    empty = {n: contributions(n, None)[2] for n in (2, 3)}
    assert late_by("north", offer(2, 1, 4, "p1"), 4, 2, empty.get) == 2
    assert late_by("north", offer(2, 1, 4, "p1"), 4, 1, empty.get) is None, "too late"
    assert late_by("north", offer(2, 1, 4, "other"), 4, 2, empty.get) is None, "from elsewhere"
    assert late_by("north", offer(2, 1, 4, "p1"), 4, 2, {3: empty[3]}.get) is None, (
        "round 2 is unknown"
    )
    partly = {2: counted(2, 1, 2, "n2"), 3: empty[3]}
    assert late_by("north", offer(2, 1, 4, "p1"), 4, 2, partly.get) is None, "some was counted"
    assert late_by("north", offer(2, 2, 4, "n2"), 4, 2, partly.get) == 2, "only what came after"
    assert late_by("north", offer(2, 2, 4, "n3"), 4, 2, partly.get) is None
    assert late_by("south", offer(2, 2, 4, "n2"), 4, 2, partly.get) is None, "another's"
