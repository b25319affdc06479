"""Interfaces: which are used, which are not and why, and that changes are told."""

import asyncio
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.drivers.interfaces import (
    SPACING_S,
    Address,
    Interface,
    Watch,
    _ipv6_flags,
    choose_interfaces,
    read_interfaces,
)


def interface(name: str, *addresses: str, is_up: bool = True) -> Interface:
    return Interface(name, 1, is_up, tuple(Address(ip_address(text)) for text in addresses))


FOUND = (
    interface("lo", "127.0.0.1", "::1"),
    interface("eth0", "fe80::1", "2001:db8::1", "192.0.2.1"),
    interface("eth1", "198.51.100.1", is_up=False),
    interface("docker0", "172.17.0.1"),
    interface("wlan0"),
)


def used(*allowed: str, denied: tuple[str, ...] = ("docker*",)) -> list[str]:
    return [one.name for one in choose_interfaces(FOUND, allowed, denied).used]


def test_all_but_loopback_denied_ones_and_those_that_are_down_are_used() -> None:
    choice = choose_interfaces(FOUND, (), ("docker*",))
    assert [one.name for one in choice.used] == ["eth0"]
    reasons = dict(choice.left_out)
    assert reasons["lo"].startswith("loopback")
    assert reasons["eth1"] == "its link is down"
    assert "'docker*'" in reasons["docker0"]
    assert reasons["wlan0"] == "it has no address"


def test_interfaces_are_named_by_name_pattern_or_address_and_denial_wins() -> None:
    assert used("eth0") == used("eth*") == used("192.0.2.1") == used("2001:db8::1") == ["eth0"]
    assert used("127.3.2.1") == ["lo"]
    assert used("docker0") == []
    assert used("docker0", denied=()) == ["docker0"]
    assert used("eth0", denied=("192.0.2.1",)) == []
    missing = choose_interfaces(FOUND, ("eth7",), ())
    assert ("eth7", "no interface has this name or address") in missing.left_out


def test_the_best_address_comes_first_and_one_that_is_not_proven_unique_not_at_all() -> None:
    assert [str(one.ip) for one in FOUND[1].usable] == ["192.0.2.1", "2001:db8::1", "fe80::1"]
    lasting, passing = (
        Address(ip_address("2001:db8::2")),
        Address(ip_address("2001:db8::3"), "", True),
    )
    tentative = Address(ip_address("2001:db8::4"), "the kernel is still checking")
    both = Interface("eth0", 1, True, (passing, tentative, lasting))
    assert both.usable == (lasting, passing)
    only = Interface("eth0", 1, True, (tentative,))
    assert choose_interfaces([only]).left_out == (("eth0", "the kernel is still checking"),)


def test_this_machine_has_loopback_and_the_kernels_flags_are_read(tmp_path: Path) -> None:
    assert any(one.is_loopback and one.is_up for one in read_interfaces())
    (tmp_path / "net").mkdir()
    (tmp_path / "net/if_inet6").write_text(
        "fe800000000000000000000000000001 02 40 20 40   eth0\nnonsense\nzz 1 2 3 4 5\n"
    )
    assert _ipv6_flags(tmp_path) == {("eth0", ip_address("fe80::1")): 0x40}
    assert _ipv6_flags(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("flags", "why"),
    [("40", "checking"), ("08", "another host"), ("20", "withdrawn"), ("01", ""), ("80", "")],
)
def test_an_address_that_nobody_can_connect_to_says_why(
    flags: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "net").mkdir()
    line = f"{'0' * 31}1 01 80 10 {flags}   lo\n"
    (tmp_path / "net/if_inet6").write_text(line)
    (lo,) = [one for one in read_interfaces(tmp_path) if one.is_loopback]
    six = [address for address in lo.addresses if address.ip.version == 6]
    for address in six:
        assert why in address.why_not
        assert bool(why) == bool(address.why_not)
        assert address.is_temporary == (flags == "01")


class Kernel:
    """Stands for the netlink socket: a byte is a message."""

    def __init__(self) -> None:
        self.ours, self.kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)


async def test_many_messages_of_the_kernel_are_one_call_and_no_two_calls_follow_closely() -> None:
    told: asyncio.Queue[float] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    watch, kernel = Watch(lambda: told.put_nowait(loop.time())), Kernel()
    watch._socket = kernel.ours
    loop.add_reader(kernel.ours.fileno(), watch._readable)
    try:
        async with asyncio.timeout(10):
            times = []
            for _ in range(2):
                for _ in range(100):
                    kernel.kernels.send(b"x")
                    await asyncio.sleep(0)
                times.append(await told.get())
            assert told.empty()
        assert times[1] - times[0] >= SPACING_S * 0.99
    finally:
        watch.close()
        kernel.kernels.close()


async def test_the_kernel_is_asked_to_tell_and_without_it_one_looks_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = Watch(lambda: None)
    watch.start()
    assert not watch.is_polling
    watch.close()
    monkeypatch.delattr(socket, "AF_NETLINK")
    looks: list[int] = []
    poller = Watch(lambda: looks.append(1))
    poller.start()
    assert poller.is_polling
    assert looks == [], "what is there at the start is known"
    poller._poll()
    assert looks == [1]
    poller.close()
