"""Six real sites: a hub that stands alone, three in the north, two in the south."""

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

from daemon_cluster import (
    Daemon,
    found,
    running,
    scratch,
    submit_job,
    token_for,
    wait_for,
    write_digits,
)
from rounds_faults import furthest, view, wait_for_more

REGIONS = {"n1": "north", "n2": "north", "n3": "north", "s1": "south", "s2": "south"}


@contextlib.contextmanager
def six_sites() -> Iterator[dict[str, Daemon]]:
    """All have data and all know all."""
    with scratch() as folder:
        data = [write_digits(folder / f"data-{part}", part=part) for part in range(6)]
        binds = [f'[datasets.digits]\npath = "{path}"' for path in data]
        hub = found(folder, "hub", "DE", extra=binds[0])
        with running(hub):
            hub.start().wait_ready()
            others = {}
            for (name, region), bind in zip(REGIONS.items(), binds[1:], strict=True):
                others[name] = Daemon(folder, name, bind)
                others[name].cli("join", token_for(hub, name, "DE", "--region", region))
            with running(*others.values()):
                for site in others.values():
                    site.start()
                everybody = {"hub": hub, **others}
                wait_for(
                    lambda: all(len(site.alive()) == 6 for site in everybody.values()), 60,
                    "all see all", list(everybody.values()),
                )  # fmt: skip
                yield everybody


def submit(hub: Daemon, name: str, rounds: int, **more: Any) -> str:
    """A job of both regions and the hub."""
    return submit_job(
        hub, name=name, rounds=rounds, epochs=6, sites_min=2, regions=["*"], region_sites_min=2,
        staleness_max=2, local_rounds_max=2, **more,
    )  # fmt: skip


def aggregators(sites: dict[str, Daemon], job: str, after: int) -> list[Daemon]:
    """Who aggregates the whole, and who speaks for the north; nobody before a round after ``after`` is done."""
    whole = view(sites["hub"], job)
    north = view(sites["n1"], job)["region"]
    if whole["round"] <= after or not north["aggregator"]:
        return []
    return list({sites[whole["aggregator"]], sites[north["aggregator"]]})


def killed_together(times: int, chance: Random) -> list[float]:
    """Seconds from the death of both aggregators, at moments of chance, to the next commit of the whole job."""
    took = []
    with six_sites() as sites:
        everybody = list(sites.values())
        job = submit(sites["hub"], "together", 2000)
        reached = 0
        for _ in range(times):
            victims = wait_for(partial(aggregators, sites, job, reached), 90, "a round", everybody)
            time.sleep(chance.uniform(0.0, 1.0))
            left = [site for site in everybody if site not in victims]
            before, began = furthest(left, job), time.monotonic()
            for victim in victims:
                victim.kill()
            wait_for_more(left, job, before)
            took.append(time.monotonic() - began)
            for victim in victims:
                victim.start()
            for victim in victims:
                victim.wait_ready()
            wait_for(lambda: all(len(s.alive()) == 6 for s in everybody), 60, "all meet", everybody)
            reached = furthest(everybody, job)
    return took
