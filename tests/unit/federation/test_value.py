import pytest
from federated_site import ANNA, BERT, ME, digest, job, value

from agent.election.proposer import Refusal
from agent.federation.value import (
    OPERATIONS_KEPT,
    Above,
    Change,
    JobValue,
    adopt_above,
    blob_digest,
    claim,
    commit_round,
    decode,
    fail,
    finish,
    go_on_alone,
    initialise,
)
from agent.foundation.errors import Malformed
from agent.wire.limits import REGISTER_VALUE_BYTES_MAX
from agent.wire.schema import pack


def applied(change: Change, before: JobValue | None) -> JobValue:
    after = change(None if before is None else pack(before))
    assert isinstance(after, bytes), after
    result = decode(after)
    assert result is not None
    return result


def refused(change: Change, before: JobValue | None) -> str:
    after = change(None if before is None else pack(before))
    assert isinstance(after, Refusal)
    return after.reason


def commit(round_: int, epoch: int = 1, operation: bytes = b"c", **more: object) -> Change:
    options: dict[str, object] = {"rounds": 3, "publishes": True, "base": digest("p0")} | more
    return commit_round(
        round_,
        digest("p"),
        digest("c"),
        epoch,
        operation,
        **options,  # type: ignore[arg-type]
    )


def test_the_first_claim_opens_the_register_with_epoch_one() -> None:
    first = applied(claim(job(), ME, 0, b"a"), None)
    assert (first.epoch, first.aggregator, first.round, first.state) == (1, ME, 0, "running")


def test_a_claim_of_an_outdated_epoch_is_refused() -> None:
    assert "epoch is 5" in refused(claim(job(), ME, 4, b"a"), value(epoch=5))
    assert applied(claim(job(), ME, 5, b"a"), value(epoch=5)).epoch == 6


def test_a_claim_whose_outcome_was_unknown_is_recognised() -> None:
    once = applied(claim(job(), ME, 1, b"a"), value())
    assert applied(claim(job(), ME, 1, b"a"), once) == once


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_an_ended_job_cannot_be_claimed_or_failed(state: str) -> None:
    assert state in refused(claim(job(), ME, 1, b"a"), value(state=state))
    assert state in refused(fail("x", 1, b"a"), value(state=state))


def test_every_change_but_a_claim_is_fenced_by_the_epoch() -> None:
    newer = value(epoch=2, aggregator=BERT, parameters=None)
    for change in (
        initialise(digest("p"), 1, b"a"), commit(1), finish(digest("m"), 1, 1, b"a"),
        fail("x", 1, b"a"),
    ):  # fmt: skip
        assert "epoch is 2" in refused(change, newer)


def test_no_change_but_a_claim_opens_a_register() -> None:
    assert "nobody has claimed" in refused(commit(1), None)


def test_parameters_are_initialised_once() -> None:
    assert applied(initialise(digest("p"), 1, b"a"), value(parameters=None)).parameters
    assert "already" in refused(initialise(digest("q"), 1, b"a"), value())


def test_rounds_are_committed_one_by_one() -> None:
    assert applied(commit(1), value()).round == 1
    assert "round 0 is committed" in refused(commit(2), value())
    assert "round 1 is committed" in refused(commit(1), value(round=1))


def test_a_round_that_started_from_other_parameters_is_not_committed() -> None:
    assert "other parameters" in refused(commit(1, base=digest("q")), value())


# --- regions -------------------------------------------------------------------------------------
FIRST = Above(0, 0, digest("g0"), 0)


def a_region(*changes: Change) -> JobValue:
    """A region's register after these changes of a fresh one."""
    held = applied(claim(job(), ME, 0, b"0"), None)
    for change in changes:
        held = applied(change, held)
    return held


def test_a_region_adopts_each_round_of_the_whole_job_once_and_only_forwards() -> None:
    begun = a_region(adopt_above(FIRST, 1, b"1"))
    assert (begun.parameters, begun.alone, begun.is_waiting) == (digest("g0"), 0, False)
    assert "already" in refused(adopt_above(FIRST, 1, b"2"), begun)
    done = applied(commit(1, base=digest("g0"), rounds=9, samples=70), begun)
    assert done.above is not None
    assert (done.alone, done.is_waiting, done.above.samples) == (1, True, 70)
    second = Above(0, 1, digest("g1"), 1)
    assert "committed round 0" in refused(adopt_above(second, 1, b"3"), begun)
    again = applied(adopt_above(second, 1, b"3"), done)
    assert (again.parameters, again.round, again.alone) == (digest("g1"), 1, 0)
    assert "epoch is 1" in refused(adopt_above(second, 2, b"4"), done)
    recovered = applied(adopt_above(Above(1, 0, digest("g0"), 1), 1, b"5"), again)
    assert recovered.parameters == digest("g0"), "the whole job was taken over, further back"


def test_a_region_that_goes_on_alone_writes_down_what_may_have_been_counted() -> None:
    done = a_region(
        adopt_above(FIRST, 1, b"1"), commit(1, base=digest("g0"), rounds=9, operation=b"2")
    )
    alone = applied(go_on_alone(1, 1, b"3"), done)
    assert alone.above is not None
    assert (alone.above.told, alone.above.told_round) == (digest("p"), 1)
    assert not alone.is_waiting
    assert "alone already" in refused(go_on_alone(1, 1, b"4"), alone)
    further = applied(commit(2, base=digest("p"), rounds=9, operation=b"5"), alone)
    assert further.is_waiting
    still = applied(go_on_alone(2, 1, b"6"), further)
    assert still.above is not None
    assert (still.above.told_round, still.above.alone_from) == (1, 2)
    assert {digest("g0"), digest("p"), digest("c")} == still.blobs
    assert "committed round 0" in refused(
        go_on_alone(0, 1, b"7"), a_region(adopt_above(FIRST, 1, b"1"))
    )
    ordered = [done, alone, further, still]
    assert sorted(ordered, key=lambda one: one.progress) == ordered


def test_a_repeated_commit_is_recognised_even_after_another_claim() -> None:
    done = applied(commit(1), value())
    taken = applied(claim(job(), BERT, 1, b"b"), done)
    assert applied(commit(1), taken) == taken


def test_the_last_round_leads_to_the_export_or_the_end() -> None:
    assert applied(commit(3), value(round=2)).state == "exporting"
    assert applied(commit(3, publishes=False), value(round=2)).state == "finished"
    assert "running" in refused(finish(digest("m"), 1, 1, b"a"), value())
    assert applied(finish(digest("m"), 9, 1, b"a"), value(state="exporting")).exported_bytes == 9


def test_progress_grows_with_every_change() -> None:
    chain = [value(parameters=None)]
    for change in (
        initialise(digest("p0"), 1, b"1"), claim(job(), ME, 1, b"2"), commit(1, 2, b"3"),
        claim(job(), ANNA, 2, b"4"), commit(2, 3, b"5", base=digest("p")),
        commit(3, 3, b"6", base=digest("p")),
        finish(digest("m"), 1, 3, b"7"),
    ):  # fmt: skip
        chain.append(applied(change, chain[-1]))
    progress = [one.progress for one in chain]
    assert progress == sorted(set(progress))


def test_the_largest_value_fits_the_register() -> None:
    big = value(
        contributions=digest("c"), exported=digest("e"), reason="x" * 400,
        operations=tuple(bytes([n]) * 48 for n in range(OPERATIONS_KEPT)),
    )  # fmt: skip
    assert len(pack(big)) < REGISTER_VALUE_BYTES_MAX


def test_a_value_of_another_version_is_malformed() -> None:
    with pytest.raises(Malformed):
        decode(b"\x01")
    assert decode(None) is None


def test_equal_bytes_have_equal_digests() -> None:
    assert blob_digest(b"a" * 300_000) == blob_digest(b"a" * 300_000) != blob_digest(b"a")
