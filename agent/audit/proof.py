"""An exported audit log: verified by anybody who knows the cluster's id, with no site at hand.

A file of JSON lines. The first is the head: format, cluster, whose log it is, the root certificate, the
site's passport, and the receipts of its witnesses with their passports. Each further line is a row of
the log as it is stored. All bytes are in base64.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.audit.chain import Head, Verifier
from agent.audit.witness import check_receipt
from agent.foundation.errors import AtollError, Malformed, Refused
from agent.foundation.ids import SiteId
from agent.foundation.writes import Scalar
from agent.identity.certificates import Identity, cluster_id, read_passport
from agent.wire.audit import Receipt
from agent.wire.records import Passport
from agent.wire.schema import unpack

FORMAT = "atoll-audit 1"
LINE_BYTES_MAX = 4 << 20
"""The head names a passport of 6 KiB for each of 64 witnesses; a row has 32 KiB."""
RECEIPTS_MAX = 256


@dataclass(frozen=True, slots=True)
class Seen:
    """One witness's receipt, proven."""

    name: str
    jurisdiction: str
    sequence: int
    seen_ms: int


@dataclass(frozen=True, slots=True)
class Proven:
    """What an export proves."""

    name: str
    site: SiteId
    first: int
    last: int
    findings: tuple[str, ...]
    """What is wrong; empty: nothing was changed, removed or added."""
    witnesses: tuple[Seen, ...]


class _Keys:
    """Checks signatures of those whose passports the file holds (a ``Notary``)."""

    def __init__(self) -> None:
        self.known: dict[SiteId, Ed25519PublicKey] = {}

    def sign(self, body: bytes) -> bytes:
        raise AssertionError(f"nobody signs here, not even {len(body)} bytes")

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        key = self.known.get(site)
        try:
            if key is not None:
                key.verify(signature, body)
        except (InvalidSignature, ValueError):
            return False
        return key is not None


def head_line(cluster: bytes, proof: Mapping[str, Any]) -> str:
    """The first line of an export; ``proof`` is the site's (``agent.api.audit``)."""
    return json.dumps({"format": FORMAT, "cluster": cluster.hex(), **proof})


def prove(lines: Iterable[str], cluster: bytes) -> Proven:
    """Verify an export.

    Args:
        lines: of the file.
        cluster: the id that the cluster is known by (SHA-256 of its root key).

    Raises:
        Malformed: it is no export.
        Refused: it is of another cluster, or its certificates prove nothing.
    """
    source = iter(lines)
    head = _object(next(source, ""), 1)
    if head.get("format") != FORMAT:
        raise Malformed("not an exported audit log", why=f"its first line is not {FORMAT!r}")
    root = _bytes(head, "root")
    if cluster_id(root) != cluster:
        raise Refused(
            "the audit log is of another cluster",
            why=f"its root is {cluster_id(root).hex()[:16]}, not {cluster.hex()[:16]}",
        )
    keys = _Keys()
    owner = _identity(_bytes(head, "passport"), root)
    keys.known[owner.site] = owner.public_key
    seen, heads, findings = _receipts(head, root, owner, keys)
    verifier = Verifier(site=owner.site, notary=keys, heads=heads)
    for row in _rows(source):
        if verifier.is_hopeless:
            break
        verifier.add(row)
    first, last = verifier.entries
    told = (*findings, *verifier.findings())
    return Proven(owner.claims.name, owner.site, first, last, told, tuple(seen))


def _receipts(
    head: Mapping[str, Any], root: bytes, owner: Identity, keys: _Keys
) -> tuple[list[Seen], list[Head], list[str]]:
    given = head.get("receipts")
    if not isinstance(given, list) or len(given) > RECEIPTS_MAX:
        raise Malformed("the export's receipts are no list of a possible length")
    seen: list[Seen] = []
    heads: list[Head] = []
    findings: list[str] = []
    for one in given:
        try:
            witness = _identity(_bytes(one, "passport"), root)
            keys.known[witness.site] = witness.public_key
            receipt = unpack(Receipt, _bytes(one, "receipt"))
            check_receipt(receipt, keys)
        except AtollError as error:
            findings.append(f"a receipt proves nothing: {error}")
            continue
        end = receipt.testimony.head
        if end.site != owner.site or receipt.witness != witness.site:
            findings.append(f"the receipt of {witness.claims.name} is for another log")
            continue
        claims = witness.claims
        seen.append(Seen(claims.name, claims.jurisdiction, end.sequence, receipt.seen_ms))
        heads.append(Head(end.sequence, end.hash))
    return seen, heads, findings


def _rows(lines: Iterator[str]) -> Iterator[dict[str, Scalar]]:
    for number, line in enumerate(lines, 2):
        if line.strip():
            row = _object(line, number)
            sequence = row.get("sequence")
            if type(sequence) is not int:
                raise Malformed(f"line {number} has no number of an entry")
            yield {
                "sequence": sequence, "entry": _bytes(row, "entry"), "hash": _bytes(row, "hash"),
            }  # fmt: skip


def _identity(packed: bytes, root: bytes) -> Identity:
    """Whose passport it is; expired or revoked since does not matter for what was signed before."""
    return read_passport(unpack(Passport, packed), root)


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line) if len(line) <= LINE_BYTES_MAX else None
    except (ValueError, RecursionError):  # no JSON, or brackets in brackets
        value = None
    if not isinstance(value, dict):
        raise Malformed(f"line {number} of the export is not a JSON object")
    return value


def _bytes(value: object, name: str) -> bytes:
    text = value.get(name) if isinstance(value, dict) else None
    try:
        return base64.b64decode(text if isinstance(text, str) else "?", validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"the export's {name} is not base64") from None
