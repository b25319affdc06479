"""Two regions of real daemons train as one job; who speaks for a region dies together with who aggregates."""

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
from daemon_cluster import Daemon, wait_for
from regions_cluster import aggregators, six_sites, submit
from rounds_faults import view

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

ROUNDS = 8


@pytest.fixture(scope="module")
def sites() -> Iterator[dict[str, Daemon]]:
    with six_sites() as made:
        yield made


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
    hub, everybody = sites["hub"], list(sites.values())
    job = submit(hub, "regions", ROUNDS, publish="regions")
    victims = wait_for(lambda: aggregators(sites, job, 1), 90, "two rounds are done", everybody)
    victims = [victim for victim in victims if victim is not hub]  # it is asked below
    for victim in victims:
        victim.kill()
    left = [site for site in everybody if site not in victims]
    reached = view(left[0], job)["round"]
    for victim in victims:
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
