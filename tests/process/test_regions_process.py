"""Two regions of real daemons train as one job; who speaks for a region dies together with who aggregates."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
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

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

REGIONS = {"n1": "north", "n2": "north", "n3": "north", "s1": "south", "s2": "south"}
ROUNDS = 8


@pytest.fixture(scope="module")
def sites() -> Iterator[dict[str, Daemon]]:
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


def view(site: Daemon, job: str) -> dict[str, Any]:
    return site.get(f"/1/jobs/{job}")


def is_finished(site: Daemon, job: str) -> bool:
    value = view(site, job)
    assert value["state"] != "failed", value["reason"]
    return bool(value["state"] == "finished")


def regions_counted(site: Daemon, job: str) -> list[tuple[str, int]]:
    """Each region and the last of its rounds that was counted, round by round."""
    done = view(site, job)["rounds_done"]
    assert [row["round"] for row in done] == list(range(1, ROUNDS + 1))
    return [
        (one["region"], one["until"]) for row in done for one in row["counted"] if "region" in one
    ]


def test_regions_train_as_one_and_outlive_those_who_speak_for_them(
    sites: dict[str, Daemon],
) -> None:
    hub = sites["hub"]
    job = submit_job(
        hub, name="regions", rounds=ROUNDS, epochs=6, sites_min=2, regions=["*"], region_sites_min=2,
        staleness_max=2, local_rounds_max=2, publish="regions",
    )  # fmt: skip
    everybody = list(sites.values())

    def under_way() -> tuple[Daemon, Daemon] | None:
        """Who aggregates the whole, and who speaks for a region of more sites, in mid-job."""
        whole = view(hub, job)
        north = view(sites["n1"], job)["region"]
        if whole["round"] < 2 or not north["aggregator"]:
            return None
        first, second = sites[whole["aggregator"]], sites[north["aggregator"]]
        return (first, second) if first is not hub else (second, second)

    victims = wait_for(under_way, 90, "two rounds are done", everybody)
    assert victims is not None
    for victim in set(victims):
        victim.kill()
    left = [site for site in everybody if site not in victims]
    reached = view(left[0], job)["round"]
    for victim in set(victims):
        victim.start()
    wait_for(lambda: view(hub, job)["round"] > reached, 30, "another round", everybody)
    wait_for(lambda: all(is_finished(s, job) for s in everybody), 120, "finished", everybody)

    for site in everybody:
        wait_for(
            lambda site=site: len(view(site, job)["rounds_done"]) == ROUNDS, 30, "has the history",  # type: ignore[misc]
            [site],
        )  # fmt: skip
    counted = regions_counted(hub, job)
    for region in ("north", "south"):
        untils = [until for name, until in counted if name == region]
        assert len(untils) >= ROUNDS // 2
        assert all(one < other for one, other in pairwise(untils)), "each of its rounds once"
    assert all(regions_counted(site, job) == counted for site in everybody)
    digests = {
        row["parameters"] for site in everybody for row in view(site, job)["rounds_done"][-1:]
    }
    assert len(digests) == 1

    shown = sites["s1"].cli("job", "show", job).stdout
    assert "region south" in shown
    assert "region north by " in shown
    audit = json.loads(sites["n2"].cli("job", "audit", job, "--json").stdout)
    assert audit["findings"] == []
    standings = {row["standing"] for row in audit["rows"]}
    assert "counted" in standings, audit
