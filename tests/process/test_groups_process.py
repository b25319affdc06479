"""Labels that name a group, at two real sites: what they allow follows the trust log, at both ends."""

from collections.abc import Iterator

import pytest
import tritonclient.http as triton
from asking import served_by
from daemon_cluster import Daemon, admit, found, running, scratch, wait_for
from serving_site import MAGIKA
from tritonclient.utils import InferenceServerException

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def sites() -> Iterator[tuple[Daemon, Daemon]]:
    """berlin (DE), and paris (FR) with a model that is to stay in the Union."""
    with scratch() as folder:
        berlin = found(folder, "berlin")
        with running(berlin):
            berlin.start().wait_ready()
            group(berlin, "EU", "DE,FR")
            paris = admit(berlin, "paris", "FR")
            with running(paris):
                paris.start().wait_ready()
                wait_for(lambda: len(berlin.alive()) == 2, 20, "they meet", [berlin, paris])
                berlin.cli(
                    "model", "push", str(MAGIKA), "--name", "magika", "--version", "1",
                    "--sites", "paris", "--residency", "EU",
                )  # fmt: skip
                wait_for(lambda: ask(berlin) == "paris", 20, "berlin passes on", [berlin, paris])
                yield berlin, paris


def group(site: Daemon, name: str, *members: str) -> None:
    secret = str(site.folder / "passphrase")
    site.cli("trust", "group", name, *members, "--passphrase-file", secret)


def ask(site: Daemon, residency: str = "") -> str:
    """Who answers, or why nobody does."""
    try:
        return served_by(site, residency)
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"


def held(site: Daemon) -> list[str]:
    """Models in the site's worker."""
    with triton.InferenceServerClient(site.http) as client:
        rows = client.get_model_repository_index()
    return [row["name"] for row in rows if row.get("state") == "READY"]


def test_a_label_may_name_a_group_and_what_is_unknown_is_denied(
    sites: tuple[Daemon, Daemon],
) -> None:
    berlin, paris = sites
    assert "group     EU = DE, FR" in paris.cli("trust").stdout
    assert ask(berlin, "EU") == ask(berlin, "US,EU") == "paris"
    for label in ("ASIA", "US", "eu"):
        refused = ask(berlin, label)
        assert "403" in refused.split(":")[0]
        assert f"only in {label}" in refused
    (row,) = berlin.json("audit", "report", "--jurisdiction", "US")["rows"]
    assert (row["label"], row["is_within"]) == (["US", "EU"], True)


def test_a_site_that_leaves_the_group_gets_nothing_more_and_lets_go_of_the_model(
    sites: tuple[Daemon, Daemon],
) -> None:
    berlin, paris = sites
    law = berlin.get("/1/trust")["law"]
    group(berlin, "EU", "DE")
    assert berlin.get("/1/trust")["law"] != law
    wait_for(lambda: "only in EU" in ask(berlin, "EU"), 20, "berlin denies", sites)
    wait_for(lambda: "may run only in EU" in ask(paris), 20, "paris denies itself", sites)
    wait_for(lambda: not held(paris), 20, "paris lets go", sites)
    group(berlin, "EU", "DE,FR")
    wait_for(lambda: ask(berlin, "EU") == "paris", 30, "as before", sites)
    refused = paris.cli("audit", "report", ok=False)
    assert refused.returncode == 0, "nothing left paris"
