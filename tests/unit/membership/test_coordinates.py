"""Vivaldi as its papers say it, and what a liar cannot do with it."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.membership.coordinates import (
    BOUND_S,
    COORDINATE_BYTES,
    DIMENSIONS,
    ERROR_MAX,
    GAIN,
    HEIGHT_S_MIN,
    NOISE_S,
    RELAXED_MAX,
    RELAXED_SAMPLES,
    STEP_S_MAX,
    UNKNOWN,
    Coordinate,
    Position,
)


def at(
    *place: float, height_s: float = 0.001, adjustment_s: float = 0.0, error: float = 0.1
) -> Coordinate:
    padded = (*place, *(0.0 for _ in range(DIMENSIONS - len(place))))
    return Coordinate(padded, height_s, adjustment_s, error)


def converged(
    trips: dict[tuple[int, int], float], rounds: int = 300, seed: int = 1
) -> list[Position]:
    """Sites that measure each other in turn, without noise."""
    sites = 1 + max(a for a, _ in trips)
    rng = Random(seed)
    positions = [Position(Random(rng.random())) for _ in range(sites)]
    for turn in range(rounds):
        for me in range(sites):
            other = (me + 1 + turn % (sites - 1)) % sites
            positions[me].observe(bytes([other]), positions[other].coordinate, trips[me, other])
    return positions


def worst_error(trips: dict[tuple[int, int], float], positions: list[Position]) -> float:
    return max(
        abs(positions[a].coordinate.distance_s(positions[b].coordinate) - trip_s) / trip_s
        for (a, b), trip_s in trips.items()
    )


# --- the papers ----------------------------------------------------------------------------------
def test_a_distance_is_place_and_both_heights_and_both_adjustments() -> None:
    # Section 5.4: "[x, x_h] - [y, y_h] = [(x - y), x_h + y_h]", norm = ||x|| + x_h.
    here = at(0.03, 0.0, height_s=0.002, adjustment_s=0.001)
    there = at(0.0, 0.04, height_s=0.003, adjustment_s=-0.0005)
    assert here.distance_s(there) == pytest.approx(0.05 + 0.005 + 0.0005)
    assert here.plain_distance_s(there) == pytest.approx(0.055)
    assert here.distance_s(there) == there.distance_s(here)


def test_an_adjustment_never_makes_a_distance_negative() -> None:
    here = at(0.0, height_s=0.001, adjustment_s=-0.05)
    assert here.distance_s(at(0.001)) == pytest.approx(0.003)


def test_two_sites_at_one_place_push_each_other_apart() -> None:
    # Section 3.5: "two nodes at the same location [...] a random direction".
    first, second = Position(Random(1)), Position(Random(2))
    for _ in range(60):
        first.observe(b"2", second.coordinate, 0.05)
        second.observe(b"1", first.coordinate, 0.05)
    assert first.coordinate.plain_distance_s(second.coordinate) == pytest.approx(0.05, abs=2e-3)


def test_sites_in_a_plane_with_access_links_are_found_by_their_round_trips() -> None:
    rng = Random(3)
    places = [(rng.uniform(0, 0.06), rng.uniform(0, 0.04)) for _ in range(8)]
    links = [rng.uniform(0.0005, 0.006) for _ in places]
    trips = {
        (a, b): math.dist(places[a], places[b]) + links[a] + links[b]
        for a in range(8)
        for b in range(8)
        if a != b
    }
    assert worst_error(trips, converged(trips)) < 0.15


def test_a_star_of_slow_access_links_is_told_by_heights() -> None:
    # Section 5.4: no Euclidean place explains sites that are all far from each other alike.
    links = [0.02, 0.03, 0.04, 0.05, 0.06, 0.07]
    trips = {(a, b): links[a] + links[b] for a in range(6) for b in range(6) if a != b}
    positions = converged(trips, rounds=600)
    assert worst_error(trips, positions) < 0.25
    heights = [one.coordinate.height_s + one.coordinate.adjustment_s for one in positions]
    assert heights[5] > heights[0]


def test_confidence_grows_with_samples_that_agree_and_falls_with_those_that_do_not() -> None:
    position = Position(Random(4))
    assert position.coordinate.error == ERROR_MAX
    for _ in range(50):
        position.observe(b"1", at(0.02), 0.03)
    agreed = position.coordinate.error
    assert agreed < 0.1
    for trip_s in (0.3, 0.01) * 5:
        position.observe(b"1", at(0.02, error=0.01), trip_s)
    assert position.coordinate.error > agreed


def test_who_is_unsure_moves_more_than_who_is_sure() -> None:
    # Section 3.5: "w = e_i / (e_i + e_j)".
    moves = []
    for error in (0.05, 1.5):
        position = Position(Random(5), at(0.0, error=0.05))
        position._become(at(0.0, error=error))
        position.observe(b"1", at(0.05, error=0.2), 0.2)
        moves.append(position.coordinate.moved_s(at(0.0, error=error)))
    assert moves[1] > 2 * moves[0]


def test_jitter_within_the_noise_moves_nobody() -> None:
    position = Position(Random(6), at(0.0))
    position.observe(b"1", at(0.0, 0.0004), 0.0024 + 0.9 * NOISE_S)
    assert position.coordinate.place == at(0.0).place


def test_gravity_pulls_back_who_drifted_far() -> None:
    # Ledlie section 4.2. The other lies just so that the spring itself is at rest.
    far = Position(Random(7), at(2.0))
    far.observe(b"1", at(2.0, 0.1), far.coordinate.plain_distance_s(at(2.0, 0.1)))
    near = Position(Random(7), at(0.01))
    near.observe(b"1", at(0.01, 0.1), near.coordinate.plain_distance_s(at(0.01, 0.1)))
    assert math.hypot(*far.coordinate.place) < 2.0 - 0.03
    assert math.hypot(*near.coordinate.place) == pytest.approx(0.01, abs=1e-5)


def test_a_restarted_site_starts_where_it_was_and_trusts_it_half() -> None:
    kept = at(0.02, 0.01, error=0.03)
    position = Position(Random(8), kept)
    assert position.coordinate.place == kept.place
    assert position.coordinate.error == ERROR_MAX / 2
    assert Position(Random(8), at(math.nan)).coordinate == UNKNOWN


def test_old_measurements_are_weighed_again_only_while_a_site_is_new() -> None:
    position = Position(Random(9))
    for turn in range(RELAXED_SAMPLES):
        position.observe(bytes([turn]), at(0.01), 0.02)
        assert len(position._measured) <= RELAXED_MAX
    assert position._measured == {}
    assert position.samples == RELAXED_SAMPLES


# --- liars ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "claimed",
    [
        at(math.nan),
        at(math.inf),
        at(-math.inf),
        at(9.0),
        at(1e300),
        at(0.0, height_s=math.nan),
        at(0.0, height_s=-1.0),
        at(0.0, height_s=0.0),
        at(0.0, adjustment_s=math.inf),
        at(0.0, error=math.nan),
        at(0.0, error=-0.1),
        at(0.0, error=1.6),
        Coordinate((0.0,), 0.001, 0.0, 0.1),
        Coordinate((0.0,) * (DIMENSIONS + 1), 0.001, 0.0, 0.1),
    ],
)
def test_what_is_not_a_place_is_refused(claimed: Coordinate) -> None:
    position = Position(Random(1), at(0.0))
    before = position.coordinate
    assert not position.observe(b"1", claimed, 0.05)
    assert position.coordinate == before
    assert position.samples == 0


@pytest.mark.parametrize("trip_s", [0.0, -1.0, math.nan, math.inf, 11.0])
def test_what_is_not_a_round_trip_is_refused(trip_s: float) -> None:
    position = Position(Random(1), at(0.0))
    assert not position.observe(b"1", at(0.01), trip_s)


def test_an_absurd_place_moves_us_by_no_more_than_its_measured_round_trip_allows() -> None:
    absurd = Coordinate((BOUND_S,) * DIMENSIONS, BOUND_S, BOUND_S, 0.0)
    for trip_s in (0.001, 0.05, 9.0):
        position = Position(Random(1), at(0.0, error=1.5))
        position.samples = RELAXED_SAMPLES
        before = position.coordinate
        assert position.observe(b"liar", absurd, trip_s)
        after = position.coordinate
        moved_s = math.dist(after.place, before.place) + abs(after.height_s - before.height_s)
        assert moved_s <= min(GAIN * trip_s, STEP_S_MAX) + 1e-9


def test_one_liar_among_honest_sites_does_not_spoil_the_honest_distances() -> None:
    places = [(0.0, 0.0), (0.03, 0.0), (0.0, 0.04), (0.03, 0.04), (0.015, 0.02)]
    positions = [Position(Random(seed)) for seed in range(5)]
    rng = Random(10)
    for turn in range(400):
        for me in range(5):
            other = (me + 1 + turn % 5) % 6
            if other == 5:
                lie = at(rng.uniform(-8, 8), rng.uniform(-8, 8), height_s=8.0, error=0.0)
                positions[me].observe(b"liar", lie, 0.02)
            elif other != me:
                trip_s = math.dist(places[me], places[other]) + 0.002
                positions[me].observe(bytes([other]), positions[other].coordinate, trip_s)
    errors = sorted(
        abs(positions[a].coordinate.distance_s(positions[b].coordinate) / trip_s - 1)
        for a in range(5)
        for b in range(a)
        if (trip_s := math.dist(places[a], places[b]) + 0.002)
    )
    assert errors[len(errors) // 2] < 0.5


@given(
    claims=st.lists(
        st.tuples(
            st.binary(min_size=COORDINATE_BYTES, max_size=COORDINATE_BYTES),
            st.floats(1e-6, 10.0),
        ),
        max_size=40,
    )
)
def test_whatever_others_claim_our_place_stays_sound(claims: list[tuple[bytes, float]]) -> None:
    position = Position(Random(1))
    for number, (claim, trip_s) in enumerate(claims):
        other = Coordinate.unpack(claim)
        if other is not None:
            position.observe(bytes([number]), other, trip_s)
        assert position.coordinate.is_sound
        assert Coordinate.unpack(position.coordinate.pack()) is not None


# --- bytes ---------------------------------------------------------------------------------------
def test_a_coordinate_travels_in_microseconds() -> None:
    told = at(0.012345, -0.5, height_s=0.004321, adjustment_s=-0.001, error=0.37)
    assert len(told.pack()) == COORDINATE_BYTES
    assert Coordinate.unpack(told.pack()) == told
    assert Coordinate.unpack(UNKNOWN.pack()) == UNKNOWN


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(COORDINATE_BYTES - 1),
        bytes(COORDINATE_BYTES + 3),
        bytes(COORDINATE_BYTES - 1) + b"\xff",
        b"\x7f\xff\xff" + bytes(COORDINATE_BYTES - 3),
        bytes(COORDINATE_BYTES - 4) + b"\xff\xff\xff\x10",
    ],
)
def test_bytes_that_are_no_coordinate_are_none(data: bytes) -> None:
    assert Coordinate.unpack(data) is None


def test_a_height_of_nothing_becomes_the_least_height() -> None:
    found = Coordinate.unpack(bytes(COORDINATE_BYTES))
    assert found is not None
    assert found.height_s == HEIGHT_S_MIN
