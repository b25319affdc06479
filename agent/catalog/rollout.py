"""A new version in waves: one site's part in it, decided from what the others tell of theirs.

Theory of operation. All sites that a deployment means are put in one order (rendezvous hashing, Thaler
and Ravishankar 1998, by site and version), and the order is cut into waves. A site of the first wave
begins at once; one of a later wave begins when everybody alive in all waves before it has passed, and at
least one site of the wave just before is alive to say so. It has passed when it has served the new version for
``observe_s`` with every gate held (``catalog/gates.py``). Evidence is the site's own signed record; there
is nobody who coordinates.

Rule: no evidence, no progress; and whatever anybody tells of a failed gate, everybody goes back. A site
that fails, or hears of a failure, writes that down before it acts and never begins again in this
attempt, so a cut, a restart or a late message can stop a rollout and cannot start one. Durations are this
process's own: a site that restarts while it observes begins to observe anew.

Who is alive decides how far a rollout goes, never who may hold a model (``catalog/placement.py``).
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, Literal

from agent.catalog.gates import NO_COUNTS, Counts, judge, told
from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.foundation.writes import Put
from agent.wire.documents import Deployment, Rollout
from agent.wire.records import Gate, Stage, Trial
from agent.wire.schema import pack

TABLE = "rollouts"
REASON_CHARS_MAX = 400
PLACES_REMEMBERED_MAX: Final = 65_536
"""A thousand sites with sixty rollouts; a hash costs a microsecond."""
GONE_BACK = (Stage.FAILED, Stage.STOPPED, Stage.ALONE)
GONE_ON = (Stage.PASSED, Stage.ENDED)
_LASTING = (*GONE_BACK, *GONE_ON)
"""Stages that a restart does not undo; another one begins anew."""
_WORDS = {
    Gate.NONE: "it went back",
    Gate.REFUSED: "it cannot be served, or answers its golden question or hold-out wrongly",
    Gate.CRASH: "it crashed the model worker",
    Gate.ERRORS: "too many requests failed",
    Gate.LATENCY: "it is too slow",
    Gate.INVALID: "the requests do not fit it",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """Another site that the deployment means."""

    site: SiteId
    name: str
    presence: Literal["alive", "suspect", "away"]
    """A suspect must have passed before others go on, and is nobody to go by; who is away (dead or
    draining) is not waited for."""
    trial: Trial | None = None
    """What it tells of its part; None: nothing, it waits."""

    @property
    def stage(self) -> Stage:
        """How far it is."""
        return Stage.WAITING if self.trial is None else self.trial.stage


@dataclass(frozen=True, slots=True)
class Here:
    """What this site sees of the new version."""

    state: Literal["absent", "loading", "ready", "refused", "crashed", "unable"]
    reason: str = ""
    """Of ``refused``, ``crashed`` and ``unable``."""
    tried: Counts = NO_COUNTS
    """Of the new version, cumulative."""
    former: Counts = NO_COUNTS
    """Of the previous one."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far this site is, and why it went back if it did: what is durable."""

    stage: Stage = Stage.WAITING
    gate: Gate = Gate.NONE
    reason: str = ""


def is_rollout(deployment: Deployment) -> bool:
    """Whether a deployment's version takes the place of another one in waves."""
    terms = deployment.rollout
    return (
        deployment.is_active
        and terms is not None
        and terms.previous not in ("", deployment.version)
    )


def continued(
    wanted: Deployment, present: Deployment | None, established: str, attempt: int
) -> Deployment:
    """A deployment that is about to be signed, with what its rollout takes the place of.

    Args:
        wanted: as an operator has written it.
        present: what the catalog says now.
        established: the version that serves until the new one has proved itself; empty: none does.
        attempt: a new number, for a version that is not the present one.
    """
    if wanted.rollout is None:
        return wanted
    previous = established
    if present is not None and present.is_active and present.version == wanted.version:
        former = present.rollout or Rollout()
        previous, attempt = former.previous, former.attempt
    if not previous:
        attempt = 0
    return replace(wanted, rollout=replace(wanted.rollout, previous=previous, attempt=attempt))


def rollout_id(deployment: Deployment) -> bytes:
    """Eight bytes that name one attempt to bring one version in place of one other.

    Pausing it, or another gate, leaves it the same attempt.
    """
    terms = deployment.rollout
    assert terms is not None
    named = Deployment(
        deployment.model, deployment.version, (),
        rollout=Rollout(terms.previous, terms.attempt, ()),
    )  # fmt: skip
    return hashlib.sha256(b"atoll rollout\0" + pack(named)).digest()[:8]


def in_order(version: str, sites: Iterable[SiteId]) -> list[SiteId]:
    """The sites as they take part; ``version`` is ``model:version``, so that another one begins elsewhere."""
    return sorted(sites, key=lambda site: _place_in_order(site, version))


@lru_cache(PLACES_REMEMBERED_MAX)
def _place_in_order(site: SiteId, version: str) -> bytes:
    return hashlib.sha256(site + version.encode()).digest()


def waves(terms: Rollout, version: str, sites: Collection[SiteId]) -> list[list[SiteId]]:
    """The sites of each wave; one may be empty where there are few sites."""
    ranked = in_order(version, sites)
    found, begun = list[list[SiteId]](), 0
    for share in (*terms.waves, 100.0):
        end = min(len(ranked), max(begun, 1, math.ceil(round(share * len(ranked) / 100, 6))))
        found.append(ranked[begun:end])
        begun = end
    return [wave for wave in found if wave]


@dataclass(slots=True)
class Part:
    """One site's part in one rollout."""

    me: SiteId
    id: bytes
    version: str
    """``model:version``."""
    standing: Standing = Standing()
    why_waiting: str = field(default="", init=False)
    """For a person; empty unless it waits."""
    observed_since: float | None = field(default=None, init=False)
    """Monotonic; None unless the version is ready here."""
    counts: Counts = field(default=NO_COUNTS, init=False)
    """Of the new version since it began here."""
    _base: Counts = field(default=NO_COUNTS, init=False)
    _wake_at: float = field(default=NEVER, init=False)

    def step(self, terms: Rollout, peers: Mapping[SiteId, Peer], here: Here, now: float) -> bool:
        """Look once; True if ``standing`` is another: to be made durable before it is told or acted on.

        Args:
            terms: of the deployment, now.
            peers: the other sites that it means, dead ones too; not those that have left.
            here: the new version at this site.
            now: monotonic seconds.
        """
        before = self.standing
        self._measure(here)
        self.why_waiting = ""
        self._wake_at = NEVER
        self.standing = self._judged(terms, peers, here, now)
        return self.standing != before

    def wake_at(self) -> float:
        """When time alone changes something: the end of the observation."""
        return self._wake_at

    @property
    def serves_new(self) -> bool:
        """Whether this site is to serve the new version, and answer by it."""
        return self.standing.stage in (Stage.TRYING, *GONE_ON)

    @property
    def keeps_previous(self) -> bool:
        """Whether the previous version stays loaded beside the new one."""
        return self.standing.stage in (Stage.TRYING, Stage.PASSED)

    @property
    def trial(self) -> Trial:
        """What is told of it."""
        standing = self.standing
        if standing.stage in (Stage.ENDED, Stage.UNABLE, Stage.STOPPED):
            return Trial(self.id, standing.stage)
        return Trial(
            self.id, standing.stage, told(self.counts.requests), told(self.counts.errors),
            told(self.counts.p99_ms), standing.gate,
        )  # fmt: skip

    def row(self, model: str) -> Put:
        """What is durable of it."""
        standing = self.standing
        return Put(
            TABLE,
            {
                "model": model, "rollout": self.id, "stage": int(standing.stage),
                "gate": int(standing.gate), "reason": standing.reason,
            },
        )  # fmt: skip

    # --- decisions -------------------------------------------------------------------------------
    def _judged(
        self, terms: Rollout, peers: Mapping[SiteId, Peer], here: Here, now: float
    ) -> Standing:
        if self.standing.stage in GONE_BACK:
            return self.standing
        if (heard := _failure(peers.values())) is not None:
            return Standing(Stage.STOPPED, reason=heard[:REASON_CHARS_MAX])
        if self.standing.stage is Stage.ENDED:
            return self.standing
        if here.state == "unable":
            self.why_waiting = here.reason
            return Standing(Stage.UNABLE)
        if self.standing.stage in (Stage.WAITING, Stage.UNABLE):
            self.why_waiting = self._why_not_yet(terms, peers)
            return Standing(Stage.WAITING if self.why_waiting else Stage.TRYING)
        return self._begun(terms, peers, here, now)

    def _begun(
        self, terms: Rollout, peers: Mapping[SiteId, Peer], here: Here, now: float
    ) -> Standing:
        """Trying, or passed and not yet ended."""
        gate, reason = self._gate(terms, here)
        if gate is not Gate.NONE:
            failed = Stage.ALONE if _has_ended(peers.values()) else Stage.FAILED
            return Standing(failed, gate, reason[:REASON_CHARS_MAX])
        if self.standing.stage is Stage.TRYING:
            return self._observed(terms, here, now)
        living = [peer for peer in peers.values() if _is_awaited(peer)]
        return Standing(Stage.ENDED) if all(p.stage in GONE_ON for p in living) else self.standing

    def _observed(self, terms: Rollout, here: Here, now: float) -> Standing:
        if here.state != "ready":
            self.observed_since = None
            return self.standing
        if self.observed_since is None:
            self.observed_since = now
            self._base, self.counts = here.tried, Counts()
        self._wake_at = self.observed_since + terms.observe_s
        return Standing(Stage.PASSED) if now >= self._wake_at else self.standing

    def _measure(self, here: Here) -> None:
        if self.standing.stage is Stage.PASSED and self.observed_since is None:  # after a restart
            self._base, self.observed_since = here.tried, -math.inf
        if self.observed_since is not None:
            self.counts = here.tried.minus(self._base)

    def _gate(self, terms: Rollout, here: Here) -> tuple[Gate, str]:
        if here.state == "refused":
            return Gate.REFUSED, here.reason
        if here.state == "crashed":
            return Gate.CRASH, here.reason
        if self.observed_since is None:
            return Gate.NONE, ""
        return judge(terms, self.counts, here.former)

    def _why_not_yet(self, terms: Rollout, peers: Mapping[SiteId, Peer]) -> str:
        """Why this site's turn has not come; empty if it has."""
        if terms.is_paused:
            return "the rollout is paused"
        taking_part = [p.site for p in peers.values() if p.stage is not Stage.UNABLE]
        planned = waves(terms, self.version, [self.me, *taking_part])
        mine = next(number for number, wave in enumerate(planned) if self.me in wave)
        if mine == 0:
            return ""
        earlier = [peers[site] for wave in planned[:mine] for site in wave]
        if late := [p.name for p in earlier if _is_awaited(p) and p.stage not in GONE_ON]:
            more = f" and {len(late) - 3} more" if len(late) > 3 else ""  # noqa: PLR2004 - a line
            return f"wave {mine + 1} of {len(planned)} waits for {', '.join(late[:3])}{more}"
        before = [peers[site] for site in planned[mine - 1]]
        if not any(p.presence == "alive" and p.stage in GONE_ON for p in before):
            names = ", ".join(peer.name for peer in before[:3])
            return f"nobody of wave {mine} is alive: {names}"
        answered = sum(p.trial.requests for p in before if p.trial is not None)
        is_over = any(p.stage is Stage.ENDED for p in before)  # who ended says no numbers any more
        if answered < terms.requests_min and not is_over:
            return f"wave {mine} has answered {answered} requests of {terms.requests_min}"
        return ""


def restored(id_: bytes, stored: Mapping[bytes, Standing]) -> Standing:
    """What is left of a part after a restart: its outcome, or nothing and it begins anew."""
    found = stored.get(id_, Standing())
    return found if found.stage in _LASTING else Standing()


def has_ended_elsewhere(trials: Iterable[Trial]) -> bool:
    """Whether a site that has no part in it may take the new version for granted."""
    stages = {trial.stage for trial in trials}
    return Stage.ENDED in stages and not stages & {Stage.FAILED, Stage.STOPPED}


def _is_awaited(peer: Peer) -> bool:
    return peer.presence != "away" and peer.stage not in (Stage.UNABLE, Stage.ALONE)


def _failure(peers: Iterable[Peer]) -> str | None:
    """Who tells of a failed gate; the site where it failed rather than one that has heard of it."""
    heard = None
    for peer in peers:
        if peer.trial is not None and peer.stage is Stage.FAILED:
            return f"at {peer.name} {_WORDS[peer.trial.gate]}"
        if peer.stage is Stage.STOPPED:
            heard = f"{peer.name} has heard that it failed elsewhere"
    return heard


def _has_ended(peers: Iterable[Peer]) -> bool:
    """Whether most of those alive, this site among them, are through: a failure is this site's own."""
    living = [peer for peer in peers if _is_awaited(peer)]
    return 2 * sum(peer.stage is Stage.ENDED for peer in living) > len(living) + 1
