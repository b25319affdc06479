"""Discovery on a network of its own: namespaces on a bridge, with Avahi as independent witness.

What Atoll announces must be seen by another implementation of multicast DNS, and two sites that know
nothing of each other must meet by it. Needs root, iproute2, avahi-daemon, avahi-utils and dbus;
``packaging/setup.sh`` installs them.
"""

import contextlib
import os
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_cluster import Daemon, found, running, scratch, token_for, wait_for

TOOLS = ("ip", "avahi-daemon", "avahi-browse", "avahi-publish", "dbus-daemon", "unshare")
PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MISSING = [tool for tool in TOOLS if shutil.which(tool, path=PATHS) is None]
WHY_NOT = "needs root" if os.geteuid() != 0 else f"missing: {', '.join(MISSING)}" * bool(MISSING)
MUST_RUN = os.environ.get("ATOLL_REQUIRE_ALL") == "1"

pytestmark = [
    pytest.mark.process,
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(WHY_NOT) and not MUST_RUN, reason=WHY_NOT),
]
SITES = {"alpha": 1, "beta": 2, "witness": 3}


def tool(name: str) -> str:
    path = shutil.which(name, path=PATHS)
    assert path is not None, f"{name} is missing; packaging/setup.sh installs it"
    return path


def ip(*words: str) -> None:
    done = subprocess.run([tool("ip"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def within(namespace: str) -> tuple[str, ...]:
    return (tool("ip"), "netns", "exec", namespace)


@pytest.fixture(scope="module")
def network() -> Iterator[dict[str, str]]:
    """Namespace of each of ``SITES``, all on one bridge; addresses are 10.99.0.N."""
    assert not WHY_NOT, WHY_NOT
    mark = f"at{os.getpid() % 100_000}"
    bridge, spaces = f"{mark}-br", {name: f"{mark}-{name}" for name in SITES}
    with contextlib.ExitStack() as stack:
        for space in (bridge, *spaces.values()):
            ip("netns", "add", space)
            stack.callback(ip, "netns", "del", space)
        ip("-n", bridge, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", bridge, "link", "set", "br0", "up")
        for name, number in SITES.items():
            space, port = spaces[name], f"p{number}"
            ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", port,
               "netns", bridge)  # fmt: skip
            ip("-n", bridge, "link", "set", port, "master", "br0", "up")
            ip("-n", space, "addr", "add", f"10.99.0.{number}/24", "dev", "eth0")
            ip("-n", space, "addr", "add", f"fd00:99::{number}/64", "dev", "eth0", "nodad")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "set", "eth0", "up")
        yield spaces


@pytest.fixture(scope="module")
def sites(network: dict[str, str]) -> Iterator[tuple[Daemon, Daemon]]:
    with scratch() as folder:
        alpha = found(folder, "alpha", host="10.99.0.1", within=within(network["alpha"]))
        beta = Daemon(folder, "beta", host="10.99.0.2", within=within(network["beta"]))
        with running(alpha, beta):
            alpha.start().wait_ready()
            beta.cli("join", token_for(alpha, "beta"))
            beta.forget_the_tokens_addresses()
            yield alpha, beta


@pytest.fixture(scope="module")
def avahi(network: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment in which ``avahi-browse`` asks the witness's own avahi-daemon."""
    with scratch() as folder, contextlib.ExitStack() as stack:
        bus = folder / "bus"
        (folder / "dbus.conf").write_text(
            '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"'
            ' "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">'
            f"<busconfig><type>system</type><listen>unix:path={bus}</listen>"
            '<policy context="default"><allow send_destination="*" eavesdrop="true"/>'
            '<allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy></busconfig>'
        )
        (folder / "avahi.conf").write_text(
            textwrap.dedent("""\
                [server]
                use-ipv4=yes
                use-ipv6=yes
                allow-interfaces=eth0
                """)
        )
        environment = {**os.environ, "PATH": PATHS, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}
        _started(
            stack, folder / "dbus.log", environment, tool("dbus-daemon"),
            f"--config-file={folder / 'dbus.conf'}", "--nofork", "--nopidfile",
        )  # fmt: skip
        wait_for(bus.exists, 5, "the bus")
        script = (
            "mount -t tmpfs t /run && mkdir /run/avahi-daemon && exec"
            f" {tool('avahi-daemon')} -f {folder / 'avahi.conf'} --no-drop-root --no-chroot"
            " --no-rlimits"
        )
        _started(
            stack, folder / "avahi.log", environment, *within(network["witness"]),
            tool("unshare"), "-m", "sh", "-c", script,
        )  # fmt: skip
        wait_for(
            lambda: "startup complete" in (folder / "avahi.log").read_text(), 15, "avahi-daemon"
        )
        yield environment


def _started(
    stack: contextlib.ExitStack, log: Path, environment: dict[str, str], *command: str
) -> None:
    output = stack.enter_context(log.open("wb"))
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    stack.callback(process.wait)
    stack.callback(process.terminate)


def browse(environment: dict[str, str]) -> list[list[str]]:
    """Resolved services: interface, protocol, name, type, domain, host, address, port, TXT."""
    done = subprocess.run(
        [tool("avahi-browse"), "-rpt", "_atoll._udp"],
        env=environment, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line.split(";")[1:] for line in done.stdout.splitlines() if line.startswith("=")]


def test_avahi_sees_what_a_site_announces(
    sites: tuple[Daemon, Daemon], avahi: dict[str, str]
) -> None:
    alpha, _ = sites
    status = alpha.get("/1/status")

    def seen() -> list[list[str]]:
        return [row for row in browse(avahi) if status["site"][:16] in row[2]]

    row = wait_for(seen, 20, "avahi-browse shows it", [alpha])[0]
    assert row[6:8] == ["10.99.0.1", "7411"]
    text = " ".join(row[8:])
    assert f"id={status['site']}" in text
    assert f"cluster={status['cluster'][:16]}" in text
    assert "data=7412" in text
    assert len(text) <= 400


@pytest.mark.parametrize("address", ["10.99.0.3", "fd00:99::3"])
def test_a_site_hears_what_avahi_publishes_and_says_what_came_of_it(
    sites: tuple[Daemon, Daemon], avahi: dict[str, str], address: str
) -> None:
    alpha, _ = sites
    status = alpha.get("/1/status")
    forged = os.urandom(32).hex()
    host = f"forged-{forged[:8]}.local"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch())
        _started(
            stack, folder / "address.log", avahi, tool("avahi-publish"), "-a", "-R", host, address
        )
        _started(
            stack, folder / "service.log", avahi, tool("avahi-publish"), "-s", "-H", host,
            forged[:16], "_atoll._udp", "7411", "v=1", f"cluster={status['cluster'][:16]}",
            f"id={forged}", "seq=1", "data=7412",
        )  # fmt: skip
        shown = f"[{address}]:7411" if ":" in address else f"{address}:7411"

        def refused() -> list[dict[str, object]]:
            rows = alpha.get("/1/peers")["peers"]
            return [
                row for row in rows if row["target"] == shown and row["cause"] == "port refused"
            ]

        row = wait_for(refused, 20, f"{shown} is tried", [alpha])[0]
        assert row["source"] == "mdns"
        assert row["site"] == forged
        assert "TCP port 7411" in str(row["mend"])
    assert alpha.alive() == {"alpha"}


def test_two_sites_in_two_namespaces_find_each_other(sites: tuple[Daemon, Daemon]) -> None:
    alpha, beta = sites
    beta.start().wait_ready()
    both = {"alpha", "beta"}
    wait_for(lambda: alpha.alive() == beta.alive() == both, 20, "they meet", [alpha, beta])
    rows = [row for row in beta.get("/1/peers")["peers"] if row["name"] == "alpha"]
    assert [row["source"] for row in rows] == ["mdns"]


def test_a_goodbye_is_heard_by_avahi(sites: tuple[Daemon, Daemon], avahi: dict[str, str]) -> None:
    alpha, beta = sites
    name = beta.get("/1/status")["site"][:16]
    wait_for(lambda: any(name in row[2] for row in browse(avahi)), 20, "seen", [beta])
    assert beta.stop()[0] == 0
    wait_for(lambda: not any(name in row[2] for row in browse(avahi)), 10, "gone", [beta])
    wait_for(lambda: alpha.alive() == {"alpha"}, 10, "noticed", [alpha])
