"""The site follows its machine's interfaces; the library for multicast DNS is played here."""

from collections.abc import Coroutine
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, cast

import pytest

from agent.config.read import parse
from agent.daemon import links as links_module
from agent.daemon.links import Links
from agent.drivers.interfaces import Address, Choice, Interface, Watch
from agent.drivers.mdns import Mdns
from agent.site.events import NetworkChanged
from agent.site.site import Site
from agent.wire.records import Endpoint


def interface(name: str, *addresses: str, is_up: bool = True) -> Interface:
    return Interface(name, 1, is_up, tuple(Address(ip_address(text)) for text in addresses))


LO = interface("lo", "127.0.0.1")


@dataclass
class Machine:
    """Stands for the site, its driver, multicast DNS and the kernel."""

    found: tuple[Interface, ...]
    endpoint: Endpoint
    said: list[object] = field(default_factory=list)
    sequence: int = 7

    # --- Site ---
    @property
    def swim(self) -> "Machine":
        return self

    @property
    def record(self) -> "Machine":
        return self

    def feed(self, event: NetworkChanged) -> None:
        self.said.append(event)
        self.endpoint = event.endpoint

    # --- Mdns ---
    async def start(self, choice: Choice, *what: object) -> None:
        self.said.append(("start", [one.name for one in choice.used], *what))

    async def follow(self, choice: Choice, *what: object) -> None:
        self.said.append(("follow", [one.name for one in choice.used], *what))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        with pytest.raises(StopIteration):
            work.send(None)

    def since(self) -> list[object]:
        said, self.said = self.said, []
        return said


def follow(machine: Machine, monkeypatch: pytest.MonkeyPatch, text: str = "") -> Links:
    monkeypatch.setattr(links_module, "read_interfaces", lambda: machine.found)
    monkeypatch.setattr(Watch, "start", lambda _: None)
    links = Links(
        parse(text), cast("Site", machine), cast("Mdns", machine), machine.feed,
        lambda endpoint: machine.said.append(("moved", endpoint.host)), machine.spawn,
    )  # fmt: skip
    links.start()
    return links


def at(host: str) -> Endpoint:
    return Endpoint(host, 7411, 7412)


def test_a_link_that_comes_up_late_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine((LO,), at("127.0.0.1"))
    links = follow(machine, monkeypatch)
    assert machine.since() == [("start", [], at("127.0.0.1"), ("127.0.0.1",), 7)]
    links.look()
    assert machine.since() == [], "nothing has changed"
    machine.found = (LO, interface("eth0", "192.0.2.7", "2001:db8::7"))
    links.look()
    assert machine.since() == [
        NetworkChanged(at("192.0.2.7")),
        ("moved", "192.0.2.7"),
        ("follow", ["eth0"], at("192.0.2.7"), ("192.0.2.7", "2001:db8::7"), 7),
    ]


def test_a_lost_link_keeps_the_last_address_and_the_same_one_again_is_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    up, down = interface("eth0", "192.0.2.7"), interface("eth0", "192.0.2.7", is_up=False)
    machine = Machine((LO, up), at("192.0.2.7"))
    links = follow(machine, monkeypatch)
    machine.since()
    machine.found = (LO, down)
    links.look()
    assert machine.since()[0] == NetworkChanged(at("192.0.2.7"))
    machine.found = (LO, up)
    links.look()
    first, second = machine.since()
    assert first == NetworkChanged(at("192.0.2.7")), "what failed meanwhile is tried again"
    assert second == ("follow", ["eth0"], at("192.0.2.7"), ("192.0.2.7",), 7)


def test_an_address_that_changes_is_told_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine((LO, interface("eth0", "192.0.2.7")), at("192.0.2.7"))
    links = follow(machine, monkeypatch)
    machine.since()
    machine.found = (LO, interface("eth0", "192.0.2.99"))
    links.look()
    assert [one for one in machine.since() if isinstance(one, NetworkChanged)] == [
        NetworkChanged(at("192.0.2.99"))
    ]


def test_container_bridges_are_left_alone_whenever_they_appear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine((LO, interface("eth0", "192.0.2.7")), at("192.0.2.7"))
    links = follow(machine, monkeypatch)
    machine.since()
    machine.found = (*machine.found, interface("docker0", "172.17.0.1"))
    links.look()
    told = machine.since()
    assert all("172.17.0.1" not in str(one) for one in told)
    assert ("docker0", "denied by 'docker*'") in links.choice.left_out


def test_a_named_address_stays_and_loopback_is_used_only_for_a_site_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine((LO, interface("eth0", "192.0.2.7")), at("127.0.0.9"))
    links = follow(machine, monkeypatch, '[listen]\nmesh_host = "127.0.0.9"')
    assert machine.since() == [("start", ["lo"], at("127.0.0.9"), ("127.0.0.9",), 7)]
    machine.found = (LO, interface("eth0", "192.0.2.99"))
    links.look()
    assert not [one for one in machine.since() if "moved" in str(one)]
    assert machine.endpoint == at("127.0.0.9")


def test_only_addresses_of_the_interfaces_in_use_are_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = (LO, interface("eth0", "192.0.2.7"), interface("eth1", "198.51.100.7"))
    machine = Machine(found, at("192.0.2.7"))
    follow(machine, monkeypatch, '[discovery]\ninterfaces = ["eth0"]')
    assert machine.since() == [("start", ["eth0"], at("192.0.2.7"), ("192.0.2.7",), 7)]
