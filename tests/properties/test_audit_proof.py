"""A thousand ways to change an exported audit log: each is found, the cut of its end by a witness."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.chain import START, AuditChain, Decision
from agent.audit.proof import head_line, prove
from agent.audit.witness import Witness, sworn
from agent.foundation.errors import AtollError
from agent.foundation.ids import SiteId
from agent.foundation.writes import Put
from agent.identity.certificates import cluster_id, issue_site, make_issuer, make_root, site_id
from agent.identity.claims import Claims
from agent.identity.registry import Roll, SiteNotary
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import Genesis
from agent.identity.trust_signing import sign_entry
from agent.wire.records import Passport
from agent.wire.schema import pack

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
ENTRIES, EDITS = 24, 1000
entropy = Random(1).randbytes
ROOT = make_root(entropy, NOW)
ISSUER = make_issuer(ROOT, entropy, NOW)
CLUSTER = cluster_id(ROOT.certificate)


@dataclass(frozen=True)
class Member:
    """One site with its key."""

    private: Ed25519PrivateKey
    passport: Passport

    @classmethod
    def of(cls, name: str) -> "Member":
        private = Ed25519PrivateKey.from_private_bytes(entropy(32))
        claims = Claims(CLUSTER, name, "north", "edge", "DE", ("member",), bytes(32))
        leaf = issue_site(ISSUER, private.public_key(), claims, NOW)
        return cls(private, Passport((leaf, ISSUER.certificate)))

    @property
    def site(self) -> SiteId:
        return site_id(self.private.public_key())


OWNER, WITNESS = Member.of("berlin"), Member.of("paris")


def notary(member: Member) -> SiteNotary:
    log = TrustLog(CLUSTER)
    admin = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    genesis = Genesis(ROOT.certificate, ISSUER.certificate, admin, ())
    log.append(sign_entry(log, genesis, ROOT.private_key, NOW))
    roll = Roll(ROOT.certificate, log)
    for one in (OWNER, WITNESS):
        roll.admit(one.passport, NOW)
    return SiteNotary(member.private, roll)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def exported(by: Member = OWNER) -> list[str]:
    """The lines of a sound export."""
    chain = AuditChain(notary=notary(by))
    rows: list[Any] = []
    head = START
    for number in range(ENTRIES):
        decision = Decision("forward", f"r-{number}", WITNESS.site, ("DE",), 100 + number, "m:1")
        (put,), head = chain.append(decision, 1000 + number)
        assert isinstance(put, Put)
        rows.append(put.row)
    witness = Witness(WITNESS.site, notary(WITNESS), [])
    said = sworn(OWNER.site, head.sequence, head.hash, 1, notary(OWNER))
    receipt, _ = witness.take(OWNER.site, said, 2)
    proof: dict[str, Any] = {
        "site": OWNER.site.hex(), "root": text(ROOT.certificate),
        "passport": text(pack(OWNER.passport)),
        "receipts": [{"receipt": text(pack(receipt)), "passport": text(pack(WITNESS.passport))}],
    }  # fmt: skip
    lines = [head_line(CLUSTER, proof)]
    for row in rows:
        plain = {"entry": text(row["entry"]), "hash": text(row["hash"])}
        lines.append(json.dumps({"sequence": row["sequence"], **plain}))
    return lines


LINES = exported()


def flip(lines: list[str], random: Random) -> None:
    """One bit of one stored value."""
    at = random.randrange(1, len(lines))
    row = json.loads(lines[at])
    name = random.choice(["entry", "hash"])
    data = bytearray(base64.b64decode(row[name]))
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    lines[at] = json.dumps({**row, name: text(bytes(data))})


def renumber(lines: list[str], random: Random) -> None:
    at = random.randrange(1, len(lines))
    row = json.loads(lines[at])
    lines[at] = json.dumps({**row, "sequence": row["sequence"] + random.choice([-1, 1, 1000])})


def remove(lines: list[str], random: Random) -> None:
    """Some from the middle: what stands before the first that is kept may have been let go by age."""
    first = random.randrange(2, len(lines) - 1)
    del lines[first : min(first + random.randrange(1, 4), len(lines) - 1)]


def cut(lines: list[str], random: Random) -> None:
    """The end, or all of it."""
    del lines[random.randrange(1, len(lines)) :]


def swap(lines: list[str], random: Random) -> None:
    one, other = random.sample(range(1, len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]


def repeat(lines: list[str], random: Random) -> None:
    at = random.randrange(1, len(lines))
    lines.insert(at, lines[at])


def graft(lines: list[str], random: Random) -> None:
    """The rest of a chain that somebody else has made."""
    at = random.randrange(1, len(lines))
    lines[at:] = OTHERS[at:]


OTHERS = exported(WITNESS)
WAYS: list[Callable[[list[str], Random], None]] = [
    flip, renumber, remove, cut, swap, repeat, graft,
]  # fmt: skip


def is_found_out(lines: list[str], cluster: bytes = CLUSTER) -> bool:
    try:
        return bool(prove(lines, cluster).findings)
    except AtollError:
        return True


def test_an_export_that_nobody_touched_is_sound() -> None:
    proven = prove(LINES, CLUSTER)
    assert (proven.findings, proven.first, proven.last) == ((), 1, ENTRIES)
    assert [(one.name, one.sequence) for one in proven.witnesses] == [("paris", ENTRIES)]


@pytest.mark.parametrize("way", WAYS)
def test_every_change_is_found(way: Callable[[list[str], Random], None]) -> None:
    for seed in range(EDITS // len(WAYS) + 1):
        lines = list(LINES)
        way(lines, Random(seed))
        assert lines != LINES, f"seed {seed} changes nothing"
        assert is_found_out(lines), f"seed {seed}"


def test_an_export_of_another_cluster_or_of_nothing_proves_nothing() -> None:
    assert is_found_out(LINES, bytes(32))
    assert is_found_out([])
    assert is_found_out(["{}"])
    assert is_found_out(["[" * 10_000])
    assert is_found_out([LINES[0].replace("atoll-audit 1", "atoll-audit 2"), *LINES[1:]])


def test_a_receipt_that_was_taken_from_another_log_is_told() -> None:
    head = json.loads(LINES[0])
    head["passport"] = text(pack(WITNESS.passport))
    assert is_found_out([json.dumps(head), *OTHERS[1:]])
    assert SiteId(bytes.fromhex(head["site"])) == OWNER.site
