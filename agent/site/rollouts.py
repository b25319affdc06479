"""The rollouts in which this site has a part, and which version of each model it means by them.

Every deployment that replaces one version by another in waves has a ``Part`` here if it means this site.
The part looks again when the catalog, a member, the shelf or the traffic has news, and at most once in
``LOOK_INTERVAL_S`` otherwise. What it decides is durable before it is acted on. What is told of it goes
with the site's record, which waits for no disk: it is evidence of what has happened, not a promise.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from agent.catalog.catalog import Catalog
from agent.catalog.gates import NO_COUNTS, Counts, Meter
from agent.catalog.placement import Place, Placement, is_meant, place_of
from agent.catalog.rollout import (
    GONE_BACK,
    TABLE,
    Here,
    Part,
    Peer,
    Standing,
    has_ended_elsewhere,
    is_rollout,
    restored,
    rollout_id,
    waves,
)
from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.foundation.writes import Delete, Write
from agent.identity.claims import Claims
from agent.identity.registry import Roll
from agent.membership.swim import Swim
from agent.site.overrides import Overrides
from agent.site.shelf import Shelf
from agent.wire.documents import Deployment, ModelVersion
from agent.wire.inside import model_key
from agent.wire.limits import TRIALS_PER_RECORD_MAX
from agent.wire.records import Stage, Trial

LOOK_INTERVAL_S = 0.5
"""News of a cluster in trouble comes by the hundred; everybody goes back within seconds all the same."""
PEERS_PER_S = 10_000
"""To look at one takes about 5 microseconds: a twentieth of the loop with twenty rollouts under way among
a thousand sites, which are looked at every two seconds then."""
_TOLD_FIRST = (
    Stage.FAILED, Stage.STOPPED, Stage.TRYING, Stage.PASSED, Stage.UNABLE, Stage.ALONE, Stage.ENDED,
)  # fmt: skip
_FAILURES = (Stage.FAILED, Stage.STOPPED)
_SETTLED = (*GONE_BACK, Stage.ENDED)


@dataclass(frozen=True, slots=True)
class Meant:
    """The catalog as it is meant here and now: deployments with the version of this site's turn."""

    catalog: Catalog
    rollouts: "Rollouts"

    def model(self, name: str, version: str) -> ModelVersion | None:
        """See ``placement.Models``."""
        return self.catalog.model(name, version)

    def of_kind(self, kind: type[Deployment]) -> list[Deployment]:
        """See ``placement.Models``."""
        return [
            replace(one, version=self.rollouts.version(one)) for one in self.catalog.of_kind(kind)
        ]


class Rollouts:
    """Reads catalog, members and shelf; owns the parts."""

    def __init__(
        self,
        claims: Claims,
        catalog: Catalog,
        shelf: Shelf,
        swim: Swim,
        overrides: Overrides,
        roll: Roll,
        stored: Mapping[str, tuple[bytes, Standing]],
    ) -> None:
        """``stored``: what the database holds, by model."""
        self._place: Place = place_of(claims)
        self._catalog, self._shelf, self._swim = catalog, shelf, swim
        self._overrides, self._roll = overrides, roll
        self._stored = dict(stored)
        self.parts: dict[str, Part] = {}
        """By model."""
        self._holders: dict[str, tuple[SiteId, ...]] = {}
        """Who is chosen for the replicas of each part's model."""
        self._meters: dict[bytes, Meter] = {}
        self._crashed: dict[bytes, str] = {}
        self._looked_at = -LOOK_INTERVAL_S
        self._peers_seen = 0
        """In the last look."""

    # --- reading ---------------------------------------------------------------------------------
    def running(self) -> list[Deployment]:
        """The deployments that replace a version in waves."""
        return [one for one in self._catalog.of_kind(Deployment) if is_rollout(one)]

    def version(self, deployment: Deployment) -> str:
        """The version that this site means by a deployment."""
        if not is_rollout(deployment):
            return deployment.version
        assert deployment.rollout is not None
        part = self._part(deployment)
        if part is not None:
            is_new = part.serves_new
        else:
            is_new = has_ended_elsewhere(self._told(rollout_id(deployment)).values())
        return deployment.version if is_new else deployment.rollout.previous

    def answering(self, deployment: Deployment) -> str:
        """The version that answers a request which names none: the new one once it is ready here."""
        version, part = self.version(deployment), self._part(deployment)
        if part is None or not part.keeps_previous or deployment.rollout is None:
            return version
        item = self._shelf.items.get(model_key(deployment.model, version))
        is_ready = item is not None and item.stage == "ready"
        return version if is_ready else deployment.rollout.previous

    def kept(self) -> list[ModelVersion]:
        """Previous versions that stay loaded beside the new ones."""
        found = []
        for one in self.running():
            part = self._part(one)
            if part is not None and part.keeps_previous and one.rollout is not None:
                version = self._catalog.model(one.model, one.rollout.previous)
                if version is not None:
                    found.append(version)
        return found

    def watched(self) -> set[bytes]:
        """Keys of the versions whose requests are to be counted."""
        found = set()
        for one in self.running():
            part = self._part(one)
            if part is not None and part.standing.stage not in _SETTLED:
                assert one.rollout is not None
                found |= {model_key(one.model, v) for v in (one.version, one.rollout.previous)}
        return found

    def reasons(self) -> list[str]:
        """The rollouts that were taken back, each a sentence, for the operator."""
        return [
            f"the rollout of {part.version} was taken back: {part.standing.reason}"
            for _, part in sorted(self.parts.items())
            if part.standing.stage in GONE_BACK
        ]

    def trials(self) -> tuple[Trial, ...]:
        """What is told of this site's parts; those that others wait for come first."""
        found = [
            part.trial
            for _, part in sorted(self.parts.items())
            if part.standing.stage is not Stage.WAITING
        ]
        found.sort(key=lambda trial: _TOLD_FIRST.index(trial.stage))
        return tuple(found[:TRIALS_PER_RECORD_MAX])

    def wake_at(self) -> float:
        """When to look again if there is no news."""
        return min(
            (max(part.wake_at(), self._looked_at) for part in self.parts.values()), default=NEVER
        )

    def look_at(self, now: float) -> float:
        """When to look at news that came ``now``: soon if there is a rollout under way, else never."""
        if not self.parts:
            return NEVER
        return max(now, self._looked_at + max(LOOK_INTERVAL_S, self._peers_seen / PEERS_PER_S))

    def planned(self, deployment: Deployment) -> list[list[SiteId]]:
        """The waves as they stand, for a person."""
        assert deployment.rollout is not None
        part = self._part(deployment)
        taking = [s for s, one in self.others(deployment).items() if one.stage is not Stage.UNABLE]
        if part is not None and part.standing.stage is not Stage.UNABLE:
            taking.append(part.me)
        return waves(deployment.rollout, f"{deployment.model}:{deployment.version}", taking)

    def others(self, deployment: Deployment) -> dict[SiteId, Peer]:
        """The other sites that take part."""
        trials = self._told(rollout_id(deployment))
        return self._peers(deployment, self._holders.get(deployment.model, ()), trials)

    # --- news ------------------------------------------------------------------------------------
    def counted(self, counts: Mapping[bytes, Counts]) -> None:
        """The gateway's counters of the versions that are ``watched``."""
        for key, one in counts.items():
            self._meters.setdefault(key, Meter()).note(one)

    def crashed(self, key: bytes, reason: str) -> None:
        """A model has taken its worker down."""
        for part in self.parts.values():
            if _key(part.version) == key and part.keeps_previous:
                self._crashed[key] = reason

    def look(self, placed: Sequence[Placement], now: float) -> list[Write]:
        """Bring every part up to date; rows to make durable before anything is acted on.

        ``placed``: the deployments as they are written, judged for this site.
        """
        self._looked_at = now
        writes: list[Write] = []
        present: dict[str, Part] = {}
        told = self._all_told()
        self._peers_seen = 0
        for one in placed:
            deployment = one.deployment
            if not is_rollout(deployment):
                continue
            assert deployment.rollout is not None
            part = self._part(deployment) or self._begin(deployment)
            if not self._is_meant(one):
                if part.standing.stage in GONE_BACK:  # known here, though a replica has moved away
                    present[deployment.model] = part
                continue
            present[deployment.model] = part
            self._holders[deployment.model] = one.holders
            trials = told.get(part.id, {})
            if part.standing.stage in _SETTLED:  # for years, and only a failure matters
                trials = {site: one for site, one in trials.items() if one.stage in _FAILURES}
                peers = self._peers(deployment, one.holders, trials, trials)
            else:
                peers = self._peers(deployment, one.holders, trials)
            self._peers_seen += len(peers)
            while part.step(deployment.rollout, peers, self._here(one, part), now):
                writes.append(part.row(deployment.model))
        for model in self.parts.keys() - present.keys():
            writes.append(Delete(TABLE, (model,)))
            self._stored.pop(model, None)
            self._holders.pop(model, None)
        self.parts = present
        self._forget_counts()
        return writes

    def _begin(self, deployment: Deployment) -> Part:
        id_ = rollout_id(deployment)
        stored = dict([self._stored[deployment.model]] if deployment.model in self._stored else [])
        key = model_key(deployment.model, deployment.version)
        self._crashed.pop(key, None)
        return Part(
            self._swim.record.site, id_, f"{deployment.model}:{deployment.version}",
            restored(id_, stored),
        )  # fmt: skip

    def _forget_counts(self) -> None:
        watched = self.watched()
        self._meters = {key: one for key, one in self._meters.items() if key in watched}
        self._crashed = {key: one for key, one in self._crashed.items() if key in watched}

    # --- what a part sees ------------------------------------------------------------------------
    def _part(self, deployment: Deployment) -> Part | None:
        part = self.parts.get(deployment.model)
        return part if part is not None and part.id == rollout_id(deployment) else None

    def _is_meant(self, placed: Placement) -> bool:
        """Whether others count on this site."""
        if placed.deployment.replicas:
            return self._swim.record.site in placed.holders
        version = self._catalog.model(placed.deployment.model, placed.deployment.version)
        return version is not None and is_meant(
            placed.deployment, version, self._place, self._roll.groups
        )

    def _here(self, placed: Placement, part: Part) -> Here:
        deployment = placed.deployment
        assert deployment.rollout is not None
        key = _key(part.version)
        former = model_key(deployment.model, deployment.rollout.previous)
        state, reason = self._state(placed, key)
        return Here(state, reason, self._total(key), self._total(former))

    def _state(
        self, placed: Placement, key: bytes
    ) -> tuple[Literal["absent", "loading", "ready", "refused", "crashed", "unable"], str]:
        name, version = placed.deployment.model, placed.deployment.version
        if placed.model is None or placed.unable:
            return "unable", placed.unable or placed.reason
        if self._overrides.is_unloaded(name, version):
            return "unable", str(self._overrides.of(name, version))
        if key in self._crashed:
            return "crashed", self._crashed[key]
        item = self._shelf.items.get(key)
        if item is None:
            return "absent", ""
        if item.stage == "refused":
            return ("unable", item.unable) if item.unable else ("refused", item.reason)
        return ("ready", "") if item.stage == "ready" else ("loading", item.reason)

    def _total(self, key: bytes) -> Counts:
        meter = self._meters.get(key)
        return NO_COUNTS if meter is None else meter.total

    def _told(self, id_: bytes) -> dict[SiteId, Trial]:
        """What each other site tells of a rollout, dead ones too."""
        return {
            member.site: trial
            for member in self._swim.members().values()
            for trial in member.record.trials
            if trial.rollout == id_
        }

    def _all_told(self) -> dict[bytes, dict[SiteId, Trial]]:
        """The same of every rollout, by its id."""
        found: dict[bytes, dict[SiteId, Trial]] = {}
        for member in self._swim.members().values():
            for trial in member.record.trials:
                found.setdefault(trial.rollout, {})[member.site] = trial
        return found

    def _peers(
        self,
        deployment: Deployment,
        holders: Iterable[SiteId],
        trials: Mapping[SiteId, Trial],
        among: Collection[SiteId] | None = None,
    ) -> dict[SiteId, Peer]:
        """The other sites that are meant, and whoever else tells that it failed.

        ``among``: these only; None: all members.
        """
        version = self._catalog.model(deployment.model, deployment.version)
        chosen, members = set(holders), self._swim.members()
        found: dict[SiteId, Peer] = {}
        for site in members if among is None else among:
            member, identity, trial = members[site], self._roll.get(site), trials.get(site)
            if identity is None or member.state == "left" or version is None:
                continue
            is_one = is_meant(deployment, version, place_of(identity.claims), self._roll.groups)
            if deployment.replicas and chosen:
                is_one = site in chosen
            if not is_one and not (trial is not None and trial.stage in _FAILURES):
                continue
            is_taking = member.state != "dead" and member.record.status == "alive"
            presence: Literal["alive", "suspect", "away"] = "away"
            if is_taking:
                presence = "alive" if member.state == "alive" else "suspect"
            found[site] = Peer(site, identity.claims.name, presence, trial)
        return found


def _key(version: str) -> bytes:
    return model_key(*version.split(":", 1))
