"""Membership at scale: 1,000 simulated sites in one process, and what 5,000 members cost a real one.

Run: python benchmarks/simulate_mesh.py        (benchmarks/bench_mesh.py calls ``measure``)

Each part runs in a process of its own, so that neither its memory nor its garbage disturbs another.
Virtual times and bytes are exact (one seed, one trace); only wall and CPU seconds are noisy.
"""

import gc
import json
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SITES = 1000
SECONDS = 300.0
SEED = 5
JOIN_WITHIN_S = KILL_WITHIN_S = HEAL_WITHIN_S = 30.0
CUT_FOR_S = 20.0
SPEED = 5.0
IDLE_BYTES_PER_S = 250.0
IDLE_SIZES = (20, 100, 1000)
QUIET_AFTER_S, IDLE_FOR_S = 120.0, 30.0
"""By then the news of the start has been told and every site has found its place."""
MEMBERS = 5000
MEMBER_BYTES = 3000.0
"""What 5,000 members may take of the 60 MiB of a control process that takes some 45 without them."""
NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)

Row = dict[str, Any]


def measure() -> list[Row]:
    """Every row, goals that were missed included."""
    whole, memory = _part("thousand"), _part("memory")
    idle = _part("idle")
    rows = [
        _row(f"{SITES} simulated sites join at once: views equal", whole["join_s"], "s", 30.0),
        _row("a tenth of them vanish: views equal", whole["kill_s"], "s", 30.0),
        _row("a tenth cut off for 20 s, then healed: views equal", whole["heal_s"], "s", 30.0),
        _row("deaths declared of sites that ran, cut apart", whole["false_deaths"], "", 0.0),
        _row(
            f"{SITES} sites x {SECONDS:.0f} s with all of that: times real time",
            whole["speed"], "x", SPEED, is_least=True,
        ),
        _row("the same, by CPU time of the process", whole["speed_cpu"], "x", SPEED, is_least=True),
    ]  # fmt: skip
    rows += [
        _row(f"idle UDP of a simulated site, {sites} sites", idle[str(sites)], "B/s", 250.0)
        for sites in IDLE_SIZES
    ]
    rows.append(
        _row(f"memory of one member at {MEMBERS} members", memory["bytes"], "B", MEMBER_BYTES)
    )
    return rows


def _row(
    name: str, value: float | None, unit: str, goal: float, *, is_least: bool = False
) -> Row:  # fmt: skip
    is_held = value is not None and (value >= goal if is_least else value <= goal)
    shown = None if value is None else round(value, 3)
    return {
        "name": name, "value": shown, "unit": unit, "goal": goal, "held": is_held,
        "runs": [] if shown is None else [shown], "is_least": is_least,
    }  # fmt: skip


def _part(name: str) -> Any:
    done = subprocess.run(
        [sys.executable, __file__, name], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


# --- 1,000 sites ---------------------------------------------------------------------------------
def thousand() -> dict[str, float | None]:
    """Join, a tenth killed, a tenth cut off and healed, within ``SECONDS`` of virtual time."""
    from agent.simulation.membership_scenarios import fleet

    wall, cpu = time.perf_counter(), time.process_time()

    def say(what: str) -> None:
        used = time.process_time() - cpu
        print(f"{what}: {world.now:.1f} s took {used:.1f} s of CPU", file=sys.stderr, flush=True)

    world, ids = fleet(SITES, SEED)
    found: dict[str, float | None] = {"join_s": world.until_converged(JOIN_WITHIN_S)}
    say("joined")
    world.run(60.0 - world.now)
    say("settled")

    tenth = SITES // 10
    gone, apart = ids[1 : 1 + tenth], ids[1 + tenth : 1 + 2 * tenth]
    rest = [ids[0], *ids[1 + 2 * tenth :]]
    for site in gone:
        world.kill(site, host=True)
    found["kill_s"] = world.until_converged(KILL_WITHIN_S)
    say("a tenth is dead")
    world.run(120.0 - world.now)
    say("settled")
    false_deaths = len(world.checks.false_deaths())

    world.network.cut(apart, rest)
    world.network.cut(rest, apart)
    world.run(CUT_FOR_S)
    say("cut")
    world.network.heal()
    healed_at = world.now
    found["heal_s"] = world.until_converged(HEAL_WITHIN_S)
    say("healed")
    # Whoever was beyond the cut was told dead rightly, as long as nothing could have been heard.
    false_deaths += len(world.checks.false_deaths(since=healed_at + HEAL_WITHIN_S))
    world.run(SECONDS - world.now)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return found | {
        "false_deaths": false_deaths, "speed": SECONDS / wall, "speed_cpu": SECONDS / cpu,
        "wall_s": wall, "cpu_s": cpu,
    }  # fmt: skip


# --- idle ----------------------------------------------------------------------------------------
def idle() -> dict[str, float]:
    """Bytes of UDP that each site sends in a second when nothing happens, by number of sites."""
    return {str(sites): _idle_bytes(sites) for sites in IDLE_SIZES}


def _idle_bytes(sites: int) -> float:
    from agent.simulation.membership_scenarios import fleet

    world, _ = fleet(sites, SEED)
    world.run(QUIET_AFTER_S)
    world.measures_bytes = True
    world.run(IDLE_FOR_S)
    sent = [site.bytes_sent for site in world.sites.values()]
    return statistics.fmean(sent) / IDLE_FOR_S


# --- memory --------------------------------------------------------------------------------------
def memory() -> dict[str, float]:
    """Growth of one real site's process, by member: machine, roll, envelope keys, with real keys."""
    from agent.identity.registry import Roll

    cluster = _Cluster()
    site, sealer, roll = cluster.first()
    assert isinstance(roll, Roll)
    pages = [cluster.page(number) for number in range(2, MEMBERS + 2, 100)]
    gc.collect()
    before = _rss_bytes()
    for page in pages:
        cluster.introduce(site, page)
    members = site.swim.members()
    for member in members:
        sealer.seal(member, b"ping")
    gc.collect()
    assert len(members) == MEMBERS, f"{len(members)} members"
    return {"bytes": (_rss_bytes() - before) / MEMBERS}


class _Cluster:
    """Keys of everybody, from one seed."""

    def __init__(self) -> None:
        from agent.identity.certificates import make_issuer, make_root

        self.entropy = Random(SEED).randbytes
        self.root = make_root(self.entropy, NOW)
        self.issuer = make_issuer(self.root, self.entropy, NOW)

    def member(self, number: int) -> tuple[Any, Any, Any, Any]:
        """Private key, gossip key, passport and first record of the n-th site."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        from agent.identity.certificates import cluster_id, issue_site, site_id
        from agent.identity.claims import Claims
        from agent.wire.records import STATEMENTS, Endpoint, Passport, Signed, SiteRecord

        private = Ed25519PrivateKey.from_private_bytes(self.entropy(32))
        gossip = X25519PrivateKey.from_private_bytes(self.entropy(32))
        claims = Claims(
            cluster_id(self.root.certificate), f"site-{number}", "north", "edge", "DE",
            ("member",), gossip.public_key().public_bytes_raw(),
        )  # fmt: skip
        leaf = issue_site(self.issuer, private.public_key(), claims, NOW)
        record = SiteRecord(
            site_id(private.public_key()), 1 << 32, 1, 1 << 32, "alive",
            Endpoint(f"10.0.{number >> 8}.{number & 255}", 7411, 7412), 0.0, 1.0, (), bytes(8),
        )  # fmt: skip
        body = STATEMENTS.pack(record)
        signed = Signed(body, private.sign(body))
        return private, gossip, Passport((leaf, self.issuer.certificate)), signed

    def first(self) -> tuple[Any, Any, Any]:
        """The machine under test, its envelope and its roll."""
        from agent.identity.certificates import cluster_id, verify_passport
        from agent.identity.envelope import Sealer
        from agent.identity.registry import Roll, SiteNotary
        from agent.identity.trust import TrustLog
        from agent.identity.trust_entries import Genesis
        from agent.identity.trust_signing import sign_entry
        from agent.membership.settings import Settings
        from agent.site.site import Site
        from agent.site.stored import SiteSettings, Stored
        from agent.wire.records import Endpoint

        private, gossip, passport, _ = self.member(1)
        trust = TrustLog(cluster_id(self.root.certificate))
        genesis = Genesis(self.root.certificate, self.issuer.certificate, self.entropy(32), ())
        trust.append(sign_entry(trust, genesis, self.root.private_key, NOW))
        roll = Roll(self.root.certificate, trust)
        identity = verify_passport(passport, self.root.certificate, NOW, frozenset())
        site = Site(
            identity=identity, passport=passport, endpoint=Endpoint("10.0.0.1", 7411, 7412),
            boot_epoch=1, settings=SiteSettings({}, False, "", 1.0),
            swim_settings=Settings.lan(MEMBERS), notary=SiteNotary(private, roll), roll=roll,
            trust=trust, stored=Stored(), rng=Random(SEED), now=0.0,
            wall_offset_s=NOW.timestamp(),
        )  # fmt: skip
        sealer = Sealer(site.me, gossip, 1, roll.gossip_key, lambda _: 1, roll.resolve)
        return site, sealer, roll

    def page(self, first: int) -> bytes:
        """100 members as they come over the wire."""
        from agent.wire.mesh import CALLS, Introduction, Push

        told = [self.member(number) for number in range(first, first + 100)]
        return CALLS.pack(Push(tuple(Introduction(one[2], one[3]) for one in told), ()))

    def introduce(self, site: Any, page: bytes) -> None:
        """As a member's call does; what the site asks for is not carried out."""
        from agent.site.events import CallReceived
        from agent.wire.mesh import CALLS

        site.step(CallReceived(1, site.me, CALLS.unpack(page)), 1.0)


def _rss_bytes() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return (
        next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.path.insert(0, str(ROOT))
        gc.disable() if sys.argv[1] != "memory" else None
        print(json.dumps({"thousand": thousand, "idle": idle, "memory": memory}[sys.argv[1]]()))
    else:
        for row in measure():
            print(row)
