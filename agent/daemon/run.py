"""``atoll run``: one site from its configuration to its end.

Order of a start: identity, database and boot epoch (durable before the first packet), hardware, the
machine restored from the database, listeners, children, discovery, then READY. SIGTERM and SIGINT
drain and stop within five seconds; a defect (an exception nobody expected) ends the process with
code 1, and systemd starts it again.
"""

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

from agent.api import applications
from agent.api import audit as audit_api
from agent.api import blobs as blobs_api
from agent.api import catalog as catalog_api
from agent.api import committees as committees_api
from agent.api import rollouts as rollouts_api
from agent.api import trust as trust_api
from agent.api.admin import AdminServer
from agent.catalog.placement import Abilities
from agent.config.addresses import announced_host
from agent.config.settings import SiteSettings
from agent.daemon import listening
from agent.daemon.applications import ApplicationDesk
from agent.daemon.blob_desk import BlobDesk
from agent.daemon.catalog_desk import CatalogDesk
from agent.daemon.committee_desk import CommitteeDesk
from agent.daemon.driver import Driver
from agent.daemon.inference import Inference
from agent.daemon.issuing import Issuing
from agent.daemon.joining import Joining
from agent.daemon.links import Links
from agent.daemon.model_desk import ModelDesk
from agent.daemon.once_keys import OnceKeys
from agent.daemon.operations import DaemonOperations, Parts
from agent.daemon.outside import Outside
from agent.daemon.power import follow_power
from agent.daemon.renewing import Renewing, Shown
from agent.daemon.restore import raise_boot_epoch, restore, token_seeds
from agent.daemon.rollout_desk import RolloutDesk
from agent.daemon.trust_operations import TrustDesk
from agent.daemon.trust_store import open_trust
from agent.daemon.witnessing import Witnessing
from agent.daemon.workers import worker_plan
from agent.drivers import keystore, memory, tls
from agent.drivers.audit_log import AuditLog
from agent.drivers.blobs import BlobStore
from agent.drivers.clock import monotonic_s, wall, wall_s
from agent.drivers.gossip import GossipSocket
from agent.drivers.hardware_detect import detect_hardware
from agent.drivers.keystore import SiteKeys
from agent.drivers.mdns import Mdns
from agent.drivers.mesh import MeshClient, MeshServer
from agent.drivers.store import Store
from agent.drivers.systemd import Notifier
from agent.drivers.trainers import Trainers
from agent.foundation.errors import AtollError, ConfigError, StoreFault
from agent.foundation.ids import SiteId
from agent.hardware.detect import Hardware
from agent.identity.envelope import COUNTER_START_MAX, Sealer
from agent.identity.registry import Roll, SiteNotary
from agent.identity.trust import TrustLog
from agent.membership.events import Heard, PortRefused, SendFailed
from agent.membership.settings import Settings as SwimSettings
from agent.site.duplicates import MARK_BYTES
from agent.site.events import Discovered, LeaveRequested, WallClock
from agent.site.site import Site
from agent.site.stored import SiteSettings as StoredSettings
from agent.site.view import view_of
from agent.wire.records import Endpoint

WALL_CHECK_S = 30.0
"""How often the distance between the monotonic and the wall clock is measured anew."""
STOP_TIMEOUT_S = 4.0
"""The whole site stops in under 5 s."""
GATEWAY_TIMEOUT_S = 20.0
"""A gateway that is not up by then is reported; the daemon goes on trying."""
SWITCH_INTERVAL_S = 0.0005
"""How long one thread may keep the interpreter from another that wants it (Python's default: 5 ms). The
store's thread needs it for microseconds around each fsync, and a request that is passed on waits for that."""

T = TypeVar("T")
_log = logging.getLogger("atoll")


def main(settings: SiteSettings) -> int:
    """Run the site until it is told to stop; the exit code."""
    logging.basicConfig(
        level=settings.log.level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    os.umask(0o077)
    memory.hold_little()
    tls.hold_little()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        return asyncio.run(_Daemon(settings).run())
    except AtollError:
        raise
    except KeyboardInterrupt:
        return 130


class _Daemon:
    """One run."""

    def __init__(self, settings: SiteSettings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._code = 0
        self._notifier = Notifier()
        self._not_ready = "it is starting"
        self._closers: list[Callable[[], Any]] = []

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._defect)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            await self._start()
            await self._stopping.wait()
            if self._code == 0:
                # Said before anything closes, so that nobody has to find out; it goes on spreading
                # while the children end. A site that starts again takes it back with its first record.
                self._driver.feed(LeaveRequested())
        finally:
            self._notifier.stopping("stopping")
            await self._close()
        return self._code

    def _stop(self) -> None:
        self._stopping.set()

    def _defect(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Asyncio only logs an exception in a callback; a site must not go on after a defect."""
        error = context.get("exception")
        if isinstance(error, (ConnectionError, TimeoutError, asyncio.CancelledError)):
            _log.debug("a connection ended: %s", context.get("message"))
            return
        if isinstance(error, StoreFault):
            _log.critical("%s; the agent ends, because what is on disk is unknown", error)
        else:
            _log.critical("defect: %s", context.get("message"), exc_info=error)
        self._code = 1
        self._stopping.set()

    # --- start -----------------------------------------------------------------------------------
    async def _start(self) -> None:
        settings, started_at = self._settings, monotonic_s()
        keys = keystore.load(settings.identity_dir)
        host, binds = self._addresses()
        for folder in (settings.state_dir, settings.runtime_dir, settings.jobs_dir):
            _make(folder)
        store = await self._opened(Store.open(settings.store_path), "close")
        hardware = await asyncio.to_thread(
            detect_hardware, settings.hardware.profile, settings.hardware.profiles_dir
        )
        trust = await open_trust(store, keys)
        boot_epoch = await raise_boot_epoch(store, keys.site)
        blobs = BlobStore(
            settings.blobs_dir, reserve_bytes=settings.storage.blob_reserve_bytes,
            bytes_max=settings.storage.blob_bytes_max,
        )  # fmt: skip
        await blobs.sweep()
        stored = await restore(store, blobs, keys.site)
        if stored.barred_because:
            _log.warning("%s", stored.barred_because)
        endpoint = Endpoint(host, settings.listen.mesh_port, settings.listen.data_port)
        roll = Roll(keys.root, trust)
        notary = SiteNotary(keys.site_private, roll)
        site = Site(
            identity=keys.identity, passport=keys.passport, endpoint=endpoint,
            boot_epoch=boot_epoch, settings=_abilities(settings, hardware),
            swim_settings=_swim_settings(settings), notary=notary, roll=roll, trust=trust,
            stored=stored, rng=SystemRandom(), now=monotonic_s(),
            wall_offset_s=wall_s() - monotonic_s(), mark=os.urandom(MARK_BYTES),
        )  # fmt: skip
        verify = tls.verifier(keys, trust.reasons, wall, roll.require_current)
        trainers = self._kept(_trainers(settings, hardware), "close")
        mesh = self._kept(MeshClient(keys, verify), "close")
        gossip = self._gossip(site, keys, roll, boot_epoch)
        outside = Outside(
            me=keys.site, gossip=gossip, mesh=mesh, blobs=blobs, trainers=trainers,
            datasets=dict(settings.datasets),
        )  # fmt: skip
        driver = self._driver = self._kept(Driver(site, store, outside), "stop")
        await gossip.open(binds, settings.listen.mesh_port)
        renewing = self._kept(
            Renewing(keys, trust, roll, stored.peers, SystemRandom(), driver.spawn), "stop"
        )
        mesh_seeds = ((host, settings.listen.mesh_port),)
        joining = Joining(keys, trust, roll, store, mesh_seeds, stored.peers)
        issuing = Issuing(trust, renewing, joining)
        audit = await self._opened(AuditLog.open(store, site=keys.site, notary=notary), "close")
        witnessing = await Witnessing.open(site, audit, store, mesh, notary, lambda: renewing.keys)
        server = MeshServer(
            keys, verify, witnessing.handling(issuing.handling(outside.handle)), joining.shown_chain, joining.join,
            lambda: {one.record.endpoint.host for one in site.swim.members().values()},
            renewing.answer,
        )  # fmt: skip
        self._closers.append(server.stop)
        outside.on_trust += [
            server.close_refused, mesh.close_refused, lambda: driver.spawn(issuing.look())
        ]  # fmt: skip
        await server.start(binds[-1], settings.listen.mesh_port)  # of wildcards the last takes all
        await trainers.tidy([job for job, one in site.workshop.machines.items() if not one.is_over])
        tokens = await ApplicationDesk.open(store, settings.listen, site)
        once_keys = await OnceKeys.open(store)
        inference = outside.inference = self._kept(
            self._inference(binds, hardware, blobs, audit, once_keys, driver, trust, keys, tokens),
            "stop",
        )
        tokens.tell = inference.tell_applications
        driver.start()
        driver.spawn(issuing.look())
        inference.start()
        renewing.start(
            site, Shown(mesh, server, joining, driver.feed, inference.certificate_renewed)
        )
        mdns = self._discover(keys, endpoint, site, driver, await token_seeds(store), joining)
        desk = TrustDesk(trust, driver, outside, mesh, issuing)
        parts = Parts(
            site=site, driver=driver, outside=outside, store=store, blobs=blobs,
            inference=inference, trainers=trainers, trust=trust, joining=joining,
            renewing=renewing, desk=desk, models=ModelDesk(driver, outside, inference),
            tokens=tokens, witnessing=witnessing, hardware=hardware, mdns=mdns, stop=self._stop, started_at=started_at,
            http=listening.shown(settings.listen.http_host, settings.listen.http_port),
            fallback_reason=lambda: self._not_ready,
        )  # fmt: skip
        serving = AdminServer.start(
            DaemonOperations(parts), settings.admin_socket,
            (
                *trust_api.routes(desk), *applications.routes(tokens),
                *catalog_api.routes(CatalogDesk(site.catalog, store)), *audit_api.routes(witnessing),
                *rollouts_api.routes(RolloutDesk(site)),
                *blobs_api.routes(BlobDesk(driver, outside, blobs)),
                *committees_api.routes(CommitteeDesk(driver, store, blobs, audit)),
            ),
        )  # fmt: skip
        await self._opened(serving, "close")
        for work in (
            self._follow_clocks(driver), self._watchdog(), witnessing.tell(),
            follow_power(settings.hardware.power_supply_w, driver.feed),
        ):  # fmt: skip
            driver.spawn(work)
        await self._become_ready(inference, site)

    def _addresses(self) -> tuple[str, tuple[str, ...]]:
        """The address to announce, and those to bind, which are free."""
        settings = self._settings
        announced = announced_host(
            settings.listen.mesh_host, denied=settings.discovery.deny_interfaces
        )
        host = listening.mesh_address(announced.host)
        binds = announced.binds if announced.is_followed else (host,)
        listening.require_free(settings.listen, binds)
        return host, binds

    def _kept(self, made: T, closer: str) -> T:
        """To be closed at the end, by this method of it."""
        self._closers.append(getattr(made, closer))
        return made

    async def _opened(self, opening: Any, closer: str) -> Any:
        return self._kept(await opening, closer)

    def _gossip(self, site: Site, keys: SiteKeys, roll: Roll, boot_epoch: int) -> GossipSocket:
        def epoch_of(target: SiteId) -> int:
            member = site.swim.members().get(target)
            return member.record.boot_epoch if member is not None else 0

        sealer = Sealer(
            keys.site, keys.gossip_private, boot_epoch, roll.gossip_key, epoch_of, roll.resolve,
            counter=SystemRandom().randrange(COUNTER_START_MAX),
        )  # fmt: skip
        gossip = GossipSocket(
            sealer,
            heard=lambda sender, message: self._driver.feed(Heard(sender, message)),
            send_failed=lambda target: self._soon(SendFailed(target)),
            port_refused=lambda target: self._soon(PortRefused(target)),
        )

        async def close() -> None:
            gossip.close()

        self._closers.append(close)
        return gossip

    def _soon(self, event: SendFailed | PortRefused) -> None:
        # Found out while an effect is carried out: the machine must not be stepped inside its step.
        asyncio.get_running_loop().call_soon(lambda: self._driver.feed(event))

    def _inference(
        self,
        binds: tuple[str, ...],
        hardware: Hardware,
        blobs: BlobStore,
        audit: AuditLog,
        once_keys: OnceKeys,
        driver: Driver,
        trust: TrustLog,
        keys: SiteKeys,
        tokens: ApplicationDesk,
    ) -> Inference:
        settings = self._settings
        serving, listen = settings.serving, settings.listen
        gateway = [
            "--http-host", listen.http_host, "--http-port", str(listen.http_port),
            "--grpc-port", str(listen.grpc_port or -1),
            "--metrics-port", str(listen.metrics_port or -1),
            "--tokens", "required" if listen.is_token_required else "optional",
            *(part for name in listen.http_names for part in ("--http-name", name)),
            *listening.certificate_arguments(listen),
            "--data-host", binds[-1], "--data-port", str(listen.data_port),
            "--identity-dir", str(settings.identity_dir), "--blob-dir", str(settings.blobs_dir),
            "--blob-bytes-per-s", str(serving.blob_bytes_per_s),
            "--request-bytes-max", str(serving.request_bytes_max),
            "--queue-max-s", str(serving.queue_max_s),
            *(part for share in serving.shares for part in ("--share", share)),
        ]  # fmt: skip
        inference = Inference(
            gateway_arguments=gateway, plan=worker_plan(
                serving, hardware, keys.identity.claims.name, settings.datasets
            ),
            blobs=blobs, audit=audit, once_keys=once_keys,
            view=lambda: view_of(driver.site, _refused(trust, driver.site.roll)),
            applications=tokens.valid, feed=driver.feed, spawn=driver.spawn,
        )  # fmt: skip
        rollouts = RolloutDesk(driver.site)
        inference.figures = lambda: (
            driver.lag.render()
            + inference.workers.render()
            + rollouts.metrics()
            + blobs.room.render()
        )
        return inference

    def _discover(
        self,
        keys: SiteKeys,
        endpoint: Endpoint,
        site: Site,
        driver: Driver,
        token_seeds: tuple[tuple[str, int], ...],
        joining: Joining,
    ) -> Mdns | None:
        for host, port in self._settings.seeds:
            driver.feed(Discovered(Endpoint(host, port, endpoint.data_port), "seed"))
        for host, port in token_seeds:
            driver.feed(Discovered(Endpoint(host, port, endpoint.data_port), "token"))
        mdns = None
        if self._settings.discovery.mdns:
            mdns = Mdns(
                keys.site,
                keys.cluster,
                lambda seen: driver.feed(
                    Discovered(seen.endpoint, "mdns", seen.site, seen.sender, seen.sequence)
                ),
                SystemRandom(),
            )
            self._closers.append(mdns.stop)

        def moved(where: Endpoint) -> None:
            joining.seeds = ((where.host, where.mesh_port),)

        links = Links(self._settings, site, mdns, driver.feed, moved, driver.spawn)
        self._closers.append(links.close)
        links.start()
        return mdns

    async def _become_ready(self, inference: Inference, site: Site) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATEWAY_TIMEOUT_S):
                await inference.gateway_ready.wait()
        if not inference.gateway_ready.is_set():
            self._not_ready = f"the gateway is not up: {inference.gateway.state}"
            _log.error("%s; it is still being tried", self._not_ready)
            self._driver.spawn(self._wait_for_gateway(inference, site))
            return
        self._ready(site)

    async def _wait_for_gateway(self, inference: Inference, site: Site) -> None:
        await inference.gateway_ready.wait()
        self._ready(site)

    def _ready(self, site: Site) -> None:
        self._not_ready = ""
        memory.give_back()
        claims = site.identity.claims
        text = f"site {claims.name} ({claims.jurisdiction}) is ready"
        _log.info("%s", text)
        self._notifier.ready(text)

    # --- beside the loop -------------------------------------------------------------------------
    async def _follow_clocks(self, driver: Driver) -> None:
        while True:
            await asyncio.sleep(WALL_CHECK_S)
            driver.feed(WallClock(wall_s() - monotonic_s()))

    async def _watchdog(self) -> None:
        every_s = self._notifier.watchdog_every_s
        while every_s:
            self._notifier.watchdog()
            await asyncio.sleep(every_s)

    # --- end -------------------------------------------------------------------------------------
    async def _close(self) -> None:
        """Last opened, first closed; one that hangs does not keep the others open."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                for closer in reversed(self._closers):
                    try:
                        await closer()
                    except Exception:  # noqa: BLE001 - the others must be closed all the same
                        _log.exception("while stopping")
        except TimeoutError:
            _log.warning("not everything stopped in %.0f s", STOP_TIMEOUT_S)
        self._notifier.close()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder {folder} cannot be made",
            why=error.strerror or str(error),
            mend="run the agent as the owner of its state_dir, or free disk space",
        ) from None


def _trainers(settings: SiteSettings, hardware: Hardware) -> Trainers:
    part = settings.training
    return Trainers(
        jobs_dir=settings.jobs_dir,
        threads=part.threads or hardware.training_threads,
        memory_bytes=part.memory_bytes or None,
        kept_warm_s=part.kept_warm_s,
    )


def _abilities(settings: SiteSettings, hardware: Hardware) -> StoredSettings:
    why_not = ""
    if not settings.training.enabled:
        why_not = "training is switched off here ([training] enabled)"
    elif not hardware.is_training_allowed:
        why_not = f"the hardware profile {hardware.profile} does not allow training"
    elif importlib.util.find_spec("torch") is None:
        why_not = "PyTorch is not installed here (pip install 'atoll-agent[train]')"
    return StoredSettings(
        datasets={name: part.jobs for name, part in settings.datasets.items()},
        jobs_kept=settings.training.jobs_kept,
        dataset_labels={name: part.residency for name, part in settings.datasets.items()},
        can_train=not why_not, why_not=why_not, capacity=hardware.capacity,
        unnamed_s=settings.storage.unnamed_blob_s,
        abilities=Abilities(hardware.accelerators, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
    )  # fmt: skip


def _refused(trust: TrustLog, roll: Roll) -> tuple[SiteId, ...]:
    """Whose requests the gateway turns away."""
    return tuple(SiteId(one) for one in sorted(trust.revoked() | roll.retired()))


def _swim_settings(settings: SiteSettings) -> SwimSettings:
    part = settings.membership
    make = SwimSettings.lan if part.link == "lan" else SwimSettings.wan
    return make(part.expected_sites)
