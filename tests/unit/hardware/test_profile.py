from pathlib import Path

import pytest

from agent.foundation.errors import ConfigError
from agent.hardware.profile import load_profiles, parse_profile, shipped_dir

HEAD = 'schema = 1\nname = "a"\ntitle = "A"\n'


def test_every_shipped_profile_is_valid_and_named_like_its_file() -> None:
    names = {profile.name for profile in load_profiles([shipped_dir()])}
    assert names == {path.stem for path in shipped_dir().glob("*.toml")}
    assert {"generic", "jetson-orin-nx-16g", "raspberry-pi-5-8g", "x86-server-nvidia-l4"} <= names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('schema = 2\nname = "generic"\ntitle = ""', "must be from 1 to 1"),
        ('name = "generic"\ntitle = ""', "has no schema"),
        (HEAD, "match is empty"),
        (HEAD + '[match]\npci_ids = ["10DE:27B8"]', "like '10de:27b8'"),
        (HEAD + "[match]\ngpus = 1", "did you mean 'gpus_min'"),
        (HEAD + '[match]\ngpus_min = 1\n[inference]\nproviders = ["cuda"]', "execution provider"),
        (HEAD + "[match]\ngpus_min = 1\n[inference]\nproviders = []", "name at least one"),
        (
            HEAD + "[match]\ngpus_min=1\n[thermal]\nzones=[]\nwarn_c=90\nthrottle_c=80\nstop_c=95",
            "warn_c < throttle_c < stop_c",
        ),
        (HEAD + "[match]\ngpus_min=1\n[baseline.bios]\nmin='1'", "baseline.bios has no fact"),
    ],
)
def test_a_wrong_profile_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_profile(text, "a.toml")
    assert expected in str(caught.value)


def test_the_operators_profile_replaces_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('schema = 1\nname = "generic"\ntitle = "Mine"\n')
    profiles = load_profiles([shipped_dir(), tmp_path])
    assert next(one for one in profiles if one.name == "generic").title == "Mine"


def test_one_name_twice_in_a_folder_is_refused_with_both_files(tmp_path: Path) -> None:
    for file in ("a.toml", "b.toml"):
        (tmp_path / file).write_text('schema = 1\nname = "generic"\ntitle = "X"\n')
    with pytest.raises(ConfigError, match=r"a\.toml and .*b\.toml"):
        load_profiles([tmp_path])


def test_a_missing_folder_and_an_unreadable_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        load_profiles([tmp_path / "none"])
    (tmp_path / "a.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profiles([tmp_path])
