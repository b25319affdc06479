"""Real daemons make a round's mean in ranges, with an aggregator that is killed: the same bytes as one that is not."""

from collections.abc import Iterator

import pytest
from daemon_cluster import Daemon, submit_job, wait_for
from rounds_faults import five_sites, furthest, view

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

ROUNDS = 5


@pytest.fixture(scope="module")
def sites() -> Iterator[list[Daemon]]:
    with five_sites() as made:
        yield made


def submitted(sites: list[Daemon], **more: object) -> str:
    """A job whose every round counts all sites, so that nothing is left to chance."""
    keys = {"name": "ranges", "rounds": ROUNDS, "sites_min": len(sites), "seed": 3, "epochs": 2}
    return submit_job(sites[0], **(keys | {"round_timeout_s": 60.0} | more))


def parameters(sites: list[Daemon], job: str) -> list[str]:
    """Of each round, at every site the same."""

    def is_over(site: Daemon) -> bool:
        seen = view(site, job)
        assert seen["state"] != "failed", seen["reason"]
        return seen["state"] == "finished" and len(seen["rounds_done"]) == ROUNDS

    wait_for(lambda: all(map(is_over, sites)), 150, "finished everywhere", sites)
    found = {
        site.name: [row["parameters"] for row in view(site, job)["rounds_done"]] for site in sites
    }
    assert len({tuple(one) for one in found.values()}) == 1, found
    return found[sites[0].name]


def kill_the_aggregator(sites: list[Daemon], job: str, rounds: int) -> Daemon:
    wait_for(lambda: furthest(sites, job) >= rounds, 90, f"{rounds} rounds are done", sites)
    name = view(sites[0], job)["aggregator"]
    victim = next(site for site in sites if site.name == name)
    victim.kill()
    victim.start()
    return victim


def test_what_ranges_were_made_of_is_gone_when_the_job_is_over(sites: list[Daemon]) -> None:
    """Each site keeps the rounds' lists and the last parameters, and no part of an update."""
    job = submitted(sites, ranges=3)
    expected = parameters(sites, job)[-1]
    for site in sites:
        assert site.cli("job", "audit", job).returncode == 0, site.cli("job", "audit", job).stdout

        def large(site: Daemon = site) -> list[int]:
            files = (site.state_dir / "blobs" / "data").iterdir()
            return [size for file in files if (size := file.stat().st_size) > 100_000]

        wait_for(lambda: len(large()) <= 1, 30, "the last parameters are left", [site])
        assert all(size > 700_000 for size in large()), "no part of 256 KiB, no range"
    assert len(expected) == 64


@pytest.mark.parametrize(
    "more",
    [{}, {"outer": "momentum"}, {"correction": "scaffold"}],
    ids=["mean", "momentum", "scaffold"],
)
def test_one_aggregator_ranges_and_a_successor_make_the_same_bytes(
    sites: list[Daemon], more: dict[str, str]
) -> None:
    calm = submitted(sites, **more)
    expected = parameters(sites, calm)
    assert len(set(expected)) == ROUNDS
    in_ranges = submitted(sites, ranges=3, **more)
    assert parameters(sites, in_ranges) == expected
    for ranges in (1, 4):
        killed = submitted(sites, ranges=ranges, **more)
        victim = kill_the_aggregator(sites, killed, 2)
        assert parameters(sites, killed) == expected
        epochs = {row["epoch"] for row in view(victim, killed)["rounds_done"]}
        assert len(epochs) > 1, "another has finished it"
