from pathlib import Path

import pytest

from agent.config import SiteSettings, load, parse
from agent.foundation.errors import ConfigError


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "atoll.toml")
    return str(caught.value)


def test_an_empty_file_is_the_defaults() -> None:
    assert parse("") == SiteSettings()


def test_values_are_read_with_their_types() -> None:
    settings = parse(
        """
        [site]
        name = "berlin-1"
        state_dir = "/srv/atoll"
        [listen]
        mesh_host = "127.0.0.2"
        http_port = 8100
        [discovery]
        mdns = false
        seeds = ["192.0.2.1:7411", "[2001:db8::1]:7411", "seed.example:7500"]
        [serving]
        queue_max_s = 2
        [datasets.mnist]
        path = "/srv/mnist"
        jobs = ["digits"]
        """
    )
    assert settings.site.name == "berlin-1"
    assert settings.identity_dir == Path("/srv/atoll/identity")
    assert settings.admin_socket == Path("/srv/atoll/run/agent.sock")
    assert (settings.listen.http_port, settings.listen.mesh_host) == (8100, "127.0.0.2")
    assert settings.seeds == (
        ("192.0.2.1", 7411),
        ("2001:db8::1", 7411),
        ("seed.example", 7500),
    )
    assert settings.serving.queue_max_s == 2.0
    assert settings.datasets["mnist"].jobs == ("digits",)


def test_the_packaged_state_folder_keeps_its_socket_in_run() -> None:
    assert parse("").admin_socket == Path("/run/atoll/agent.sock")


def test_all_problems_are_told_at_once_each_with_its_line() -> None:
    told = refusal(
        '[site]\nnme = "x"\n\n[listen]\nhttp_port = "a"\nmesh_port = 70000\n[servng]\nslots = 1\n'
    )
    assert "4 problems" in told
    assert "line 2: unknown key 'site.nme'; did you mean 'name'?" in told
    assert "line 5: listen.http_port is the text 'a'; it must be a whole number" in told
    assert "line 6: listen.mesh_port is 70000; it must be from 1 to 65535" in told
    assert "line 7: unknown section 'servng'; did you mean 'serving'?" in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("site = 3", "site is a section"),
        ("[site]\nname = 'Berlin'", "lower-case"),
        ("[site]\nname = '../etc'", "lower-case"),
        ("[site]\nstate_dir = 'var'", "absolute"),
        ("[site]\nstate_dir = '/var/../etc'", "without '..'"),
        ("[site]\nstate_dir = ''", "is not a path"),
        ("[discovery]\nmdns = 1", "true or false"),
        ("[discovery]\nseeds = 'a:1'", "must be a list"),
        ("[discovery]\nseeds = ['ok:1', 'nope']", "element 2"),
        ("[listen]\nhttp_port = true", "whole number"),
        ("[listen]\nhttp_port = 8000.0", "whole number"),
        ("[listen]\nhttp_key = '/k.pem'", "http_key needs listen.http_certificate"),
        ("[listen]\nhttp_certificate = '/c.pem'", "http_certificate needs listen.http_key"),
        ("[listen]\nhttp_host = '127.0.0'", "IP address"),
        ("[listen]\nmesh_host = '0.0.0.0'", "no address that can be announced"),
        ("[listen]\ndata_port = 7411", "give each its own"),
        ("[listen]\nhttp_port = 7412", "a port of the mesh"),
        ("[serving]\nqueue_max_s = nan", "must be from 0 to 60"),
        ("[membership]\nlink = 'moon'", "'lan' or 'wan'"),
        ("[datasets.mnist]\njobs = []", "has no path"),
        ("[datasets.MNIST]\npath = '/x'", "datasets: the name is 'MNIST'"),
        ("[datasets]\nmnist = '/x'", "write [datasets.mnist]"),
        ("[hardware]\nprofile = 1979-05-27", "a date or time"),
        ("[site", "not valid TOML"),
        ("[site]\nname = 'a'\nname = 'b'", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_what_to_write(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_the_same_port_on_another_address_is_no_conflict() -> None:
    settings = parse("[listen]\nhttp_host='127.0.0.1'\nhttp_port=7411\nmesh_host='127.0.0.2'")
    assert settings.listen.http_port == 7411


def test_a_socket_path_longer_than_linux_takes_is_refused() -> None:
    told = refusal(f"[site]\nstate_dir = '/{'d' * 100}'")
    assert "line 2: the admin socket" in told
    assert "runtime_dir" in told


def test_a_thousand_problems_are_cut_short() -> None:
    told = refusal("".join(f"wrong{number} = 1\n" for number in range(1000)))
    assert "1000 problems" in told
    assert "... and 950 more" in told


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="atoll init"):
        load(tmp_path / "atoll.toml")


def test_a_folder_a_long_file_and_latin_1_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
    file = tmp_path / "atoll.toml"
    file.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="too long"):
        load(file)
    file.write_bytes(b"[site]\n# M\xfcnchen\n")
    with pytest.raises(ConfigError, match="line 2 is not UTF-8"):
        load(file)
