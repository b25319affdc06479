"""Failure detection: direct probe, indirect probes, and what a silence may be held against.

SWIM section 3.1 with Lifeguard's nacks and health-scaled timing. A probe that fails ends in an
accusation only if the silence is the target's: not when our own send failed, when we stood still,
when the target was heard meanwhile, or when we hear nobody at all.
"""

from collections.abc import Callable
from functools import partial

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.foundation.randomness import Rng
from agent.membership.health import LocalHealth
from agent.membership.member import Peer
from agent.membership.post import Post
from agent.membership.probes import OpenProbes, Probe, ProbeOrder, Relay
from agent.membership.roster import Roster
from agent.membership.settings import Settings
from agent.membership.syncs import SyncPlan
from agent.membership.whereabouts import Whereabouts
from agent.wire.gossip import Ack, Nack, Ping, PingRequest
from agent.wire.records import Signed

NACK_SHARE = 0.6
"""A relay sends its nack after this share of the indirect timeout, so that it arrives in time."""


class FailureDetector:
    """Probes members in turn and names those that do not answer."""

    def __init__(
        self,
        *,
        me: SiteId,
        roster: Roster,
        post: Post,
        syncs: SyncPlan,
        settings: Settings,
        rng: Rng,
        now: float,
        accuse: Callable[[Peer, bool, float], None],
        where: Whereabouts,
    ) -> None:
        """``accuse(peer, is_refused, now)`` is called for each probe that ends in evidence."""
        self._me, self._roster, self._post, self._syncs = me, roster, post, syncs
        self._settings, self._rng = settings, rng
        self._accuse, self._where = accuse, where
        self._lagged_at = float("-inf")
        self.health = LocalHealth(settings.health_max)
        self.order = ProbeOrder(me, rng)
        self._open = OpenProbes(settings.probes_max)
        self.period_at = now + rng.uniform(0, settings.probe_interval_s)
        """When the next protocol period begins."""

    def wake_at(self) -> float:
        """When ``run`` wants to be called."""
        next_at = self.period_at if self._roster.is_anybody_reachable else NEVER
        return min(next_at, self._open.wake_at())

    def run(self, now: float) -> None:
        """Begin the next protocol period and end what is due."""
        if self._open.wake_at() <= now:
            for relay in self._open.relays_due(now):
                self._run_relay(relay, now)
            for probe in self._open.due(now):
                self._run_probe(probe, now)
            self._open.looked()
        if self.period_at <= now:
            interval_s = self._settings.probe_interval_s * self.health.scale
            self.period_at = now + interval_s * self._rng.uniform(0.95, 1.05)
            target = self.order.next(self._roster.reachable())
            peer = None if target is None else self._roster.get(target)
            if peer is not None and peer.state in ("alive", "suspect"):
                self.probe(peer, now)

    # --- asking ----------------------------------------------------------------------------------
    def probe(self, peer: Peer, now: float) -> bool:
        """Probe one member now; False if that is under way or too many are."""
        timeout_s = peer.round_trip.timeout_s(
            self._settings.probe_timeout_min_s, self._settings.probe_timeout_s
        )
        probe = self._open.open(peer.site, now, now + timeout_s * self.health.scale)
        if probe is None:
            return False
        ping = partial(Ping, probe.number, is_place_wanted=self._where.is_wanted(peer))
        self._post.send(peer, ping, now)
        return True

    def ping_lost(self, peer: Peer, now: float) -> None:
        """Ping a dead or departed member; any answer is news, silence is none."""
        self._post.send(peer, partial(Ping, self._open.number()), now)

    def _run_probe(self, probe: Probe, now: float) -> None:
        peer = self._roster.get(probe.target)
        if peer is None or peer.state not in ("alive", "suspect"):
            self._open.close(probe)
        elif probe.due_at <= now:
            if probe.stage == "direct":
                self._go_indirect(probe, peer, now)
            else:
                self._fail(probe, peer, now)
        else:
            probe.repeat_at = NEVER
            self._post.send(peer, partial(Ping, probe.number), now)

    def _go_indirect(self, probe: Probe, peer: Peer, now: float) -> None:
        """Ask others to probe, ask again ourselves, and try TCP."""
        probe.stage = "indirect"
        if probe.repeat_at <= now:  # else the repetition that a refusal asked for still comes
            probe.repeat_at = NEVER
        probe.due_at = now + self._settings.indirect_timeout_s * self.health.scale
        reachable = self._roster.reachable()
        at = reachable.index(probe.target)
        count = min(self._settings.indirect_probes, len(reachable) - 1)
        for place in self._rng.sample(range(len(reachable) - 1), count):
            site = reachable[place if place < at else place + 1]
            relay = self._roster.get(site)
            if relay is not None and relay.state == "alive":
                probe.relays.add(site)
                build = partial(PingRequest, probe.number, probe.target)
                self._post.send(relay, build, now)
        self._post.send(peer, partial(Ping, probe.number), now)
        self._syncs.try_silent(peer.site, "no answer over UDP", now)
        beyond = self.order.beyond(probe.target, reachable)
        if beyond is not None and (following := self._roster.get(beyond)) is not None:
            self.probe(following, now)

    def _fail(self, probe: Probe, peer: Peer, now: float, *, is_refused: bool = False) -> None:
        self._open.close(probe)
        if self._is_excused(peer, now, is_refused=is_refused):
            return
        if not is_refused:
            silent = len(probe.relays) - len(probe.nacks)
            self.health.note(silent if probe.relays else 1)
        was_heard = peer.heard_at is not None and peer.heard_at >= probe.sent_at
        if was_heard or (probe.has_send_failed and not probe.nacks):
            return
        self._accuse(peer, is_refused, now)

    def _is_excused(self, peer: Peer, now: float, *, is_refused: bool) -> bool:
        """Whether its silence says nothing: it may be starting as we are, or it answers over TCP."""
        if peer.heard_at is None and now < peer.excused_until:
            return True
        return not is_refused and now < peer.called_at + 2 * self._settings.sync_spacing_s

    # --- answers ---------------------------------------------------------------------------------
    def acked(self, sender: SiteId, ack: Ack, now: float) -> None:
        """An ack ends the probe that it answers; strangers' acks are ignored."""
        probe = self._open.get(ack.number)
        if probe is not None and probe.target == ack.subject:
            if sender == probe.target:
                self._succeed(probe, now, is_relayed=False, coordinate=ack.coordinate)
            elif sender in probe.relays:
                self._succeed(probe, now, is_relayed=True)
            return
        relay = self._open.relay_of(ack.number)
        if relay is not None and sender == relay.subject == ack.subject:
            self._open.close_relay(relay)
            asker = self._roster.get(relay.asker)
            if asker is not None:
                self._post.send(asker, partial(Ack, relay.asked_number, relay.subject), now)

    def _succeed(
        self, probe: Probe, now: float, *, is_relayed: bool, coordinate: bytes = b""
    ) -> None:
        self._open.close(probe)
        was_healthy = self.health.score == 0
        self.health.note(-1)
        peer = self._roster.get(probe.target)
        if peer is None:
            return
        peer.coordinate = coordinate or peer.coordinate
        if not is_relayed and probe.stage == "indirect":
            # An ack after a repeated ping cannot be matched to one of them (Karn's rule).
            peer.round_trip.late()
        elif not is_relayed and probe.refused_at is None and probe.sent_at > self._lagged_at:
            # What we were busy with ourselves is no distance.
            peer.round_trip.add(now - probe.sent_at, now)
            if was_healthy:
                self._where.measured(peer, now)
        peer.is_relayed, peer.called_at = is_relayed, float("-inf")
        self._roster.refresh(peer)

    def nacked(self, sender: SiteId, nack: Nack) -> None:
        """A relay lives but got no answer either."""
        probe = self._open.get(nack.number)
        if probe is not None and sender in probe.relays:
            probe.nacks.add(sender)

    def asked(self, asker: SiteId, request: PingRequest, now: float) -> None:
        """Probe ``request.subject`` for a member."""
        subject = self._roster.get(request.subject)
        if subject is None or request.subject in (self._me, asker):
            return
        nack_at = now + NACK_SHARE * self._settings.indirect_timeout_s
        drop_at = now + 2 * self._settings.indirect_timeout_s
        relay = self._open.relay(asker, request.number, request.subject, nack_at, drop_at)
        if relay is not None:
            self._post.send(subject, partial(Ping, relay.number), now)

    def _run_relay(self, relay: Relay, now: float) -> None:
        if relay.drop_at <= now:
            self._open.close_relay(relay)
            return
        relay.is_nacked = True
        asker, subject = self._roster.get(relay.asker), self._roster.get(relay.subject)
        if asker is None or subject is None:
            return
        evidence: tuple[Signed, ...] = ()
        if subject.suspicion is not None:
            # Whoever still asks after a suspect or dead member may lack what we know.
            accusers = list(subject.suspicion.accusers.values())
            evidence = tuple(one.signed for one in accusers[: self._settings.accusers_needed])
        self._post.send(asker, partial(Nack, relay.asked_number), now, evidence)

    # --- other evidence --------------------------------------------------------------------------
    def refused(self, peer: Peer, now: float) -> None:
        """The port is closed: evidence once it repeats, or once another member saw it too."""
        suspicion = peer.suspicion
        if suspicion is not None and self._me in suspicion.accusers:
            return
        probe = self._open.of(peer.site)
        is_confirmed = suspicion is not None and suspicion.refusals() > 0
        if is_confirmed and not self._is_excused(peer, now, is_refused=True):
            if probe is not None:
                self._open.close(probe)
            self._accuse(peer, True, now)
            return
        if probe is None:
            if not self.probe(peer, now):
                return
            probe = self._open.of(peer.site)
            assert probe is not None, "just opened"
        retry_s = self._settings.refused_retry_s
        if probe.refused_at is None:
            probe.refused_at, probe.repeat_at = now, now + retry_s
            self._open.want(probe.repeat_at)
        elif now >= probe.refused_at + retry_s:
            self._fail(probe, peer, now, is_refused=True)

    def send_failed(self, target: SiteId) -> None:
        """Our own stack refused to send: a failed probe against ourselves."""
        probe = self._open.of(target)
        if probe is None or not probe.has_send_failed:
            self.health.note(1)
        if probe is not None:
            probe.has_send_failed = True

    def called(self, peer: Peer, now: float, *, succeeded: bool) -> None:
        """A sync over TCP has ended: if it answered and datagrams do not come back, that is a life too."""
        probe = self._open.of(peer.site)
        is_waiting = probe is not None and probe.stage == "indirect"
        is_mine = peer.suspicion is not None and self._me in peer.suspicion.accusers
        if not succeeded:
            peer.called_at = float("-inf")
        elif is_waiting or is_mine or peer.is_relayed:
            peer.called_at, peer.is_relayed = now, True
            self._roster.refresh(peer)
            if probe is not None and is_waiting:
                self._open.close(probe)

    def forget(self) -> None:
        """Nobody answered for a while: the probes of that time prove nothing."""
        self._open.clear()

    def lagged(self, now: float) -> None:
        """We stood still: what we did not hear meanwhile is no evidence."""
        self._lagged_at = now
        self._open.hold(now + self._settings.probe_timeout_s)
        self.period_at = max(self.period_at, now)
