"""Why a request goes where it goes: every site, what removed it, and how the rest score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.foundation.errors import NotFound, Refused, Unreachable
from agent.foundation.ids import SiteId, short
from agent.routing.policy import Question, Verdict, judge, parse_residency, resolve
from agent.routing.score import Prediction, rank
from agent.wire.inside import KnownModel, View

REMOVED_IN_TEXT_MAX = 5
"""An error names this many removed sites; ``atoll route explain`` names all."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole decision about one request."""

    model: KnownModel
    residency: tuple[str, ...]
    chosen: str
    """Name of the site that would be asked first; empty if none may."""
    candidates: tuple[tuple[Verdict, Prediction], ...]
    """Allowed sites, best first."""
    removed: tuple[Verdict, ...]

    def as_dict(self) -> dict[str, Any]:
        """For the admin API and ``atoll route explain --json``."""
        return {
            "model": self.model.name,
            "version": self.model.version,
            "model_residency": list(self.model.residency),
            "request_residency": list(self.residency),
            "chosen": self.chosen,
            "candidates": [
                {
                    **_place(verdict),
                    "predicted_ms": round(prediction.total_ms, 3),
                    "rtt_ms": round(prediction.rtt_ms, 3),
                    "queue_ms": round(prediction.queue_ms, 3),
                    "service_ms": round(prediction.service_ms, 3),
                    "penalty_ms": round(prediction.penalty_ms, 3),
                }
                for verdict, prediction in self.candidates
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
    under_way: Mapping[SiteId, int] | None = None,
) -> Explanation:
    """The decision that a request made now would meet.

    Raises:
        NotFound: no such model or version.
        UsageError: ``residency`` holds something that is not a jurisdiction.
    """
    known = resolve(view, model, version)
    label = parse_residency(",".join(residency)) if residency else ()
    verdicts = judge(view, Question(known, label), is_worker_up=is_worker_up)
    ranked = rank(verdicts, local_wait_ms=local_wait_ms, under_way=under_way)
    return Explanation(
        model=known,
        residency=label,
        chosen=ranked[0][0].name if ranked else "",
        candidates=tuple(ranked),
        removed=tuple(verdict for verdict in verdicts if verdict.removed),
    )


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
