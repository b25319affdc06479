"""Five real sites in network namespaces whose links are cut in every way that links are cut."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from daemon_cluster import Daemon, running, scratch, wait_for
from mesh_network import NEEDS_NAMESPACES, Network, all_see_all, fleet, network, rows, said_dead

pytestmark = [pytest.mark.process, pytest.mark.timeout(120), *NEEDS_NAMESPACES]


@dataclass
class Fleet:
    net: Network
    sites: list[Daemon]

    def is_relayed(self, one: int, other: int) -> bool:
        row = rows(self.sites[one])[self.sites[other].name]
        return row["status"] == "alive" and bool(row["relayed"])

    def statuses(self, about: int, by: list[int]) -> set[object]:
        return {rows(self.sites[one])[self.sites[about].name]["status"] for one in by}

    def stays_up(self, seconds: float) -> None:
        """Nobody holds anybody dead for this long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for site in self.sites:
                found = {str(row["status"]) for row in rows(site).values()}
                assert found <= {"alive", "suspect"}, site.log()
            time.sleep(0.2)


@pytest.fixture(scope="module")
def started() -> Iterator[Fleet]:
    with scratch() as folder, network(5) as net:
        sites = fleet(folder, net)
        with running(*sites):
            for site in sites:
                site.wait_ready()
            yield Fleet(net, sites)


@pytest.fixture
def five(started: Fleet) -> Iterator[Fleet]:
    started.net.heal()
    all_see_all(started.sites)
    yield started
    started.net.heal()


def test_a_cut_between_two_sites_is_a_detour_and_no_death(five: Fleet) -> None:
    """Also if it is one way: whose acks do not come back, comes by way of others."""
    five.net.cut([*five.net.between(0, 1), five.net.one_way(2, 3)])
    wait_for(
        lambda: all(five.is_relayed(one, other) for one, other in ((0, 1), (1, 0), (3, 2))),
        25, "relayed", five.sites,
    )  # fmt: skip
    assert said_dead(five.sites) == []


def test_a_site_whose_datagrams_are_all_blocked_lives_by_its_calls(five: Fleet) -> None:
    others = range(1, 5)
    five.net.cut([r for one in others for r in five.net.between(0, one, "meta l4proto udp")])
    wait_for(lambda: all(five.is_relayed(one, 0) for one in others), 25, "by TCP alone", five.sites)
    assert five.sites[0].get("/1/status")["state"] == "ready", "it is not isolated"
    five.stays_up(3.0)
    assert said_dead(five.sites) == []


def test_blocked_calls_kill_nobody(five: Fleet) -> None:
    others = range(1, 5)
    five.net.cut([r for one in others for r in five.net.between(0, one, "meta l4proto tcp")])
    five.stays_up(3.0)
    assert said_dead(five.sites) == []


def test_a_fifth_of_all_datagrams_lost_kills_nobody(five: Fleet) -> None:
    five.net.cut(five.net.lossy(20))
    five.stays_up(6.0)
    assert said_dead(five.sites) == []


def test_two_halves_find_together_again(five: Fleet) -> None:
    """The side of three can bring three accusers; the side of two says who it cannot reach."""
    five.net.cut(five.net.apart([0, 1], [2, 3, 4]))
    wait_for(
        lambda: five.statuses(0, [2, 3, 4]) == five.statuses(1, [2, 3, 4]) == {"dead"},
        20, "the larger side notices", five.sites,
    )  # fmt: skip
    wait_for(lambda: five.statuses(3, [0, 1]) <= {"dead", "suspect"}, 20, "so does the smaller")
    five.net.heal()
    all_see_all(five.sites, 15)


def test_a_site_in_a_black_hole_says_isolated_and_comes_back(five: Fleet) -> None:
    five.net.cut(five.net.apart([0], [1, 2, 3, 4]))
    first = five.sites[0]
    wait_for(lambda: first.get("/1/status")["state"] == "isolated", 15, "isolated", [first])
    wait_for(lambda: five.statuses(0, [1, 2, 3, 4]) == {"dead"}, 20, "gone for all", five.sites)
    assert " is dead" not in first.log().split("isolated")[-1], "alone it condemns nobody"
    five.net.heal()
    all_see_all(five.sites, 15)


def test_a_host_that_is_switched_off_is_noticed_without_blaming_ourselves(five: Fleet) -> None:
    """Its neighbours' kernels report "host unreachable": no port refused, no fault of the sender."""
    five.net.link(4, "down")
    wait_for(lambda: five.statuses(4, [0, 1, 2, 3]) == {"dead"}, 20, "gone", five.sites)
    alive = {site.name for site in five.sites[:4]}
    for site in five.sites[:4]:
        assert site.alive() == alive
    five.net.link(4, "up")
    all_see_all(five.sites, 20)


def test_a_site_comes_back_with_another_address(five: Fleet) -> None:
    moved = five.sites[2]
    moved.stop()
    five.net.move(2, "10.98.0.77")
    settings, former = moved.config.read_text(), moved.host
    moved.config.write_text(settings.replace(f'mesh_host = "{former}"', 'mesh_host = "10.98.0.77"')
                            .replace(f'http_host = "{former}"', 'http_host = "10.98.0.77"'))  # fmt: skip
    moved.start().wait_ready()
    all_see_all(five.sites, 15)
    for site in five.sites:
        assert rows(site)["s2"]["endpoint"] == "10.98.0.77:7411"


def test_no_log_holds_a_defect(started: Fleet) -> None:
    for site in started.sites:
        assert "Traceback" not in site.log(), site.log()
        assert "defect" not in site.log(), site.log()
