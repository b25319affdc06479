"""A hybrid logical clock: stamps that follow the wall clock and never run backwards.

A change made after another one was seen gets a larger stamp, even if this site's clock is behind, so
"the newer stamp wins" means what people expect. A clock that is far ahead cannot drag the others
along: a stamp more than ``AHEAD_MS_MAX`` in the future is refused.

Source: Kulkarni et al. 2014, "Logical Physical Clocks", figure 5.
"""

from statistics import median
from typing import Final

from agent.foundation.errors import Malformed, Refused
from agent.foundation.ids import SiteId
from agent.wire.documents import Stamp

AHEAD_MS_MAX: Final = 5 * 60 * 1000
"""Sites without a time source drift less than this in a month; a stamp beyond it is a wrong clock."""

DIFFERS_MS: Final = 60 * 1000
"""Worth telling an operator: sites with a time source agree within a second, an answer takes up to ten."""

CLOCKS_MAX: Final = 15
"""Members whose clocks are remembered, those heard last: a median of so many outvotes seven wrong ones."""

_COUNT_MAX: Final = 2**31 - 1


class HybridClock:
    """The largest stamp made or seen so far."""

    def __init__(self, last: Stamp | None = None) -> None:
        """``last``: the largest stamp among what this site holds, after a restart."""
        self._last = last or Stamp(0, 0)

    @property
    def last(self) -> Stamp:
        """The largest stamp made or seen."""
        return self._last

    def tick(self, wall_ms: int) -> Stamp:
        """A stamp larger than all made or seen before; ``wall_ms`` is Unix time, milliseconds."""
        if wall_ms > self._last.wall_ms:
            self._last = Stamp(wall_ms, 0)
        elif self._last.count < _COUNT_MAX:
            self._last = Stamp(self._last.wall_ms, self._last.count + 1)
        else:
            self._last = Stamp(self._last.wall_ms + 1, 0)
        return self._last

    def observe(self, stamp: Stamp, wall_ms: int) -> None:
        """Take note of a stamp from elsewhere.

        Raises:
            Malformed: it is more than ``AHEAD_MS_MAX`` ahead of ``wall_ms``; the document must not be
                merged now. It may be once this clock has caught up.
        """
        ahead_ms = stamp.wall_ms - wall_ms
        if ahead_ms > AHEAD_MS_MAX:
            raise Malformed(
                f"a document is stamped {ahead_ms // 1000} s in the future",
                why=f"the bound is {AHEAD_MS_MAX // 1000} s",
                mend="set the clock of the site where it was signed, or of this one",
            )
        self._last = max(self._last, stamp)


class Clocks:
    """What other members' clocks show, as their sync answers tell; only for judging this site's own."""

    def __init__(self) -> None:
        """Nobody has told anything yet."""
        self._offsets_ms: dict[SiteId, float] = {}

    def __len__(self) -> int:
        """How many members have told."""
        return len(self._offsets_ms)

    def heard(self, site: SiteId, wall_ms: int, now: float) -> None:
        """A member's Unix time, milliseconds, at ``now`` (monotonic, seconds); 0: it does not tell."""
        if wall_ms == 0:
            return
        self._offsets_ms.pop(site, None)
        self._offsets_ms[site] = wall_ms - 1000.0 * now
        if len(self._offsets_ms) > CLOCKS_MAX:
            del self._offsets_ms[next(iter(self._offsets_ms))]

    def ahead_ms(self, wall_offset_s: float) -> int:
        """How far this site is ahead of the median member (negative: behind); 0 if nobody has told.

        Args:
            wall_offset_s: this site's Unix time less its monotonic time, so that a corrected clock is
                right at once.
        """
        if not self._offsets_ms:
            return 0
        return round(1000.0 * wall_offset_s - median(self._offsets_ms.values()))

    def require_agreement(self, wall_offset_s: float) -> None:
        """Before anything is stamped here.

        Raises:
            Refused: ahead of the others by more than ``AHEAD_MS_MAX``, who would refuse the document;
                or as far behind, where it would lose to what they have and this site must refuse.
        """
        ahead_ms = self.ahead_ms(wall_offset_s)
        if abs(ahead_ms) <= AHEAD_MS_MAX:
            return
        others = "that of the one member" if len(self) == 1 else f"those of {len(self)} members"
        told = (
            "they would refuse a document that is stamped here"
            if ahead_ms > 0
            else "a document that is stamped here would lose to older ones that this site refuses"
        )
        raise Refused(
            f"this site's clock is {abs(ahead_ms) // 1000} s "
            f"{'ahead of' if ahead_ms > 0 else 'behind'} {others} it has heard from",
            why=f"the bound is {AHEAD_MS_MAX // 1000} s; {told}",
            mend="set the clock here (timedatectl status shows whether it is synchronised), or sign "
            "at a site whose clock is right; nothing was signed",
        )
