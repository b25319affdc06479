"""Sites in network namespaces on one bridge, whose links can be cut, in one direction or by protocol.

Needs root, iproute2 and nftables; ``packaging/setup.sh`` installs them. Cuts are on *input* of the
receiving namespace, so that the sender learns of them by silence only.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from daemon_cluster import Daemon, make_founder, token_for, wait_for

TOOLS = ("ip", "nft")
PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MISSING = [one for one in TOOLS if shutil.which(one, path=PATHS) is None]
WHY_NOT = "needs root" if os.geteuid() != 0 else f"missing: {', '.join(MISSING)}" * bool(MISSING)
MUST_RUN = os.environ.get("ATOLL_REQUIRE_ALL") == "1"

NEEDS_NAMESPACES = [
    pytest.mark.root,
    pytest.mark.skipif(bool(WHY_NOT) and not MUST_RUN, reason=WHY_NOT),
]


def tool(name: str) -> str:
    path = shutil.which(name, path=PATHS)
    assert path is not None, f"{name} is missing; packaging/setup.sh installs it"
    return path


def run(*words: str, text: str | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, input=text)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


class Network:
    """Namespaces 0..n-1 with addresses ``10.98.0.(1 + index)`` on one bridge."""

    def __init__(self, number: int) -> None:
        self.mark = f"am{os.getpid() % 100_000}"
        self.bridge = f"{self.mark}-br"
        self.number = number

    def space(self, index: int) -> str:
        return f"{self.mark}-{index}"

    def host(self, index: int) -> str:
        return f"10.98.0.{1 + index}"

    def within(self, index: int) -> tuple[str, ...]:
        return (tool("ip"), "netns", "exec", self.space(index))

    def set_up(self, stack: contextlib.ExitStack) -> None:
        ip = tool("ip")
        for space in (self.bridge, *map(self.space, range(self.number))):
            run(ip, "netns", "add", space)
            stack.callback(run, ip, "netns", "del", space)
        run(ip, "-n", self.bridge, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        run(ip, "-n", self.bridge, "link", "set", "br0", "up")
        for index in range(self.number):
            space, port = self.space(index), f"p{index}"
            run(ip, "link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", port,
                "netns", self.bridge)  # fmt: skip
            run(ip, "-n", self.bridge, "link", "set", port, "master", "br0", "up")
            run(ip, "-n", space, "link", "set", "lo", "up")
            self.move(index, self.host(index))
            run(ip, "-n", space, "link", "set", "eth0", "up")

    def move(self, index: int, host: str) -> None:
        """Give a namespace another address, and no other."""
        ip, space = tool("ip"), self.space(index)
        run(ip, "-n", space, "addr", "flush", "dev", "eth0")
        run(ip, "-n", space, "addr", "add", f"{host}/24", "dev", "eth0")

    def link(self, index: int, state: str) -> None:
        """``down``: the site's own network card has no carrier any more; ``up`` again."""
        run(tool("ip"), "-n", self.space(index), "link", "set", "eth0", state)

    def cut(self, rules: Sequence[tuple[int, str]]) -> None:
        """Each rule in the input of its namespace, in place of all former ones."""
        for index in range(self.number):
            mine = "; ".join(rule for where, rule in rules if where == index)
            self._filter(index, mine)

    def _filter(self, index: int, rules: str) -> None:
        script = (
            "add table inet cut\ndelete table inet cut\nadd table inet cut\n"
            "add chain inet cut input { type filter hook input priority 0; }\n"
            + "".join(f"add rule inet cut input {rule}\n" for rule in rules.split("; ") if rule)
        )
        run(*self.within(index), tool("nft"), "-f", "-", text=script)

    def heal(self) -> None:
        self.cut(())

    # --- rules -----------------------------------------------------------------------------------
    def one_way(self, source: int, target: int, what: str = "") -> tuple[int, str]:
        """Nothing (or nothing of ``what``, such as ``udp dport 7411``) comes from one to the other."""
        return target, f"ip saddr {self.host(source)} {what} drop".replace("  ", " ")

    def between(self, one: int, other: int, what: str = "") -> list[tuple[int, str]]:
        return [self.one_way(one, other, what), self.one_way(other, one, what)]

    def apart(self, some: Sequence[int], rest: Sequence[int]) -> list[tuple[int, str]]:
        """No packet between the two sides."""
        return [rule for one in some for other in rest for rule in self.between(one, other)]

    def lossy(self, percent: int) -> list[tuple[int, str]]:
        """Each datagram is lost with this chance."""
        rule = f"meta l4proto udp numgen random mod 100 < {percent} drop"
        return [(index, rule) for index in range(self.number)]


@contextlib.contextmanager
def network(number: int) -> Iterator[Network]:
    """Namespaces that are gone in the end."""
    assert not WHY_NOT, WHY_NOT
    made = Network(number)
    with contextlib.ExitStack() as stack:
        made.set_up(stack)
        yield made


def settings(net: Network) -> str:
    """They find each other by their seeds."""
    seeds = ", ".join(f'"{net.host(index)}:7411"' for index in range(net.number))
    return f"[discovery]\nmdns = false\nseeds = [{seeds}]\n"


def fleet(folder: Path, net: Network, extra: str = "") -> list[Daemon]:
    """One running site in each namespace; they find each other by their seeds."""
    sites = [
        Daemon(
            folder,
            f"s{index}",
            f"{settings(net)}{extra}",
            host=net.host(index),
            within=net.within(index),
        )
        for index in range(net.number)
    ]
    make_founder(sites[0])
    sites[0].start().wait_ready()
    for site in sites[1:]:
        site.cli("join", token_for(sites[0], site.name))
        site.start()
    return sites


def all_see_all(sites: Sequence[Daemon], timeout_s: float = 30.0) -> None:
    names = {site.name for site in sites}
    wait_for(lambda: all(site.alive() == names for site in sites), timeout_s, "all see all", sites)


def rows(site: Daemon) -> dict[str, dict[str, object]]:
    """What ``atoll members`` shows, by name."""
    return {str(row["name"]): row for row in site.get("/1/members")["members"]}


def said_dead(sites: Sequence[Daemon]) -> list[str]:
    """Lines of the logs that say that somebody died."""
    return [
        f"{site.name}: {line}"
        for site in sites
        for line in site.log().splitlines()
        if " is dead" in line
    ]
