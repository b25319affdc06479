"""Two processes with one key: who notices, and which of them leaves."""

from dataclasses import replace

from agent.foundation.ids import SiteId
from agent.site.duplicates import CALL_AGAIN_S, FORGET_S, REPORTED_MAX, Duplicates, Verdict
from agent.wire.records import Endpoint, SiteRecord

ME, OTHER = SiteId(b"m" * 32), SiteId(b"o" * 32)
HERE, THERE = Endpoint("10.0.0.1", 7411, 7412), Endpoint("10.0.0.2", 7411, 7412)


def record(
    site: SiteId = ME, boot_epoch: int = 5, mark: bytes = b"a" * 8, where: Endpoint = THERE
) -> SiteRecord:
    start = boot_epoch << 32
    return SiteRecord(
        site, start, boot_epoch, start, "alive", where, 0.0, 1.0, (), bytes(8), b"", mark
    )


def judged(verdict: Verdict | None) -> Verdict:
    assert verdict is not None
    return verdict


def test_a_record_of_this_process_proves_nothing() -> None:
    assert Duplicates(ME, 5, b"a" * 8).own(record(), 0.0, HERE, is_live=True) is None


def test_of_two_copies_that_meet_exactly_one_leaves_and_both_say_so() -> None:
    for first, second in (
        (record(boot_epoch=5, where=HERE), record(boot_epoch=6)),
        (record(mark=b"a" * 8, where=HERE), record(mark=b"b" * 8)),
    ):
        one = Duplicates(ME, first.boot_epoch, first.mark)
        other = Duplicates(ME, second.boot_epoch, second.mark)
        left = judged(one.own(second, 0.0, HERE, is_live=True))
        stays = judged(other.own(first, 0.0, THERE, is_live=True))
        assert (left.must_leave, stays.must_leave) == (True, False)
        assert one.state == "left"
        for verdict in (left, stays):
            assert verdict.text.startswith("duplicate identity: a copy")


def test_a_newer_record_alone_may_be_this_sites_own_past_so_it_stays() -> None:
    mine = Duplicates(ME, 5, b"a" * 8)
    verdict = judged(mine.own(record(boot_epoch=9, mark=b"b" * 8), 0.0, HERE, is_live=False))
    assert not verdict.must_leave
    assert verdict.call == THERE
    assert "restored from an old copy" in verdict.text
    assert mine.reports(0.0) == [verdict.text]


def test_the_other_copy_is_called_now_and_then_and_its_own_address_never() -> None:
    mine = Duplicates(ME, 5, b"a" * 8)
    theirs = record(boot_epoch=9)
    calls = [judged(mine.own(theirs, now, HERE, is_live=False)).call for now in (0.0, 1.0)]
    assert calls == [THERE, None]
    assert judged(mine.own(theirs, CALL_AGAIN_S, HERE, is_live=False)).call == THERE
    assert judged(mine.own(replace(theirs, endpoint=HERE), 99.0, HERE, is_live=False)).call is None


def test_what_was_found_of_a_living_copy_is_not_taken_back() -> None:
    mine = Duplicates(ME, 5, b"a" * 8)
    mine.own(record(boot_epoch=6), 0.0, HERE, is_live=True)
    again = judged(mine.own(record(boot_epoch=6), 20.0, HERE, is_live=False))
    assert "has left the mesh" in again.text
    assert mine.state == "left"


def test_a_third_site_tells_two_marks_at_one_start_count() -> None:
    third = Duplicates(ME, 1, b"x" * 8)
    assert third.saw(record(OTHER), 0.0) == ""
    assert third.saw(record(OTHER), 1.0) == ""
    text = third.saw(record(OTHER, mark=b"b" * 8, where=HERE), 2.0)
    assert text == (
        "duplicate identity: two processes use the key of 6f6f6f6f, at 10.0.0.2:7411 and at"
        " 10.0.0.1:7411 (or it was restored from an old copy)"
    )
    assert third.saw(record(OTHER, mark=b"b" * 8), 3.0) == ""  # said once
    assert len(third.reports(3.0)) == 1
    assert third.reports(4.0 + FORGET_S) == []


def test_a_third_site_tells_a_start_count_that_lies_behind_a_known_one() -> None:
    third = Duplicates(ME, 1, b"x" * 8)
    assert third.saw(record(OTHER, 6), 0.0) == ""
    assert third.saw(record(OTHER, 5, b"b" * 8, HERE), 2.0) != ""


def test_a_restart_a_move_and_an_older_version_are_no_duplicates() -> None:
    third = Duplicates(ME, 1, b"x" * 8)
    for one in (
        record(OTHER, 5),
        record(OTHER, 5, where=HERE),
        record(OTHER, 6, b"b" * 8),
        record(OTHER, 6, b""),
    ):
        assert third.saw(one, 0.0) == ""


def test_reports_are_bounded() -> None:
    third = Duplicates(ME, 1, b"x" * 8)
    for number in range(REPORTED_MAX + 5):
        site = SiteId(bytes([number]) * 32)
        third.saw(record(site), 0.0)
        assert third.saw(record(site, mark=b"b" * 8), 0.0)
    assert len(third.reports(0.0)) == REPORTED_MAX
