from random import Random

from mesh_of_statements import Notary, accusation, record, signed, site

from agent.foundation.machine import NEVER
from agent.membership.events import SwimEffect
from agent.membership.member import Peer
from agent.membership.recovery import Recovery
from agent.membership.roster import Roster
from agent.membership.settings import Settings

SETTINGS = Settings.lan()


class Bench:
    def __init__(self, dead: int, left: int = 0) -> None:
        out: list[SwimEffect] = []
        self.roster = Roster(site("me"), Notary(site("me")), SETTINGS, out)
        self.tries: list[tuple[float, str, bool]] = []
        self.recovery = Recovery(self.roster, SETTINGS, Random(3), self.attempt)
        for number in range(dead):
            mine = record(f"dead {number}")
            self.roster.take_record(mine, signed(mine), 0.0)
            claim = accusation("me", f"dead {number}")
            self.roster.take_accusation(claim, signed(claim), 0.0)
            peer = self.roster.get(mine.site)
            assert peer is not None
            self.roster.condemn(peer, 0.0)
        for number in range(left):
            mine = record(f"left {number}", status="left")
            self.roster.take_record(mine, signed(mine), 0.0)
        self.recovery.lost(0.0)

    def attempt(self, peer: Peer, with_sync: bool, now: float) -> None:  # noqa: FBT001
        self.tries.append((now, peer.state, with_sync))

    def run(self, until: float, since: float = 0.0, *, is_isolated: bool = False) -> None:
        while (at := self.recovery.wake_at) <= until:
            self.recovery.run(max(at, since), is_isolated=is_isolated)


def test_a_dead_member_is_tried_for_ever_with_a_capped_back_off() -> None:
    bench = Bench(dead=1)
    bench.run(3600.0 * 24)
    gaps = [b[0] - a[0] for a, b in zip(bench.tries, bench.tries[1:], strict=False)]
    assert gaps[0] < 20.0
    assert max(gaps) <= SETTINGS.retry_cap_s(1) + 2 * SETTINGS.recovery_interval_s
    assert len(bench.tries) > 1000
    assert all(with_sync for _, _, with_sync in bench.tries)


def test_a_member_that_said_goodbye_is_tried_more_rarely() -> None:
    bench = Bench(dead=0, left=1)
    bench.run(36_000.0)
    assert 40 <= len(bench.tries) <= 120


def test_a_return_quickens_the_tries_for_a_few_seconds() -> None:
    bench = Bench(dead=20)
    assert not bench.recovery.came_back(1000.0)
    assert bench.recovery.came_back(1001.0)
    bench.tries.clear()
    bench.run(1010.0, since=1001.0)
    quick = [at for at, _, _ in bench.tries if at < 1004.0]
    assert 10 <= len(quick) <= 22
    assert len([at for at, _, _ in bench.tries if at > 1004.5]) <= 3


def test_an_isolated_site_tries_every_second() -> None:
    bench = Bench(dead=1)
    bench.run(60.0, is_isolated=True)
    assert len(bench.tries) > 40


def test_nothing_is_tried_where_nobody_is_lost() -> None:
    bench = Bench(dead=0)
    bench.run(100.0)
    assert bench.recovery.wake_at == NEVER
    assert bench.tries == []
