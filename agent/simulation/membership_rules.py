"""What must hold in every run of the sealed membership world, judged from outside the machines.

The world reports facts (what was signed, sealed, opened, started, cut, paused); these checks know no
machine's inside and no random number. Each broken rule is a ``Violation`` that names its rule:

=============  ===================================================================================
forgery        nobody believes a record that its owner never signed; a packet is heard as its sealer's
order          the sequences one key signs rise for ever, those one observer believes never fall
replay         a packet is heard at most once by one boot of one site; no nonce is used twice
boot epoch     a boot epoch is never used by two boots of one identity
revocation     nothing of a revoked key is believed where its revocation has come
evidence       a death rests on min(3, live view - 1) true accusations of the present incarnation
accuracy       no undisturbed observer declares an undisturbed running site dead
blame          in a calm network nobody accuses a site that nothing has happened to
completeness   a stopped site is dead or left for every undisturbed observer within a bound
news           a site's record is known to every undisturbed observer within a bound
bytes          packets and bytes of one site in one second, and bytes of one packet, are bounded
isolation      a site without an uplink says so 5 s after the last answer; none says so needlessly
queues         the rumors that wait at one site are bounded
convergence    after the last trouble everybody believes the same (judged by the story)
quiet          then nobody tells rumors any more (the same)
=============  ===================================================================================
"""

from collections import deque
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import inf

from agent.foundation.ids import SiteId, short
from agent.membership.events import IsolationChanged, MemberChanged, RecordChanged, SwimEffect
from agent.membership.suspicion import ACCUSERS_KEPT
from agent.membership.swim import Swim
from agent.simulation.membership_checks import MembershipChecks, Violation
from agent.wire.limits import PACKET_BYTES_MAX, RUMOR_BYTES_MAX
from agent.wire.records import STATEMENTS, Accusation, Signed, SiteRecord

ACCUSERS_NEEDED = 3
"""DESIGN 2: 'dead for the cluster needs min(3, live view - 1) accusers'."""
HEADER = slice(9, 21)
"""Boot epoch and counter in a packet: the nonce."""
IP_UDP_BYTES = 28


class Broken(Violation):
    """A rule was broken; the message starts with the rule's name."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Bounds:
    """The figures of the rules; seconds unless they say otherwise."""

    undisturbed_for_s: float = 10.0
    """A site counts as undisturbed this long after its last trouble: refutations have arrived."""
    dead_within_s: float = 16.0
    """Completeness, also at 30 % loss while most of the others are in trouble; alone and in a calm
    network 6.5 s are the goal for a vanished host."""
    news_within_s: float = 20.0
    """News; one periodic sync (15 s) and its jitter repair what 30 % loss left out."""
    calm_news_within_s: float = 5.0
    """News in a calm network, where rumors alone must do."""
    isolated_within_s: float = 5.0
    """GOALS: a dead uplink is noticed within 5 s."""
    packets_per_s: int = 80
    """What one site of ten sends of its own accord: 25 packets of gossip (fanout 5 every 0.2 s),
    probes, a burst to each member after a stall; besides, one packet for each that it hears."""
    bytes_per_s: int = 60_000
    """Half of what those packets could hold; besides, ``answer_bytes`` for each that it hears."""
    answer_bytes: int = 600
    """Half a packet: a site that was stopped answers what waited for it all at once."""


class FleetChecks(MembershipChecks):
    """Judges each step, packet and signature of a ``SealedWorld``."""

    def __init__(self, made: dict[bytes, SiteId], bounds: Bounds | None = None) -> None:
        """``made`` is the ledger of statements that sites really signed."""
        super().__init__(made)
        self.bounds = bounds if bounds is not None else Bounds()
        self.is_calm = False
        """No loss and short delays: whoever is accused must have given a reason."""
        self._troubled_until: dict[SiteId, float] = {}
        """Trouble that may end in a death."""
        self._stirred_until: dict[SiteId, float] = {}
        """Anything at all that may cost a probe, forgiven stalls included."""
        self._no_uplink_since: dict[SiteId, float] = {}
        self._answered: dict[SiteId, float] = {}
        self._cut: set[SiteId] = set()
        self._cut_from_one: set[SiteId] = set()
        self._cut_until: dict[SiteId, float] = {}
        self._running: dict[SiteId, float] = {}
        self._traitors: set[SiteId] = set()
        self._out: set[SiteId] = set()
        """Revoked anywhere: no rule protects them."""
        self._epochs: dict[SiteId, int] = {}
        self._signed: dict[SiteId, SiteRecord] = {}
        self._believed: dict[SiteId, dict[SiteId, tuple[int, int]]] = {}
        """By observer: the newest sequence and incarnation it has believed of each site."""
        self._told: dict[SiteId, SiteRecord] = {}
        self._published: dict[SiteId, deque[tuple[float, int]]] = {}
        """When each site had news, and the sequence of that record."""
        self._sealed: dict[bytes, SiteId] = {}
        self._nonces: set[tuple[SiteId, bytes]] = set()
        self._opened: set[tuple[SiteId, int, bytes]] = set()
        self._revoked_at: dict[tuple[SiteId, SiteId], float] = {}
        self._suspected_at: dict[tuple[SiteId, SiteId], float] = {}
        self._second: dict[SiteId, tuple[int, int, int]] = {}
        self._heard: dict[SiteId, tuple[int, int]] = {}
        self._statements: dict[bytes, SiteRecord | Accusation] = {}
        self._trace = blake2b(digest_size=16)
        self.packets_per_s = self.bytes_per_s = self.rumors_waiting = 0
        """The largest that were seen."""

    @property
    def trace(self) -> str:
        """Digest of everything that was sealed, started and decided."""
        return self._trace.hexdigest()

    # --- facts: trouble --------------------------------------------------------------------------
    def troubled(self, site: SiteId, until: float) -> None:
        """Something happens to a site that others may take for its death."""
        self._troubled_until[site] = max(until, self._troubled_until.get(site, 0.0))
        self.stirred(site, until)

    def stirred(self, site: SiteId, until: float) -> None:
        """Something happens to a site that must be forgiven, but may cost it a probe."""
        self._stirred_until[site] = max(until, self._stirred_until.get(site, 0.0))

    def cut(self, site: SiteId) -> None:
        """A site is cut off from others, until ``healed``."""
        self._cut.add(site)

    def cut_from_one(self, site: SiteId) -> None:
        """A site cannot reach one other, or not be reached by it, until ``healed``: no excuse."""
        self._cut_from_one.add(site)

    def healed(self, now: float) -> None:
        """Every cut is over."""
        for site in self._cut | self._cut_from_one:
            (self.troubled if site in self._cut else self.stirred)(site, now)
            self._cut_until[site] = now
        self._cut.clear()
        self._no_uplink_since.clear()
        self._cut_from_one.clear()

    def answered(self, site: SiteId, now: float) -> None:
        """An ack or a nack has come to a site, late ones included."""
        self._answered[site] = now

    def lost_uplink(self, site: SiteId, now: float) -> None:
        """Nothing that a site sends leaves it, until ``healed``."""
        self.cut(site)
        self._no_uplink_since.setdefault(site, now)

    def turned(self, site: SiteId) -> None:
        """A site's key is used against the cluster from now on."""
        self._traitors.add(site)

    def _is_undisturbed(self, site: SiteId, now: float, for_s: float) -> bool:
        since = max(self._troubled_until.get(site, 0.0), self._running.get(site, inf))
        is_free = site not in self._out and site not in self._cut
        return is_free and now - since >= for_s

    # --- facts: life -----------------------------------------------------------------------------
    def booted(self, site: SiteId, epoch: int) -> None:
        """A process starts with this boot epoch."""
        if epoch <= self._epochs.get(site, 0):
            raise Broken("boot epoch", f"{short(site)} starts again with epoch {epoch}")
        self._epochs[site] = epoch

    def started(self, site: SiteId, now: float) -> None:
        """A process starts: it may have forgotten what it believed."""
        super().started(site, now)
        self._believed.pop(site, None)
        self._running[site] = now
        self.troubled(site, now)
        for pair in [pair for pair in self._suspected_at if pair[0] == site]:
            del self._suspected_at[pair]

    def stopped(self, site: SiteId, now: float) -> None:
        """A process ends."""
        super().stopped(site, now)
        self._running.pop(site, None)

    def revocation_came(self, me: SiteId, victim: SiteId, now: float) -> None:
        """From now on ``me`` knows that the key of ``victim`` is revoked."""
        self._revoked_at[me, victim] = now
        self._out.add(victim)

    # --- facts: keys -----------------------------------------------------------------------------
    def _read(self, body: bytes) -> SiteRecord | Accusation:
        statement = self._statements.get(body)
        if statement is None:
            statement = self._statements[body] = STATEMENTS.unpack(body, RUMOR_BYTES_MAX)
        return statement

    def signed(self, me: SiteId, body: bytes, now: float) -> None:
        """A site signs a statement with its key."""
        statement = self._read(body)
        if isinstance(statement, Accusation):
            self._blamed(me, statement.subject, now)
            return
        if statement.site == me:
            last = self._signed.get(me)
            if last is not None and statement.sequence <= last.sequence and statement != last:
                raise Broken("order", f"{short(me)} signs sequence {statement.sequence} again")
            self._signed[me] = statement
            before = self._told.get(me)
            self._told[me] = plain = replace(statement, sequence=0, coordinate=b"")
            if plain != before:
                # Coordinates alone are no rumor: they travel with acks and syncs.
                self._published.setdefault(me, deque(maxlen=64)).append((now, statement.sequence))

    def newest(self, site: SiteId) -> int:
        """Sequence of the last record in which ``site`` told news."""
        return self._published[site][-1][1]

    def _blamed(self, me: SiteId, subject: SiteId, now: float) -> None:
        is_judged = self.is_calm and subject in self._running and subject not in self._out
        if not is_judged or me in self._traitors or me in self._out:
            return
        if {me, subject} & (self._cut | self._cut_from_one):
            return
        stirred = self._stirred_until.get(subject, 0.0)
        quiet_s = self.bounds.undisturbed_for_s
        since = max(self._cut_until.get(me, -inf), self._running.get(me, inf))
        if now - stirred > quiet_s and now - since > quiet_s:
            raise Broken("blame", f"{short(me)} accuses {short(subject)}, to whom nothing happened")

    def sealed(self, me: SiteId, packet: bytes, now: float) -> None:
        """A site seals a packet."""
        if len(packet) > PACKET_BYTES_MAX:
            raise Broken("bytes", f"a packet of {len(packet)} bytes")
        nonce = (me, packet[HEADER])
        if nonce in self._nonces:
            raise Broken("replay", f"{short(me)} uses a nonce twice")
        self._nonces.add(nonce)
        self._trace.update(packet)
        self._sealed[packet] = me
        if me in self._traitors:
            return
        second, packets, size = self._second.get(me, (0, 0, 0))
        if int(now) != second:
            second, packets, size = int(now), 0, 0
        packets, size = packets + 1, size + len(packet) + IP_UDP_BYTES
        self._second[me] = (second, packets, size)
        heard_in, heard = self._heard.get(me, (0, 0))
        answers = heard if heard_in == second else 0
        own, bounds = packets - answers, self.bounds
        self.packets_per_s = max(self.packets_per_s, own)
        self.bytes_per_s = max(self.bytes_per_s, size)
        if own > bounds.packets_per_s or size > bounds.bytes_per_s + answers * bounds.answer_bytes:
            raise Broken("bytes", f"{short(me)} sends {packets} packets, {size} bytes in a second")

    def opened(self, me: SiteId, sender: SiteId, packet: bytes, now: float) -> None:
        """A site takes a packet for ``sender``'s and hears it."""
        second, heard = self._heard.get(me, (0, 0))
        self._heard[me] = (int(now), heard + 1 if second == int(now) else 1)
        if self._sealed.get(packet) != sender:
            raise Broken("forgery", f"{short(me)} hears {short(sender)}, who never sealed that")
        once = (me, self._epochs[me], packet)
        if once in self._opened:
            raise Broken("replay", f"{short(me)} hears a packet of {short(sender)} twice")
        self._opened.add(once)
        if (me, sender) in self._revoked_at:
            raise Broken("revocation", f"{short(me)} hears {short(sender)}, whose key is revoked")

    # --- each step -------------------------------------------------------------------------------
    def stepped(self, me: SiteId, swim: Swim, effects: list[SwimEffect], now: float) -> None:
        """Judge one step."""
        super().stepped(me, swim, effects, now)
        self._trace.update(b"%a %b %d" % (now, me[:4], len(effects)))
        for effect in effects:
            if isinstance(effect, RecordChanged):
                if (me, effect.site) in self._revoked_at:
                    raise Broken("revocation", f"{short(me)} believes revoked {short(effect.site)}")
            elif isinstance(effect, IsolationChanged):
                if effect.is_isolated:
                    self._check_isolated(me, now)
            elif isinstance(effect, MemberChanged):
                if effect.after == "suspect":
                    self._suspected_at[me, effect.site] = now
                    self._check_accusers(me, swim, effect.site)
                elif effect.after == "dead":
                    self._check_death(me, swim, effect.site, now)

    def _check_isolated(self, me: SiteId, now: float) -> None:
        since = max(self._cut_until.get(me, -inf), self._running.get(me, inf))
        is_free = me not in self._cut and me not in self._out
        if self.is_calm and is_free and now - since > self.bounds.undisturbed_for_s:
            raise Broken("isolation", f"{short(me)} says that it hears nobody, in a calm network")

    def _check_accusers(self, me: SiteId, swim: Swim, subject: SiteId) -> int:
        """The number of true accusations of the incarnation that is believed."""
        member = swim.members()[subject]
        since = self._suspected_at.get((me, subject), -inf)
        true = 0
        for signed in swim.accusations_of(subject):
            statement = self._read(signed.body)
            assert isinstance(statement, Accusation), "evidence is an accusation"
            if self._made.get(signed.body) != statement.accuser:
                raise Broken("forgery", f"{short(me)} counts an accusation that nobody made")
            if since >= self._revoked_at.get((me, statement.accuser), inf):
                raise Broken("revocation", f"{short(me)} counts what a revoked key says")
            true += (
                statement.subject == subject
                and statement.incarnation == member.record.incarnation
                and statement.accuser != subject
            )
        return true

    def _check_death(self, me: SiteId, swim: Swim, subject: SiteId, now: float) -> None:
        true = self._check_accusers(me, swim, subject)
        alive = sum(member.state == "alive" for member in swim.members().values())
        needed = max(1, min(ACCUSERS_NEEDED, alive + 1))
        if true < needed and swim.members()[subject].state == "dead":
            raise Broken("evidence", f"{short(me)} buries {short(subject)} on {true} of {needed}")
        quiet_s = self.bounds.undisturbed_for_s
        if self._is_undisturbed(subject, now, quiet_s) and self._is_undisturbed(me, now, quiet_s):
            raise Broken("accuracy", f"{short(me)} buries {short(subject)}, who runs")

    def _check_record(self, me: SiteId, swim: Swim, effect: RecordChanged) -> None:
        signed = self._signed_record(me, swim, effect)
        if signed is not None and self._made.get(signed.body) != effect.record.site:
            raise Broken("forgery", f"{short(me)} believes what {short(effect.site)} never said")
        height = (effect.record.sequence, effect.record.incarnation)
        heights = self._believed.setdefault(me, {})
        before = heights.get(effect.site, (-1, -1))
        if height[0] <= before[0] or height[1] < before[1]:
            raise Broken(
                "order", f"{short(effect.site)} falls from {before} to {height} at {short(me)}"
            )
        heights[effect.site] = height

    def _signed_record(self, me: SiteId, swim: Swim, effect: RecordChanged) -> Signed | None:
        """As it came; None for what a later record of the same step has replaced."""
        if effect.site == me:
            return swim.signed if swim.record.sequence == effect.record.sequence else None
        member = swim.members().get(effect.site)
        if member is None or member.record.sequence != effect.record.sequence:
            return None
        return member.signed

    # --- now and then ----------------------------------------------------------------------------
    def audit(self, swims: dict[SiteId, Swim], now: float) -> None:
        """Judge what takes time: completeness, news and queues; ``swims`` are the running sites."""
        bounds = self.bounds
        for me, swim in swims.items():
            members = swim.members()
            self.rumors_waiting = max(self.rumors_waiting, swim.waiting_rumors)
            if swim.waiting_rumors > (2 + ACCUSERS_KEPT) * (len(members) + 1):
                raise Broken("queues", f"{swim.waiting_rumors} rumors wait at {short(me)}")
            self._check_uplink(me, swim, now)
            for site, member in members.items():
                if self._read(member.signed.body) != member.record:
                    raise Broken(
                        "forgery", f"{short(me)} holds of {short(site)} what it never said"
                    )
            if self._is_undisturbed(me, now, bounds.dead_within_s):
                self._check_stopped(me, swim, now)
            late_s = bounds.calm_news_within_s if self.is_calm else bounds.news_within_s
            if self._is_undisturbed(me, now, late_s + bounds.undisturbed_for_s):
                self._check_news(me, swim, now, late_s)

    def _check_uplink(self, me: SiteId, swim: Swim, now: float) -> None:
        since = self._no_uplink_since.get(me, inf)
        since = max(since, self._stirred_until.get(me, 0.0), self._answered.get(me, 0.0))
        if now - since > self.bounds.isolated_within_s and not swim.is_isolated:
            raise Broken("isolation", f"{short(me)} has no uplink and does not notice")

    def _check_stopped(self, me: SiteId, swim: Swim, now: float) -> None:
        for subject, down_at in self._down_at.items():
            member = swim.members().get(subject)
            is_believed = member is not None and member.state in ("alive", "suspect")
            if is_believed and now - down_at > self.bounds.dead_within_s:
                raise Broken("completeness", f"{short(subject)} lives on at {short(me)}")

    def _check_news(self, me: SiteId, swim: Swim, now: float, late_s: float) -> None:
        undisturbed_for_s = late_s + self.bounds.undisturbed_for_s
        members = swim.members()
        for subject, published in self._published.items():
            if subject == me or not self._is_undisturbed(subject, now, undisturbed_for_s):
                continue
            old = max((sequence for at, sequence in published if at <= now - late_s), default=0)
            member = members.get(subject)
            if old and (member is None or member.record.sequence < old):
                raise Broken("news", f"{short(me)} has missed what {short(subject)} says")
