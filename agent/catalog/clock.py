"""A hybrid logical clock: stamps that follow the wall clock and never run backwards.

A change made after another one was seen gets a larger stamp, even if this site's clock is behind, so
"the newer stamp wins" means what people expect. A clock that is far ahead cannot drag the others
along: a stamp more than ``AHEAD_MS_MAX`` in the future is refused.

Source: Kulkarni et al. 2014, "Logical Physical Clocks", figure 5.
"""

from typing import Final

from agent.foundation.errors import Malformed
from agent.wire.documents import Stamp

AHEAD_MS_MAX: Final = 5 * 60 * 1000
"""Sites without a time source drift less than this in a month; a stamp beyond it is a wrong clock."""

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
