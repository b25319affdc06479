"""What the operator sees and may do (implements ``agent.api.operations.Operations``)."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import agent
from agent.api.bodies import Json
from agent.api.job_spec import JobSpec
from agent.api.operations import TokenRequest
from agent.catalog.clock import DIFFERS_MS
from agent.daemon.applications import ApplicationDesk
from agent.daemon.driver import Driver
from agent.daemon.inference import Inference
from agent.daemon.joining import Joining
from agent.daemon.listening import shown
from agent.daemon.model_desk import ModelDesk
from agent.daemon.outside import Outside
from agent.daemon.peers import counters, peer_rows
from agent.daemon.renewing import Renewing
from agent.daemon.trust_operations import TrustDesk
from agent.daemon.witnessing import Witnessing
from agent.drivers.blobs import BlobStore
from agent.drivers.clock import monotonic_s, wall_s
from agent.drivers.mdns import Mdns
from agent.drivers.memory import resident_bytes
from agent.drivers.store import Store
from agent.drivers.trainers import Trainers
from agent.election.committee import Seat, choose_committee, choose_regions
from agent.federation.burial import Tombstone
from agent.federation.history import figures
from agent.federation.job import JobMachine
from agent.foundation.errors import Busy, NotFound
from agent.foundation.ids import JobId, SiteId, short
from agent.hardware.detect import Hardware
from agent.identity.admin import check_document
from agent.identity.trust import TrustLog
from agent.membership.member import Member
from agent.routing.explain import explain
from agent.site.events import (
    BlobStored,
    DrainRequested,
    LeaveRequested,
    Submitted,
)
from agent.site.site import Site
from agent.site.view import view_of
from agent.wire.documents import Document, Job, Stamp, key_of
from agent.wire.limits import DOCUMENT_BYTES_MAX
from agent.wire.residency import is_within
from agent.wire.schema import unpack

RECIPES = ("mnist-2nn", "mnist-cnn")
STOP_GRACE_S = 0.2
OPERATOR = "the operator"
"""Who loads and unloads over the admin socket."""


@dataclass(slots=True)
class Parts:
    """What the daemon is made of."""

    site: Site
    driver: Driver
    outside: Outside
    store: Store
    blobs: BlobStore
    inference: Inference
    witnessing: Witnessing
    trainers: Trainers
    trust: TrustLog
    joining: Joining
    renewing: Renewing
    desk: TrustDesk
    models: ModelDesk
    tokens: ApplicationDesk
    hardware: Hardware
    mdns: Mdns | None
    http: str
    stop: Callable[[], None]
    started_at: float
    fallback_reason: Callable[[], str]
    """Why the site is not ready, while it starts; empty when it is."""


class DaemonOperations:
    """One site's operations."""

    def __init__(self, parts: Parts) -> None:
        """``parts`` are alive while the admin socket is."""
        self._parts = parts

    # --- reading ---------------------------------------------------------------------------------
    def status(self) -> Json:
        """See ``Operations.status``."""
        parts, site = self._parts, self._parts.site
        claims = site.identity.claims
        states = [member.state for member in site.swim.members().values()]
        state, reasons = self._state()
        return {
            "site": site.me.hex(), "name": claims.name, "cluster": claims.cluster.hex(),
            "region": claims.region, "tier": claims.tier, "jurisdiction": claims.jurisdiction,
            "version": agent.__version__, "uptime_s": monotonic_s() - parts.started_at,
            "state": state, "reasons": reasons,
            "members": {
                **{name: states.count(name) for name in ("suspect", "dead", "left")},
                "alive": states.count("alive") + 1,
            },
            "processes": self._processes(),
            "hardware": parts.hardware.summary(),
            "models": parts.models.status(),
            "jobs": self.jobs(),
            "certificate": parts.renewing.summary(),
            "trust": parts.desk.summary(),
            "loop_lag": parts.driver.lag.summary(),
            "http": parts.http,
            "http_certificate": parts.tokens.certificate,
            "store": self._store_troubles(),
            **self.clock(),
            "gossip": {
                **parts.outside.gossip_counts(), "malformed": site.swim.malformed,
                "forged": site.swim.forged,
            },
            "discovery": counters(parts.site, parts.mdns),
        }  # fmt: skip

    def _state(self) -> tuple[str, list[str]]:
        parts = self._parts
        reasons = list(parts.hardware.findings)
        if parts.driver.fault:
            reasons.append(f"the disk refuses writes: {parts.driver.fault}")
        reasons += [
            *parts.desk.reasons(), *parts.tokens.reasons(), *parts.witnessing.reasons(),
        ]  # fmt: skip
        reasons += parts.renewing.reasons(parts.site.swim.members())
        reasons += parts.site.duplicates.reports(monotonic_s())
        reasons += parts.site.holdings.rollouts.reasons()
        reasons += self._recovered()
        if parts.site.workshop.barred_because not in ("", *reasons):
            reasons.append(parts.site.workshop.barred_because)
        if starting := parts.fallback_reason():
            return "starting", [starting, *reasons]
        if parts.driver.is_isolated:
            return "isolated", ["no other site is heard; see atoll peers --why", *reasons]
        if parts.site.is_draining:
            return "draining", ["drained by the operator; atoll undrain ends it", *reasons]
        reasons += parts.inference.workers.troubles
        return "ready", reasons

    def _recovered(self) -> list[str]:
        """Jobs that were taken over by force: rounds that only the lost members knew are gone."""
        return [
            f"job {machine.job.id} was taken over by an operator after its committee had lost its"
            f" majority ({machine.value.recoveries} times)"
            for machine in self._parts.site.workshop.machines.values()
            if machine.value is not None and machine.value.recoveries and not machine.is_over
        ]

    def _store_troubles(self) -> list[str]:
        parts = self._parts
        found = [str(finding) for finding in parts.store.findings]
        if parts.driver.fault:
            found.append(f"the disk refuses writes: {parts.driver.fault}")
        return found

    def _processes(self) -> list[Json]:
        inference = self._parts.inference
        found: list[Json] = [
            {"name": "control", "pid": os.getpid(), "state": "running", "restarts": 0,
             "rss_bytes": resident_bytes(os.getpid())}
        ]  # fmt: skip
        found += [
            {
                "name": child.name, "pid": child.pid, "state": child.state,
                "restarts": child.restarts, "rss_bytes": resident_bytes(child.pid),
            }
            for child in (inference.gateway, *(one.child for one in inference.workers.all))
        ]  # fmt: skip
        for row, more in zip(found[2:], inference.workers.rows(), strict=True):
            row.update(more)
        found += [
            {
                "name": f"{trainer.name} {trainer.job}".strip(), "pid": trainer.pid,
                "state": "running", "restarts": 0, "rss_bytes": resident_bytes(trainer.pid),
                "sandbox": trainer.sandbox,
            }
            for trainer in self._parts.trainers.processes()
        ]  # fmt: skip
        return found

    def members(self) -> list[Json]:
        """See ``Operations.members``."""
        site = self._parts.site
        claims, record = site.identity.claims, site.swim.record
        me = {
            "site": site.me.hex(), "name": claims.name, "tier": claims.tier,
            "region": claims.region, "jurisdiction": claims.jurisdiction,
            "status": "draining" if site.is_draining else "alive", "rtt_ms": 0.0,
            "rtt_is_estimated": False, "estimated_rtt_ms": 0.0,
            "load": record.load, "endpoint": shown(record.endpoint.host, record.endpoint.mesh_port),
            "serving": self._serving(record.serving), "incarnation": record.incarnation,
            "self": True,
        }  # fmt: skip
        others = [self._member(member) for member in site.swim.members().values()]
        return sorted([me, *others], key=lambda row: str(row["name"]))

    def _member(self, member: Member) -> Json:
        identity = self._parts.site.roll.get(member.site)
        claims = identity.claims if identity is not None else None
        record = member.record
        is_draining = member.state == "alive" and record.status == "draining"
        swim = self._parts.site.swim
        rtt_s, placed_s = swim.distance_s(member.site), swim.estimated_s(member.site)
        return {
            "site": member.site.hex(), "name": claims.name if claims else short(member.site),
            "tier": claims.tier if claims else "", "region": claims.region if claims else "",
            "jurisdiction": claims.jurisdiction if claims else "",
            "status": "draining" if is_draining else member.state,
            "rtt_ms": None if rtt_s is None else round(rtt_s * 1000, 3),
            "rtt_is_estimated": rtt_s is not None and rtt_s != member.rtt_s,
            "estimated_rtt_ms": None if placed_s is None else round(placed_s * 1000, 3),
            "load": record.load, "endpoint": shown(record.endpoint.host, record.endpoint.mesh_port),
            "serving": self._serving(record.serving), "incarnation": record.incarnation,
            "self": False, "relayed": member.is_relayed,
        }  # fmt: skip

    def _serving(self, served: Sequence[Any]) -> list[str]:
        names = {
            known.key: f"{known.name}:{known.version}" for known in view_of(self._parts.site).known
        }
        return [names.get(one.key, one.key.hex()) for one in served if not one.is_refused]

    def peers(self) -> list[Json]:
        """See ``Operations.peers``."""
        parts, now = self._parts, monotonic_s()
        return peer_rows(parts.site, parts.mdns, now, wall_s() - now)

    def models(self) -> list[Json]:
        """See ``Operations.models``."""
        return self._parts.models.models()

    def explain(self, model: str, residency: Sequence[str], application: str) -> Json:
        """See ``Operations.explain``."""
        name, _, version = model.partition(":")
        traffic = self._parts.inference.traffic
        found = explain(
            view_of(self._parts.site), name, version=version or None, residency=residency,
            is_worker_up=self._parts.inference.workers.is_any_up,
            local_wait_ms=traffic.wait_us / 1000 if traffic is not None else 0.0,
            peers=traffic.peers if traffic is not None else (),
            pairs=traffic.pairs if traffic is not None else (), application=application,
        )  # fmt: skip
        return found.as_dict()

    # --- jobs ------------------------------------------------------------------------------------
    def jobs(self) -> list[Json]:
        """See ``Operations.jobs``."""
        workshop = self._parts.site.workshop
        return [
            self._brief(machine)
            for job, machine in workshop.machines.items()
            if workshop.is_whole(job)
        ] + [
            _buried_row(job, stone)
            for job in self._parts.site.catalog.of_kind(Job)
            if (stone := workshop.tombstone(job.id)) is not None
        ]

    def _brief(self, machine: JobMachine) -> Json:
        job, value = machine.job, machine.value
        state: str = "waiting" if value is None else value.state
        if job.is_cancelled:
            state = "cancelled"
        reason = value.reason if value is not None else "nobody has claimed it yet"
        region = self._parts.site.workshop.region(job.id)
        above = None if region is None or region.value is None else region.value.above
        round_ = max(value.round if value else 0, above.round if above else 0)
        if machine.aggregation is not None and machine.aggregation.waiting_for:
            reason = f"waiting for {machine.aggregation.waiting_for}"
        elif not reason and not machine.is_over:
            refusal = self._parts.site.workshop.refusal(job)
            reason = f"this site takes no part: {refusal}" if refusal else ""
        return {
            "id": job.id, "recipe": job.recipe, "dataset": job.dataset,
            "state": "running" if state == "exporting" else state, "phase": state,
            "epoch": value.epoch if value else 0, "round": round_,
            "rounds": job.rounds, "reason": reason,
            "aggregator": self._name(value.aggregator) if value else None,
            "activity": machine.participant.activity,
        }  # fmt: skip

    async def job(self, job: str) -> Json:
        """See ``Operations.job``; the rounds are read from this site's own database."""
        machine = self._parts.site.workshop.find(job)
        participants = self._participants(machine)
        rows = await self._parts.store.read(
            lambda database: list(
                database.query("SELECT * FROM rounds WHERE job = ? ORDER BY round", [job])
            )
        )
        value = machine.value
        return {
            **self._brief(machine),
            "committee": [self._name(site) for site in machine.committee],
            "committee_trouble": machine.swaps.trouble,
            "region": self._region(machine),
            "changes_took_s": list(machine.register.took_s),
            "recoveries": 0 if value is None else value.recoveries,
            "value": None if value is None else _plain(asdict(value)),
            "participants": participants,
            "rounds_done": self._rounds(rows),
        }

    def _region(self, machine: JobMachine) -> Json | None:
        """What this site's region does for the job; None: it takes part by itself."""
        region = self._parts.site.workshop.region(machine.job.id)
        if region is None:
            return None
        value, work = region.value, region.aggregation
        above = None if value is None else value.above
        return {
            "id": region.job.id, "name": self._parts.site.identity.claims.region,
            "aggregator": self._name(value.aggregator) if value else None,
            "committee": [self._name(site) for site in region.committee],
            "epoch": value.epoch if value else 0, "round": value.round if value else 0,
            "started_from": above.round if above else None, "alone": value.alone if value else 0,
            "activity": region.participant.activity,
            "waiting_for": work.waiting_for if work is not None else "",
            "participants": self._participants(region),
        }  # fmt: skip

    def _participants(self, machine: JobMachine) -> list[Json]:
        """The aggregator knows all of them, every other site itself."""
        if machine.aggregation is not None:
            return [
                {"site": entry.site.hex(), "state": entry.state, "reason": entry.reason,
                 "name": f"region {entry.region}" if entry.region else self._name(entry.site)}
                for entry in machine.aggregation.entries.values()
            ]  # fmt: skip
        me, activity = self._parts.site.me, machine.participant.activity
        refusal = "" if machine.is_over else self._parts.site.workshop.refusal(machine.job)
        return [
            {"site": me.hex(), "name": self._name(me), "state": "out" if refusal else activity,
             "reason": refusal}
        ]  # fmt: skip

    def _rounds(self, rows: list[dict[str, Any]]) -> list[Json]:
        counted = {row["round"]: json.loads(row["counted"]) for row in rows}
        return [
            {
                "round": row["round"], "epoch": row["epoch"],
                "aggregator": self._name(SiteId(row["aggregator"])),
                "parameters": row["parameters"].hex(),
                "contributions": row["contributions"].hex(), "committed_at": row["committed_at"],
                "counted": [
                    {**one, "name": _counted_name(one, self._name(SiteId(bytes.fromhex(one["site"]))))}
                    for one in counted[row["round"]]
                ],
                # Sites judge parameters when they start from them: in the next round.
                "accuracy": _accuracy(counted.get(row["round"] + 1, [])),
            }
            for row in rows
        ]  # fmt: skip

    async def watch_job(self, job: str) -> AsyncIterator[Json]:
        """See ``Operations.watch_job``."""
        machine = self._parts.site.workshop.find(job)
        changed = asyncio.Event()
        unwatch = self._parts.driver.watch(changed.set)
        last: Json = {}
        try:
            while True:
                changed.clear()
                news = {**self._brief(machine), **self._newest(machine)}
                if news != last:
                    last = news
                    yield news
                if machine.is_over:
                    return
                await changed.wait()
        finally:
            unwatch()

    def _newest(self, machine: JobMachine) -> Json:
        rounds = machine.history.rounds
        last = rounds[max(rounds)].figures if rounds else None
        if last is None:
            return {"accuracy": None, "loss": None, "samples": None, "participants": None}
        return {
            "accuracy": last.accuracy, "participants": last.participants,
            "samples": last.samples, "loss": last.loss,
        }  # fmt: skip

    # --- changing --------------------------------------------------------------------------------
    def stamp(self) -> Stamp:
        """See ``Operations.stamp``."""
        return self._parts.site.next_stamp(int(wall_s() * 1000))

    def clock(self) -> Json:
        """See ``Operations.clock``."""
        site = self._parts.site
        return {"clock_ahead_s": round(site.clock_ahead_s, 1), "clocks_heard": site.clocks_heard}

    async def submit(self, documents: Sequence[bytes]) -> list[Json]:
        """See ``Operations.submit``."""
        decoded = [unpack(Document, data, 2 * DOCUMENT_BYTES_MAX) for data in documents]
        bodies = [check_document(document, self._parts.trust.admins()) for document in decoded]
        token, future = self._parts.outside.expect()
        self._parts.driver.feed(Submitted(token, tuple(decoded)))
        errors = await future
        return [
            {"kind": key_of(body).kind, "name": key_of(body).name, "accepted": not error,
             "reason": error}
            for body, error in zip(bodies, errors, strict=True)
        ]  # fmt: skip

    async def draft_job(self, spec: JobSpec) -> Job:
        """See ``Operations.draft_job``."""
        if spec.recipe not in RECIPES:
            raise NotFound(f"no recipe {spec.recipe!r}", mend=f"use one of {', '.join(RECIPES)}")
        parts = self._parts
        nonce = os.urandom(8)
        mark = hashlib.sha256(nonce + repr(spec).encode()).hexdigest()[:8]
        identifier = JobId(f"{spec.name}-{mark}")
        may_vote = not parts.site.is_draining and not parts.site.workshop.barred_because
        seats = [self._seat(parts.site.me)] if may_vote else []
        seats += [
            self._seat(member.site)
            for member in parts.site.swim.members().values()
            if member.state == "alive" and member.record.status == "alive"
        ]
        allowed = [s for s in seats if s is not None and self._may_hold(spec, s.site)]
        if not allowed:
            raise Busy(
                "no site may hold this job's register",
                why=f"none that is alive is in {', '.join(spec.residency) or 'the cluster'}",
            )
        committee = choose_committee(identifier, allowed)
        return spec.job(
            identifier=identifier, committee=committee,
            regions=choose_regions(identifier, spec.regions, allowed),
        )  # fmt: skip

    def _seat(self, site: SiteId) -> Seat | None:
        claims = self._claims(site)
        return None if claims is None else Seat(site, claims.region, claims.tier)

    def _may_hold(self, spec: JobSpec, site: SiteId) -> bool:
        claims = self._claims(site)
        return claims is not None and is_within(
            claims.jurisdiction, spec.residency, self._parts.site.roll.groups
        )

    async def store_blob(self, stream: AsyncIterator[bytes]) -> Json:
        """See ``Operations.store_blob``."""
        digest = await self._parts.blobs.put_stream(stream)
        self._parts.driver.feed(BlobStored(digest))
        return {"digest": digest.hex(), "bytes": self._parts.blobs.size(digest)}

    async def create_token(self, request: TokenRequest) -> str:
        """See ``Operations.create_token``."""
        return await self._parts.joining.create_token(request)

    async def release_model(self, model: str) -> Json:
        """See ``Operations.release_model``."""
        return self._parts.models.release(model)

    async def control_model(self, model: str, *, is_load: bool) -> None:
        """See ``Operations.control_model``."""
        await self._parts.models.control(model, OPERATOR, is_load=is_load)

    async def renew(self) -> Json:
        """See ``Operations.renew``."""
        return await self._parts.renewing.renew_now()

    async def set_draining(self, draining: bool) -> None:  # noqa: FBT001 - the protocol's signature
        """See ``Operations.set_draining``."""
        self._parts.driver.feed(DrainRequested(draining))

    async def leave(self) -> None:
        """See ``Operations.leave``."""
        self._parts.driver.feed(LeaveRequested())
        await asyncio.sleep(STOP_GRACE_S)
        self._parts.stop()

    async def stop(self) -> None:
        """See ``Operations.stop``."""
        asyncio.get_running_loop().call_later(STOP_GRACE_S, self._parts.stop)

    async def doctor(self) -> list[Json]:
        """See ``Operations.doctor``."""
        parts = self._parts
        isolated = parts.driver.is_isolated
        workers, gateway = parts.inference.workers, parts.inference.gateway
        checks = [
            ("members", not isolated, f"{len(parts.site.swim.members())} other sites known",
             "look at atoll peers --why"),
            *((one.child.name.replace("-", " "), one.is_running, one.child.state, "see the journal")
              for one in workers.all),
            ("gateway", gateway.state == "running", gateway.state, "see the journal"),
            ("sandbox", "none" not in workers.sandbox, workers.sandbox,
             "use a kernel with Landlock (5.13 or later) and seccomp"),
            ("database", not self._store_troubles(), "; ".join(self._store_troubles()) or "sound",
             "free disk space; check the disk"),
            ("voting", not parts.site.workshop.barred_because,
             parts.site.workshop.barred_because or "this site votes in its jobs' registers",
             "drain this site, remove its state folder and join again"),
            ("clock", abs(parts.site.clock_ahead_s) < DIFFERS_MS / 1000,
             f"{parts.site.clock_ahead_s:+.0f} s from the median of {parts.site.clocks_heard} members",
             "set it here or there: documents stamped 300 s ahead are refused; timedatectl status"),
        ]  # fmt: skip
        checks += [parts.site.duplicates.check(monotonic_s()), *parts.renewing.checks()]
        checks += [*parts.desk.checks(), *parts.tokens.checks()]
        checks += [(f"hardware: {text[:40]}", False, text, "") for text in parts.hardware.findings]
        return [
            {"check": name, "ok": ok, "evidence": evidence, "mend": "" if ok else mend}
            for name, ok, evidence, mend in checks
        ]

    # --- names -----------------------------------------------------------------------------------
    def _claims(self, site: SiteId) -> Any:
        own = self._parts.site.identity
        identity = own if site == own.site else self._parts.site.roll.get(site)
        return identity.claims if identity is not None else None

    def _name(self, site: SiteId) -> str:
        own = self._parts.site.identity  # also of a site that was revoked since
        identity = own if site == own.site else self._parts.site.roll.known(site)
        return identity.claims.name if identity is not None else short(site)


def _buried_row(job: Job, stone: Tombstone) -> Json:
    """As ``_brief``, of a job of which the end alone is kept."""
    return {
        "id": job.id, "recipe": job.recipe, "dataset": job.dataset, "state": stone.end,
        "phase": stone.end, "epoch": 0, "round": stone.round, "rounds": job.rounds,
        "reason": "its rounds are not kept any more", "aggregator": None, "activity": "over",
    }  # fmt: skip


def _counted_name(one: Json, name: str) -> str:
    """Whose update a round has counted, for a person."""
    whose = f"region {one['region']} by {name}" if one.get("region") else name
    return f"{whose}, late from round {one['round']}" if one.get("round") else whose


def _accuracy(counted: list[Json]) -> float | None:
    """Of the parameters that a round started from, as its row tells it."""
    return figures((one["samples"], one, "round" in one) for one in counted).accuracy


def _plain(value: Any) -> Any:
    """Bytes as hex, tuples as lists: what JSON can hold."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
