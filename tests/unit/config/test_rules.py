import pytest

from agent.config.rules import is_host, is_loopback, split_host_port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "a", "seed-1.example.", "x_y.local"])
def test_addresses_and_names_are_hosts(host: str) -> None:
    assert is_host(host)


@pytest.mark.parametrize(
    "host", ["", "1.2.3", "300.1.1.1", "-a", "a..b", "a b", "é", "a/b", "x" * 65, "[::1]"]
)
def test_mistyped_addresses_are_no_hosts(host: str) -> None:
    assert not is_host(host)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:1", ("a", 1)),
        ("[::1]:65535", ("::1", 65_535)),
        ("::1:7411", None),
        ("[a]:1", None),
        ("a:0", None),
        ("a:65536", None),
        ("a:²", None),
        ("a", None),
        (":1", None),
    ],
)
def test_host_and_port_are_split(text: str, expected: tuple[str, int] | None) -> None:
    assert split_host_port(text) == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost."])
def test_loopback_is_what_says_so_itself(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "192.168.1.4", "::ffff:192.168.1.4", "berlin", "localhost.example.org"],
)
def test_anything_else_may_be_reached_from_elsewhere(host: str) -> None:
    assert not is_loopback(host)
