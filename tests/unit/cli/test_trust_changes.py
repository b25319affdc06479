"""``agent.cli.trust_changes``: revoke, add and remove issuers, mend; on line and with files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trust_desk import Desk

from agent.drivers.clock import wall
from agent.foundation.ids import SiteId
from agent.identity.certificates import key_id
from agent.identity.trust_signing import sign_revocation

if TYPE_CHECKING:
    from conftest import Outcome

Run = Callable[..., "Outcome"]


def revoked(desk: Desk, site: SiteId) -> bytes:
    assert desk.keys.admin is not None
    return sign_revocation(desk.log, site, "", desk.keys.admin, wall())


def test_a_site_is_revoked_by_name_with_the_admin_key(at_desk: Run, desk: Desk) -> None:
    done = at_desk("site", "revoke", "paris", "--reason", "its disk was stolen")
    assert done.code == 0, done.err
    assert desk.log.revoked() == {desk.paris}
    assert desk.log.reasons()[desk.paris] == "its disk was stolen"
    assert "paris" in done.out
    shown = at_desk("trust")
    assert "its disk was stolen" in shown.out
    assert "already" in at_desk("site", "revoke", "paris").out
    assert desk.log.height == 2


def test_a_site_is_revoked_by_the_beginning_of_its_id_or_all_of_it(
    at_desk: Run, desk: Desk
) -> None:
    assert at_desk("site", "revoke", desk.paris.hex()[:10]).code == 0
    stranger = "ab" * 32
    told = json.loads(at_desk("--json", "site", "revoke", stranger).out)
    assert told["site"] == stranger
    assert desk.log.revoked() == {desk.paris, bytes.fromhex(stranger)}
    assert "no site lima" in at_desk("site", "revoke", "lima").err


def test_ones_own_site_is_revoked_only_if_that_is_meant(at_desk: Run, desk: Desk) -> None:
    done = at_desk("site", "revoke", "berlin")
    assert done.code == 1
    assert "this very site" in done.err
    done = at_desk("site", "revoke", "berlin", "--yes")
    assert desk.log.revoked() == {desk.berlin}
    assert "atoll issuer remove" in done.out, "its issuer key still works"


def test_somebody_elses_change_in_between_is_signed_upon(at_desk: Run, desk: Desk) -> None:
    desk.meanwhile = [revoked(desk, SiteId(b"\1" * 32))]
    assert at_desk("site", "revoke", "paris").code == 0
    assert desk.log.revoked() == {b"\1" * 32, desk.paris}
    assert desk.log.fork is None


def test_a_member_becomes_an_issuer_with_one_command(
    at_desk: Run, desk: Desk, root_pass: tuple[object, ...]
) -> None:
    done = at_desk("issuer", "add", "paris", *root_pass)
    assert done.code == 0, done.err
    identifier = key_id(desk.issuer_key.public_key())
    assert desk.log.holders()[identifier].site == desk.paris
    assert "paris" in at_desk("trust").out


def test_an_issuer_is_removed_only_by_who_accepts_what_follows(
    at_desk: Run, desk: Desk, root_pass: tuple[object, ...]
) -> None:
    warned = at_desk("issuer", "remove", "berlin", *root_pass)
    assert warned.code == 1
    for text in ("berlin, paris", "last issuer", "--yes", "atoll token create"):
        assert text in warned.err
    assert desk.log.height == 1
    done = at_desk("--json", "issuer", "remove", "berlin", "--yes", *root_pass)
    assert json.loads(done.out)["locked_out"] == ["berlin", "paris"]
    assert desk.keys.identity.issuer in desk.log.revoked()


def test_an_issuer_without_sites_goes_without_a_question(
    at_desk: Run, desk: Desk, root_pass: tuple[object, ...]
) -> None:
    at_desk("issuer", "add", "paris", *root_pass)
    assert at_desk("issuer", "remove", "paris", *root_pass).code == 0
    assert len(desk.log.issuers()) == 1
    again = at_desk("issuer", "add", "paris", *root_pass)
    assert again.code == 1
    assert "never comes back" in again.err


def test_the_root_key_may_be_where_no_agent_is(
    at_desk: Run,
    bare: Run,
    desk: Desk,
    root_pass: tuple[object, ...],
    tmp_path: Path,
    founded: Path,
) -> None:
    asked, signed, log = (tmp_path / name for name in ("asked", "signed", "log"))
    assert at_desk("issuer", "request", "--out", asked).code == 0
    operator = founded.parent / "state/identity/operator/root.key"
    far = ("--socket", tmp_path / "nobody.sock")
    key = ("--root-key", operator, *root_pass)
    done = bare(*far, "issuer", "add", "--request", asked, "--out", signed, *key)
    assert done.code == 0, done.err
    assert "atoll trust import" in done.out
    assert at_desk("trust", "import", signed).code == 0
    assert len(desk.log.issuers()) == 2
    assert at_desk("trust", "export", "--out", log).code == 0
    done = bare(*far, "issuer", "remove", "paris", "--log", log, "--out", signed, *key)
    assert done.code == 0, done.err
    desk.meanwhile = [revoked(desk, SiteId(b"\1" * 32))]
    late = at_desk("trust", "import", signed)
    assert late.code == 1
    assert "export, sign and import again" in late.err
    assert desk.log.fork is None
    wrong = bare(*far, "issuer", "remove", "paris", "--log", signed, *key)
    assert "is not a file of kind" in wrong.err


def test_a_fork_is_shown_and_mended(
    at_desk: Run, desk: Desk, root_pass: tuple[object, ...]
) -> None:
    assert "not forked" in at_desk("trust", "mend", "--keep", "1", *root_pass).err
    one, other = revoked(desk, SiteId(b"\1" * 32)), revoked(desk, SiteId(b"\2" * 32))
    desk.log.append(one)
    desk.log.append(other)
    shown = at_desk("trust").out
    assert "FORKED    at height 2" in shown
    assert "branch 2" in shown
    refused = at_desk("site", "revoke", "paris")
    assert refused.code == 1
    assert "atoll trust mend" in refused.err
    assert "no branch 3" in at_desk("trust", "mend", "--keep", "3", *root_pass).err
    done = at_desk("trust", "mend", "--keep", "2", *root_pass)
    assert done.code == 0, done.err
    assert desk.log.fork is None
    assert desk.log.revoked() == {b"\1" * 32, b"\2" * 32}
    assert at_desk("site", "revoke", "paris").code == 0


def test_a_wrong_passphrase_and_a_missing_root_key_are_told(
    at_desk: Run, tmp_path: Path, root_pass: tuple[object, ...]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not this one\n")
    assert "does not open" in at_desk("issuer", "add", "paris", "--passphrase-file", wrong).err
    missing = at_desk("issuer", "add", "paris", "--root-key", tmp_path / "none.key", *root_pass)
    assert "there is no root key" in missing.err
    assert "atoll trust export" in missing.err
    assert "which site?" in at_desk("issuer", "add", *root_pass).err


def test_a_site_that_tells_nonsense_is_not_signed_for(at_desk: Run, desk: Desk) -> None:
    desk.trust_entries = lambda: (b"noise",)  # type: ignore[method-assign]
    assert at_desk("site", "revoke", "paris").code == 1
    desk.trust_entries = tuple  # type: ignore[method-assign]
    assert "no genesis" in at_desk("site", "revoke", "paris").err
