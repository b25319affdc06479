from collections import Counter

import pytest

from agent.election.committee import (
    REGIONS_MAX,
    Seat,
    choose_committee,
    choose_regions,
    choose_substitute,
)
from agent.foundation.errors import UsageError
from agent.foundation.ids import JobId, SiteId

JOB = JobId("mnist-12345678")


def seats(*regions: str, tier: str = "edge") -> list[Seat]:
    return [
        Seat(SiteId(bytes([number]) * 32), region, tier) for number, region in enumerate(regions)
    ]


def regions_of(chosen: tuple[SiteId, ...], among: list[Seat]) -> Counter[str]:
    return Counter(seat.region for seat in among if seat.site in chosen)


@pytest.mark.parametrize(("available", "size"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (9, 5)])
def test_the_committee_is_as_large_as_the_sites_allow(available: int, size: int) -> None:
    among = seats(*(f"region-{number}" for number in range(available)))
    chosen = choose_committee(JOB, among)
    assert len(chosen) == len(set(chosen)) == size


def test_sites_stand_in_distinct_regions_where_there_are_enough() -> None:
    among = seats("bonn", "bonn", "bonn", "kiel", "kiel", "jena", "ulm", "trier")
    assert max(regions_of(choose_committee(JOB, among), among).values()) == 1


def test_no_region_holds_a_majority_where_a_smaller_committee_avoids_it() -> None:
    among = seats(*["bonn"] * 10, "kiel", "jena")
    assert regions_of(choose_committee(JOB, among), among) == {"bonn": 1, "kiel": 1, "jena": 1}


def test_five_sites_in_three_regions_are_taken_two_two_one() -> None:
    among = seats("bonn", "bonn", "bonn", "kiel", "kiel", "kiel", "jena")
    assert sorted(regions_of(choose_committee(JOB, among), among).values()) == [1, 2, 2]


def test_one_region_still_gets_the_largest_committee() -> None:
    among = seats(*["bonn"] * 6)
    assert len(choose_committee(JOB, among)) == 5


def test_the_steadier_tier_is_preferred_within_a_region() -> None:
    among = seats("bonn", "kiel", "jena") + [
        Seat(SiteId(bytes([100 + number]) * 32), region, "core")
        for number, region in enumerate(("bonn", "kiel", "jena"))
    ]
    assert set(choose_committee(JOB, among, 3)) == {seat.site for seat in among[3:]}


def test_the_choice_does_not_depend_on_the_order_of_the_argument() -> None:
    among = seats("bonn", "bonn", "kiel", "kiel", "jena", "ulm")
    assert choose_committee(JOB, among) == choose_committee(JOB, among[::-1])


def test_committees_of_many_jobs_are_spread_over_the_sites() -> None:
    among = seats(*(f"region-{number}" for number in range(10)))
    held = Counter(
        site for number in range(200) for site in choose_committee(JobId(f"job-{number}"), among)
    )
    assert len(held) == 10
    assert max(held.values()) < 2 * min(held.values())


def test_a_smaller_committee_can_be_asked_for() -> None:
    among = seats(*(f"region-{number}" for number in range(9)))
    assert len(choose_committee(JOB, among, 3)) == 3
    assert len(choose_committee(JOB, among, 1)) == 1


def test_a_substitute_comes_from_a_region_that_has_no_member_left() -> None:
    kept = seats("bonn", "kiel")
    others = [Seat(SiteId(b"x" * 32), "bonn", "core"), Seat(SiteId(b"y" * 32), "jena", "edge")]
    assert choose_substitute(JOB, kept, others) == SiteId(b"y" * 32)
    assert choose_substitute(JOB, kept, others[::-1]) == SiteId(b"y" * 32)


def test_of_one_region_the_steadiest_substitute_is_taken_and_of_none_nobody() -> None:
    others = [Seat(SiteId(b"x" * 32), "jena", "edge"), Seat(SiteId(b"y" * 32), "jena", "core")]
    assert choose_substitute(JOB, seats("bonn"), others) == SiteId(b"y" * 32)
    assert choose_substitute(JOB, seats("bonn"), []) is None


# --- regions -------------------------------------------------------------------------------------
def test_each_region_gets_a_committee_of_its_own_sites() -> None:
    there = seats(*["north"] * 5, *["south"] * 2, "lone")
    regions = choose_regions(JOB, ["*"], there)
    assert [(one.name, len(one.committee)) for one in regions] == [("north", 3), ("south", 1)]
    where = {seat.site: seat.region for seat in there}
    assert all({where[site] for site in one.committee} == {one.name} for one in regions)
    assert choose_regions(JOB, ["*"], there[::-1]) == regions, "in any order"
    assert [one.name for one in choose_regions(JOB, ["lone", "*"], there)] == [
        "lone",
        "north",
        "south",
    ]
    assert choose_regions(JOB, [], there) == ()


def test_a_region_without_sites_and_too_many_regions_are_refused() -> None:
    with pytest.raises(UsageError, match="in region 'west'") as caught:
        choose_regions(JOB, ["west"], seats("north", "north"))
    assert "north" in caught.value.mend
    many = seats(*[f"r{number}" for number in range(REGIONS_MAX + 1)] * 2)
    with pytest.raises(UsageError, match="65 regions"):
        choose_regions(JOB, ["*"], many)


def test_every_region_with_two_sites_is_an_error_where_there_is_none() -> None:
    """A job without regions is not what was asked for."""
    with pytest.raises(UsageError, match="no region has two living sites"):
        choose_regions(JOB, ["*"], seats("north", "south"))
    assert choose_regions(JOB, ["north", "*"], seats("north", "south"))[0].name == "north"
