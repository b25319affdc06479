"""The audit log of a real site: requests that leave, a witness, an export, and a log that was cut."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import served_by
from daemon_cluster import Daemon, that_met, wait_for
from serving_site import MAGIKA

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]

REQUESTS = 4


@pytest.fixture(scope="module")
def sites() -> Iterator[list[Daemon]]:
    with that_met({"berlin": "DE", "paris": "FR"}) as (berlin, paris):
        berlin.cli(
            "model", "push", str(MAGIKA), "--name", "magika", "--version", "1", "--sites", "paris"
        )
        wait_for(lambda: served_by(berlin) == "paris", 20, "berlin passes on", [berlin, paris])
        for _ in range(REQUESTS - 1):
            served_by(berlin, "FR,DE")
        yield [berlin, paris]


def test_what_left_is_reported_by_label_and_receiver(sites: list[Daemon]) -> None:
    berlin, _ = sites
    rows = berlin.json("audit", "report")["rows"]
    assert {(tuple(row["label"]), row["name"], row["jurisdiction"]) for row in rows} == {
        ((), "paris", "FR"), (("FR", "DE"), "paris", "FR"),
    }  # fmt: skip
    (labelled,) = berlin.json("audit", "report", "--jurisdiction", "DE")["rows"]
    assert labelled["entries"] == REQUESTS - 1
    assert labelled["is_within"]

    def outcomes() -> tuple[int, int]:
        (row,) = berlin.json("audit", "report", "--jurisdiction", "DE")["rows"]
        return row["answered"], row["bytes_back"]

    wait_for(lambda: outcomes()[0] == REQUESTS - 1, 10, "outcomes", [berlin])
    assert outcomes()[1] > (REQUESTS - 1) * 214, "a number for each label"
    assert berlin.json("audit", "report", "--until", "2020-01-01")["rows"] == []
    table = berlin.cli("audit", "report", "--csv").stdout.splitlines()
    assert table[0] == "kind,label,receiver,jurisdiction,entries,bytes,answered,bytes back,allowed"


def test_a_sound_log_is_witnessed_and_proves_itself_on_another_machine(
    sites: list[Daemon],
) -> None:
    berlin, paris = sites
    told = berlin.cli("audit", "verify").stdout
    assert "paris witnessed its end at entry" in told
    assert "sound: nothing was changed, removed or added" in told
    file = berlin.folder / "audit.jsonl"
    done = berlin.cli("audit", "export", str(file))
    assert "the receipts of 1 witnesses" in done.stdout
    assert berlin.cli("audit", "export", str(file), ok=False).returncode == 1, "never overwritten"
    cluster = berlin.get("/1/status")["cluster"]
    elsewhere = Daemon(paris.folder.parent, "auditor")
    proven = elsewhere.cli("audit", "verify", str(file), "--cluster", cluster).stdout
    assert "of the audit log of berlin" in proven
    assert "paris (FR) witnessed its end" in proven
    assert "whose log should it be?" in elsewhere.cli("audit", "verify", str(file), ok=False).stderr
    other = elsewhere.cli("audit", "verify", str(file), "--cluster", "0" * 64, ok=False)
    assert "of another cluster" in other.stderr
    cut = berlin.folder / "cut.jsonl"
    lines = file.read_text().splitlines()
    cut.write_text("\n".join(lines[:-1]) + "\n")
    refused = elsewhere.cli("audit", "verify", str(cut), "--cluster", cluster, ok=False)
    assert refused.returncode == 1
    assert f"lacks its entry {json.loads(lines[-1])['sequence']}" in refused.stderr


def test_a_log_that_lost_its_end_is_found_out_by_its_witness(sites: list[Daemon]) -> None:
    berlin, paris = sites
    berlin.cli("audit", "verify")
    berlin.stop()
    forget_the_last_entry(berlin.state_dir)
    berlin.start().wait_ready()
    wait_for(lambda: len(berlin.alive()) == 2, 20, "they meet again", [berlin, paris])
    found = berlin.cli("audit", "verify", ok=False)
    assert found.returncode == 1
    assert "the audit chain lacks its entry" in found.stderr
    reasons = paris.get("/1/status")["reasons"]
    assert any("audit log of berlin: its audit log ended at entry" in text for text in reasons)
    objection = berlin.get("/1/status")["reasons"]
    assert any("witness paris objects" in text for text in objection)


def forget_the_last_entry(state_dir: Path) -> None:
    database = sqlite3.connect(state_dir / "atoll.db")
    with contextlib.closing(database), database:
        database.execute("DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)")
