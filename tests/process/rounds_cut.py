"""The aggregator and another are cut off from the other three of their committee."""

import contextlib
import time

from daemon_cluster import running, scratch, submit_job, wait_for, write_digits
from mesh_network import Network, fleet, settings
from rounds_faults import furthest, view

CUT_S = 12.0
TURNS = 3
SITES = 5


def a_minority_is_cut_off() -> tuple[int, list[float]]:
    """Rounds that the minority came to while it was cut off, and how long each took to go on after it."""
    network, commits, resumed_s = Network(SITES), 0, []
    with contextlib.ExitStack() as stack:
        network.set_up(stack)
        folder = stack.enter_context(scratch())
        sites = fleet(folder, network)
        stack.enter_context(running(*sites))
        for index, site in enumerate(sites):
            data = write_digits(folder / f"data-{index}", part=index, samples=300)
            site.stop()
            site.configure(f'{settings(network)}\n[datasets.digits]\npath = "{data}"')
            site.start()
        wait_for(lambda: all(len(s.alive()) == SITES for s in sites), 60, "all see all", sites)
        job = submit_job(sites[0], name="cut", rounds=2000, epochs=2, sites_min=2)
        wait_for(lambda: furthest(sites, job) >= 2, 60, "rounds are under way", sites)
        for _ in range(TURNS):
            head = next(s for s in sites if s.name == view(sites[0], job)["aggregator"])
            other = next(site for site in sites if site is not head)
            few = [sites.index(head), sites.index(other)]
            rest = [index for index in range(SITES) if index not in few]
            network.cut(network.apart(few, rest))
            time.sleep(1.0)  # what was decided before the cut has arrived by now, or never does
            minority = [sites[index] for index in few]
            before = furthest(minority, job)
            majority_before = furthest([sites[index] for index in rest], job)
            time.sleep(CUT_S)
            commits += furthest(minority, job) - before
            assert furthest([sites[index] for index in rest], job) > majority_before
            network.heal()
            healed_at = time.monotonic()
            wait_for(
                lambda: min(int(view(s, job)["round"]) for s in minority) > majority_before, 60,  # noqa: B023
                "the minority has caught up", sites,
            )  # fmt: skip
            resumed_s.append(time.monotonic() - healed_at)
            wait_for(lambda: all(len(s.alive()) == SITES for s in sites), 60, "all see all", sites)
    return commits, resumed_s
