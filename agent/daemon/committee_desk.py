"""What the operator may do to a job's committee, and see of its rounds (``agent.api.committees``)."""

import asyncio
from collections.abc import Callable

from agent.api.bodies import Json
from agent.audit.chain import Decision
from agent.daemon.driver import Driver
from agent.daemon.outside import SMALL_BLOB_BYTES_MAX
from agent.drivers.audit_log import AuditLog
from agent.drivers.blobs import BlobStore
from agent.drivers.clock import wall_s
from agent.drivers.store import Store
from agent.election.ballots import quorum_of
from agent.federation.events import RecoverRegister, ReplaceMember
from agent.federation.inclusion import RegionInclusion, Row, verify, verify_region
from agent.federation.job import JobMachine
from agent.federation.participant import Update
from agent.foundation.errors import AtollError, Busy, NotFound, Refused
from agent.foundation.ids import Digest, SiteId, short
from agent.site.events import JobEnded

PATIENCE_S = 20.0
"""A change takes six round trips and the transfer of the parameters; who waits longer asks again."""


class CommitteeDesk:
    """Reads and changes who holds the registers of one site's jobs."""

    def __init__(self, driver: Driver, store: Store, blobs: BlobStore, audit: AuditLog) -> None:
        self._driver, self._store, self._blobs, self._audit = driver, store, blobs, audit

    # --- was it counted --------------------------------------------------------------------------
    async def audit(self, job: str) -> Json:
        """See ``CommitteeOperations.audit``."""
        whole = self._driver.site.workshop.find(job)
        region = self._driver.site.workshop.region(whole.job.id)
        machine = whole if region is None else region  # whose rounds this site's updates are in
        rows = await self._store.read(
            lambda database: [
                dict(row)
                for row in database.query("SELECT * FROM updates WHERE job = ?", [machine.job.id])
            ]
        )
        updates = [
            Update(row["round"], Digest(row["base"]), Digest(row["digest"]), row["samples"], ())
            for row in rows
        ]
        me, value = self._driver.site.me, machine.value
        found = await asyncio.to_thread(
            verify, me, value, self._read, updates, machine.job.staleness_max
        )
        above = None
        if region is not None:
            name = self._driver.site.identity.claims.region
            above = await asyncio.to_thread(
                verify_region, name, whole.value, region.value, self._read
            )
        return {
            "job": job, "region": "" if region is None else machine.job.id,
            "round": 0 if value is None else value.round, "checked": found.rounds,
            "findings": [*found.findings, *(above.findings if above else ())],
            "rows": [self._told(row, above) for row in found.rows],
        }  # fmt: skip

    def _told(self, row: Row, above: RegionInclusion | None) -> Json:
        counted_in = row.counted_in or None
        whole = above.counted_in.get(row.counted_in) if above is not None else counted_in
        return {
            "round": row.round, "update": row.update.hex(), "samples": row.samples,
            "standing": row.standing, "counted_in": counted_in, "whole_round": whole,
            "among": row.among, "epoch": row.epoch,
            "aggregator": "" if row.aggregator is None else self._name(row.aggregator),
        }  # fmt: skip

    def _read(self, digest: Digest) -> bytes | None:
        """A small blob from this site's disk; in a thread."""
        try:
            if self._blobs.size(digest) > SMALL_BLOB_BYTES_MAX:
                return None
            chunks = range(len(self._blobs.manifest(digest).chunks))
            return b"".join(self._blobs.read_chunk(digest, index) for index in chunks)
        except AtollError:
            return None

    # --- who holds the register ------------------------------------------------------------------
    async def replace(self, job: str, gone: str, by: str) -> Json:
        """See ``CommitteeOperations.replace``."""
        machine = self._running(job)
        old = self._member(machine, gone)
        if old is None and gone and by and self._member(machine, by) is not None:
            return self._committee(machine)  # a repeated command
        if old is None:
            raise Refused(
                f"{gone} is not in the committee of {job}",
                why=f"which is {', '.join(self._names(machine))}",
            )
        new = self._substitute(machine, old, by)
        self._driver.feed(JobEnded(machine.job.id, ReplaceMember(old, new)))
        await self._until(
            machine, lambda: old not in machine.committee,
            f"{gone} is not replaced yet; it goes on as long as this agent runs",
        )  # fmt: skip
        return self._committee(machine)

    def _substitute(self, machine: JobMachine, old: SiteId, by: str) -> SiteId:
        workshop = self._driver.site.workshop
        if not by:
            found = workshop.substitute(machine.job, machine.committee, old)
            if found is None:
                raise Refused("no living site may take the place", mend="start or admit one")
            return found
        new = self._site(by)
        if new in machine.committee:
            raise Refused(f"{by} is in the committee already", mend="name another site")
        if not workshop.may_hold(machine.job, new):
            raise Refused(
                f"the job's residency, or its region, does not allow its parameters at {by}"
            )
        return new

    async def recover(self, job: str, members: tuple[str, ...]) -> Json:
        """See ``CommitteeOperations.recover``."""
        machine = self._running(job, is_claimed=False)
        site, new = self._driver.site, tuple(self._site(name) for name in members)
        if len(set(new)) != len(new):
            raise Refused("a site is named twice", mend="each member has one vote")
        for one, name in zip(new, members, strict=True):
            if not site.workshop.may_hold(machine.job, one):
                raise Refused(
                    f"the job's residency, or its region, does not allow its parameters at {name}"
                )
        present = machine.holders
        left = [one for one in present if not site.roll.is_gone(one)]
        if spared := [self._name(one) for one in left if one not in new]:
            raise Refused(
                f"{', '.join(spared)} of the committee could come back and decide otherwise",
                why="who is left out must be revoked, so that nobody hears it again",
                mend="revoke it with atoll site revoke, or name it too",
            )
        committee = machine.committee
        if sum(one in left for one in committee) >= quorum_of(len(committee)):
            raise Refused(
                "a majority of the committee is left",
                mend="use atoll job replace for one that is gone",
            )
        names = ", ".join(members)
        lost = ", ".join(self._name(one) for one in present if one not in left)
        text = f"register taken over by the operator; committee: {names}; lost: {lost}"
        before = 0 if machine.value is None else machine.value.recoveries
        decision = Decision("other", job, site.me, (), 0, text[:200])
        await self._audit.write(decision, int(wall_s() * 1000))
        self._driver.feed(JobEnded(machine.job.id, RecoverRegister(tuple(left), new)))
        await self._until(
            machine, lambda: machine.value is not None and machine.value.recoveries > before,
            "the register is not taken over yet",
        )  # fmt: skip
        value = machine.value
        assert value is not None
        return {**self._committee(machine), "epoch": value.epoch, "round": value.round}

    async def _until(self, machine: JobMachine, is_done: Callable[[], bool], what: str) -> None:
        changed = asyncio.Event()
        unwatch = self._driver.watch(changed.set)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not is_done():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            raise Busy(what, why=machine.swaps.trouble or "no majority has answered") from None
        finally:
            unwatch()

    # --- names -----------------------------------------------------------------------------------
    def _running(self, job: str, *, is_claimed: bool = True) -> JobMachine:
        machine = self._driver.site.workshop.find(job)
        if machine.is_over:
            raise Refused(f"{job} is over", why="its register changes no more")
        if is_claimed and machine.value is None:
            raise Refused(f"nobody has claimed {job} yet", mend="wait, or see atoll job show")
        return machine

    def _committee(self, machine: JobMachine) -> Json:
        return {"committee": self._names(machine)}

    def _names(self, machine: JobMachine) -> list[str]:
        return [self._name(site) for site in machine.committee]

    def _member(self, machine: JobMachine, name: str) -> SiteId | None:
        found = (one for one in machine.committee if name in (self._name(one), one.hex()))
        return next(found, None)

    def _site(self, name: str) -> SiteId:
        site = self._driver.site
        if name in (site.identity.claims.name, site.me.hex()):
            return site.me
        for one in site.roll:
            if name == one.hex():
                return one
        known = site.roll.named(name)
        if not known:
            raise NotFound(f"no site {name!r}", mend="see atoll members")
        return known[0]

    def _name(self, site: SiteId) -> str:
        own = self._driver.site.identity
        identity = own if site == own.site else self._driver.site.roll.known(site)
        return short(site) if identity is None else str(identity.claims.name)
