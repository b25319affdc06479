"""Members of a job's committee that are lost for good: one is replaced, a majority is taken over."""

import base64
import json
from collections.abc import Iterator

import pytest
from daemon_cluster import (
    Daemon,
    admit,
    found,
    running,
    scratch,
    submit_job,
    wait_for,
    write_digits,
)

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

EPOCH_JUMP = 2**20


@pytest.fixture(scope="module")
def sites() -> Iterator[list[Daemon]]:
    with scratch() as folder:
        data = [write_digits(folder / f"data-{part}", part=part) for part in range(4)]
        binds = [f'[datasets.digits]\npath = "{path}"' for path in data]
        berlin = found(folder, "berlin", "DE", extra=binds[0])
        with running(berlin):
            berlin.start().wait_ready()
            others = [
                admit(berlin, name, "DE", bind)
                for name, bind in zip(("paris", "munich", "rome"), binds[1:], strict=True)
            ]
            with running(*others):
                everybody = [berlin, *others]
                for site in others:
                    site.start().wait_ready()
                wait_for(lambda: all(len(s.alive()) == 4 for s in everybody), 30, "all see all")
                yield everybody


def lose(founder: Daemon, site: Daemon) -> None:
    """It is stolen: its power is off, and its key is revoked."""
    site.kill()
    founder.cli("site", "revoke", site.name, "--reason", "stolen")


def view(site: Daemon, job: str) -> dict[str, object]:
    return site.get(f"/1/jobs/{job}")


def is_finished(site: Daemon, job: str) -> bool:
    state = view(site, job)
    assert state["state"] != "failed", state["reason"]
    return state["state"] == "finished"


def test_committees_outlive_their_members(sites: list[Daemon]) -> None:
    berlin = sites[0]
    job = submit_job(berlin, name="long", rounds=60, epochs=8, sites_min=1, publish="")
    wait_for(lambda: view(berlin, job)["round"] >= 1, 60, "a round", sites)  # type: ignore[operator]
    committee = view(berlin, job)["committee"]
    assert isinstance(committee, list)
    assert len(committee) == 3

    # One member is gone for good: revoked, it is replaced without anybody's doing.
    victim = next(s for s in sites if s.name in committee and s is not berlin)
    lose(berlin, victim)
    left = [site for site in sites if site is not victim]

    def is_replaced() -> bool:
        now = [sorted(view(site, job)["committee"]) for site in left]  # type: ignore[call-overload]
        return all(one == sorted(s.name for s in left) for one in now)

    wait_for(is_replaced, 60, "the member is replaced", left)
    reached = view(berlin, job)["round"]
    wait_for(lambda: view(berlin, job)["round"] > reached, 40, "rounds go on", left)  # type: ignore[operator]

    # Two of the three go as well: a majority is lost, nothing moves, nobody may take it over yet.
    for site in left[1:]:
        site.kill()
    refused = berlin.cli("job", "recover", job, "berlin", ok=False)
    assert refused.returncode == 1
    assert "could come back and decide otherwise" in refused.stderr
    for site in left[1:]:
        berlin.cli("site", "revoke", site.name, "--reason", "burnt")
    done = berlin.cli("job", "recover", job, "berlin")
    assert "taken over at round" in done.stdout
    assert view(berlin, job)["epoch"] > EPOCH_JUMP  # type: ignore[operator]
    assert "was taken over by an operator" in berlin.cli("status", ok=False).stdout
    assert "TAKEN OVER" in berlin.cli("job", "show", job).stdout
    log = berlin.folder / "audit.jsonl"
    berlin.cli("audit", "export", str(log))
    entries = [json.loads(line).get("entry", "") for line in log.read_text().splitlines()]
    assert any(b"register taken over by the operator" in base64.b64decode(one) for one in entries)
    reached = view(berlin, job)["round"]
    wait_for(lambda: view(berlin, job)["round"] > reached, 60, "it goes on alone", [berlin])  # type: ignore[operator]

    # What berlin made was counted, round by round, over both changes; by the bytes.
    checked = json.loads(berlin.cli("job", "audit", job, "--json").stdout)
    assert checked["findings"] == []
    assert checked["checked"] == checked["round"]
    assert {row["standing"] for row in checked["rows"]} <= {"counted", "not counted", "open"}
    assert any(row["standing"] == "counted" for row in checked["rows"])
