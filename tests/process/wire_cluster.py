"""Five sites in three countries, each in its namespace, with tcpdump at the network card of each.

berlin, munich and hamburg are in DE, paris in FR, madrid in ES. All TLS secrets are written down by the
test's own hand (``tls_secrets``), so that every byte that crossed a card can be read afterwards. paris
lies: it claims to serve what its country may not have, sooner than anybody.
"""

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asking_within import Ask, Told, ask_within
from daemon_cluster import Daemon, make_founder, running, token_for, wait_for, write_digits
from mesh_network import Network, network, tool
from packet_reading import Clear, GossipKey, packets, read_capture, secrets

from agent.drivers import keystore
from agent.wire.inside import model_key

COUNTRIES = {"berlin": "DE", "munich": "DE", "hamburg": "DE", "paris": "FR", "madrid": "ES"}
FOREIGN = ("paris", "madrid")
TRAINING = ("munich", "hamburg", "paris")
"""Who has data."""
CLAIMED = ("vault:1", "bare:1")
"""What paris says it serves."""
PROGRAM = Path(__file__).parent / "tls_secrets.py"
DROPPED = re.compile(r"(\d+) packets? dropped by kernel")
CAPTURE_BUFFER_KIB = 64 << 10
"""Some seconds of a full link of this machine."""


class Tcpdump:
    """Everything that crosses one network card, in a file."""

    def __init__(self, within: Sequence[str], file: Path) -> None:
        self.file = file
        self._process = subprocess.Popen(
            [*within, tool("tcpdump"), "-i", "eth0", "-n", "-s", "0", "-U", "-B",
             str(CAPTURE_BUFFER_KIB), "-Z", "root", "-w", str(file)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        first = self._process.stderr.readline()
        assert "listening on eth0" in first, first

    def close(self) -> None:
        """Whatever happened."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def end(self) -> None:
        """Nothing was lost."""
        self._process.send_signal(signal.SIGINT)
        _, told = self._process.communicate(timeout=30)
        dropped = DROPPED.search(told)
        assert dropped is not None, told
        assert dropped[1] == "0", f"the capture is not whole: {told}"


@dataclass
class Wire:
    """The cluster while it runs, and what was captured afterwards."""

    folder: Path
    net: Network
    sites: dict[str, Daemon]
    captures: dict[str, Tcpdump] = field(default_factory=dict)
    clear: dict[str, Clear] = field(default_factory=dict)

    def ask(self, name: str, *asks: Ask, at_once: int = 1, port: int = 8000) -> list[Told]:
        """Ask a site from within."""
        site = self.sites[name]
        return ask_within(site.within, site.host, asks, at_once=at_once, port=port)

    def secrets(self, name: str) -> Path:
        return self.folder / "keys" / name / "secrets"

    def crossed(self, name: str, begin_s: float, end_s: float) -> int:
        """Bytes in IPv4 packets at a site's card between two moments (wall clock)."""
        found = packets(self.captures[name].file)
        return sum(len(one.payload) for one in found if begin_s <= one.at_s <= end_s)

    def end(self) -> None:
        """Stop everything and open the captures."""
        for site in self.sites.values():
            site.clean_up()
        time.sleep(0.2)  # the last packets are with tcpdump
        for capture in self.captures.values():
            capture.end()
        keys = {site.host: _gossip_key(site) for site in self.sites.values()}
        known = secrets(*map(self.secrets, self.sites), *self.folder.glob("keys/*.secrets"))
        for name, capture in self.captures.items():
            self.clear[name] = read_capture(capture.file, known, keys)


def _gossip_key(site: Daemon) -> GossipKey:
    keys = keystore.load(site.state_dir / "identity")
    return GossipKey(keys.site, keys.gossip_private)


@contextlib.contextmanager
def captured_cluster(folder: Path) -> Iterator[Wire]:
    """The five, all alive; captured from before their first packet."""
    with network(len(COUNTRIES)) as net, contextlib.ExitStack() as stack:
        seeds = ", ".join(f'"{net.host(index)}:7411"' for index in range(len(COUNTRIES)))
        sites = {}
        for index, name in enumerate(COUNTRIES):
            settings = f"[discovery]\nmdns = false\nseeds = [{seeds}]\n"
            if name in TRAINING:
                data = write_digits(folder / f"data-{name}", part=index, samples=600)
                settings += f'[datasets.digits]\npath = "{data}"\n'
            else:
                settings += "[training]\nenabled = false\n"
            sites[name] = Daemon(
                folder, name, settings, host=net.host(index), within=net.within(index)
            )
        with running(*sites.values()):
            _join_all(sites)
            wire = Wire(folder, net, sites)
            (folder / "keys").mkdir()
            for index, name in enumerate(sites):
                wire.captures[name] = Tcpdump(net.within(index), folder / f"{name}.pcap")
                stack.callback(wire.captures[name].close)
            for name, site in sites.items():
                lies = [
                    word for key in CLAIMED for word in ("--lie", model_key(*key.split(":")).hex())
                ]
                site.program = (
                    sys.executable, str(PROGRAM), str(wire.secrets(name).parent),
                    *(lies if name == "paris" else ()),
                )  # fmt: skip
                site.start()
            everybody = list(sites.values())
            for site in everybody:
                site.wait_ready(60)
            wait_for(
                lambda: all(site.alive() == set(COUNTRIES) for site in everybody),
                60, "all see all", everybody,
            )  # fmt: skip
            yield wire


def _join_all(sites: dict[str, Daemon]) -> None:
    founder, *others = sites.values()
    make_founder(founder, COUNTRIES[founder.name])
    founder.start().wait_ready()
    for site in others:
        site.cli("join", token_for(founder, site.name, COUNTRIES[site.name]))
    founder.stop()
