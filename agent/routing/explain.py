"""Why a request goes where it goes: every site, what removed it, and how the rest score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.foundation.errors import NotFound, Refused, Unreachable
from agent.foundation.ids import short
from agent.routing.law import Entry, applying, bounds_of, require_label
from agent.routing.outlook import Breaker, Late, is_clear_gain, predict_late
from agent.routing.policy import Question, Verdict, judge, parse_residency, resolve
from agent.routing.score import Prediction, predict
from agent.serving.access import LOCAL
from agent.wire.inside import KnownModel, PairKnown, PeerKnown, View

REMOVED_IN_TEXT_MAX = 5
"""An error names this many removed sites; ``atoll route explain`` names all."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A site that may answer."""

    verdict: Verdict
    prediction: Prediction
    breaker: Breaker = "closed"
    rest_s: float = 0.0
    """For how long it is asked after all others."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole decision about one request."""

    model: KnownModel
    residency: tuple[str, ...]
    policies: tuple[str, ...]
    """Names of those that narrow where it may be answered."""
    chosen: str
    """Name of the site that would be asked first; empty if none may."""
    candidates: tuple[Candidate, ...]
    """Allowed sites in the order to ask them."""
    removed: tuple[Verdict, ...]

    def as_dict(self) -> dict[str, Any]:
        """For the admin API and ``atoll route explain --json``."""
        return {
            "model": self.model.name,
            "version": self.model.version,
            "model_residency": list(self.model.residency),
            "request_residency": list(self.residency),
            "policies": list(self.policies),
            "chosen": self.chosen,
            "candidates": [
                {
                    **_place(one.verdict),
                    "predicted_ms": round(one.prediction.total_ms, 3),
                    "rtt_ms": round(one.prediction.rtt_ms, 3),
                    "queue_ms": round(one.prediction.queue_ms, 3),
                    "service_ms": round(one.prediction.service_ms, 3),
                    "penalty_ms": round(one.prediction.penalty_ms, 3),
                    "breaker": one.breaker,
                    "held": f"asked last for {one.rest_s:.1f} s" if one.rest_s else "",
                }
                for one in self.candidates
            ],
            "removed": [
                {**_place(verdict), "removed_by": verdict.removed.reason}
                for verdict in self.removed
            ],
        }


def explain(
    view: View,
    model: str,
    *,
    version: str | None = None,
    residency: Sequence[str] = (),
    is_worker_up: bool = True,
    local_wait_ms: float = 0.0,
    peers: Sequence[PeerKnown] = (),
    pairs: Sequence[PairKnown] = (),
    application: str = LOCAL,
) -> Explanation:
    """The decision that a request made now would meet; of near-equals it may be another one.

    ``peers`` and ``pairs``: what the gateway has learned (``Outlook.known``).

    Raises:
        NotFound: no such model or version.
        UsageError: ``residency`` holds something that is not a jurisdiction.
        Refused: a policy wants a label.
    """
    known = resolve(view, model, version)
    label = parse_residency(",".join(residency)) if residency else ()
    entry = Entry(view.jurisdiction, application)
    policies = applying(view.policies, view.groups, known.name, entry)
    require_label(policies, label)
    bounds = bounds_of(policies)
    verdicts = judge(view, Question(known, label, bounds=bounds), is_worker_up=is_worker_up)
    troubles = {peer.site: peer for peer in peers}
    late = {pair.site: pair for pair in pairs if pair.key == known.key}
    found = [
        _candidate(one, local_wait_ms, troubles.get(one.site), late.get(one.site))
        for one in verdicts
        if not one.removed
    ]
    found.sort(key=lambda one: (one.rest_s > 0, one.prediction.total_ms, one.verdict.site))
    here = next((at for at, one in enumerate(found) if one.verdict.is_local), None)
    if here and not _is_left(found[here].prediction, found[0]):
        found.insert(0, found.pop(here))
    return Explanation(
        model=known,
        residency=label,
        policies=tuple(bound.policy for bound in bounds),
        chosen=found[0].verdict.name if found else "",
        candidates=tuple(found),
        removed=tuple(verdict for verdict in verdicts if verdict.removed),
    )


def _candidate(
    verdict: Verdict, local_wait_ms: float, trouble: PeerKnown | None, late: PairKnown | None
) -> Candidate:
    prediction = (
        predict(verdict, local_wait_ms=local_wait_ms, under_way=0)
        if late is None
        else predict_late(verdict, 0, Late(late.late_ms, late.service_ms, late.runs), late.weight)
    )
    if trouble is None:
        return Candidate(verdict, prediction)
    return Candidate(verdict, prediction, trouble.breaker, trouble.rest_s)


def _is_left(home: Prediction, best: Candidate) -> bool:
    """Whether a request goes away that this site could answer (``Outlook.is_better_away``)."""
    if not home.queue_ms or best.breaker != "closed" or best.rest_s:
        return False
    return is_clear_gain(home.total_ms, best.prediction.total_ms)


def why_nobody(verdicts: Sequence[Verdict]) -> str:
    """One sentence for an error: what removed each site, the informative ones first."""
    removed = [verdict for verdict in verdicts if verdict.removed]
    removed.sort(key=lambda v: (v.removed.ground == "absent", not v.is_local))
    parts = [
        f"{verdict.name}: {verdict.removed.reason}" for verdict in removed[:REMOVED_IN_TEXT_MAX]
    ]
    more = len(removed) - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def nobody(model: KnownModel, verdicts: Sequence[Verdict]) -> NotFound | Refused | Unreachable:
    """The error for a request that no site may or can answer.

    If waiting would not help, ``NotFound`` where it was unloaded here, ``Refused`` where a label
    stands against it; else ``Unreachable``.
    """
    grounds = {verdict.removed.ground for verdict in verdicts}
    what = f"no site can answer for {model.name!r} version {model.version!r}"
    if "unloaded" in grounds and "temporary" not in grounds:
        return NotFound(what, why=why_nobody(verdicts))
    if "policy" in grounds and "temporary" not in grounds:
        return Refused(what, why=why_nobody(verdicts))
    return Unreachable(what, why=why_nobody(verdicts), mend="try again later")


def _place(verdict: Verdict) -> dict[str, Any]:
    return {
        "site": short(verdict.site),
        "name": verdict.name,
        "is_local": verdict.is_local,
        "jurisdiction": verdict.jurisdiction,
    }
