"""Sites whose network comes late, moves, speaks IPv6 only, or is full of lies."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from daemon_cluster import make_founder, running, scratch, token_for, wait_for
from namespaces import MUST_RUN, Machine, Site, lan, tool, why_not
from serving_site import MAGIKA

FLOOD = Path(__file__).with_name("mdns_flood.py")
WHY_NOT = why_not("nft")
pytestmark = [
    pytest.mark.process,
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(WHY_NOT) and not MUST_RUN, reason=WHY_NOT),
]
BOTH = {"alpha", "beta"}


@pytest.fixture
def machines() -> Iterator[dict[str, Machine]]:
    with lan("alpha", "beta", "mallory") as found:
        yield found


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch() as path:
        yield path


@contextlib.contextmanager
def pair(folder: Path, machines: dict[str, Machine]) -> Iterator[tuple[Site, Site]]:
    """Two sites of one cluster that know nothing of each other's address; alpha runs."""
    alpha = Site(folder, "alpha", machines["alpha"])
    beta = Site(folder, "beta", machines["beta"])
    make_founder(alpha)
    with running(alpha, beta):
        alpha.start().wait_ready()
        beta.cli("join", token_for(alpha, "beta"))
        beta.forget_the_tokens_addresses()
        yield alpha, beta


def meet(alpha: Site, beta: Site) -> None:
    wait_for(lambda: alpha.alive() == beta.alive() == BOTH, 20, "they meet", [alpha, beta])


def test_an_ipv6_only_pair_forms_a_cluster(folder: Path, machines: dict[str, Machine]) -> None:
    machines["alpha"].add("fd00:a::1/64")
    machines["beta"].add("fd00:a::2/64")
    with pair(folder, machines) as (alpha, beta):
        beta.start().wait_ready()
        meet(alpha, beta)
        assert beta.endpoint_of("alpha") == "[fd00:a::1]:7411"
        assert [row["source"] for row in beta.peers(name="alpha")] == ["mdns"]
        wait_for(lambda: not alpha.peers(source="member"), 5, "UDP works", [alpha, beta])
        wait_for(lambda: all_timed(beta), 5, "datagrams come back", [alpha, beta])
        push = ("model", "push", str(MAGIKA), "--name", "magika", "--version", "1")
        alpha.cli(*push, "--sites", "beta")
        assert wait_for(lambda: who_answers(alpha), 30, "forwarded", [alpha, beta]) == "beta"


def all_timed(site: Site) -> bool:
    """Whether each member has answered a probe; the first comes within a protocol period."""
    return all(row["rtt_ms"] is not None for row in site.get("/1/members")["members"])


def who_answers(site: Site) -> str:
    """Who served a request given to ``site`` on its own loopback; empty while nobody does."""
    given = {"name": "bytes", "shape": [1, 2048], "datatype": "INT32", "data": [0] * 2048}
    script = (
        "import json, sys, urllib.request as u; r = u.Request("
        "'http://127.0.0.1:8000/v2/models/magika/infer', sys.stdin.buffer.read());"
        "print(json.load(u.urlopen(r, timeout=10))['parameters']['served_by'])"
    )
    done = subprocess.run(
        [*site.within, sys.executable, "-c", script], input=json.dumps({"inputs": [given]}),
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return done.stdout.strip()


def test_an_ipv6_seed_is_met_without_multicast(folder: Path, machines: dict[str, Machine]) -> None:
    machines["alpha"].add("fd00:a::1/64")
    machines["beta"].add("fd00:a::2/64")
    with pair(folder, machines) as (alpha, beta):
        seeds = '"[fd00:a::1]:7411", "no-such-name.invalid:7411", "[fd00:a::9]:7411", "[::1]:7411"'
        beta.configure(f"[discovery]\nmdns = false\nseeds = [{seeds}]\n")
        beta.start().wait_ready()
        meet(alpha, beta)

        def causes() -> dict[str, str]:
            found = {str(row["target"]): str(row["cause"]) for row in beta.peers(source="seed")}
            return found if "not tried yet" not in found.values() else {}

        found = wait_for(causes, 20, "all were tried", [beta])
        assert found["[fd00:a::1]:7411"] in {"answered", "a living member"}
        assert found["no-such-name.invalid:7411"] == "name not known"
        assert found["[fd00:a::9]:7411"] in {"no route", "no answer"}
        assert found["[::1]:7411"] == "this site itself"
        shown = beta.cli("peers", "--why").stdout
        assert "getent hosts no-such-name.invalid" in " ".join(shown.split())


def test_a_link_that_comes_up_late_is_used(folder: Path, machines: dict[str, Machine]) -> None:
    machines["alpha"].add("10.98.0.1/24")
    machines["beta"].add("10.98.0.2/24")
    with pair(folder, machines) as (alpha, beta):
        machines["beta"].ip("addr", "flush", "dev", "eth0")
        machines["beta"].link("down")
        beta.start().wait_ready()
        assert beta.alive() == {"beta"}
        assert beta.peers(source="mdns", target="eth0")[0]["outcome"] == "left out"
        machines["beta"].link("up")
        machines["beta"].add("10.98.0.2/24")
        meet(alpha, beta)
        assert alpha.endpoint_of("beta") == "10.98.0.2:7411"


def test_a_site_whose_address_changes_is_reached_at_the_new_one(
    folder: Path, machines: dict[str, Machine]
) -> None:
    machines["alpha"].add("10.98.0.1/24")
    machines["beta"].add("10.98.0.2/24")
    with pair(folder, machines) as (alpha, beta):
        beta.start().wait_ready()
        meet(alpha, beta)
        machines["beta"].ip("addr", "del", "10.98.0.2/24", "dev", "eth0")
        machines["beta"].add("10.98.0.77/24")
        wait_for(
            lambda: alpha.endpoint_of("beta") == "10.98.0.77:7411", 20, "it moved", [alpha, beta]
        )
        wait_for(
            lambda: any(
                row["target"] == "10.98.0.77:7411" for row in alpha.peers(source="mdns")
            ),
            10, "announced anew", [alpha, beta],
        )  # fmt: skip


def test_a_pulled_cable_and_the_same_address_again(
    folder: Path, machines: dict[str, Machine]
) -> None:
    machines["alpha"].add("10.98.0.1/24")
    machines["beta"].add("10.98.0.2/24")
    with pair(folder, machines) as (alpha, beta):
        beta.start().wait_ready()
        meet(alpha, beta)
        machines["beta"].cable("down")
        wait_for(lambda: beta.peers(source="mdns", target="eth0")[0]["outcome"] == "left out",
                 10, "the cable is out", [beta])  # fmt: skip
        wait_for(lambda: alpha.alive() == {"alpha"}, 30, "it is missed", [alpha])
        machines["beta"].cable("up")
        meet(alpha, beta)


def test_a_denied_interface_is_neither_announced_nor_used(
    folder: Path, machines: dict[str, Machine]
) -> None:
    machines["alpha"].add("10.98.0.1/24")
    machines["beta"].add("10.98.0.2/24")
    with pair(folder, machines) as (_alpha, beta):
        beta.configure('[discovery]\ndeny_interfaces = ["eth*"]\n')
        beta.start().wait_ready()
        row = beta.peers(source="mdns", target="eth0")[0]
        assert row["outcome"] == "left out"
        assert "eth*" in str(row["reason"])
        assert not beta.peers(name="alpha")
        assert beta.get("/1/members")["members"][0]["endpoint"] == "127.0.0.1:7411"


@pytest.mark.parametrize(
    ("what", "cause"), [("udp dport 7411", "UDP blocked"), ("tcp dport 7411", "TLS blocked")]
)
def test_half_a_connection_is_named(
    what: str, cause: str, folder: Path, machines: dict[str, Machine]
) -> None:
    machines["alpha"].add("10.98.0.1/24")
    machines["beta"].add("10.98.0.2/24")
    with pair(folder, machines) as (alpha, beta):
        if "tcp" in what:
            beta.start().wait_ready()
            meet(alpha, beta)
        for machine in machines.values():
            machine.run(
                tool("nft"),
                "add table inet c; add chain inet c i { type filter hook input priority 0; };"
                f" add rule inet c i iifname eth0 {what} drop",
            )
        if "udp" in what:
            beta.start().wait_ready()
        row = wait_for(
            lambda: beta.peers(source="member", name="alpha", cause=cause), 60, cause, [alpha, beta]
        )[0]
        assert "open" in str(row["mend"])
        assert beta.alive() == BOTH


@pytest.mark.parametrize("senders", [1, 200])
def test_ten_thousand_false_announcements_hide_nobody(
    senders: int, folder: Path, machines: dict[str, Machine]
) -> None:
    machines["alpha"].add("10.98.0.1/16")
    machines["beta"].add("10.98.0.2/16")
    addresses = [f"10.98.1.{number}" for number in range(1, senders + 1)]
    machines["mallory"].add(*(f"{address}/16" for address in addresses))
    with pair(folder, machines) as (alpha, beta), contextlib.ExitStack() as stack:
        assert alpha.process is not None
        process = psutil.Process(alpha.process.pid)
        before = process.memory_info().rss
        flood = subprocess.Popen(
            [*machines["mallory"].within, sys.executable, str(FLOOD),
             alpha.get("/1/status")["cluster"][:16], ",".join(addresses), "10000", "2000"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        stack.callback(flood.wait)
        stack.callback(flood.kill)
        assert flood.stdout is not None
        assert flood.stdout.readline() == b"ready\n"
        beta.start().wait_ready()
        meet(alpha, beta)
        assert flood.wait(30) == 0
        figures = alpha.get("/1/status")["discovery"]
        assert figures["hints"] <= 64
        assert figures["mdns"]["taken"] + figures["mdns"]["packets_excess"] > 5000
        assert len(alpha.peers(source="mdns")) <= 64 + 3, "and the interfaces"
        assert process.memory_info().rss - before < 12 << 20
        assert alpha.alive() == BOTH
        flood.stdout.close()
