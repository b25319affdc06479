from pathlib import Path

import pytest

from agent.config.addresses import announced_host, choose, default_route_interface
from agent.foundation.errors import ConfigError

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
docker0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""


def test_the_default_route_with_the_lowest_metric_wins_and_bridges_are_skipped(
    tmp_path: Path,
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/route").write_text(ROUTES)
    assert default_route_interface(tmp_path) == "eth0"


def test_no_routing_table_is_no_default_route(tmp_path: Path) -> None:
    assert default_route_interface(tmp_path) is None
    (tmp_path / "net").mkdir()
    (tmp_path / "net/route").write_bytes(b"\xff\xfe nonsense\nx y z\n")
    assert default_route_interface(tmp_path) is None


def test_the_interface_of_the_default_route_is_announced() -> None:
    addresses = {"eth0": ("192.0.2.1",), "eth1": ("198.51.100.1", "2001:db8::1")}
    assert choose(addresses, "eth1").host == "198.51.100.1"
    assert choose(addresses, None).host == "192.0.2.1"


def test_no_address_is_an_error_that_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"listen\.mesh_host"):
        choose({}, None)


def test_a_named_address_is_announced_as_it_is() -> None:
    assert announced_host("127.0.0.3").host == "127.0.0.3"
