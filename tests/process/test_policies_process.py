"""A policy of the whole fleet at two real sites: signed once, obeyed at both, taken back."""

import json
from collections.abc import Iterator

import pytest
import tritonclient.http as triton
from asking import served_by
from daemon_cluster import Daemon, that_met, wait_for
from serving_site import MAGIKA
from tritonclient.utils import InferenceServerException

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

POLICIES = """
[policy.magika-stays]
models = ["mag*"]
origins = ["DE"]
answer_in = ["DE"]
"""
LABELLED = """
[policy.labelled]
models = ["magika"]
needs_label = true
"""


@pytest.fixture(scope="module")
def sites() -> Iterator[list[Daemon]]:
    """berlin (DE), and paris (FR), which alone serves the model."""
    with that_met({"berlin": "DE", "paris": "FR"}) as (berlin, paris):
        berlin.cli(
            "model", "push", str(MAGIKA), "--name", "magika", "--version", "1", "--sites", "paris"
        )
        wait_for(lambda: ask(berlin) == "paris", 20, "berlin passes on", [berlin, paris])
        yield [berlin, paris]


def ask(site: Daemon, residency: str = "") -> str:
    """Who answers, or why nobody does."""
    try:
        return served_by(site, residency)
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"


def apply(site: Daemon, text: str, *, ok: bool = True) -> str:
    file = site.folder / "policies.toml"
    file.write_text(text)
    done = site.cli("apply", str(file), ok=ok)
    return done.stdout + done.stderr


def test_a_policy_is_obeyed_where_a_request_comes_in_and_named_by_the_refusal(
    sites: list[Daemon],
) -> None:
    berlin, paris = sites
    law = paris.get("/1/trust")["law"]
    assert "policy magika-stays is new" in apply(berlin, POLICIES)
    wait_for(lambda: ask(berlin).startswith("403"), 20, "berlin obeys", sites)
    assert "policy magika-stays lets it be answered only in DE, the site is in FR" in ask(berlin)
    assert ask(berlin, "FR,DE").startswith("403"), "a label widens nothing"
    assert ask(paris) == "paris", "it is about requests that come in in DE"
    told = berlin.cli("route", "explain", "magika").stdout
    assert "policies narrow it: magika-stays" in told
    assert "goes to: no site" in told
    wait_for(lambda: paris.get("/1/trust")["law"] != law, 10, "paris has the policy", sites)
    assert berlin.get("/1/trust")["law"] == paris.get("/1/trust")["law"]
    rows = paris.json("get", "policy")["documents"]
    assert rows[0]["content"]["answer_in"] == ["DE"]


def test_what_a_policy_leaves_of_a_label_travels_on_and_is_audited(
    sites: list[Daemon],
) -> None:
    berlin, _ = sites
    apply(berlin, POLICIES.replace('answer_in = ["DE"]', 'answer_in = ["FR", "US"]'))
    wait_for(lambda: ask(berlin, "DE,FR") == "paris", 20, "berlin passes on again", sites)
    rows = berlin.json("audit", "report", "--jurisdiction", "FR")["rows"]
    assert ["FR"] in [row["label"] for row in rows]
    assert all(row["is_within"] for row in rows)


def test_a_label_can_be_made_a_duty_for_data_but_not_for_questions_about_a_model(
    sites: list[Daemon],
) -> None:
    berlin, paris = sites
    apply(berlin, LABELLED)
    wait_for(lambda: all("labelled wants one" in ask(site) for site in sites), 20, "a duty", sites)
    assert ask(paris, "FR") == ask(berlin, "FR") == "paris"
    with triton.InferenceServerClient(paris.http) as client:
        assert client.is_model_ready("magika")
    done = berlin.cli("rollback", "policy", "labelled", ok=False)
    assert "has no former document here" in done.stderr
    apply(berlin, LABELLED + "is_active = false\n")
    wait_for(lambda: ask(paris) == "paris", 20, "it is taken back", sites)
    assert "asks for nothing" in apply(berlin, "[policy.empty]\n", ok=False)
    assert json.loads(berlin.cli("history", "policy", "labelled", "--json").stdout)["history"][0][
        "changes"
    ] == ["is_active: - -> false"]
