"""``agent.cli.trust_admins``: admin keys and the vocabulary, changed with the root key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from trust_desk import Desk

from agent.identity.certificates import key_id

if TYPE_CHECKING:
    from conftest import Outcome

Run = Callable[..., "Outcome"]


def test_a_second_admin_signs_with_a_key_that_never_left_its_place(
    at_desk: Run, desk: Desk, root_pass: tuple[object, ...], tmp_path: Path
) -> None:
    file = tmp_path / "second.key"
    told = json.loads(at_desk("--json", "admin", "key", "--out", file).out)
    assert file.stat().st_mode & 0o777 == 0o600
    early = at_desk("site", "revoke", "paris", "--admin-key", file)
    assert early.code == 1
    done = at_desk("admin", "add", told["public"], *root_pass)
    assert done.code == 0, done.err
    assert {key.hex() for key in desk.log.admins()} >= {told["admin"]}
    assert at_desk("site", "revoke", "paris", "--admin-key", file).code == 0
    assert desk.log.revoked() == {desk.paris}
    assert told["admin"][:8] in at_desk("trust").out
    height = desk.log.height
    assert "already" in at_desk("admin", "add", told["public"], *root_pass).out
    assert desk.log.height == height


def test_a_key_file_is_never_overwritten(at_desk: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.key"
    file.write_text("precious")
    done = at_desk("admin", "key", "--out", file)
    assert done.code == 1
    assert "is there already" in done.err
    assert file.read_text() == "precious"
    assert at_desk("admin", "key", "--out", tmp_path / "none" / "a.key").code == 1


def test_the_last_admin_goes_only_if_that_is_meant(
    at_desk: Run, desk: Desk, root_pass: tuple[object, ...], tmp_path: Path
) -> None:
    assert desk.keys.admin is not None
    first = key_id(desk.keys.admin.public_key()).hex()
    warned = at_desk("admin", "remove", first[:8], *root_pass)
    assert warned.code == 1
    assert "last admin" in warned.err
    told = json.loads(at_desk("--json", "admin", "key", "--out", tmp_path / "b.key").out)
    assert at_desk("admin", "add", told["public"], *root_pass).code == 0
    assert at_desk("admin", "remove", first[:12], *root_pass).code == 0
    assert {key.hex() for key in desk.log.admins()} == {told["admin"]}
    refused = at_desk("site", "revoke", "paris")
    assert refused.code == 1, "the removed one signs nothing more"
    assert at_desk("admin", "remove", told["admin"], "--yes", *root_pass).code == 0
    assert not desk.log.admins()


@pytest.mark.parametrize("key", ["", "zz" * 32, "ab" * 31, "ab" * 33])
def test_what_is_no_public_key_is_refused_by_name(
    at_desk: Run, root_pass: tuple[object, ...], key: str
) -> None:
    done = at_desk("admin", "add", key, *root_pass)
    assert done.code == 1
    assert "atoll admin key" in done.err
    assert "no admin abcdef12" in at_desk("admin", "remove", "abcdef12", *root_pass).err


def test_the_vocabulary_is_replaced_and_opened(
    at_desk: Run, desk: Desk, root_pass: tuple[object, ...]
) -> None:
    assert at_desk("trust", "jurisdictions", "DE,FR", *root_pass).code == 0
    assert list(desk.log.jurisdictions) == ["DE", "FR"]
    assert "FR" in at_desk("trust").out
    assert at_desk("trust", "jurisdictions", "any", *root_pass).code == 0
    assert list(desk.log.jurisdictions) == []
    assert at_desk("trust", "jurisdictions", "not a label", *root_pass).code == 2


def test_groups_are_set_by_their_members_or_by_a_known_name(
    at_desk: Run, desk: Desk, root_pass: tuple[object, ...]
) -> None:
    assert at_desk("trust", "group", "NORDIC", "DK,SE,FI", *root_pass).code == 0
    assert at_desk("trust", "group", "EEA", *root_pass).code == 0
    assert [group.name for group in desk.log.groups] == ["EEA", "NORDIC"]
    assert desk.log.groups[1].members == ("DK", "FI", "SE")
    assert len(desk.log.groups[0].members) == 30
    shown = at_desk("trust")
    assert "group     NORDIC = DK, FI, SE" in shown.out
    assert at_desk("trust", "group", "NORDIC", "none", *root_pass).code == 0
    assert [group.name for group in desk.log.groups] == ["EEA"]
    unknown = at_desk("trust", "group", "ASIA", *root_pass)
    assert unknown.code == 1
    assert "the members of ASIA are not known here" in unknown.err
    assert at_desk("trust", "group", "EU", "EU,DE", *root_pass).code == 1
    assert at_desk("trust", "group", "EU", "not a label", *root_pass).code == 2


def test_the_root_may_sign_it_where_no_agent_is(
    at_desk: Run,
    bare: Run,
    desk: Desk,
    root_pass: tuple[object, ...],
    tmp_path: Path,
    founded: Path,
) -> None:
    log, signed = tmp_path / "log", tmp_path / "signed"
    assert at_desk("trust", "export", "--out", log).code == 0
    operator = founded.parent / "state/identity/operator/root.key"
    far = ("--socket", tmp_path / "nobody.sock")
    done = bare(
        *far, "trust", "jurisdictions", "DE", "--log", log, "--out", signed,
        "--root-key", operator, *root_pass,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert list(desk.log.jurisdictions) == []
    assert at_desk("trust", "import", signed).code == 0
    assert list(desk.log.jurisdictions) == ["DE"]
