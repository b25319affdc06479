"""``agent.cli.trust_changes``: revoke, add and remove issuers, mend; on line and with files."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.api.admin import AdminServer
from agent.api.trust import Json, report, routes
from agent.drivers import keystore
from agent.drivers.clock import wall
from agent.drivers.keystore import SiteKeys
from agent.foundation.errors import AtollError, NotFound
from agent.foundation.ids import SiteId
from agent.identity.certificates import issue_site, key_id, site_id
from agent.identity.issuing import make_issuer_request
from agent.identity.trust import TrustLog
from agent.identity.trust_signing import sign_revocation
from agent.wire.records import Passport
from agent.wire.schema import pack

if TYPE_CHECKING:
    from conftest import CannedSite, LoopThread, Outcome

PASS = "correct horse battery"


class Desk:
    """The trust log of berlin, and the member paris that may be made an issuer."""

    def __init__(self, keys: SiteKeys) -> None:
        self.keys = keys
        self.log = TrustLog(keys.cluster)
        for entry in keys.trust:
            self.log.append(entry)
        self.private, self.issuer_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self.paris = site_id(self.private.public_key())
        self.meanwhile: list[bytes] = []
        """Entries that somebody else brings in before the next one is taken."""

    @property
    def berlin(self) -> SiteId:
        return self.keys.site

    def trust(self) -> Json:
        issuer = self.keys.identity.issuer.hex()
        rows = [
            {"id": site.hex(), "name": name, "issuer": issuer, "self": site == self.berlin}
            for site, name in ((self.berlin, "berlin"), (self.paris, "paris"))
        ]
        names: dict[bytes, str] = {self.berlin: "berlin", self.paris: "paris"}
        found = report(self.log, names, {self.keys.identity.issuer: ["berlin", "paris"]})
        return {**found, "sites": rows, "own_issuer": issuer}

    def trust_entries(self) -> tuple[bytes, ...]:
        return self.log.entries()

    async def submit_trust(self, entries: Sequence[bytes]) -> list[str]:
        while self.meanwhile:
            self.log.submit(self.meanwhile.pop(0))
        reasons = []
        for entry in entries:
            try:
                self.log.submit(entry)
                reasons.append("")
            except AtollError as error:
                reasons.append(str(error))
        return reasons

    async def issuer_request(self, site: SiteId | None) -> bytes:
        if site not in (None, self.paris):
            raise NotFound("no member is known here")
        from dataclasses import replace  # noqa: PLC0415

        claims = replace(self.keys.identity.claims, name="paris")
        issuer = self.keys.issuer
        assert issuer is not None
        leaf = issue_site(issuer, self.private.public_key(), claims, wall())
        passport = Passport((leaf, issuer.certificate))
        return pack(make_issuer_request(passport, self.private, self.issuer_key, wall()))


@pytest.fixture
def desk(founded: Path) -> Desk:
    return Desk(keystore.load(founded.parent / "state" / "identity"))


Run = Callable[..., "Outcome"]


@pytest.fixture
def run(
    desk: Desk, canned: "CannedSite", loop_thread: "LoopThread", bare: Run, founded: Path,
    tmp_path: Path,
) -> Iterator[Run]:  # fmt: skip
    """The command line, asking a site with this desk; settings and keys are berlin's."""
    path = tmp_path / "desk.sock"
    server = loop_thread.run(AdminServer.start(canned, path, routes(desk)))
    yield lambda *words: bare("--socket", path, "--config", founded, *words)
    loop_thread.run(server.close())


@pytest.fixture
def root(tmp_path: Path) -> tuple[object, ...]:
    file = tmp_path / "pass"
    file.write_text(f"{PASS}\n")
    return ("--passphrase-file", file)


def revoked(desk: Desk, site: SiteId) -> bytes:
    assert desk.keys.admin is not None
    return sign_revocation(desk.log, site, "", desk.keys.admin, wall())


def test_a_site_is_revoked_by_name_with_the_admin_key(run: Run, desk: Desk) -> None:
    done = run("site", "revoke", "paris", "--reason", "its disk was stolen")
    assert done.code == 0, done.err
    assert desk.log.revoked() == {desk.paris}
    assert desk.log.reasons()[desk.paris] == "its disk was stolen"
    assert "paris" in done.out
    shown = run("trust")
    assert "its disk was stolen" in shown.out
    assert "already" in run("site", "revoke", "paris").out
    assert desk.log.height == 2


def test_a_site_is_revoked_by_the_beginning_of_its_id_or_all_of_it(run: Run, desk: Desk) -> None:
    assert run("site", "revoke", desk.paris.hex()[:10]).code == 0
    stranger = "ab" * 32
    told = json.loads(run("--json", "site", "revoke", stranger).out)
    assert told["site"] == stranger
    assert desk.log.revoked() == {desk.paris, bytes.fromhex(stranger)}
    assert "no site lima" in run("site", "revoke", "lima").err


def test_ones_own_site_is_revoked_only_if_that_is_meant(run: Run, desk: Desk) -> None:
    done = run("site", "revoke", "berlin")
    assert done.code == 1
    assert "this very site" in done.err
    done = run("site", "revoke", "berlin", "--yes")
    assert desk.log.revoked() == {desk.berlin}
    assert "atoll issuer remove" in done.out, "its issuer key still works"


def test_somebody_elses_change_in_between_is_signed_upon(run: Run, desk: Desk) -> None:
    desk.meanwhile = [revoked(desk, SiteId(b"\1" * 32))]
    assert run("site", "revoke", "paris").code == 0
    assert desk.log.revoked() == {b"\1" * 32, desk.paris}
    assert desk.log.fork is None


def test_a_member_becomes_an_issuer_with_one_command(
    run: Run, desk: Desk, root: tuple[object, ...]
) -> None:
    done = run("issuer", "add", "paris", *root)
    assert done.code == 0, done.err
    identifier = key_id(desk.issuer_key.public_key())
    assert desk.log.holders()[identifier].site == desk.paris
    assert "paris" in run("trust").out


def test_an_issuer_is_removed_only_by_who_accepts_what_follows(
    run: Run, desk: Desk, root: tuple[object, ...]
) -> None:
    warned = run("issuer", "remove", "berlin", *root)
    assert warned.code == 1
    for text in ("berlin, paris", "last issuer", "--yes", "atoll token create"):
        assert text in warned.err
    assert desk.log.height == 1
    done = run("--json", "issuer", "remove", "berlin", "--yes", *root)
    assert json.loads(done.out)["locked_out"] == ["berlin", "paris"]
    assert desk.keys.identity.issuer in desk.log.revoked()


def test_an_issuer_without_sites_goes_without_a_question(
    run: Run, desk: Desk, root: tuple[object, ...]
) -> None:
    run("issuer", "add", "paris", *root)
    assert run("issuer", "remove", "paris", *root).code == 0
    assert len(desk.log.issuers()) == 1
    again = run("issuer", "add", "paris", *root)
    assert again.code == 1
    assert "never comes back" in again.err


def test_the_root_key_may_be_where_no_agent_is(
    run: Run, bare: Run, desk: Desk, root: tuple[object, ...], tmp_path: Path, founded: Path
) -> None:
    asked, signed, log = (tmp_path / name for name in ("asked", "signed", "log"))
    assert run("issuer", "request", "--out", asked).code == 0
    operator = founded.parent / "state/identity/operator/root.key"
    far = ("--socket", tmp_path / "nobody.sock")
    key = ("--root-key", operator, *root)
    done = bare(*far, "issuer", "add", "--request", asked, "--out", signed, *key)
    assert done.code == 0, done.err
    assert "atoll trust import" in done.out
    assert run("trust", "import", signed).code == 0
    assert len(desk.log.issuers()) == 2
    assert run("trust", "export", "--out", log).code == 0
    done = bare(*far, "issuer", "remove", "paris", "--log", log, "--out", signed, *key)
    assert done.code == 0, done.err
    desk.meanwhile = [revoked(desk, SiteId(b"\1" * 32))]
    late = run("trust", "import", signed)
    assert late.code == 1
    assert "export, sign and import again" in late.err
    assert desk.log.fork is None
    wrong = bare(*far, "issuer", "remove", "paris", "--log", signed, *key)
    assert "is not a file of kind" in wrong.err


def test_a_fork_is_shown_and_mended(run: Run, desk: Desk, root: tuple[object, ...]) -> None:
    assert "not forked" in run("trust", "mend", "--keep", "1", *root).err
    one, other = revoked(desk, SiteId(b"\1" * 32)), revoked(desk, SiteId(b"\2" * 32))
    desk.log.append(one)
    desk.log.append(other)
    shown = run("trust").out
    assert "FORKED    at height 2" in shown
    assert "branch 2" in shown
    refused = run("site", "revoke", "paris")
    assert refused.code == 1
    assert "atoll trust mend" in refused.err
    assert "no branch 3" in run("trust", "mend", "--keep", "3", *root).err
    done = run("trust", "mend", "--keep", "2", *root)
    assert done.code == 0, done.err
    assert desk.log.fork is None
    assert desk.log.revoked() == {b"\1" * 32, b"\2" * 32}
    assert run("site", "revoke", "paris").code == 0


def test_a_wrong_passphrase_and_a_missing_root_key_are_told(
    run: Run, tmp_path: Path, root: tuple[object, ...]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not this one\n")
    assert "does not open" in run("issuer", "add", "paris", "--passphrase-file", wrong).err
    missing = run("issuer", "add", "paris", "--root-key", tmp_path / "none.key", *root)
    assert "there is no root key" in missing.err
    assert "atoll trust export" in missing.err
    assert "which site?" in run("issuer", "add", *root).err


def test_a_site_that_tells_nonsense_is_not_signed_for(run: Run, desk: Desk) -> None:
    desk.trust_entries = lambda: (b"noise",)  # type: ignore[method-assign]
    assert run("site", "revoke", "paris").code == 1
    desk.trust_entries = tuple  # type: ignore[method-assign]
    assert "no genesis" in run("site", "revoke", "paris").err
