"""The gossip envelope: every packet encrypted and authenticated between exactly two sites.

Rule: nothing leaves ``open`` but a body that a known, unrevoked site sealed for this boot of this
site, once; every other sequence of bytes ends as ``Malformed``, before any reply.

::

    packet  = version (1) | sender short id (8) | boot epoch (4) | counter (8) | ciphertext | tag (16)
    key     = HKDF-SHA256(X25519(mine, theirs), info = "atoll gossip 1" | sender id | receiver id)
    nonce   = boot epoch | counter
    AAD     = the 21 bytes above | receiver id | receiver's boot epoch, as the sender knows it

- A nonce is never used twice: the boot epoch is durable before the first packet of a boot, and one
  counter serves all receivers, so that forgetting a receiver's keys never resets it.
- The order of the ids in ``info`` is the direction, so a reflected packet does not open.
- The receiver's boot epoch in the AAD refuses packets replayed after the receiver restarted. What a
  sender does not know of it yet it learns from any packet that the receiver sends.
- Per sender, the highest boot epoch seen and a window of 1,024 counters refuse replays (RFC 4303
  3.4.3, in one integer); they move only when a packet has been authenticated.
- Checks are in order of cost: length, version, sender known, replay, and only then AES-GCM.

Gossip has no forward secrecy: it carries no secrets, only signed statements. Data goes over TLS.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.foundation.errors import Malformed, NotFound, UsageError
from agent.foundation.ids import SiteId, short
from agent.wire.limits import MEMBERS_MAX, PACKET_BYTES_MAX, PROTOCOL_VERSION

SHORT_ID_BYTES = 8
HEADER_BYTES = 1 + SHORT_ID_BYTES + 4 + 8
TAG_BYTES = 16
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
BODY_BYTES_MAX = PACKET_BYTES_MAX - OVERHEAD_BYTES
"""What a gossip message may take: 1,163 bytes."""
REPLAY_WINDOW = 1024
"""Counters are shared by all receivers, so this spans about 30 s at 33 packets a second."""
LINKS_MAX = MEMBERS_MAX
"""Derived keys and replay windows kept: one for each member there can be; about 0.5 KiB each."""
COUNTER_MAX = 2**64 - 1
COUNTER_START_MAX = 2**63

_INFO = b"atoll gossip 1"


@dataclass(slots=True)
class _Link:
    """Keys between this site and one other; derived again when its public key changes.

    Bytes, not ciphers: OpenSSL makes one of them in a microsecond and keeps 2.4 KiB for it, which for
    thousands of members is more than everything else that is known of them.
    """

    public: bytes
    outgoing: bytes
    incoming: bytes


@dataclass(slots=True)
class _Window:
    """Which counters of a sender's boot were seen: bit n stands for ``highest - n``."""

    boot_epoch: int
    highest: int = 0
    seen: int = field(default=0)

    def is_fresh(self, counter: int) -> bool:
        age = self.highest - counter
        return age < 0 or (age < REPLAY_WINDOW and not self.seen >> age & 1)

    def mark(self, counter: int) -> None:
        ahead = counter - self.highest
        if ahead > 0:
            kept = self.seen << ahead if ahead < REPLAY_WINDOW else 0
            self.seen = (kept | 1) & ((1 << REPLAY_WINDOW) - 1)
            self.highest = counter
        else:
            self.seen |= 1 << -ahead


class Sealer:
    """Seals and opens the gossip packets of one boot of one site."""

    def __init__(
        self,
        me: SiteId,
        gossip_private: X25519PrivateKey,
        boot_epoch: int,
        lookup: Callable[[SiteId], bytes | None],
        epoch_of: Callable[[SiteId], int],
        resolve: Callable[[bytes], SiteId | None],
        counter: int = 0,
    ) -> None:
        """Start a boot.

        Args:
            me: this site.
            gossip_private: its X25519 key.
            boot_epoch: durable before the first ``seal``, and never used by an earlier boot.
            lookup: raw X25519 public key of a known, unrevoked site (``Roll.gossip_key``).
            epoch_of: boot epoch in the newest record of a site, 0 if there is none.
            resolve: the known site with this short id (``Roll.resolve``).
            counter: where counting starts: at random (below ``COUNTER_START_MAX``), so that two copies
                of one state folder, which start the same boot, do not use one nonce twice.
        """
        self._me, self._private, self._boot_epoch = me, gossip_private, boot_epoch
        self._lookup, self._epoch_of, self._resolve = lookup, epoch_of, resolve
        self._prefix = bytes((PROTOCOL_VERSION,)) + me[:SHORT_ID_BYTES] + _u32(boot_epoch)
        assert counter < COUNTER_START_MAX
        self._counter = counter
        self._links: OrderedDict[SiteId, _Link] = OrderedDict()
        self._windows: dict[SiteId, _Window] = {}

    def seal(self, target: SiteId, body: bytes) -> bytes:
        """The packet that only ``target`` can open.

        Raises:
            NotFound: the key of ``target`` is not known here; sync with it over TLS first.
            UsageError: the body is longer than ``BODY_BYTES_MAX``.
        """
        if len(body) > BODY_BYTES_MAX:
            raise UsageError(
                f"gossip body of {len(body)} bytes",
                why=f"the bound is {BODY_BYTES_MAX}",
                mend="put fewer rumors into it",
            )
        link = self._link(target)
        if link is None:
            raise NotFound(f"no gossip key of {short(target)}", mend="sync with it over TLS first")
        assert self._counter < COUNTER_MAX
        self._counter += 1
        counter = self._counter.to_bytes(8)
        header = self._prefix + counter
        window = self._windows.get(target)
        epoch = max(self._epoch_of(target), 0 if window is None else window.boot_epoch)
        nonce = header[-12:]
        return header + AESGCM(link.outgoing).encrypt(nonce, body, header + target + _u32(epoch))

    def open(self, packet: bytes) -> tuple[SiteId, bytes]:
        """Who sealed the packet, and its body.

        Raises:
            Malformed: for every packet that is not new, authentic and meant for this boot.
        """
        if not OVERHEAD_BYTES <= len(packet) <= PACKET_BYTES_MAX:
            raise Malformed(f"packet of {len(packet)} bytes")
        if packet[0] != PROTOCOL_VERSION:
            raise Malformed(f"packet of protocol version {packet[0]}")
        packet = bytes(packet)
        sender = self._resolve(packet[1 : 1 + SHORT_ID_BYTES])
        if sender is None or sender == self._me:
            raise Malformed("packet of an unknown sender")
        header = packet[:HEADER_BYTES]
        boot_epoch, counter = int.from_bytes(header[9:13]), int.from_bytes(header[13:])
        window = self._windows.get(sender)
        if window is not None and boot_epoch <= window.boot_epoch:
            if boot_epoch < window.boot_epoch:
                raise Malformed(f"packet of an earlier boot of {short(sender)}")
            if not window.is_fresh(counter):
                raise Malformed(f"packet of {short(sender)} came before")
        link = self._link(sender)
        if link is None:
            raise Malformed(f"packet of {short(sender)}, whose key is not known")
        aad = header + self._me + _u32(self._boot_epoch)
        try:
            body = AESGCM(link.incoming).decrypt(header[9:], packet[HEADER_BYTES:], aad)
        except InvalidTag:
            raise Malformed(f"packet of {short(sender)} is not authentic") from None
        if window is None or boot_epoch > window.boot_epoch:
            window = self._new_window(sender, boot_epoch)
        window.mark(counter)
        return sender, body

    def epoch_heard(self, site: SiteId) -> int:
        """The highest boot epoch that authentic packets of ``site`` have named; 0 if none came."""
        window = self._windows.get(site)
        return 0 if window is None else window.boot_epoch

    def _new_window(self, sender: SiteId, boot_epoch: int) -> _Window:
        if sender not in self._windows and len(self._windows) >= LINKS_MAX:
            # Only a site that can send no more may be forgotten: a forgotten window lets replays in.
            gone = next((site for site in self._windows if self._lookup(site) is None), None)
            if gone is None:
                raise Malformed(f"packet of {short(sender)}: {LINKS_MAX} senders are known already")
            del self._windows[gone]
        window = self._windows[sender] = _Window(boot_epoch)
        return window

    def _link(self, site: SiteId) -> _Link | None:
        public = self._lookup(site)
        if public is None:
            self._links.pop(site, None)
            return None
        link = self._links.get(site)
        if link is not None and link.public == public:
            self._links.move_to_end(site)
            return link
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:  # a point of small order: the certificate holds no usable key
            return None
        link = _Link(public, _key(shared, self._me, site), _key(shared, site, self._me))
        self._links[site] = link
        if len(self._links) > LINKS_MAX:
            self._links.popitem(last=False)
        return link


def _key(shared: bytes, sender: SiteId, receiver: SiteId) -> bytes:
    return HKDF(SHA256(), length=32, salt=None, info=_INFO + sender + receiver).derive(shared)


def _u32(number: int) -> bytes:
    return number.to_bytes(4)
