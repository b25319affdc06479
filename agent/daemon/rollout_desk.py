"""What the operator sees of rollouts (implements ``agent.api.rollouts``), and their metrics."""

from dataclasses import fields

from agent.api.bodies import Json
from agent.catalog.rollout import GONE_BACK, Part, Peer
from agent.catalog.written import RolloutTable
from agent.site.site import Site
from agent.wire.documents import Deployment
from agent.wire.records import Gate, Stage, Trial

METRICS_MAX = 32
"""Rollouts with a metric of their own; the text that carries them to the gateway is bounded."""


class RolloutDesk:
    """Reads one site's rollouts."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def rollouts(self, model: str) -> list[Json]:
        """See ``RolloutOperations.rollouts``."""
        running = self._site.holdings.rollouts.running()
        return [self._row(one) for one in running if model in ("", one.model)]

    def metrics(self) -> str:
        """The stage of this site in each rollout, in the Prometheus text format."""
        name = "atoll_rollout_stage"
        lines = [f"# HELP {name} This site's part in a rollout", f"# TYPE {name} gauge"]
        for model, part in sorted(self._site.holdings.rollouts.parts.items())[:METRICS_MAX]:
            version = part.version.partition(":")[2]
            stage = part.standing.stage.name.lower()
            lines.append(f'{name}{{model="{model}",version="{version}",stage="{stage}"}} 1')
        return "\n".join([*lines, ""])

    def _row(self, deployment: Deployment) -> Json:
        rollouts, terms = self._site.holdings.rollouts, deployment.rollout
        assert terms is not None
        part, others = rollouts.parts.get(deployment.model), rollouts.others(deployment)
        stages = {one.stage for one in others.values()}
        if part is not None:
            stages.add(part.standing.stage)
        is_stopped = bool(stages & {Stage.FAILED, Stage.STOPPED})
        has_ended = Stage.ENDED in stages and not is_stopped
        return {
            "model": deployment.model, "version": deployment.version, "previous": terms.previous,
            "established": deployment.version if has_ended else terms.previous,
            "is_stopped": is_stopped,
            "terms": {one.name: getattr(terms, one.name) for one in fields(RolloutTable)},
            "waves": [
                [self._site_row(part, others.get(site)) for site in wave]
                for wave in rollouts.planned(deployment)
            ],
            "here": _here(part),
        }  # fmt: skip

    def _site_row(self, part: Part | None, peer: Peer | None) -> Json:
        if peer is None:
            assert part is not None
            return _told(self._site.identity.claims.name, "this site", part.trial)
        return _told(peer.name, peer.presence, peer.trial)


def _told(name: str, presence: str, trial: Trial | None) -> Json:
    told = Trial(b"", Stage.WAITING) if trial is None else trial
    gate = "" if told.gate is Gate.NONE else told.gate.name.lower()
    return {
        "name": name, "presence": presence, "stage": told.stage.name.lower(),
        "requests": told.requests, "errors": told.errors, "p99_ms": told.p99_ms, "gate": gate,
    }  # fmt: skip


def _here(part: Part | None) -> Json:
    if part is None:
        return {
            "stage": "outside", "reason": "", "waiting": "it is not meant by the deployment",
            "requests": 0, "errors": 0, "p99_ms": 0.0,
        }  # fmt: skip
    standing, counts = part.standing, part.counts
    waiting = "" if standing.stage in GONE_BACK else part.why_waiting
    return {
        "stage": standing.stage.name.lower(), "reason": standing.reason, "waiting": waiting,
        "requests": counts.requests, "errors": counts.errors, "p99_ms": counts.p99_ms,
    }  # fmt: skip
