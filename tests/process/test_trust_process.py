"""Real daemons: a revoked site is refused everywhere, and a second issuer outlives the first."""

import contextlib
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from daemon_cluster import Daemon, admit, found, running, scratch, token_for, wait_for

from agent.drivers import keystore, tls

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

REFUSED_S, CLOSED_S = 10.0, 15.0
"""The goals: refused by the sites that can be reached, open sessions closed."""


@dataclass
class Cluster:
    berlin: Daemon
    paris: Daemon
    munich: Daemon
    rome: Daemon

    @property
    def all(self) -> list[Daemon]:
        return [self.berlin, self.paris, self.munich, self.rome]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with scratch() as folder, ExitStack() as stack:
        berlin = found(folder, "berlin")
        stack.enter_context(running(berlin))
        berlin.start().wait_ready()
        others = [admit(berlin, name) for name in ("paris", "munich", "rome")]
        stack.enter_context(running(*others))
        for site in others:
            site.start()
        for site in others:
            site.wait_ready()
        sites = Cluster(berlin, *others)
        names = {site.name for site in sites.all}
        wait_for(lambda: all(one.alive() == names for one in sites.all), 30, "all meet", sites.all)
        yield sites


def trust(site: Daemon) -> dict[str, Any]:
    return dict(site.get("/1/status")["trust"])


def session(caller: Daemon, host: str, port: int) -> ssl.SSLSocket:
    """A connection made with the keys of ``caller``, which nothing passes over."""
    keys = keystore.load(caller.state_dir / "identity")
    plain = socket.create_connection((host, port), timeout=10)
    made = tls.client_context(keys).wrap_socket(plain, server_hostname="a.site.atoll")
    made.settimeout(0.05)
    return made


def is_closed(connection: ssl.SSLSocket) -> bool:
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def is_refused(caller: Daemon, by: Daemon) -> bool:
    """Whether a request with the keys of ``caller`` is told that its certificate is revoked."""
    with session(caller, by.host, 7411) as connection:
        connection.settimeout(5)
        connection.sendall(
            b"POST /mesh/1/call HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n\x00"
        )
        said = connection.recv(4096)
    return b"403" in said and b"is revoked" in said and b"its disk was stolen" in said


def says_why(revoked: Daemon) -> bool:
    rows = [str(row) for row in revoked.get("/1/peers")["peers"]]
    return any("is revoked" in row and "its disk was stolen" in row for row in rows)


def test_a_revoked_site_is_refused_everywhere_and_its_sessions_end(cluster: Cluster) -> None:
    rome, munich = cluster.rome, cluster.munich
    munich.stop()
    present = [cluster.berlin, cluster.paris]
    sessions = [session(rome, site.host, port) for site in present for port in (7411, 7412)]
    assert not any(is_closed(one) for one in sessions)
    done = cluster.berlin.cli("site", "revoke", "rome", "--reason", "its disk was stolen")
    assert "rome" in done.stdout
    wait_for(lambda: all(is_refused(rome, by) for by in present), REFUSED_S, "refused", cluster.all)
    wait_for(lambda: all(is_closed(one) for one in sessions), CLOSED_S, "closed", cluster.all)
    for one in sessions:
        one.close()
    for site in present:
        assert trust(site)["height"] == 2
        assert "rome" not in {row["name"] for row in site.get("/1/members")["members"]}
        (row,) = site.get("/1/trust")["revoked"]
        assert (row["name"], row["reason"]) == ("rome", "its disk was stolen")
    wait_for(lambda: rome.get("/1/status")["state"] == "isolated", 20, "rome is alone", [rome])
    wait_for(lambda: says_why(rome), 5, "as its greetings end, peers says why", [rome])

    # Still refused after a restart, and by a site that was away when it happened.
    cluster.paris.kill()
    cluster.paris.start().wait_ready()
    assert is_refused(rome, cluster.paris)
    munich.start().wait_ready()
    wait_for(lambda: is_refused(rome, munich), 20, "munich has learned it", [munich])
    heads = {trust(site)["head"] for site in (cluster.berlin, cluster.paris, munich)}
    assert len(heads) == 1
    assert "rome" not in munich.alive()
    again = cluster.berlin.cli("site", "revoke", "rome")
    assert "already" in again.stdout


def test_a_second_issuer_admits_after_the_first_is_gone(cluster: Cluster) -> None:
    berlin, paris = cluster.berlin, cluster.paris
    root = ("--passphrase-file", str(berlin.folder / "passphrase"))
    assert "no issuer key" in paris.cli(
        "token", "create", "--name", "x", "--region", "r", "--tier", "edge",
        "--jurisdiction", "FR", ok=False,
    ).stderr  # fmt: skip
    berlin.cli("issuer", "add", "paris", *root)
    wait_for(lambda: paris.get("/1/trust")["own_issuer"], 20, "paris is an issuer", [paris])
    held = paris.state_dir / "identity"
    assert (held / "issuer.key").stat().st_mode & 0o777 == 0o600
    assert not (held / "issuer.new.key").exists()
    token = token_for(paris, "oslo")
    berlin.kill()
    with running(oslo := Daemon(berlin.folder.parent, "oslo")):
        oslo.cli("join", token)
        oslo.start().wait_ready()
        wait_for(lambda: "oslo" in cluster.munich.alive(), 30, "oslo is met", cluster.all[1:])

        # The first issuer is removed: what it signed is refused, and that is said beforehand.
        key = paris.json("trust")["issuers"]
        first = next(row["id"] for row in key if row["name"] != "paris")
        given = ("issuer", "remove", first, "--root-key",
                 str(berlin.state_dir / "identity/operator/root.key"), *root)  # fmt: skip
        warned = paris.cli(*given, ok=False)
        assert warned.returncode == 1
        assert "munich" in warned.stderr
        assert "atoll token create" in warned.stderr
        removed = paris.json(*given, "--yes")
        assert set(removed["locked_out"]) >= {"munich", "rome"}
        wait_for(lambda: "munich" not in oslo.alive(), 20, "munich is locked out", [oslo])


def test_the_root_key_works_on_a_machine_without_an_agent(cluster: Cluster) -> None:
    berlin, paris = cluster.berlin, cluster.paris
    folder = berlin.folder.parent
    asked, signed = str(folder / "request.json"), str(folder / "signed.json")
    paris.cli("issuer", "request", "--out", asked)
    # The laptop has the root key, the two files and the command line.
    laptop = Daemon(folder, "laptop")
    operator = berlin.state_dir / "identity/operator"
    operator.rename(folder / "usb")
    root = ("--root-key", str(folder / "usb/root.key"),
            "--passphrase-file", str(berlin.folder / "passphrase"))  # fmt: skip
    laptop.cli("issuer", "add", "--request", asked, "--out", signed, *root)
    cluster.munich.cli("trust", "import", signed)
    wait_for(lambda: paris.get("/1/trust")["own_issuer"], 20, "paris is an issuer", [paris])
    assert "paris" in cluster.rome.cli("trust").stdout
    exported = str(folder / "log.json")
    berlin.cli("trust", "export", "--out", exported)
    laptop.cli("issuer", "remove", "paris", "--log", exported, "--out", signed, *root)
    berlin.cli("trust", "import", signed)
    wait_for(lambda: not paris.get("/1/trust")["own_issuer"], 20, "paris is none", [paris])
    late = berlin.cli("trust", "import", signed)
    assert late.returncode == 0, "the same entry twice is no other change"


def test_a_fork_is_told_frozen_and_mended_by_the_root(cluster: Cluster) -> None:
    berlin, paris, munich, rome = cluster.all
    for site in (paris, munich, rome):
        site.stop()
    berlin.cli("site", "revoke", "rome", "--reason", "seen in berlin")
    berlin.stop()
    paris.start().wait_ready()
    paris.cli(
        "site", "revoke", "rome", "--reason", "seen in paris",
        "--admin-key", str(berlin.state_dir / "identity/admin.key"),
    )  # fmt: skip
    standing = [berlin, paris, munich]
    for site in (berlin, munich):
        site.start().wait_ready()
    wait_for(
        lambda: all(trust(site)["forked_at"] == 2 for site in standing), 30, "forked", standing
    )
    refused = munich.cli(
        "site", "revoke", "ab" * 32, "--admin-key", str(berlin.state_dir / "identity/admin.key"),
        ok=False,
    )  # fmt: skip
    assert "frozen" in refused.stderr
    found = munich.cli("doctor", ok=False)
    assert found.returncode == 1
    assert "trust log fork" in found.stdout
    assert "atoll trust mend --keep" in found.stdout
    assert {trust(site)["head"] for site in standing} == {trust(berlin)["head"]}
    berlin.cli("trust", "mend", "--keep", "2",
               "--passphrase-file", str(berlin.folder / "passphrase"))  # fmt: skip
    wait_for(
        lambda: {(trust(site)["head"], trust(site)["forked_at"]) for site in standing}
        == {(trust(berlin)["head"], None)},
        20, "mended everywhere", standing,
    )  # fmt: skip
    munich.kill()
    munich.start().wait_ready()
    assert trust(munich)["height"] == 3
    assert [row["name"] for row in munich.get("/1/trust")["revoked"]] == ["rome"]


def test_a_site_that_lost_rows_says_so_until_a_member_has_confirmed(cluster: Cluster) -> None:
    berlin, paris = cluster.berlin, cluster.paris
    for number in range(3):
        berlin.cli("site", "revoke", f"{number}{number}" * 32)
    others = [berlin, paris, cluster.munich, cluster.rome]
    wait_for(lambda: all(trust(site)["height"] == 4 for site in others), 20, "all know", others)
    for site in others:
        site.stop()
    with contextlib.closing(sqlite3.connect(paris.state_dir / "atoll.db")) as database, database:
        database.execute("DELETE FROM trust WHERE height = 3")
    paris.start().wait_ready()
    assert trust(paris)["doubt"]
    assert trust(paris)["revoked"] == 2, "what still proves itself is refused"
    assert "may be older than it was" in paris.log()
    berlin.start().wait_ready()
    wait_for(lambda: not trust(paris)["doubt"], 30, "confirmed", [paris, berlin])
    assert trust(paris) == {**trust(berlin)}
    paris.kill()
    paris.start().wait_ready()
    assert (trust(paris)["height"], trust(paris)["doubt"]) == (4, "")
