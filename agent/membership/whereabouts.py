"""Where this site and its members lie: what is measured, what is told of it, and how far others are.

What is told, and why so little: a record that spreads as a rumor costs every site of the cluster a
dozen packets, so a coordinate never starts one. While this site moves, its acks carry the current
coordinate, and they do for whoever asks because it knows none; when it has moved notably, it makes a *quiet* record, which travels with state syncs
only. Both end when the place is found, and an idle mesh sends not a byte for coordinates.
"""

from agent.foundation.ids import SiteId
from agent.foundation.randomness import Rng
from agent.membership.coordinates import Coordinate, Position
from agent.membership.events import RecordChanged, RememberPlace, SwimEffect
from agent.membership.member import Peer
from agent.membership.own_record import OwnRecord
from agent.membership.settings import Settings

FRESH_S = 900.0
"""A measured round trip is believed so long; in clusters beyond some 1,000 sites, where a member is
probed less often, a settled coordinate says as much."""
NOTABLE_S = 0.002
NOTABLE_SHARE = 0.1
"""A move is notable beyond both of 2 ms and this share of the usual round trip: less changes nobody's
choice of a site, and on a LAN there is only noise to tell."""
FIRST_AFTER_PERIODS = 8
"""Protocol periods until the first record with a coordinate; the next come after twice the time."""
PUBLISH_S_MAX = 600.0
"""Longest least time between two quiet records of one site, however it moves."""
REMEMBER_S = 60.0
"""Least time between two writes of the own coordinate to disk; the first is made when it is known."""
ERROR_USABLE = 1.0
"""A coordinate whose owner is as far off as the distance itself estimates nothing."""


class Whereabouts:
    """This site's position, kept by measured round trips and told with economy."""

    def __init__(
        self,
        *,
        me: SiteId,
        own: OwnRecord,
        settings: Settings,
        rng: Rng,
        out: list[SwimEffect],
        now: float,
    ) -> None:
        """Start where the own record says; effects are appended to ``out``."""
        self._me, self._own, self._out = me, own, out
        self._told = self._remembered = Coordinate.unpack(own.record.coordinate)
        self._told_as = own.record.coordinate
        self._position = Position(rng, self._told)
        self._usual_s = 0.0
        self._pace_s = FIRST_AFTER_PERIODS * settings.probe_interval_s
        self._publish_at = now + self._pace_s
        self._remember_at = now + REMEMBER_S
        self._packed = self._position.coordinate.pack()

    @property
    def coordinate(self) -> Coordinate:
        """Where this site lies."""
        return self._position.coordinate

    def is_wanted(self, peer: Peer) -> bool:
        """Whether the next ping should ask ``peer`` where it lies: what it told is nothing, or vague.

        Told once, a place is kept up to date by records and by the acks of whoever still moves.
        """
        return Coordinate.is_vague(peer.coordinate)

    def answer(self, *, is_wanted: bool) -> bytes:
        """What an ack says of it: nothing if nobody asked and the own record says nearly the same."""
        return self._packed if is_wanted or self._has_moved(self._in_record()) else b""

    def measured(self, peer: Peer, now: float) -> None:
        """A clean round trip to ``peer`` was measured: move, and tell if that is notable."""
        other = Coordinate.unpack(peer.coordinate)
        trip_s = peer.round_trip.filtered_s
        if other is None or trip_s is None or not self._position.observe(peer.site, other, trip_s):
            return
        self._usual_s += (trip_s - self._usual_s) / min(self._position.samples, 16)
        self._packed = self._position.coordinate.pack()
        if now >= self._publish_at and self._has_moved(self._in_record()):
            self._pace_s = min(2 * self._pace_s, PUBLISH_S_MAX)
            self._publish_at = now + self._pace_s
            if self._own.move(self._packed, now):
                self._out.append(RecordChanged(self._me, self._own.record))
        is_first = self._remembered is None and not Coordinate.is_vague(self._packed)
        if is_first or (now >= self._remember_at and self._has_moved(self._remembered)):
            self._remember_at = now + REMEMBER_S
            self._remembered = self._position.coordinate
            self._out.append(RememberPlace(self._packed))

    def distance_s(self, peer: Peer, now: float) -> float | None:
        """The round trip to ``peer``: measured if that is fresh, else estimated, else None."""
        trip = peer.round_trip
        if trip.smoothed_s is not None and now - trip.measured_at <= FRESH_S:
            return trip.smoothed_s
        estimated_s = self.estimated_s(peer)
        return estimated_s if estimated_s is not None else trip.smoothed_s

    def estimated_s(self, peer: Peer) -> float | None:
        """The round trip to ``peer`` by coordinates alone; None where one of them is too vague."""
        mine = self._position.coordinate
        theirs = Coordinate.unpack(peer.coordinate)
        if theirs is None or max(mine.error, theirs.error) >= ERROR_USABLE:
            return None
        return mine.distance_s(theirs)

    def _in_record(self) -> Coordinate | None:
        """What the own record says now."""
        if (told := self._own.record.coordinate) != self._told_as:
            self._told_as, self._told = told, Coordinate.unpack(told)
        return self._told

    def _has_moved(self, since: Coordinate | None) -> bool:
        if since is None:
            return True
        notable_s = max(NOTABLE_S, NOTABLE_SHARE * self._usual_s)
        return self._position.coordinate.moved_s(since) >= notable_s
