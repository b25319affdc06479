"""Which version of each model is meant, which is served, and which this site wants to have.

An admin's deployment names a version; where there is none, the newest job that publishes under the
name does. Until somebody serves the version that is meant, the one before it goes on: a broken new
version never takes the working one away.
"""

from collections.abc import Iterable, Iterator, Sequence

from agent.catalog.catalog import Catalog
from agent.catalog.placement import Abilities, Member, Placement, place_of, placements
from agent.catalog.replicas import Lingering
from agent.foundation.ids import SiteId
from agent.identity.claims import Claims
from agent.identity.registry import Roll
from agent.membership.swim import Swim
from agent.site.overrides import Overrides
from agent.site.published import Published, newest, published
from agent.site.rollouts import Meant, Rollouts
from agent.site.shelf import Shelf
from agent.site.workshop import Workshop
from agent.wire.documents import Deployment, Key, ModelVersion, Stamp
from agent.wire.inside import model_key
from agent.wire.residency import is_within


class Versions:
    """Reads catalog, jobs, shelf and members; changes nothing."""

    def __init__(
        self,
        claims: Claims,
        catalog: Catalog,
        workshop: Workshop,
        shelf: Shelf,
        swim: Swim,
        overrides: Overrides,
        roll: Roll,
        abilities: Abilities,
        rollouts: Rollouts,
    ) -> None:
        """All of one site; ``claims`` are its certificate's."""
        self._claims, self._catalog, self._workshop = claims, catalog, workshop
        self._shelf, self._swim, self._overrides = shelf, swim, overrides
        self._roll, self._rollouts = roll, rollouts
        self.abilities = abilities
        """Of this machine, now."""
        self._lingering = Lingering()
        self.has_former = False
        """Whether a former version waits here for its successor: look again when somebody has news."""

    def published(self) -> list[Published]:
        """Models that jobs made, oldest job first."""
        workshop = self._workshop
        return published(workshop.machines.values(), self._catalog, workshop.tombstone)

    def every(self) -> dict[tuple[str, str], ModelVersion]:
        """All versions by name and version; what an admin says counts before what a job made."""
        found = {(v.name, v.version): v for v, _ in self.published()}
        found.update({(v.name, v.version): v for v in self._catalog.of_kind(ModelVersion)})
        return found

    def wanted(self, placed: Sequence[Placement], now: float) -> list[ModelVersion]:
        """What this site serves: what it should (``placements``), and what was decided here."""
        place = self._claims.jurisdiction
        chosen = self._overrides.apply(
            self._planned(placed), self.every(), place, self._roll.groups
        )
        chosen += self._kept(chosen)
        return [*chosen, *self._lingers(chosen, placed, now), *self._former(chosen)]

    def planned(self) -> list[ModelVersion]:
        """What catalog and jobs say that this site should serve."""
        return self._planned(self.placements())

    def placements(self, *, as_written: bool = False) -> list[Placement]:
        """Every deployment with the verdict for this site.

        ``as_written``: of the version it names, though this site's turn in its rollout has not come.
        """
        record = self._swim.record
        me = Member(record.site, place_of(self._claims), record.capacity, record.status == "alive")
        others = list(self._others()) if self.has_replicas else []
        meant = self._catalog if as_written else Meant(self._catalog, self._rollouts)
        return placements(meant, me, others, self.abilities, self._roll.groups)

    @property
    def has_replicas(self) -> bool:
        """Whether it matters here who else is there."""
        return any(one.replicas and one.is_active for one in self._catalog.of_kind(Deployment))

    def wake_at(self) -> float:
        """When what lingers here is to be looked at again."""
        return self._lingering.wake_at()

    def _others(self) -> Iterator[Member]:
        for member in self._swim.members().values():
            identity, record = self._roll.get(member.site), member.record
            if identity is None or member.state not in ("alive", "suspect"):
                continue
            yield Member(
                member.site, place_of(identity.claims), record.capacity, record.status == "alive",
                frozenset(one.key for one in record.serving if not one.is_refused),
                frozenset(one.key for one in record.serving if one.is_refused),
            )  # fmt: skip

    def _planned(self, placed: Sequence[Placement]) -> list[ModelVersion]:
        versions = [one.model for one in placed if one.model is not None]
        known = {(v.name, v.version) for v in versions}
        versions += [
            version
            for version, sites in newest(self.published())
            if (not sites or self._claims.name in sites)
            and (version.name, version.version) not in known
            and is_within(self._claims.jurisdiction, version.residency, self._roll.groups)
        ]
        return versions

    def _kept(self, chosen: Sequence[ModelVersion]) -> list[ModelVersion]:
        """Previous versions that stay at hand until their rollout has ended."""
        present = {(v.name, v.version) for v in chosen}
        return [
            one
            for one in self._rollouts.kept()
            if (one.name, one.version) not in present
            and not self._overrides.is_unloaded(one.name, one.version)
            and is_within(self._claims.jurisdiction, one.residency, self._roll.groups)
        ]

    def _lingers(
        self, chosen: Sequence[ModelVersion], placed: Sequence[Placement], now: float
    ) -> list[ModelVersion]:
        """Versions that are ready here though others were chosen for them: nobody leaves at once."""
        present = {(v.name, v.version) for v in chosen}
        serves = {one.site: one.serves for one in self._others()} if self.has_replicas else {}
        outside: dict[bytes, ModelVersion] = {}
        missing: dict[bytes, list[SiteId]] = {}
        for one in placed:
            number = one.deployment.version
            version = self._catalog.model(one.deployment.model, number)
            key = model_key(one.deployment.model, number)
            item = self._shelf.items.get(key)
            if (
                one.holders
                and one.model is None
                and not one.unable
                and version is not None
                and (version.name, version.version) not in present
                and not self._overrides.is_unloaded(version.name, version.version)
                and item is not None
                and item.stage == "ready"
            ):
                outside[key] = version
                missing[key] = [s for s in one.holders if key not in serves.get(s, ())]
        kept = self._lingering.update(outside, missing, now)
        return [outside[key] for key in sorted(kept)]

    def _former(self, versions: Sequence[ModelVersion]) -> list[ModelVersion]:
        """Versions that serve here although another one is meant by now, which nobody serves yet."""
        chosen = {(v.name, v.version) for v in versions}
        successors, ready = self._meant(), self._ready()
        kept = []
        for item in self._shelf.items.values():
            name, version = item.version.name, item.version.version
            successor = successors.get(name, version)
            if (
                item.stage in ("ready", "loading", "held")
                and (name, version) not in chosen
                and not self._overrides.is_unloaded(name, version)
                and successor != version
                and model_key(name, successor) not in ready
                and is_within(
                    self._claims.jurisdiction, self._residency(item.version), self._roll.groups
                )
            ):
                kept.append(item.version)
        self.has_former = bool(kept)
        return kept

    def _residency(self, version: ModelVersion) -> tuple[str, ...]:
        present = self._catalog.model(version.name, version.version)
        return present.residency if present is not None else version.residency

    def _meant(self) -> dict[str, str]:
        found = {version.name: version.version for version, _ in self.published()}
        for deployment in self._catalog.of_kind(Deployment):
            if deployment.is_active:
                found[deployment.model] = self._rollouts.answering(deployment)
        return found

    def _ready(self) -> set[bytes]:
        """Keys of the versions that this site or a living one serves."""
        found = {key for key, item in self._shelf.items.items() if item.stage == "ready"}
        for member in self._swim.members().values():
            if member.state == "alive":
                found |= {one.key for one in member.record.serving if not one.is_refused}
        return found

    def defaults(self, versions: Iterable[ModelVersion]) -> dict[str, str]:
        """The version that answers, by model: the one meant, else the newest that is served."""
        ready = self._ready()
        served: dict[str, list[tuple[Stamp, str]]] = {}
        for version in versions:
            if model_key(version.name, version.version) in ready:
                stamped = (self._stamp(version), version.version)
                served.setdefault(version.name, []).append(stamped)
        found = {}
        for name, number in self._meant().items():
            numbers = served.get(name, [])
            is_served = not numbers or any(one == number for _, one in numbers)
            found[name] = number if is_served else max(numbers)[1]
        return found

    def _stamp(self, version: ModelVersion) -> Stamp:
        entry = self._catalog.get(Key("model", f"{version.name}:{version.version}"))
        return entry.document.stamp if entry is not None else Stamp(0, 0)
