"""What a site says of itself by multicast DNS: the TXT record of its service (RFC 6763, section 6).

Anybody on the link can say anything here, so it is a hint and nothing else; the greeting over TLS
decides. What is not exactly as below is ignored, never mended.
"""

from dataclasses import dataclass

from agent.foundation.errors import Malformed
from agent.foundation.ids import SiteId

TEXT_BYTES_MAX = 400
"""Far below one packet, so that it is never lost to fragmentation; ours is about 140."""
SEQUENCE_MAX = 2**63 - 1
SHORT_HEX = 16
"""Hex digits of an id that stand for it: in the instance's name, and of the cluster."""
_ID_HEX = 64
_PORT_MAX = 65_535
_VERSION = "1"
_PRINTABLE = range(0x20, 0x7F)


@dataclass(frozen=True, slots=True)
class Advert:
    """One site's announcement, without its addresses."""

    cluster: str
    """The first 16 hex digits of the cluster's id."""
    site: SiteId
    sequence: int
    """Of the site's record: a larger one means that something is new."""
    data_port: int

    @property
    def instance(self) -> str:
        """The name of the service's instance: it follows from the site's key, so nobody else's is it."""
        return self.site.hex()[:SHORT_HEX]

    def pack(self) -> bytes:
        """The TXT record's data."""
        strings = [
            f"v={_VERSION}", f"cluster={self.cluster}", f"id={self.site.hex()}",
            f"seq={self.sequence}", f"data={self.data_port}",
        ]  # fmt: skip
        data = b"".join(bytes([len(one)]) + one.encode("ascii") for one in strings)
        assert len(data) <= TEXT_BYTES_MAX
        return data


def read_advert(text: bytes, instance: str) -> Advert:
    """The announcement in a TXT record; keys that are not known are ignored.

    Raises:
        Malformed: too long, not printable, a key twice, a key missing, a value out of its range, or
            the instance's name is not the site's.
    """
    pairs = _pairs(text)
    if pairs.get("v") != _VERSION:
        raise Malformed("the announcement is of another version")
    cluster, site = pairs.get("cluster", ""), _hex(pairs.get("id", ""), _ID_HEX)
    _hex(cluster, SHORT_HEX)
    sequence = _number(pairs.get("seq", ""), 0, SEQUENCE_MAX)
    data_port = _number(pairs.get("data", ""), 1, _PORT_MAX)
    advert = Advert(cluster, SiteId(site), sequence, data_port)
    if instance.lower() != advert.instance:
        raise Malformed("the announcement's name is not that of its site")
    return advert


def _pairs(text: bytes) -> dict[str, str]:
    if len(text) > TEXT_BYTES_MAX:
        raise Malformed("the announcement's text is too long")
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        end = at + 1 + text[at]
        part = text[at + 1 : end]
        if end > len(text) or any(byte not in _PRINTABLE for byte in part):
            raise Malformed("the announcement's text does not decode")
        key, equals, value = part.decode("ascii").partition("=")
        if equals and key.lower() in found:
            raise Malformed("the announcement's text has a key twice")
        if equals:
            found[key.lower()] = value
        at = end
    return found


def _hex(text: str, digits: int) -> bytes:
    if len(text) != digits or not set(text) <= set("0123456789abcdef"):
        raise Malformed("the announcement's text has a wrong id")
    return bytes.fromhex(text)


def _number(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)):
        raise Malformed("the announcement's text has a wrong number")
    if not least <= int(text) <= most:
        raise Malformed("the announcement's text has a number out of range")
    return int(text)
