"""Whether a site can tell that its update was counted, and that it was not."""

from dataclasses import replace

from federated_site import ANNA, BERT, ME, contributions, digest, value

from agent.federation.inclusion import Inclusion, verify
from agent.federation.participant import Update
from agent.federation.value import Contribution, JobValue
from agent.foundation.ids import Digest

MINE = [Update(n, digest(f"p{n - 1}"), digest(f"mine{n}"), 10 * n, ()) for n in (1, 2, 3)]


def entry(round_: int) -> Contribution:
    return Contribution(ME, digest(f"mine{round_}"), 10 * round_)


FIRST, FIRST_DATA, _ = contributions(1, None, Contribution(ANNA, digest("a1"), 5), entry(1))
SECOND, SECOND_DATA, _ = contributions(2, FIRST, Contribution(BERT, digest("b2"), 5))
BLOBS = {FIRST: FIRST_DATA, SECOND: SECOND_DATA}


def committed(round_: int, last: Digest | None) -> JobValue:
    return value(round=round_, contributions=last, parameters=digest(f"p{round_}"))


def found(last: Digest, blobs: dict[Digest, bytes], updates: list[Update] = MINE) -> Inclusion:
    return verify(ME, committed(2, last), blobs.get, updates)


def test_each_update_is_counted_or_not_or_still_open() -> None:
    inclusion = found(SECOND, BLOBS)
    assert [row.standing for row in inclusion.rows] == ["counted", "not counted", "open"]
    assert (inclusion.rows[0].among, inclusion.rows[0].aggregator) == (2, ANNA)
    assert (inclusion.findings, inclusion.rounds) == ((), 2)


def test_a_job_that_has_not_begun_has_counted_nothing() -> None:
    assert verify(ME, None, BLOBS.get, []) == Inclusion((), (), 0)
    assert verify(ME, committed(0, None), BLOBS.get, MINE[:1]).rows[0].standing == "open"


def test_a_round_that_is_not_here_is_told() -> None:
    (finding,) = found(SECOND, {SECOND: SECOND_DATA}).findings
    assert finding == "round 1: what it counted is not here yet"


def test_bytes_that_are_not_the_ones_named_are_told() -> None:
    (finding,) = found(SECOND, {SECOND: SECOND_DATA, FIRST: SECOND_DATA}).findings
    assert "round 1" in finding
    assert "not what the digest says" in finding


def test_a_chain_that_skips_a_round_is_told() -> None:
    third, data, _ = contributions(3, FIRST)
    inclusion = verify(ME, committed(3, third), {FIRST: FIRST_DATA, third: data}.get, [])
    assert "round 2" in inclusion.findings[0]
    lone, data, _ = contributions(2, None)
    assert "nothing names" in found(lone, {lone: data}).findings[0]


def test_a_round_that_counts_what_this_site_never_made_is_told() -> None:
    (finding,) = found(SECOND, BLOBS, MINE[1:]).findings
    assert finding == "round 1 counts an update that this site has no record of"


def test_samples_and_parameters_are_compared() -> None:
    other = Update(1, digest("elsewhere"), digest("mine1"), 11, ())
    findings = found(SECOND, BLOBS, [other]).findings
    assert any("counts 10 samples of this site, which had 11" in text for text in findings)
    assert any("started from other parameters" in text for text in findings)


def late(round_: int, made_for: int) -> tuple[Digest, dict[Digest, bytes]]:
    """The first round without ours, and a later one that counts it."""
    first, first_data, _ = contributions(1, None)
    one = replace(entry(made_for), round=made_for, started_from=digest(f"p{made_for - 1}"))
    last, last_data, _ = contributions(round_, first, one)
    return last, {first: first_data, last: last_data}


def test_an_update_may_be_counted_in_a_later_round_where_the_job_allows_it() -> None:
    last, blobs = late(2, 1)
    inclusion = verify(ME, committed(2, last), blobs.get, MINE, staleness_max=1)
    assert inclusion.findings == ()
    assert [(row.standing, row.counted_in) for row in inclusion.rows] == [
        ("counted", 2), ("open", 0), ("open", 0),
    ]  # fmt: skip
    (finding,) = verify(ME, committed(2, last), blobs.get, MINE).findings
    assert finding == "round 2 counts an update for round 1, which the job forbids"
    over = replace(committed(2, last), state="finished")
    standings = [row.standing for row in verify(ME, over, blobs.get, MINE[:2], 1).rows]
    assert standings == ["counted", "not counted"]


def test_an_update_that_is_counted_twice_is_told() -> None:
    twice, data, _ = contributions(2, FIRST, entry(1))
    findings = found(twice, {**BLOBS, twice: data}).findings
    assert any("was counted 2 times" in text for text in findings)
