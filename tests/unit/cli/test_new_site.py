"""``agent.cli.new_site``: files of a new site belong to the user that runs the agent."""

import os
from pathlib import Path

import pytest

from agent.cli.new_site import adopt
from agent.config.settings import SitePart, SiteSettings

ADMINISTRATOR = os.geteuid() == 0


def settings(folder: Path) -> SiteSettings:
    (folder / "identity" / "operator").mkdir(parents=True)
    (folder / "identity" / "operator" / "root.key").write_text("x")
    (folder / "atoll.db").write_text("x")
    return SiteSettings(site=SitePart(state_dir=folder))


@pytest.mark.skipif(not ADMINISTRATOR, reason="needs root to give files away")
def test_root_gives_all_to_the_owner_of_the_state_folder_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    made = settings(folder)
    (folder / "unrelated").write_text("x")
    os.chown(folder, 12_345, 12_346)
    adopt(made)
    owners = {
        path.relative_to(folder).as_posix(): (path.stat().st_uid, path.stat().st_gid)
        for path in folder.rglob("*")
    }
    assert owners.pop("unrelated") == (0, os.getegid())
    assert set(owners.values()) == {(12_345, 12_346)}
    assert len(owners) == 4


@pytest.mark.skipif(not ADMINISTRATOR, reason="needs root to give files away")
def test_a_link_in_the_folder_gives_nothing_away_elsewhere(tmp_path: Path) -> None:
    made = settings(tmp_path / "state")
    victim = tmp_path / "victim"
    victim.write_text("x")
    (tmp_path / "state" / "identity" / "link").symlink_to(victim)
    os.chown(tmp_path / "state", 12_345, 12_345)
    adopt(made)
    assert victim.stat().st_uid == 0


def test_the_users_own_files_stay_as_they_are(tmp_path: Path) -> None:
    made = settings(tmp_path / "state")
    adopt(made)
    assert (tmp_path / "state" / "atoll.db").stat().st_uid == os.geteuid()
