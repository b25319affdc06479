"""Certificates that end within the test: renewed in time, late, by themselves, and without a pause."""

import contextlib
import json
import sqlite3
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
from daemon_cluster import Daemon, found, running, scratch, token_for, wait_for
from serving_site import MAGIKA

from agent.drivers import keystore
from agent.identity.certificates import issue_site, read_passport
from agent.wire.records import Passport
from agent.wire.schema import unpack

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]


def let_end(hub: Daemon, site: Daemon) -> None:
    """Give ``site`` (both are stopped) a certificate that ended half an hour ago; its next live 60 s."""
    issuer, keys = (
        keystore.load(hub.state_dir / "identity"),
        keystore.load(site.state_dir / "identity"),
    )
    assert issuer.issuer is not None
    claims = replace(keys.identity.claims, life_s=60)
    now = datetime.now(UTC) - timedelta(minutes=30)
    leaf = issue_site(issuer.issuer, keys.identity.public_key, claims, now)
    keystore.store_chain(keys, (leaf, issuer.issuer.certificate))


def certificate(site: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = site.get("/1/status")["certificate"]
    return found


def is_live(site: Daemon) -> bool:
    with urllib.request.urlopen(f"http://{site.http}/v2/health/live", timeout=5) as answer:
        return bool(answer.status == 200)


class Asking:
    """Asks a site's endpoint without a pause; remembers every answer that is not what it should be."""

    def __init__(self, site: Daemon, model: str, served_by: str) -> None:
        self._url = f"http://{site.http}/v2/models/{model}/infer"
        self._served_by = served_by
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.troubles: list[str] = []
        self.answers = 0

    def once(self) -> bool:
        """Whether the right site answers."""
        tensor = {"name": "bytes", "shape": [1, 2048], "datatype": "INT32", "data": [0] * 2048}
        body = json.dumps({"inputs": [tensor]}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bool(answer.headers["Atoll-Served-By"] == self._served_by)

    def _run(self) -> None:
        while not self._is_over.wait(0.05):
            try:
                assert self.once()
                self.answers += 1
            except urllib.error.HTTPError as error:
                self.troubles.append(f"{error} {error.read()[:300]!r}")
            except (OSError, AssertionError) as error:
                self.troubles.append(f"{datetime.now(UTC):%H:%M:%S} {error!r}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def test_short_lived_certificates_are_renewed_again_and_again_and_no_request_fails() -> None:
    with scratch() as folder:
        hub = found(folder, "berlin")
        with running(hub):
            hub.start().wait_ready()
            paris = Daemon(folder, "paris")
            paris.cli("join", token_for(hub, "paris", "FR", "--life", "30s"))
            with running(paris):
                renewed_without_a_pause(hub, paris.start().wait_ready())


def renewed_without_a_pause(hub: Daemon, paris: Daemon) -> None:
    both = {"berlin", "paris"}
    wait_for(lambda: hub.alive() == paris.alive() == both, 20, "met", [hub, paris])
    hub.cli("model", "push", str(MAGIKA), "--name", "one", "--version", "1")
    hub.cli("model", "push", str(MAGIKA), "--name", "two", "--version", "1", "--sites", "paris")
    there, back = Asking(paris, "one", "berlin"), Asking(hub, "two", "paris")
    wait_for(there.once, 20, "paris asks berlin", [hub, paris])
    wait_for(back.once, 20, "berlin asks paris", [hub, paris])
    first = certificate(paris)
    with there, back:
        wait_for(
            lambda: certificate(paris)["begins_at"] >= first["begins_at"] + 32,
            90, "renewed past the first one's end", [paris, hub],
        )  # fmt: skip
    assert there.troubles + back.troubles == [], paris.log()[-3000:] + hub.log()[-3000:]
    assert min(there.answers, back.answers) > 50
    assert certificate(paris)["renewed_by"] == "berlin"
    assert hub.alive() == paris.alive() == both
    text = paris.cli("status").stdout
    assert "certificate" in text
    for site in (hub, paris):
        site.stop()
        assert "Traceback" not in site.log(), site.log()
    # The hub's peer book holds a renewed passport: after a restart it is still believed.
    assert passport_ends(hub) > first["expires_at"]


def passport_ends(site: Daemon) -> float:
    """When the newest passport in the peer book of a stopped site ends."""
    database = sqlite3.connect(f"file:{site.state_dir / 'atoll.db'}?mode=ro", uri=True)
    with contextlib.closing(database):
        rows = [row[0] for row in database.execute("SELECT passport FROM peers")]
    root = keystore.load(site.state_dir / "identity").root
    ends = [read_passport(unpack(Passport, row), root).not_after for row in rows]
    return max(end.timestamp() for end in ends)


def test_an_ended_certificate_serves_local_applications_and_heals_itself() -> None:
    with scratch() as folder:
        hub = found(folder, "berlin")
        with running(hub):
            hub.start().wait_ready()
            paris = Daemon(folder, "paris")
            paris.cli("join", token_for(hub, "paris", "FR"))
            with running(paris):
                ended_and_healed(hub, paris)


def ended_and_healed(hub: Daemon, paris: Daemon) -> None:
    paris.start().wait_ready()
    both = {"berlin", "paris"}
    wait_for(lambda: hub.alive() == paris.alive() == both, 20, "met", [hub, paris])
    paris.stop()
    hub.stop()
    let_end(hub, paris)
    paris.start().wait_ready()
    assert is_live(paris)
    status = paris.get("/1/status")
    assert "certificate ended" in status["certificate"]["problem"]
    assert any("certificate ended" in reason for reason in status["reasons"])
    checks = {row["check"]: row for row in paris.get("/1/doctor")["checks"]}
    assert not checks["renewal"]["ok"]
    told = paris.cli("renew", ok=False)
    assert told.returncode == 1
    assert f"{hub.host}:7411: it does not answer" in told.stderr, told.stderr
    hub.start().wait_ready()
    wait_for(lambda: not certificate(paris)["problem"], 70, "renewed by itself", [paris, hub])
    wait_for(lambda: hub.alive() == paris.alive() == both, 40, "back", [hub, paris])
    assert certificate(paris)["expires_at"] > datetime.now(UTC).timestamp()
    assert "good until" in paris.cli("renew").stdout


def test_an_issuer_whose_own_certificate_has_ended_certifies_itself() -> None:
    with scratch() as folder:
        hub = found(folder, "berlin")
        let_end(hub, hub)
        with running(hub):
            hub.start().wait_ready()
            wait_for(lambda: not certificate(hub)["problem"], 20, "renewed", [hub])
            assert certificate(hub)["renewed_by"] == "this site itself"
            assert hub.get("/1/status")["state"] == "ready"


def test_a_member_that_is_no_issuer_says_where_one_is() -> None:
    """A site that was away knows one member's address only, and that is not an issuer's."""
    with scratch() as folder:
        hub = found(folder, "berlin")
        with running(hub):
            hub.start().wait_ready()
            rome, paris = Daemon(folder, "rome"), Daemon(folder, "paris")
            with running(rome, paris):
                for site in (rome, paris):
                    site.cli("join", token_for(hub, site.name, "FR"))
                rome.start().wait_ready()
                wait_for(lambda: rome.alive() == {"berlin", "rome"}, 20, "met", [hub, rome])
                paris.forget_the_tokens_addresses()
                paris.configure(f'[discovery]\nmdns = false\nseeds = ["{rome.host}:7411"]')
                hub.stop()
                let_end(hub, paris)
                hub.start().wait_ready()
                wait_for(lambda: rome.alive() == {"berlin", "rome"}, 40, "met", [hub, rome])
                paris.start().wait_ready()
                wait_for(lambda: not certificate(paris)["problem"], 60, "renewed", [paris, rome])
                berlin = keystore.load(hub.state_dir / "identity").site
                assert certificate(paris)["renewed_by"] == berlin.hex()[:8]
