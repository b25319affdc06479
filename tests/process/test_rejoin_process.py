"""A reinstalled machine joins again under its name: the old identity is retired everywhere, for good."""

import contextlib
import shutil
import sqlite3
from functools import partial

import pytest
from daemon_cluster import Daemon, admit, found, running, scratch, token_for, wait_for

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]


def rows(site: Daemon) -> list[tuple[str, str, str]]:
    found = site.get("/1/members")["members"]
    return sorted((row["name"], row["status"], row["site"]) for row in found)


def knows_only(site: Daemon, paris: str) -> bool:
    """Whether there is one paris, this one, and everybody lives."""
    found = rows(site)
    states = [("berlin", "alive"), ("paris", "alive"), ("rome", "alive")]
    return [row[:2] for row in found] == states and paris in {row[2] for row in found}


def in_the_book(site: Daemon) -> set[str]:
    """Whom its peer book names; it does not run, because the database has one user at a time."""
    database = sqlite3.connect(f"file:{site.state_dir / 'atoll.db'}?mode=ro", uri=True)
    with contextlib.closing(database):
        return {bytes(row[0]).hex() for row in database.execute("SELECT site FROM peers")}


def test_after_a_reinstall_the_name_has_one_holder_and_the_old_identity_is_told_why() -> None:
    with scratch() as folder:
        hub = found(folder, "berlin")
        with running(hub):
            hub.start().wait_ready()
            paris, rome = admit(hub, "paris", "FR"), admit(hub, "rome", "IT")
            with running(paris, rome):
                for site in (paris, rome):
                    site.start().wait_ready()
                reinstalled_twice(hub, paris, rome)


def reinstalled_twice(hub: Daemon, paris: Daemon, rome: Daemon) -> None:
    sites = [hub, paris, rome]
    everybody = {"berlin", "paris", "rome"}
    wait_for(lambda: all(s.alive() == everybody for s in sites), 30, "met", sites)
    first = paris.get("/1/status")["site"]
    paris.kill()
    old = Daemon(paris.folder.parent, "paris-old")
    shutil.move(paris.state_dir, old.state_dir)
    former = [first]
    for _ in range(2):
        paris.cli("join", token_for(hub, "paris", "FR"))
        paris.start().wait_ready()
        now = paris.get("/1/status")["site"]
        for site in (hub, rome):
            wait_for(partial(knows_only, site, now), 30, f"{site.name} knows one paris", sites)
        former.append(now)
        paris.kill()
        if len(former) == 2:
            shutil.rmtree(paris.state_dir)
    paris.start().wait_ready()
    hub.kill()
    assert in_the_book(hub) >= {paris.get("/1/status")["site"]}
    assert in_the_book(hub).isdisjoint(former[:2])
    hub.start().wait_ready()
    wait_for(lambda: hub.alive() == rome.alive() == everybody, 40, "met again", sites)
    with running(old):
        old.start().wait_ready()
        wait_for(
            lambda: "is retired" in "; ".join(old.get("/1/status")["reasons"]), 30, "told", [old]
        )
        said = "; ".join(old.get("/1/status")["reasons"])
        assert "a new site joined under its name" in said
        assert "join again with an empty state folder and a new token" in said
        assert {row[2] for row in rows(hub)}.isdisjoint(former[:2])
        assert {row[2] for row in rows(rome)}.isdisjoint(former[:2])
    for site in (hub, paris, rome, old):
        assert "Traceback" not in site.log(), site.log()


def test_an_issuer_does_not_give_its_own_name_away() -> None:
    with scratch() as folder:
        hub = found(folder, "berlin")
        with running(hub):
            hub.start().wait_ready()
            done = hub.cli(
                "token", "create", "--name", "berlin", "--region", "r", "--tier", "edge",
                "--jurisdiction", "DE", ok=False,
            )  # fmt: skip
            assert done.returncode == 1
            assert "this site's own" in done.stderr
