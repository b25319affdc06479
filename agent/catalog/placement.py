"""Which model versions a site must serve, from the catalog alone.

Rule: nobody is told; every site reads the same deployments and finds itself in them or not. A site
whose certificate's jurisdiction is not in a model's residency label never holds it, whatever a
deployment says (fail-closed: an unknown model or label is a reason not to serve).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from agent.catalog.replicas import Candidate, holders
from agent.foundation.ids import SiteId
from agent.identity.claims import Claims
from agent.wire.documents import Deployment, ModelVersion
from agent.wire.inside import model_key
from agent.wire.residency import Group, is_within


@dataclass(frozen=True, slots=True)
class Place:
    """A site as deployments see it; everything but the name is from its certificate."""

    name: str
    region: str
    tier: str
    jurisdiction: str


def place_of(claims: Claims) -> Place:
    """Where a site is, by its certificate."""
    return Place(claims.name, claims.region, claims.tier, claims.jurisdiction)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What this machine can offer a model."""

    accelerators: int = 0
    memory_bytes: int = 0
    power_free_w: float | None = None
    """Of its supply, steadied (``hardware/power.py``); None = not known."""


@dataclass(frozen=True, slots=True)
class Member:
    """A site that could hold a replica, as it is known here."""

    site: SiteId
    place: Place
    capacity: float
    is_taking: bool
    """Alive and not draining."""
    serves: frozenset[bytes] = frozenset()
    """Keys of the models that are ready there."""
    refuses: frozenset[bytes] = frozenset()
    """Keys of those that it has and will not serve: others take its place."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One deployment, judged for one site."""

    deployment: Deployment
    model: ModelVersion | None
    """The version to serve; ``None``: not here, see ``reason``."""
    reason: str
    """Why not; empty if it is to be served."""
    holders: tuple[SiteId, ...] = ()
    """The sites chosen for its replicas, best first; empty where each matching site serves it."""
    unable: str = ""
    """Why this site cannot serve it, chosen or not; where it is chosen others then take its place."""


class Models(Protocol):
    """The part of the catalog that placement reads."""

    def model(self, name: str, version: str) -> ModelVersion | None:
        """The model version, if its document is known."""
        ...

    def of_kind(self, kind: type[Deployment]) -> list[Deployment]:
        """All deployments, by model name."""
        ...


def placements(
    catalog: Models,
    me: Member,
    others: Sequence[Member] = (),
    abilities: Abilities = Abilities(),
    groups: Sequence[Group] = (),
) -> list[Placement]:
    """Every deployment with the verdict for this site, by model name: what ``explain`` shows."""
    return [
        _judged(deployment, catalog, me, others, abilities, groups)
        for deployment in catalog.of_kind(Deployment)
    ]


def unable(placed: Sequence[Placement]) -> dict[bytes, str]:
    """Models that this site was chosen for and cannot serve: by key, why."""
    return {
        model_key(one.model.name, one.model.version): one.unable
        for one in placed
        if one.model is not None and one.unable
    }


def is_meant(
    deployment: Deployment, model: ModelVersion, place: Place, groups: Sequence[Group]
) -> bool:
    """Whether a deployment means a site, by what everybody knows of it: not by what it can do."""
    return not _elsewhere(deployment, place, groups) and is_within(
        place.jurisdiction, model.residency, groups
    )


def _judged(
    deployment: Deployment,
    catalog: Models,
    me: Member,
    others: Sequence[Member],
    can: Abilities,
    groups: Sequence[Group],
) -> Placement:
    if reason := _elsewhere(deployment, me.place, groups):
        return Placement(deployment, None, reason)
    model = catalog.model(deployment.model, deployment.version)
    if model is None:
        reason = f"version {deployment.version} of {deployment.model} is not in the catalog"
        return Placement(deployment, None, reason)
    if not is_within(me.place.jurisdiction, model.residency, groups):
        allowed = ", ".join(model.residency)
        reason = f"its residency is {allowed}; this site is in {me.place.jurisdiction}"
        return Placement(deployment, None, reason)
    lacking = _lacking(deployment, can)
    if not deployment.replicas:
        return Placement(deployment, None if lacking else model, lacking)
    chosen = tuple(_chosen(deployment, model, me, others, groups))
    if me.site in chosen:
        return Placement(deployment, model, "", chosen, lacking)
    names = {one.site: one.place.name for one in others}
    told = ", ".join(names[site] for site in chosen) or "nobody: no site can take it"
    reason = f"its {deployment.replicas} replicas are at {told}"
    return Placement(deployment, None, reason, chosen, lacking)


def _chosen(
    deployment: Deployment,
    model: ModelVersion,
    me: Member,
    others: Sequence[Member],
    groups: Sequence[Group],
) -> list[SiteId]:
    """What this site cannot do it finds out when it is chosen; then it says so, and is passed over."""
    key = model_key(model.name, model.version)
    matching = [
        one
        for one in (me, *others)
        if one.is_taking
        and (one is me or key not in one.refuses)
        and not _elsewhere(deployment, one.place, groups)
        and is_within(one.place.jurisdiction, model.residency, groups)
    ]
    candidates = [Candidate(one.site, one.place.tier, one.capacity) for one in matching]
    return holders(deployment.model, deployment.replicas, candidates)


def _lacking(deployment: Deployment, can: Abilities) -> str:
    """What the deployment asks for and this machine has not got; empty if nothing."""
    if deployment.accelerator and not can.accelerators:
        return f"it asks for a {deployment.accelerator}, and this site has none"
    if deployment.memory_bytes_min > can.memory_bytes:
        wanted, there = deployment.memory_bytes_min >> 20, can.memory_bytes >> 20
        return f"it asks for {wanted} MiB of memory, and this site has {there}"
    if deployment.power_free_w_min:
        asked = f"it asks for {deployment.power_free_w_min:g} W of free power"
        if can.power_free_w is None:
            return (
                f"{asked}, and this site does not know how much it has ([hardware] power_supply_w)"
            )
        if can.power_free_w < deployment.power_free_w_min:
            return f"{asked}, and this site has {can.power_free_w:.0f}"
    return ""


def _elsewhere(deployment: Deployment, place: Place, groups: Sequence[Group]) -> str:
    """Why the deployment does not mean a site; empty if it does."""
    if not deployment.is_active:
        return "the deployment was withdrawn"
    tiers: Sequence[Literal["edge", "regional", "core"]] = deployment.tiers
    for names, mine, what in (
        (deployment.sites, place.name, "sites"),
        (tiers, place.tier, "tiers"),
        (deployment.regions, place.region, "regions"),
    ):
        if names and mine not in names:
            return f"{mine} is not among its {what}"
    if not is_within(place.jurisdiction, deployment.jurisdictions, groups):
        return f"{place.jurisdiction} is not among its jurisdictions"
    return ""
