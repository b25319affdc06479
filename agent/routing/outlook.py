"""What this site's own requests have told it of other sites: how late they answer, and if at all.

Pure: time (monotonic seconds) and randomness are passed in.

- **Lateness** of a site and model: how much later than round trip and service time it answered, or had
  not answered when the sender waited no longer. ``LATE_IN_A_ROW`` count at once, timely ones little by
  little (Finagle's peak EWMA; that goes by one answer, which on a network that loses 1 % keeps senders away
  from the right site: an answer of ten packets is late one time in ten). Gossip says what a
  site thinks of itself; this says what a request met, so while it is new it stands in the place of the
  gossiped queue, and fades into it. What this sender's own requests before it took is no lateness (they are
  counted anyway), by the run time that is known now: that of a model whose cost depends on what it is given
  is known by its warm-up only until requests have shown better.
- **Breaker** of a site: closed; open for a while after a failure to connect or ``FAILURES_MAX``
  broken answers in a row, longer each time; then half-open: one request tries it. A site whose
  breaker is not closed is asked after all others, not never: it may be the only one that may answer.
- **Two choices**: among sites that are nearly as good as the best, two are drawn and the better one
  is asked (Mitzenmacher 2001), so that all senders do not run to one site on the same old gossip.
- **Home first**: this site answers unless another is better by ``AWAY_SHARE`` and ``AWAY_MS``; once
  requests of a model go away, they come home when home is no worse (hysteresis).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from agent.foundation.ids import SiteId
from agent.foundation.randomness import Rng
from agent.routing.policy import Verdict
from agent.routing.score import Prediction, predict
from agent.wire.inside import KNOWN_MAX, PairKnown, PeerKnown

LATENESS_MAX: Final = 4096
"""Pairs of site and model that are remembered; the one unused for longest is forgotten."""
BREAKERS_MAX: Final = 1024
"""Sites with trouble that are remembered, the same."""
FADE_S: Final = 10.0
"""Time constant of lateness: Finagle's default; a few rounds of gossip bring fresh loads by then."""
LATE_IN_A_ROW: Final = 3
FAILURES_MAX: Final = 5
OPEN_S: Final = 5.0
OPEN_S_MAX: Final = 60.0
"""An open breaker's first and longest time; it doubles with each failed try."""
RETRY_AFTER_S_MAX: Final = 30.0
"""A site that asks for more is asked again all the same: it may be wrong about itself."""
NEWS: Final = 0.1
"""Weight of a timely answer that follows a late one at once."""
LATER_SHARE: Final = 0.05
KNOWN_MS_MAX: Final = 1e9
"""What is told of lateness and run times: a member may claim any."""
HEDGE_MS_MIN: Final = 20.0
"""Below this, a second request would be asked because of a scheduler's whim."""
PATIENCE_UNKNOWN_MS: Final = 500.0
"""A TLS handshake over the longest link and a cold model; far below the connect timeout."""
NEAR_SHARE: Final = 0.1
NEAR_MS: Final = 1.0
"""Within this of the best, the predictions' own errors decide which is best."""
AWAY_SHARE: Final = 0.25
AWAY_MS: Final = 10.0
"""Going away costs an audit entry and two more copies of the body, and the prediction may be wrong."""

TOLD: Final = 0.05
"""What weighs less is not worth a word."""

Breaker = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class Expected:
    """When a request's answer was expected as it was sent, milliseconds."""

    idle_ms: float
    """Round trip and service time."""
    service_ms: float
    own_before: int = 0
    """This sender's requests of the same model that were under way to the same site."""


@dataclass(frozen=True, slots=True)
class Late:
    """How late a site was, of one model."""

    late_ms: float
    """Beyond the round trip, the run time, and the runs of the sender's own requests before."""
    service_ms: float
    """The run time that it was measured against."""
    runs: float = 1.0
    """In how far that counts: the request's own run, and those before."""

    def against(self, service_ms: float) -> float:
        """The same, where the run time is known better by now. What is explained by it was no lateness."""
        if self.late_ms <= 0:
            return self.late_ms
        return max(self.late_ms - self.runs * (service_ms - self.service_ms), 0.0)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer: what it took beyond the round trip."""

    took_ms: float
    own_before: int

    def late(self, service_ms: float) -> Late:
        whole_ms = self.took_ms - service_ms
        # a site that runs several at once answers sooner than its queue says: that is no negative wait
        own_ms = min(self.own_before * service_ms, max(whole_ms, 0.0))
        return Late(whole_ms - own_ms, service_ms, 1.0 + self.own_before)


@dataclass(slots=True)
class _Lateness:
    late: Late
    last: tuple[_Answer, ...]
    at_s: float
    most_ms: float
    """An estimate of the time beyond round trip and service that one answer in twenty exceeds."""

    def weight(self, now_s: float) -> float:
        return math.exp(-max(now_s - self.at_s, 0.0) / FADE_S)

    def most(self, service_ms: float) -> float:
        """``most_ms`` where the run time is known better by now: what is explained by it is not beyond it."""
        return self.most_ms - max(service_ms - self.late.service_ms, 0.0)


@dataclass(slots=True)
class _Trouble:
    failures: int = 0
    open_s: float = 0.0
    """How long the breaker was opened last; 0: it is closed."""
    until_s: float = 0.0
    is_tried: bool = False
    """Whether the one request of a half-open breaker is under way."""
    busy_until_s: float = 0.0


def expected(verdict: Verdict, own_before: int) -> Expected:
    """What a request that goes to this site now, after ``own_before`` others of its model, is measured against."""
    plain = predict(verdict, local_wait_ms=0.0, under_way=0)
    return Expected(plain.idle_ms, plain.service_ms, own_before)


def predict_late(verdict: Verdict, under_way: int, late: Late, weight: float) -> Prediction:
    """The prediction for a site that was ``late``; ``weight``: 1 if just now, 0 if long ago."""
    plain = predict(verdict, local_wait_ms=0.0, under_way=under_way)
    own_ms = under_way * plain.service_ms
    gossiped_ms = plain.queue_ms - own_ms
    queue_ms = gossiped_ms + weight * (late.against(plain.service_ms) - gossiped_ms)
    rtt_ms = max(plain.rtt_ms + min(queue_ms, 0.0), 0.0)  # the way is shorter than was thought
    return replace(plain, rtt_ms=rtt_ms, queue_ms=max(queue_ms, 0.0) + own_ms)


def is_clear_gain(home_ms: float, best_ms: float) -> bool:
    """Whether another site's predicted completion is worth to leave home for."""
    return best_ms * (1 + AWAY_SHARE) + AWAY_MS < home_ms


class Outlook:
    """The memory of one sender; bounded."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._lateness: dict[tuple[SiteId, bytes], _Lateness] = {}
        self._troubles: dict[SiteId, _Trouble] = {}
        self._away: set[bytes] = set()
        """Models whose last request went away by choice; as many as are known here at most."""

    # --- choosing ----------------------------------------------------------------------------------
    def order(
        self, key: bytes, verdicts: Sequence[Verdict], under_way: Mapping[SiteId, int], now_s: float
    ) -> list[tuple[Verdict, Prediction]]:
        """Other sites that may answer for the model ``key``, in the order to ask them."""
        scored = [
            (one, self.predict(key, one, under_way.get(one.site, 0), now_s))
            for one in verdicts
            if not one.removed and not one.is_local
        ]
        scored.sort(
            key=lambda pair: (self._is_last(pair[0].site, now_s), pair[1].total_ms, pair[0].site)
        )
        self._draw(scored, now_s)
        return scored

    def predict(self, key: bytes, verdict: Verdict, under_way: int, now_s: float) -> Prediction:
        """As ``score.predict``, and what was learned since."""
        found = self._lateness.get((verdict.site, key))
        if found is None:
            return predict(verdict, local_wait_ms=0.0, under_way=under_way)
        return predict_late(verdict, under_way, found.late, found.weight(now_s))

    def is_better_away(self, key: bytes, home_ms: float, best_ms: float | None) -> bool:
        """Whether a request that this site could answer goes to the best other site.

        Args:
            key: the model.
            home_ms: predicted completion here.
            best_ms: at the best other site; None if there is none or its breaker is not closed.
        """
        if best_ms is None:
            is_away = False
        elif key in self._away:
            is_away = best_ms < home_ms
        else:
            is_away = is_clear_gain(home_ms, best_ms)
        (self._away.add if is_away else self._away.discard)(key)
        while len(self._away) > LATENESS_MAX:
            self._away.pop()
        return is_away

    def patience_ms(self, key: bytes, verdict: Verdict, under_way: int) -> float:
        """Time after which 19 of 20 answers have come: the p95, by stochastic approximation.

        Until something was measured there is none, and the first request may make a connection.
        """
        plain = predict(verdict, local_wait_ms=0.0, under_way=under_way)
        found = self._lateness.get((verdict.site, key))
        if found is None:
            return plain.total_ms - plain.penalty_ms + PATIENCE_UNKNOWN_MS
        return max(plain.idle_ms + max(found.most(plain.service_ms), 0.0), HEDGE_MS_MIN)

    def breaker(self, site: SiteId, now_s: float) -> Breaker:
        """The state of a site's breaker."""
        found = self._troubles.get(site)
        if found is None or not found.open_s:
            return "closed"
        return "open" if now_s < found.until_s else "half-open"

    def is_trusted(self, site: SiteId, now_s: float) -> bool:
        """Whether its breaker is closed and it has not asked for a rest."""
        found = self._troubles.get(site)
        return found is None or not (found.open_s or now_s < found.busy_until_s)

    def known(self, now_s: float) -> tuple[tuple[PeerKnown, ...], tuple[PairKnown, ...]]:
        """Sites with trouble and sites that were late, for ``routing.explain``; the newest."""
        peers = [
            PeerKnown(
                site,
                self.breaker(site, now_s),
                max(0.0, found.busy_until_s - now_s, (found.until_s - now_s) * bool(found.open_s)),
            )
            for site, found in self._troubles.items()
            if not self.is_trusted(site, now_s)
        ]
        pairs = [
            PairKnown(
                site,
                key,
                max(-KNOWN_MS_MAX, min(found.late.late_ms, KNOWN_MS_MAX)),
                round(found.weight(now_s), 2),
                min(found.late.service_ms, KNOWN_MS_MAX),
                found.late.runs,
            )
            for (site, key), found in self._lateness.items()
            if found.weight(now_s) >= TOLD
        ]
        return tuple(peers[-KNOWN_MAX:]), tuple(pairs[-KNOWN_MAX:])

    # --- learning ----------------------------------------------------------------------------------
    def sent(self, site: SiteId, now_s: float) -> None:
        """A request goes to a site; the one that a half-open breaker lets through is noted."""
        if self.breaker(site, now_s) == "half-open":
            self._troubles[site].is_tried = True

    def answered(
        self, site: SiteId, key: bytes, sent: Expected, took_ms: float, now_s: float
    ) -> None:
        """It answered ``took_ms`` after it was asked."""
        self.reached(site)
        self._late(site, key, sent, took_ms, now_s)

    def reached(self, site: SiteId) -> None:
        """It answered, whatever it said: its breaker closes; a rest that it asked for goes on."""
        found = self._troubles.get(site)
        if found is not None:
            found.failures, found.open_s, found.is_tried = 0, 0.0, False

    def failed(self, site: SiteId, now_s: float, *, is_connected: bool) -> bool:
        """It could not be connected, or broke off; whether that opened its breaker."""
        found = self._trouble(site)
        found.failures += 1
        was_half_open = bool(found.open_s) and now_s >= found.until_s
        found.is_tried = False
        if found.open_s and not was_half_open:
            return False  # sent before it opened: the same trouble
        if is_connected and found.failures < FAILURES_MAX and not was_half_open:
            return False
        found.open_s = min(found.open_s * 2 or OPEN_S, OPEN_S_MAX)
        found.until_s = now_s + found.open_s
        return True

    def given_up(
        self, site: SiteId, key: bytes, sent: Expected, waited_ms: float, now_s: float
    ) -> None:
        """The sender waited no longer than ``waited_ms``: it would have been at least so late."""
        if (found := self._troubles.get(site)) is not None:
            found.is_tried = False
        if waited_ms > sent.idle_ms:
            self._late(site, key, sent, waited_ms, now_s)

    def rests(self, site: SiteId, retry_after_s: float, now_s: float) -> None:
        """It has no room and names when to ask again."""
        wait_s = min(max(retry_after_s, 0.0), RETRY_AFTER_S_MAX)
        self._trouble(site).busy_until_s = now_s + wait_s

    def _late(self, site: SiteId, key: bytes, sent: Expected, took_ms: float, now_s: float) -> None:
        service_ms, beyond_ms = sent.service_ms, took_ms - sent.idle_ms
        found = self._lateness.pop((site, key), None)
        timely = _Answer(service_ms, 0)
        former = (timely,) if found is None else found.last  # a new one begins as if timely
        answer = _Answer(beyond_ms + service_ms, sent.own_before)
        last = (*former, answer)[-LATE_IN_A_ROW:]
        # a late answer among timely ones was a packet that got lost
        late = min((one.late(service_ms) for one in last), key=lambda one: one.late_ms)
        most_ms = max(beyond_ms, sent.idle_ms)
        if found is not None:
            before_ms = found.late.against(service_ms)
            if late.late_ms < before_ms:
                share = found.weight(now_s) * (1 - NEWS)
                late = Late(
                    late.late_ms + share * (before_ms - late.late_ms),
                    service_ms,
                    late.runs + share * (found.late.runs - late.runs),
                )
            step_ms = NEWS * max(sent.idle_ms, 1.0)
            most_ms = found.most(service_ms)
            most_ms += step_ms * ((beyond_ms > most_ms) - LATER_SHARE)
        self._lateness[site, key] = _Lateness(late, last, now_s, most_ms)
        if len(self._lateness) > LATENESS_MAX:
            del self._lateness[next(iter(self._lateness))]

    def _trouble(self, site: SiteId) -> _Trouble:
        found = self._troubles.pop(site, None) or _Trouble()
        self._troubles[site] = found
        if len(self._troubles) > BREAKERS_MAX:
            del self._troubles[next(iter(self._troubles))]
        return found

    def _is_last(self, site: SiteId, now_s: float) -> bool:
        found = self._troubles.get(site)
        if found is None:
            return False
        if now_s < found.busy_until_s:
            return True
        return bool(found.open_s) and (now_s < found.until_s or found.is_tried)

    def _draw(self, scored: list[tuple[Verdict, Prediction]], now_s: float) -> None:
        """Put the better of two drawn from the near-equals of the best in front."""
        if not scored or self._is_last(scored[0][0].site, now_s):
            return
        bound_ms = scored[0][1].total_ms * (1 + NEAR_SHARE) + NEAR_MS
        near = [
            at
            for at, (one, prediction) in enumerate(scored)
            if prediction.total_ms <= bound_ms and not self._is_last(one.site, now_s)
        ]
        if len(near) > 2:  # noqa: PLR2004 - of two the better one is the best already
            scored.insert(0, scored.pop(min(self._rng.sample(near, 2))))
