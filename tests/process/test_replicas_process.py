"""Four real sites, a model with two replicas: one holder dies, and another takes its place by itself."""

from collections.abc import Iterator

import pytest
from daemon_cluster import Daemon, that_met, wait_for
from serving_site import MAGIKA

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
def sites() -> Iterator[list[Daemon]]:
    with that_met(dict.fromkeys(("berlin", "munich", "hamburg", "bremen"), "DE")) as sites:
        yield sites


def serving(sites: list[Daemon]) -> set[str]:
    """Who says that it serves the model itself."""
    found = set()
    for site in sites:
        rows = [row for row in site.get("/1/status")["models"] if row["name"] == "magika"]
        found |= {site.name for row in rows if row["state"] == "ready"}
    return found


def test_two_of_four_sites_serve_and_one_that_dies_is_replaced(sites: list[Daemon]) -> None:
    berlin = sites[0]
    done = berlin.cli(
        "model", "push", str(MAGIKA), "--name", "magika", "--version", "1", "--replicas", "2"
    )
    assert "for 2 of the allowed sites" in done.stdout
    wait_for(lambda: len(serving(sites)) == 2, 20, "two serve", sites)
    holders = serving(sites)
    told = berlin.cli("model", "list").stdout
    assert all(name in told for name in holders)
    lost = next(site for site in sites if site.name in holders - {"berlin"})
    lost.kill()
    left = [site for site in sites if site is not lost]
    wait_for(lambda: len(serving(left)) == 2, 40, "two serve again", left)
    assert holders - {lost.name} < serving(left)


def test_what_cannot_be_had_is_said(sites: list[Daemon]) -> None:
    berlin = sites[0]
    done = berlin.cli(
        "model", "push", str(MAGIKA), "--name", "greedy", "--version", "1", "--replicas", "2",
        "--gpu", "--timeout", "2s", ok=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "greedy:1 is not ready everywhere" in done.stderr
    alive = [site for site in sites if site.process is not None]
    rows = [row for site in alive for row in site.get("/1/status")["models"]]
    reasons = {row["reason"] for row in rows if row["name"] == "greedy"}
    assert "it asks for a gpu, and this site has none" in reasons
