"""Rounds outlive their aggregators, and what an acceptor has answered outlives the power of its site."""

import os
from random import Random

import pytest
from rounds_faults import Tally, five_sites, trouble
from rounds_power import cuts

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]


def test_no_update_is_lost_or_counted_twice_when_aggregators_die_or_stop() -> None:
    tally = Tally()
    with five_sites() as sites:
        trouble(sites, Random(6), 20, tally, stopped_s_max=4.0)
        for site in sites:
            assert "Traceback" not in site.log(), site.log()
    assert tally.broken == []
    assert tally.kills >= 5
    assert tally.stops >= 5


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 and os.environ.get("ATOLL_REQUIRE_ALL") != "1", reason="mounting needs root"
)


@pytest.mark.root
@needs_root
def test_no_promise_that_was_answered_is_gone_after_a_power_cut() -> None:
    acknowledged, lost = cuts(4, Random(4))
    assert acknowledged > 500
    assert lost == 0


@pytest.mark.root
@needs_root
def test_a_store_that_does_not_wait_for_its_disk_is_found_out() -> None:
    _, lost = cuts(3, Random(5), is_loose=True)
    assert lost > 0
