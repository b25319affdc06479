"""A state folder that was copied: two real processes with one key, and what each site says of it."""

import shutil
from functools import partial

import pytest
from daemon_cluster import Daemon, admit, found, running, scratch, wait_for

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]


def told(site: Daemon) -> str:
    """What status and doctor say of a duplicate; empty unless both do."""
    status = "; ".join(site.get("/1/status")["reasons"])
    checks = {row["check"]: row for row in site.get("/1/doctor")["checks"]}
    doctor = checks["identity"]
    if "duplicate identity" in status and not doctor["ok"] and "duplicate" in doctor["evidence"]:
        return status
    return ""


def copied(original: Daemon) -> Daemon:
    """Another machine with the same state folder: the database as it is on disk just now."""
    copy = Daemon(original.folder.parent, f"{original.name}-copy")
    shutil.copytree(original.state_dir, copy.state_dir)
    return copy


def test_a_copy_of_a_running_site_is_named_by_all_three_and_one_leaves() -> None:
    with scratch() as folder:
        hub = found(folder, "berlin")
        with running(hub):
            hub.start().wait_ready()
            paris, rome = admit(hub, "paris", "FR"), admit(hub, "rome", "IT")
            with running(paris, rome):
                for site in (paris, rome):
                    site.start().wait_ready()
                everybody = {"berlin", "paris", "rome"}
                sites = [hub, paris, rome]
                wait_for(lambda: all(s.alive() == everybody for s in sites), 30, "met", sites)
                copy = copied(paris)
                with running(copy):
                    check_named(hub, paris, copy.start().wait_ready())


def check_named(hub: Daemon, paris: Daemon, copy: Daemon) -> None:
    three = [hub, paris, copy]
    for site in three:
        wait_for(partial(told, site), 90, f"{site.name} names it", three)
        assert "duplicate identity" in site.log()
    # The later start stays; the earlier one serves its own applications only.
    wait_for(lambda: "has left the mesh" in told(paris), 60, "the original leaves", three)
    assert "has left the mesh" not in told(copy)
    assert paris.get("/1/status")["state"] in ("ready", "isolated")
    wait_for(lambda: hub.alive() >= {"berlin", "paris"}, 30, "the copy is the member", three)
    rows = {row["name"]: row for row in hub.get("/1/members")["members"]}
    wait_for(
        lambda: {r["name"]: r for r in hub.get("/1/members")["members"]}["paris"]["endpoint"]
        == f"{copy.host}:7411",
        30, f"at its address {rows['paris']}", three,
    )  # fmt: skip
    for site in (paris, copy):  # neither votes, also after a restart
        site.stop()
        assert "Traceback" not in site.log(), site.log()
    copy.start().wait_ready()
    checks = {row["check"]: row for row in copy.get("/1/doctor")["checks"]}
    assert not checks["voting"]["ok"]
    assert "duplicate identity" in checks["voting"]["evidence"]
    assert "join it again with a new token" in checks["voting"]["evidence"]
