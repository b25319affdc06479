"""Attacks on the mesh, at full size: forged, replayed and lying packets, floods, and deaths at the start.

Run: python benchmarks/mesh_attack.py [NAME ...]      (``bench_mesh.py`` calls ``measure``; about three minutes)
Names: ``forgery``, ``insider``, ``udp``, ``junk``, ``tls``, ``starts``. The tests run a tenth of it.
"""

import asyncio
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daemon_cluster import Daemon

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "process")]

Row = dict[str, Any]
MUTATED, REPLAYED, OVER_UDP, LIES = 1_000_000, 100_000, 50_000, 100_000
JUNK_PER_S, JUNK_S = 20_000, 20.0
CONNECTIONS, STRANGERS_PER_S, TLS_S = 2_000, 1_000, 10.0
STARTS = 50


def measure(names: tuple[str, ...] = ()) -> list[Row]:
    """The rows of the attacks named, or of all."""
    return [
        row for name, attack in ATTACKS.items() if not names or name in names for row in attack()
    ]


def _row(name: str, value: float, unit: str, goal: float | None) -> Row:
    value = round(value, 3)
    return {
        "name": name, "value": value, "unit": unit, "goal": goal,
        "held": None if goal is None else value <= goal, "peer": "", "peer_value": None,
        "runs": [value],
    }  # fmt: skip


# --- packets -------------------------------------------------------------------------------------
def _forgery() -> list[Row]:
    from mesh_forger import Town, mutations, outside_attack

    town = Town(1)
    town.run(60.0)
    anna = town.named("anna")
    mine = [packet for target, packet in town.sent if target == anna.site]
    others = [packet for target, packet in town.sent if target != anna.site]
    began = time.perf_counter()
    mutated = outside_attack(town, anna, mutations(mine, others, random.Random(2)), MUTATED)
    took_s = time.perf_counter() - began
    replayed = outside_attack(town, anna, cycle(mine), REPLAYED)
    raised = len(mutated.raised) + len(replayed.raised)
    changed = mutated.opened + replayed.opened + mutated.has_changed + replayed.has_changed
    what = f"{MUTATED:,} mutated and {REPLAYED:,} replayed packets"
    return [
        _row(f"{what}: packets believed or beliefs changed", changed, "", 0),
        _row(f"{what}: exceptions", raised, "", 0),
        _row("time to refuse a mutated packet (made by the test included)",
             1e6 * took_s / MUTATED, "us", None),
    ]  # fmt: skip


def _insider() -> list[Row]:
    from mesh_forger import Town
    from mesh_insider import inside_attack

    town = Town(3)
    town.run(60.0)
    found = inside_attack(town, LIES)
    what = f"{LIES:,} lies of an admitted site"
    return [
        _row(f"{what}: deaths and forged beliefs about others",
             len(found.deaths) + len(found.forged) + len(found.suspects), "", 0),
        _row(f"{what}: exceptions", len(found.raised), "", 0),
        _row(f"{what}: packets and statements counted as refused",
             found.dropped + found.counted, "", None),
    ]  # fmt: skip


def _over_udp() -> list[Row]:
    from mesh_forger import Town, mutations, over_udp

    town = Town(4)
    town.run(60.0)
    anna = town.named("anna")
    mine = [packet for target, packet in town.sent if target == anna.site]
    made = mutations(mine, mine, random.Random(5))
    forged = asyncio.run(over_udp(anna, made, OVER_UDP // 2))
    replayed = asyncio.run(over_udp(anna, cycle(mine), OVER_UDP // 2))
    return [
        _row(f"{OVER_UDP:,} forged and replayed datagrams at a socket: heard",
             forged.heard + replayed.heard, "", 0),
        _row(f"{OVER_UDP:,} forged and replayed datagrams at a socket: replies",
             forged.replies + replayed.replies, "", 0),
    ]  # fmt: skip


# --- floods --------------------------------------------------------------------------------------
@dataclass
class _Seen:
    """What a flood did to the victim."""

    slowest_s: float = 0.0
    slowest_command_s: float = 0.0
    grown_mib: float = 0.0
    cpu: float = 0.0
    lost: int = 0
    """Looks at which a site was held for less than alive."""


def _flooded(sites: "list[Daemon]", seconds: float, **options: Any) -> tuple[_Seen, Any]:
    import psutil
    from mesh_flood import flooding

    victim, names, seen = sites[0], {site.name for site in sites}, _Seen()
    assert victim.process is not None
    process = psutil.Process(victim.process.pid)
    memory, times = process.memory_info().rss, process.cpu_times()
    began = time.monotonic()
    commands = threading.Thread(target=_command, args=(victim, seconds, seen))
    with flooding(host=victim.host, port=7411, seconds=seconds, **options) as ended:
        commands.start()
        while time.monotonic() - began < seconds:
            asked = time.monotonic()
            victim.get("/1/status")
            seen.slowest_s = max(seen.slowest_s, time.monotonic() - asked)
            seen.lost += sum(site.alive() != names for site in sites)
            grown = process.memory_info().rss - memory
            seen.grown_mib = max(seen.grown_mib, grown / 2**20)
            time.sleep(0.1)
        took_s = time.monotonic() - began
        now = process.cpu_times()
        seen.cpu = (now.user + now.system - times.user - times.system) / took_s
        commands.join()
        return seen, ended()


def _command(victim: "Daemon", seconds: float, seen: _Seen) -> None:
    """``atoll status`` as an operator types it, a new process each time."""
    until = time.monotonic() + seconds - 2
    while time.monotonic() < until:
        asked = time.monotonic()
        victim.cli("status")
        seen.slowest_command_s = max(seen.slowest_command_s, time.monotonic() - asked)
        time.sleep(1.0)


def _with_cluster(attack: "Callable[[list[Daemon]], list[Row]]") -> list[Row]:
    from daemon_cluster import admit, found, running, scratch, wait_for

    with scratch() as folder:
        anna = found(folder, "anna")
        with running(anna):
            anna.start().wait_ready()
            sites = [anna, admit(anna, "berta"), admit(anna, "carla")]
            with running(*sites):
                for site in sites[1:]:
                    site.start()
                for site in sites[1:]:
                    site.wait_ready()
                names = {site.name for site in sites}
                wait_for(lambda: all(s.alive() == names for s in sites), 60, "met", sites)
                rows = attack(sites)
                dead = sum(site.log().count(" is dead") for site in sites)
                return [*rows, _row(f"{rows[0]['name'].split(':')[0]}: deaths told", dead, "", 0)]


def _junk() -> list[Row]:
    def attack(sites: "list[Daemon]") -> list[Row]:
        ids = [row["site"] for row in sites[0].get("/1/members")["members"]]
        seen, flood = _flooded(sites, JUNK_S, kind="udp", ids=ids, rate=JUNK_PER_S)
        what = f"{JUNK_PER_S:,} junk datagrams a second for {JUNK_S:.0f} s"
        return [
            _row(f"{what}: slowest `atoll status`", seen.slowest_command_s, "s", 1.0),
            _row(f"{what}: slowest answer of the admin socket", seen.slowest_s, "s", None),
            _row(f"{what}: bytes answered", flood.replies, "B", 0),
            _row(f"{what}: looks at which a member was not alive", seen.lost, "", 0),
            _row(f"{what}: memory grown", seen.grown_mib, "MiB", 8),
            _row(f"{what}: CPU of the control process", 100 * seen.cpu, "% of a core", None),
            _row(f"{what}: sent a second", flood.sent / flood.took_s, "/s", None),
        ]

    return _with_cluster(attack)


def _tls() -> list[Row]:
    def attack(sites: "list[Daemon]") -> list[Row]:
        rows = []
        for what, options in (
            (f"{CONNECTIONS:,} silent connections", {"kind": "silent", "number": CONNECTIONS}),
            (f"{CONNECTIONS:,} handshakes a byte at a time",
             {"kind": "slow", "number": CONNECTIONS}),
            (f"{STRANGERS_PER_S:,} join requests with wrong tokens a second",
             {"kind": "join", "rate": STRANGERS_PER_S, "addresses": 200}),
        ):  # fmt: skip
            seen, _ = _flooded(sites, TLS_S, **options)
            rows += [
                _row(f"{what}: slowest `atoll status`", seen.slowest_command_s, "s", 1.0),
                _row(f"{what}: looks at which a member was not alive", seen.lost, "", 0),
                _row(f"{what}: memory grown", seen.grown_mib, "MiB", 40),
                _row(f"{what}: CPU of the control process", 100 * seen.cpu, "% of a core", None),
            ]
        return rows

    return _with_cluster(attack)


# --- deaths at the start -------------------------------------------------------------------------
def _starts() -> list[Row]:
    from daemon_cluster import admit, found, running, scratch, wait_for
    from test_mesh_power import Receiver, one_boot

    with scratch() as folder:
        anna = found(folder, "anna")
        with running(anna):
            anna.start().wait_ready()
            berta = admit(anna, "berta")
            with running(berta):
                berta.start().wait_ready()
                both = {"anna", "berta"}
                wait_for(lambda: anna.alive() == berta.alive() == both, 30, "met", [anna, berta])
                berta.kill()
                anna.kill()
                receiver, chance = Receiver(berta.host), random.Random(1)
                used: set[int] = set()
                again = 0
                for _ in range(STARTS):
                    epochs = one_boot(anna, receiver, chance)
                    again += len(epochs & used) + max(0, len(epochs) - 1)
                    used |= epochs
                receiver.socket.close()
    nonces = len(receiver.nonces) - len(set(receiver.nonces))
    return [
        _row(f"{STARTS} starts ended by SIGKILL: boot epochs or nonces used again",
             again + nonces, "", 0),
        _row(f"{STARTS} starts ended by SIGKILL: epochs seen on the wire", len(used), "", None),
    ]  # fmt: skip


ATTACKS: dict[str, Callable[[], list[Row]]] = {
    "forgery": _forgery, "insider": _insider, "udp": _over_udp, "junk": _junk, "tls": _tls,
    "starts": _starts,
}  # fmt: skip


if __name__ == "__main__":
    for one in measure(tuple(sys.argv[1:])):
        print(json.dumps(one))
