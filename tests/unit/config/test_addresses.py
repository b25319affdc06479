from ipaddress import ip_address
from pathlib import Path

from agent.config.addresses import (
    LOOPBACK,
    announced_host,
    choose,
    default_route_interface,
    usable_addresses,
    wildcards,
)
from agent.drivers.interfaces import Address, Interface

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
docker0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""
ROUTES6 = f"""\
{"0" * 32} 00 {"0" * 32} 00 fe80000000000000000000000000000a 00000400 00000001 00000000 00000003 eth1
{"0" * 32} 00 {"0" * 32} 00 {"0" * 32} ffffffff 00000001 00000000 00200200 lo
fe800000000000000000000000000000 40 {"0" * 32} 00 {"0" * 32} 00000100 00000001 00000000 00000001 eth1
"""


def routes(folder: Path, v4: str = "", v6: str = "") -> Path:
    (folder / "net").mkdir()
    (folder / "net/route").write_text(v4)
    (folder / "net/ipv6_route").write_text(v6)
    return folder


def interface(name: str, *addresses: str) -> Interface:
    return Interface(name, 1, True, tuple(Address(ip_address(text)) for text in addresses))


def test_the_default_route_with_the_lowest_metric_wins_and_bridges_are_skipped(
    tmp_path: Path,
) -> None:
    assert default_route_interface(routes(tmp_path, ROUTES, ROUTES6)) == "eth0"
    assert default_route_interface(tmp_path, denied=("docker*", "eth0")) == "wlan0"


def test_without_an_ipv4_route_the_ipv6_route_counts(tmp_path: Path) -> None:
    assert default_route_interface(routes(tmp_path, "", ROUTES6)) == "eth1"


def test_no_routing_table_is_no_default_route(tmp_path: Path) -> None:
    assert default_route_interface(tmp_path) is None
    (tmp_path / "net").mkdir()
    (tmp_path / "net/route").write_bytes(b"\xff\xfe nonsense\nx y z\n")
    assert default_route_interface(tmp_path) is None


def test_the_interface_of_the_default_route_is_announced_and_the_others_besides() -> None:
    addresses = {"eth0": ("192.0.2.1",), "eth1": ("198.51.100.1", "2001:db8::1")}
    chosen = choose(addresses, "eth1")
    assert chosen.host == "198.51.100.1"
    assert chosen.others == ("2001:db8::1", "192.0.2.1")
    assert chosen.binds == wildcards()
    assert chosen.is_followed
    assert choose(addresses, None).host == "192.0.2.1"
    assert choose(addresses, "eth9").host == "192.0.2.1"


def test_a_site_without_a_network_starts_and_waits_for_one() -> None:
    chosen = choose({}, None)
    assert chosen.host == LOOPBACK
    assert chosen.is_followed
    assert "followed" in chosen.why


def test_a_named_address_is_announced_and_bound_as_it_is() -> None:
    chosen = announced_host("127.0.0.3")
    assert (chosen.host, chosen.binds, chosen.is_followed) == ("127.0.0.3", ("127.0.0.3",), False)


def test_what_means_nothing_to_others_is_not_announced(tmp_path: Path) -> None:
    found = (
        interface("lo", "127.0.0.1"),
        interface("docker0", "172.17.0.1"),
        interface("eth0", "fe80::1", "2001:db8::1", "169.254.3.4"),
        interface("eth1", "fe80::2"),
    )
    assert usable_addresses(found) == {"eth0": ("2001:db8::1", "169.254.3.4")}
    chosen = announced_host("auto", proc=routes(tmp_path, "", ROUTES6), interfaces=found)
    assert chosen.host == "2001:db8::1"
    assert announced_host("auto", proc=tmp_path, denied=(), interfaces=found).host == "172.17.0.1"
