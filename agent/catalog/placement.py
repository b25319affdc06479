"""Which model versions a site must serve, from the catalog alone.

Rule: nobody is told; every site reads the same deployments and finds itself in them or not. A site
whose certificate's jurisdiction is not in a model's residency label never holds it, whatever a
deployment says (fail-closed: an unknown model or label is a reason not to serve).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from agent.wire.documents import Deployment, ModelVersion


@dataclass(frozen=True, slots=True)
class Place:
    """A site as deployments see it; everything but the name is from its certificate."""

    name: str
    region: str
    tier: str
    jurisdiction: str


@dataclass(frozen=True, slots=True)
class Placement:
    """One deployment, judged for one site."""

    deployment: Deployment
    model: ModelVersion | None
    """The version to serve; ``None``: not here, see ``reason``."""
    reason: str
    """Why not; empty if it is to be served."""


class Models(Protocol):
    """The part of the catalog that placement reads."""

    def model(self, name: str, version: str) -> ModelVersion | None:
        """The model version, if its document is known."""
        ...

    def of_kind(self, kind: type[Deployment]) -> list[Deployment]:
        """All deployments, by model name."""
        ...


def placements(catalog: Models, me: Place) -> list[Placement]:
    """Every deployment with the verdict for this site, by model name: what ``explain`` shows."""
    return [_judged(deployment, catalog, me) for deployment in catalog.of_kind(Deployment)]


def wanted(catalog: Models, me: Place) -> list[ModelVersion]:
    """The model versions that this site must serve, by model name."""
    return [one.model for one in placements(catalog, me) if one.model is not None]


def may_hold(residency: Sequence[str], jurisdiction: str) -> bool:
    """Whether a jurisdiction is in a residency label; an empty label allows any."""
    return not residency or jurisdiction in residency


def _judged(deployment: Deployment, catalog: Models, me: Place) -> Placement:
    if reason := _elsewhere(deployment, me):
        return Placement(deployment, None, reason)
    model = catalog.model(deployment.model, deployment.version)
    if model is None:
        reason = f"version {deployment.version} of {deployment.model} is not in the catalog"
        return Placement(deployment, None, reason)
    if not may_hold(model.residency, me.jurisdiction):
        allowed = ", ".join(model.residency)
        reason = f"its residency is {allowed}; this site is in {me.jurisdiction}"
        return Placement(deployment, None, reason)
    return Placement(deployment, model, "")


def _elsewhere(deployment: Deployment, me: Place) -> str:
    """Why the deployment does not mean this site; empty if it does."""
    if not deployment.is_active:
        return "the deployment was withdrawn"
    tiers: Sequence[Literal["edge", "regional", "core"]] = deployment.tiers
    for names, mine, what in (
        (deployment.sites, me.name, "sites"),
        (tiers, me.tier, "tiers"),
        (deployment.regions, me.region, "regions"),
    ):
        if names and mine not in names:
            return f"{mine} is not among its {what}"
    return ""
