"""The catalog from files at two real sites: apply, diff, get, history, rollback."""

from collections.abc import Iterator

import pytest
from daemon_cluster import Daemon, admit, found, running, scratch, wait_for
from serving_site import MAGIKA

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

CHANGED = '[deployment.magika]\nversion = "1"\nreplicas = 2\ntiers = ["edge"]\n'


@pytest.fixture(scope="module")
def sites() -> Iterator[tuple[Daemon, Daemon]]:
    with scratch() as folder:
        berlin = found(folder, "berlin")
        with running(berlin):
            berlin.start().wait_ready()
            paris = admit(berlin, "paris")
            with running(paris):
                paris.start().wait_ready()
                wait_for(lambda: len(paris.alive()) == 2, 20, "they meet", [berlin, paris])
                berlin.cli("model", "push", str(MAGIKA), "--name", "magika", "--version", "1")
                yield berlin, paris


def test_what_get_prints_apply_takes_and_finds_unchanged(sites: tuple[Daemon, Daemon]) -> None:
    berlin, _ = sites
    printed = berlin.cli("get").stdout
    assert '[model."magika:1"]' in printed
    done = berlin.cli("apply", "-", text=printed)
    assert done.stdout.splitlines() == [
        "model magika:1 is unchanged", "deployment magika is unchanged",
    ]  # fmt: skip


def test_a_change_is_shown_made_seen_at_the_other_site_and_taken_back(
    sites: tuple[Daemon, Daemon],
) -> None:
    berlin, paris = sites
    file = berlin.folder / "catalog.toml"
    file.write_text(CHANGED)
    shown = berlin.cli("diff", str(file), ok=False)
    assert shown.returncode == 3
    assert "replicas: - -> 2" in shown.stdout
    assert berlin.cli("apply", str(file)).stdout == shown.stdout
    assert berlin.cli("diff", str(file)).stdout == ""
    wait_for(lambda: "replicas = 2" in paris.cli("get").stdout, 10, "paris knows", sites)
    wait_for(lambda: paris.model("magika", "1")["state"] == "ready", 20, "both serve", sites)
    berlin.stop()
    berlin.start().wait_ready()
    told = berlin.cli("history", "deployment", "magika").stdout
    assert 'tiers: - -> ["edge"]; replicas: - -> 2' in told, "it outlives a restart"
    done = berlin.cli("rollback", "deployment", "magika")
    assert "replicas: 2 -> -" in done.stdout
    wait_for(lambda: "replicas" not in paris.cli("get").stdout, 10, "paris follows", sites)
    rows = berlin.json("history", "deployment", "magika")["history"]
    assert [row["content"].get("replicas") for row in rows] == [None, 2, None]
    to = berlin.cli("rollback", "deployment", "magika", "--to", rows[1]["stamp"])
    assert "replicas: - -> 2" in to.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[deployment.magika]\nversion = "9"\n', "names magika:9, which is not in the catalog"),
        ("[deployment.magika]\nversion = 9\n", "line 2: deployment.magika.version is the number 9"),
        ("", "has 0 documents"),
    ],
)
def test_a_wrong_file_changes_nothing_and_says_why(
    sites: tuple[Daemon, Daemon], text: str, told: str
) -> None:
    berlin, _ = sites
    before = berlin.cli("get").stdout
    done = berlin.cli("apply", "-", text=text, ok=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert berlin.cli("get").stdout == before


def test_without_the_admins_key_nothing_is_changed(sites: tuple[Daemon, Daemon]) -> None:
    _, paris = sites
    done = paris.cli("apply", "-", text='[deployment.magika]\nversion = "1"\n', ok=False)
    assert done.returncode == 1
    assert "there is no admin key" in done.stderr
    assert paris.cli("get", "deployment", "magika").returncode == 0
