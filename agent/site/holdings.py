"""What this site holds for others and serves: blobs with their labels, models on the shelf.

It follows the catalog and the jobs: what they want here is fetched, loaded and announced; what nobody
wants any more is forgotten. A blob's residency label is known before the blob can be asked for.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from random import Random

from agent.catalog.catalog import Catalog
from agent.catalog.gates import Counts
from agent.catalog.placement import Abilities, unable
from agent.catalog.rollout import GONE_BACK, Standing
from agent.federation import events as job
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.foundation.writes import Write
from agent.identity.claims import Claims
from agent.identity.registry import Roll
from agent.membership.events import LocalChanged
from agent.membership.swim import Swim
from agent.site.events import (
    FetchBlob,
    GatewayChanged,
    Judged,
    ModelOverridden,
    Noted,
    Persist,
    Resolved,
    SiteEffect,
)
from agent.site.overrides import ALL, WHO_CHARS_MAX, Override, Overrides, check_place, find
from agent.site.rollouts import Rollouts
from agent.site.shelf import Shelf
from agent.site.versions import Versions
from agent.site.workshop import Workshop
from agent.wire.documents import Deployment, Key, ModelVersion
from agent.wire.inside import model_key
from agent.wire.limits import SERVING_PER_RECORD_MAX
from agent.wire.records import Served
from agent.wire.residency import is_within

LOOK_INTERVAL_S = 1.0
"""Placing a hundred deployments among a thousand sites takes tens of milliseconds, and news of a cluster
in trouble comes by the hundred."""
SOURCES_MAX = 16
"""Sites asked for one blob; rarely are more than a few needed, and all are tried in the end."""


class Holdings:
    """Blobs, labels, shelf and versions of one site."""

    def __init__(
        self,
        *,
        claims: Claims,
        catalog: Catalog,
        swim: Swim,
        roll: Roll,
        workshop: Workshop,
        held: set[Digest],
        crashes: Mapping[bytes, int],
        overrides: Overrides,
        rollouts: Mapping[str, tuple[bytes, Standing]],
        abilities: Abilities,
        rng: Random,
        emit: Callable[[SiteEffect], None],
        tell: Callable[[LocalChanged, float], None],
    ) -> None:
        """``emit`` takes effects in order; ``tell`` changes this site's record.

        ``rollouts``: as read from the database, by model.
        """
        self._catalog, self._swim, self._roll, self._workshop = catalog, swim, roll, workshop
        self._rng, self._emit, self._tell = rng, emit, tell
        self.held = held
        self.labels: dict[Digest, tuple[str, ...]] = {}
        self.shelf = Shelf(held.__contains__, self._fetch_model, dict(crashes), self._judged)
        self._place, self.overrides = claims.jurisdiction, overrides
        self.rollouts = Rollouts(claims, catalog, self.shelf, swim, overrides, roll, rollouts)
        self.versions = Versions(
            claims, catalog, workshop, self.shelf, swim, overrides, roll, abilities, self.rollouts
        )
        self._look_at, self._looked_at = NEVER, -math.inf
        self._rollouts_at = NEVER

    # --- what is wanted --------------------------------------------------------------------------
    def wanted_changed(self, now: float) -> None:
        """The catalog, a job's end or another site's shelf changes what is to be served here."""
        self._look_at, self._looked_at = NEVER, now
        self._look_at_rollouts(now)
        placed = self.versions.placements()
        versions = self.versions.wanted(placed, now)
        for version in versions:
            self.labels[version.manifest] = version.residency
        for body in self._catalog.of_kind(ModelVersion):
            if body.manifest in self.held:
                self.labels[body.manifest] = body.residency
        for effect in self.shelf.want(versions, now, unable(placed)):
            self._emit(effect)
        self.serving_changed(now)

    def wanted_soon(self, now: float) -> None:
        """As ``wanted_changed``, once for all that comes within ``LOOK_INTERVAL_S``."""
        self._look_at = min(self._look_at, max(now, self._looked_at + LOOK_INTERVAL_S))

    def rollouts_moved(self, now: float) -> None:
        """Something has happened that a rollout may depend on: look at it soon."""
        self._rollouts_at = min(self._rollouts_at, self.rollouts.look_at(now))

    def _look_at_rollouts(self, now: float) -> bool:
        """Whether a part of this site has moved, durably."""
        self._rollouts_at = NEVER
        if not (self.rollouts.parts or self.rollouts.running()):
            return False
        before = {model: part.standing for model, part in self.rollouts.parts.items()}
        writes = self.rollouts.look(self.versions.placements(as_written=True), now)
        if writes:
            self._emit(Persist(tuple(writes)))
        for model, part in self.rollouts.parts.items():
            standing = part.standing
            if before.get(model, Standing()) != standing:
                why = f": {standing.reason}" if standing.reason else ""
                text = f"rollout of {part.version}: this site is {standing.stage.name.lower()}{why}"
                self._emit(Noted(text, standing.stage in GONE_BACK))
        self._tell(LocalChanged(trials=self.rollouts.trials()), now)
        return bool(writes)

    def others_moved(self, now: float) -> None:
        """Somebody came, went, or serves something else: replicas may have to be here, soon."""
        self.rollouts_moved(now)
        if self.versions.has_former:
            self.wanted_changed(now)
        elif self.versions.has_replicas:
            self.wanted_soon(now)

    def woke(self, now: float) -> None:
        """Do what was put off."""
        is_due = now >= min(self._rollouts_at, self.rollouts.wake_at())
        if now >= self._placement_at() or (is_due and self._look_at_rollouts(now)):
            self.wanted_changed(now)

    def wake_at(self) -> float:
        """When the placement of replicas, or a rollout, is to be looked at."""
        return min(self._placement_at(), self._rollouts_at, self.rollouts.wake_at())

    def _placement_at(self) -> float:
        lingers_until = max(self.versions.wake_at(), self._looked_at + LOOK_INTERVAL_S)
        return min(self._look_at, lingers_until)

    def serving_changed(self, now: float) -> None:
        """Announce what is ready and what is refused here."""
        self._tell(LocalChanged(serving=self._serving()), now)
        self._emit(GatewayChanged())

    def _serving(self) -> tuple[Served, ...]:
        items = sorted(self.shelf.items.items())
        serving = [Served(key, item.service_us) for key, item in items if item.stage == "ready"]
        serving += [Served(key, 0, True) for key, item in items if item.stage == "refused"]
        return tuple(serving[:SERVING_PER_RECORD_MAX])

    # --- what is decided here --------------------------------------------------------------------
    def check_loadable(self, name: str, version: str) -> list[ModelVersion]:
        """The versions that ``load`` would have served here; ``version`` may be ``ALL``.

        Raises:
            NotFound: the catalog does not have it.
            Refused: its residency label keeps it away from here.
            Busy: no more decisions can be kept.
        """
        every = self.versions.every()
        meant = check_place(find(every, name, version), self._place, self._roll.groups)
        self.overrides.require_room(name, version)
        if version != ALL:
            return meant
        planned = {(one.name, one.version) for one in self.versions.planned()}
        if should := [one for one in meant if (one.name, one.version) in planned]:
            return should
        default = self.versions.defaults(every.values()).get(name)
        return [one for one in meant if one.version == default] or meant[-1:]

    def check_unloadable(self, name: str, version: str) -> None:
        """Whether ``unload`` has something to be about.

        Raises:
            NotFound: the catalog does not have it.
            Busy: no more decisions can be kept.
        """
        find(self.versions.every(), name, version)
        self.overrides.require_room(name, version)

    def override(self, event: ModelOverridden, wall_s: float, now: float) -> None:
        """Serve a model here, or not, against the catalog; durable before anything follows."""
        decided = Override(
            event.name, event.version, event.is_served, event.who[:WHO_CHARS_MAX], wall_s
        )
        if event.is_served:
            targets = self.check_loadable(event.name, event.version)
            planned = {(one.name, one.version) for one in self.versions.planned()}
            numbers = [one.version for one in targets]
            writes: list[Write] = self.overrides.load(
                event.name, event.version, numbers, planned, decided.who, wall_s
            )
            for one in targets:
                self.shelf.retry(model_key(one.name, one.version))
        else:
            writes = self.overrides.unload(decided)
        if writes:
            self._emit(Persist(tuple(writes)))
        self._emit(Noted(f"model {decided.spelled} is {decided}"))
        self.wanted_changed(now)
        self._emit(Resolved(event.token, ("",)))

    def measured(
        self,
        load: float,
        service_us: Mapping[bytes, int],
        counts: Mapping[bytes, Counts],
        now: float,
    ) -> None:
        """Inference says how busy it is, how long its models run, and how those on trial do."""
        if counts:
            self.rollouts.counted(counts)
            self.rollouts_moved(now)
        for key, item in self.shelf.items.items():
            item.service_us = service_us.get(key, item.service_us)
        self._tell(LocalChanged(load=load, serving=self._serving()), now)

    def power_measured(self, free_w: float | None, now: float) -> None:
        """So much of the supply is free: models that ask for some may come or have to go."""
        self.versions.abilities = replace(self.versions.abilities, power_free_w=free_w)
        self.wanted_soon(now)

    # --- blobs -----------------------------------------------------------------------------------
    def fetch(self, digest: Digest, sites: Collection[SiteId]) -> None:
        """Fetch from those of ``sites`` that are known, in their order."""
        members = self._swim.members()
        sources = tuple((site, members[site].record.endpoint) for site in sites if site in members)
        self._emit(FetchBlob(digest, sources[:SOURCES_MAX]))

    def stored(self, digest: Digest, now: float) -> None:
        """A blob is complete here: label it, and move on whatever waited for it."""
        self.held.add(digest)
        for version in self._catalog.of_kind(ModelVersion):
            if version.manifest == digest:
                self.labels[digest] = version.residency
        if (residency := self.labels.get(digest)) is not None:
            self._emit(job.Label(digest, residency))
        for effect in self.shelf.advance(now):
            self._emit(effect)
        self._emit(GatewayChanged())

    def let_go(self, digest: Digest) -> tuple[str, ...] | None:
        """Hold the blob no more, for all that others are told; its label, if it had one."""
        self.held.discard(digest)
        return self.labels.pop(digest, None)

    def label(self, effect: job.Label) -> None:
        """A job says where a blob may go: the first that does, as long as it is here.

        Else a call about one job would open what belongs to another. What a job has made itself may go where either
        of two allows it.
        """
        known, wanted = self.labels.get(effect.digest), effect.residency
        residency = wanted if known is None else known
        if known is not None and effect.is_own:
            residency = tuple(sorted({*known, *wanted})) if known and wanted else ()
        self.labels[effect.digest] = residency
        self._emit(job.Label(effect.digest, residency))  # told at once: an offer of it may follow

    def forget(self, digest: Digest) -> None:
        """Remove a job's blob, unless a model or another job needs the same bytes."""
        if any(machine.needs(digest) for machine in self._workshop.machines.values()):
            return
        wanted = {item.version.manifest for item in self.shelf.items.values()}
        if digest not in wanted and all(
            version.manifest != digest for version in self._catalog.of_kind(ModelVersion)
        ):
            self.let_go(digest)
            self._emit(job.ForgetBlob(digest))

    def _fetch_model(self, version: ModelVersion) -> None:
        """Ask those who serve it first, then everyone the label allows, in random order."""
        key = model_key(version.name, version.version)
        members = [m for m in self._swim.members().values() if m.state == "alive"]
        self._rng.shuffle(members)
        members.sort(key=lambda m: all(served.key != key for served in m.record.serving))
        sites = [m.site for m in members if self._is_allowed(version.residency, m.site)]
        self.fetch(version.manifest, sites)

    def _judged(self, version: ModelVersion) -> Judged | None:
        """By what the rollout of a version says, if it says anything."""
        entry = self._catalog.get(Key("deployment", version.name))
        body = entry.body if entry is not None else None
        if not isinstance(body, Deployment) or body.rollout is None or not body.is_active:
            return None
        terms = body.rollout
        if body.version != version.version or not terms.accuracy_min or not terms.holdout:
            return None
        return Judged(terms.holdout, terms.accuracy_min)

    def _is_allowed(self, residency: tuple[str, ...], site: SiteId) -> bool:
        identity = self._roll.get(site)
        return identity is not None and is_within(
            identity.claims.jurisdiction, residency, self._roll.groups
        )
