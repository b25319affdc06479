"""Floods at one site of a real cluster: nobody dies of them, nobody unknown is answered.

Shorter and at less than the full rate; ``benchmarks/mesh_attack.py`` measures 20,000 datagrams a second
for 20 s. What is asserted here is what must hold at any speed.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import pytest
from daemon_cluster import Daemon, admit, found, running, scratch, wait_for
from mesh_flood import Flood, flooding

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

NAMES = {"anna", "berta", "carla"}
FLOOD_S = 3.0


@dataclass
class Watch:
    """What was seen of the victim and its members while a flood was on."""

    answers: int = 0
    missing: set[str] = field(default_factory=set)
    """Sites that anybody held for less than alive."""
    memory_bytes: int = 0
    """Most that the control process grew by."""
    files: int = 0
    """Most file descriptors that it had."""
    flood: Flood = field(default_factory=Flood)
    said: str = ""
    """What the logs say since the flood began."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[Daemon]]:
    with scratch() as folder:
        anna = found(folder, "anna")
        with running(anna):
            anna.start().wait_ready()
            others = [admit(anna, name) for name in ("berta", "carla")]
            with running(*others):
                for site in others:
                    site.start()
                for site in others:
                    site.wait_ready()
                sites = [anna, *others]
                wait_for(lambda: all(s.alive() == NAMES for s in sites), 30, "met", sites)
                yield sites


def flooded(sites: list[Daemon], kind: str, **options: object) -> Watch:
    victim = sites[0]
    assert victim.process is not None
    process = psutil.Process(victim.process.pid)
    watch, before = Watch(), process.memory_info().rss
    logs = [len(site.log()) for site in sites]
    asked = {"kind": kind, "host": victim.host, "port": 7411, "seconds": FLOOD_S, **options}
    with flooding(**asked) as ended:
        until = time.monotonic() + FLOOD_S
        while time.monotonic() < until:
            victim.get("/1/status")
            watch.answers += 1
            for site in sites:
                watch.missing |= NAMES - site.alive()
            watch.memory_bytes = max(watch.memory_bytes, process.memory_info().rss - before)
            watch.files = max(watch.files, process.num_fds())
            time.sleep(0.1)
        watch.flood = ended()
    watch.said = "".join(s.log()[seen:] for s, seen in zip(sites, logs, strict=True))
    return watch


def nobody_was_harmed(watch: Watch) -> None:
    assert watch.missing == set()
    assert watch.answers >= 3, "it goes on answering its operator"
    assert watch.memory_bytes < 40 << 20
    assert " is dead" not in watch.said, watch.said
    assert "Traceback" not in watch.said, watch.said


def member_ids(site: Daemon) -> list[str]:
    return [row["site"] for row in site.get("/1/members")["members"]]


def gossip_counts(site: Daemon) -> dict[str, int]:
    return dict(site.get("/1/status")["gossip"])


def test_junk_datagrams_are_counted_and_never_answered(cluster: list[Daemon]) -> None:
    before = gossip_counts(cluster[0])
    watch = flooded(cluster, "udp", ids=member_ids(cluster[0]), rate=10_000)
    after = gossip_counts(cluster[0])
    assert watch.flood.sent > 5_000
    assert watch.flood.replies == 0
    assert after["dropped"] - before["dropped"] > 1_000
    nobody_was_harmed(watch)


def test_two_thousand_silent_connections_cost_little_and_members_still_call(
    cluster: list[Daemon],
) -> None:
    watch = flooded(cluster, "silent", number=2000)
    assert watch.flood.sent >= 1_000
    assert watch.files < 600, "most are turned away at once"
    nobody_was_harmed(watch)


def test_handshakes_a_byte_at_a_time_keep_no_member_out(cluster: list[Daemon]) -> None:
    anna, berta, _ = cluster
    with flooding(kind="slow", host=anna.host, port=7411, seconds=20.0, number=2000):
        time.sleep(1.0)
        berta.kill()
        berta.start().wait_ready()

        def has_called_anna() -> bool:
            rows = berta.get("/1/peers")["peers"]
            return any(row["name"] == "anna" and row["outcome"] == "connected" for row in rows)

        wait_for(has_called_anna, 15, "a call over TLS to the flooded site", cluster)
        wait_for(lambda: all(s.alive() == NAMES for s in cluster), 20, "back", cluster)


def test_wrong_join_requests_do_not_block_the_loop(cluster: list[Daemon]) -> None:
    watch = flooded(cluster, "join", rate=1000, addresses=200)
    assert watch.flood.sent > 500
    nobody_was_harmed(watch)


def test_a_joiner_is_admitted_while_strangers_flood_the_door(cluster: list[Daemon]) -> None:
    anna = cluster[0]
    with flooding(
        kind="handshakes", host=anna.host, port=7411, seconds=20.0, rate=300, addresses=50
    ):
        time.sleep(0.5)
        doris = admit(anna, "doris")
    assert (doris.state_dir / "identity").is_dir()
