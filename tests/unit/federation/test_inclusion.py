"""Whether a site can tell that its update was counted, and that it was not."""

from dataclasses import replace

from federated_site import ANNA, BERT, ME, contributions, digest, value

from agent.federation.inclusion import Inclusion, verify, verify_region
from agent.federation.participant import Update
from agent.federation.value import Above, Contribution, Contributions, JobValue, blob_digest
from agent.foundation.ids import Digest
from agent.wire.schema import pack, unpack

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


# --- regions -------------------------------------------------------------------------------------
def of_region(update: str, after: int, until: int) -> Contribution:
    return Contribution(ANNA, digest(update), 15, (), 0, None, "north", after, until)


def a_chain(*contents: Contributions) -> tuple[Digest, dict[Digest, bytes]]:
    """Each names the one before; the digest of the last, and all bytes."""
    blobs: dict[Digest, bytes] = {}
    last = None
    for content in contents:
        data = pack(replace(content, previous=last))
        last = blob_digest(data)
        blobs[last] = data
    assert last is not None
    return last, blobs


def a_region() -> tuple[JobValue, dict[Digest, bytes]]:
    """Three rounds: two from parameters of the whole job, the last from its own."""
    rounds = [contributions(n, None, entry(n))[2] for n in (1, 2, 3)]
    made = [
        replace(rounds[0], base=digest("g0"), parameters=digest("n1"), above=1),
        replace(rounds[1], base=digest("g1"), parameters=digest("n2"), above=2),
        replace(rounds[2], base=digest("n2"), parameters=digest("n3")),
    ]
    last, blobs = a_chain(*made)
    above = Above(0, 1, digest("g1"), 1)
    held = value(round=3, contributions=last, parameters=digest("n3"), above=above)
    return held, blobs


def a_whole(*entries: Contribution) -> tuple[JobValue, dict[Digest, bytes]]:
    rounds = [
        replace(
            contributions(n, None, one)[2], base=digest(f"g{n - 1}"), parameters=digest(f"g{n}")
        )
        for n, one in enumerate(entries, start=1)
    ]
    last, blobs = a_chain(*rounds)
    held = value(round=len(entries), contributions=last, parameters=digest(f"g{len(entries)}"))
    return held, blobs


def test_a_sites_update_is_followed_through_its_region_to_the_whole_job() -> None:
    (region, blobs), (whole, more) = (
        a_region(),
        a_whole(of_region("n1", 0, 1), of_region("n3", 1, 3)),
    )
    updates = [replace(MINE[0], base=digest("g0")), replace(MINE[1], base=digest("g1"))]
    found = verify(ME, region, blobs.get, [*updates, replace(MINE[2], base=digest("n2"))])
    assert found.findings == ()
    assert [row.standing for row in found.rows] == ["counted"] * 3
    above = verify_region("north", whole, region, {**blobs, **more}.get)
    assert above.findings == ()
    assert dict(above.counted_in) == {1: 1, 2: 2, 3: 2}
    assert verify(ANNA, whole, more.get, []).findings == (), "who spoke for it has made none itself"


def test_what_the_whole_job_says_wrongly_of_a_region_is_told() -> None:
    region, blobs = a_region()
    whole, more = a_whole(of_region("n1", 0, 1), of_region("n2", 0, 2))
    findings = verify_region("north", whole, region, {**blobs, **more}.get).findings
    assert findings == ("round 1 of the region was counted twice",)
    whole, more = a_whole(of_region("other", 0, 1))
    findings = verify_region("north", whole, region, {**blobs, **more}.get).findings
    assert findings == ("round 1 counts of the region what it has not made",)
    whole, more = a_whole(of_region("n1", 0, 1))
    strange = replace(whole, parameters=digest("x"))
    content = replace(unpack(Contributions, more[whole.contributions]), parameters=digest("x"))  # type: ignore[index]
    last, more = a_chain(content)
    findings = verify_region(
        "north", replace(strange, contributions=last), region, {**blobs, **more}.get
    ).findings
    assert findings == ("round 2 of the region does not start from the whole job's",)
