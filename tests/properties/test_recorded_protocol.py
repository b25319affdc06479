"""What an older version sent, kept as bytes: today's code reads every one of them, and as it was meant."""

import json
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.foundation.errors import Malformed
from agent.foundation.ids import SiteId
from agent.identity.claims import Claims
from agent.identity.envelope import Sealer
from agent.identity.registry import Roll, SiteNotary
from agent.identity.tokens import JoinRequest, TokenRow, decode_token, redeem
from agent.identity.trust import TrustLog
from agent.wire.documents import BODIES
from agent.wire.gossip import GOSSIP
from agent.wire.limits import PACKET_BYTES_MAX, PROTOCOL_VERSION, RUMOR_BYTES_MAX
from agent.wire.mesh import CALLS, REPLIES
from agent.wire.records import STATEMENTS, Passport
from agent.wire.schema import unpack

RECORDED = Path(__file__).parents[1] / "recorded"
TRANSCRIPTS = {
    path.parent.name: path for path in sorted(RECORDED.glob("protocol-*/transcript.json"))
}
TAGGED = {"calls": CALLS, "replies": REPLIES, "documents": BODIES}


@pytest.fixture(params=TRANSCRIPTS)
def told(request: pytest.FixtureRequest) -> Any:
    return json.loads(TRANSCRIPTS[request.param].read_text())


def differences(value: Any, says: Any, where: str) -> list[str]:
    """Where a decoded message is not what its sender meant; fields it did not know have defaults."""
    if is_dataclass(value):
        columns = fields(value)
        found = [] if len(says) <= len(columns) else [f"{where}: a field was removed"]
        for column, said in zip(columns, says, strict=False):
            found += differences(getattr(value, column.name), said, f"{where}.{column.name}")
        for column in columns[len(says) :]:
            default = column.default if column.default is not MISSING else None
            if column.default_factory is not MISSING:
                default = column.default_factory()
            if getattr(value, column.name) != default:
                found.append(f"{where}.{column.name}: not its default")
        return found
    if isinstance(value, tuple):
        if len(value) != len(says):
            return [f"{where}: {len(value)} elements, not {len(says)}"]
        return [
            d for one, said in zip(value, says, strict=True) for d in differences(one, said, where)
        ]
    value = value.hex() if isinstance(value, bytes) else value
    return [] if value == says else [f"{where}: {value!r}, not {says!r}"]


def roll_of(told: Any) -> Roll:
    """Everybody's passport, before anybody was revoked."""
    log = TrustLog(bytes.fromhex(told["cluster"]))
    log.append(bytes.fromhex(told["trust"][0]))
    roll = Roll(bytes.fromhex(told["root"]), log)
    for site in told["sites"]:
        chain = tuple(bytes.fromhex(one) for one in site["passport"][0])
        roll.admit(Passport(chain), datetime.fromisoformat(told["now"]))
    return roll


def test_there_is_a_transcript() -> None:
    assert "protocol-1" in TRANSCRIPTS


def test_every_recorded_packet_opens_and_says_what_it_said(told: Any) -> None:
    roll = roll_of(told)
    ids = [SiteId(bytes.fromhex(one["site"])) for one in told["sites"]]
    sealers = [
        Sealer(
            site, X25519PrivateKey.from_private_bytes(bytes.fromhex(one["gossip"])), told["boot"],
            roll.gossip_key, lambda _: int(told["boot"]), roll.resolve,
        )
        for site, one in zip(ids, told["sites"], strict=True)
    ]  # fmt: skip
    for packet in told["packets"]:
        sender, body = sealers[packet["to"]].open(bytes.fromhex(packet["packet"]))
        assert sender == ids[packet["from"]]
        message = GOSSIP.unpack(body, PACKET_BYTES_MAX)
        assert type(message).__name__ == packet["kind"]
        assert differences(message, packet["says"], packet["kind"]) == []
    with pytest.raises(Malformed):
        sealers[told["packets"][0]["to"]].open(bytes.fromhex(told["packets"][0]["packet"]))


@pytest.mark.parametrize("kind", TAGGED)
def test_every_recorded_body_says_what_it_said(told: Any, kind: str) -> None:
    assert len(told[kind]) >= 3
    for one in told[kind]:
        message = TAGGED[kind].unpack(bytes.fromhex(one["body"]))
        assert type(message).__name__ == one["kind"]
        assert differences(message, one["says"], one["kind"]) == []


def test_recorded_statements_are_still_signed_by_their_speakers(told: Any) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(told["sites"][0]["private"]))
    notary = SiteNotary(key, roll_of(told))
    for body, signature in told["statements"]:
        statement = STATEMENTS.unpack(bytes.fromhex(body), RUMOR_BYTES_MAX)
        speaker = getattr(statement, "accuser", None) or statement.site
        assert notary.is_signed_by(speaker, bytes.fromhex(body), bytes.fromhex(signature))


def test_a_recorded_trust_log_still_holds_together_and_revokes(told: Any) -> None:
    log = TrustLog(bytes.fromhex(told["cluster"]))
    for entry in told["trust"]:
        log.append(bytes.fromhex(entry))
    assert bytes.fromhex(told["sites"][1]["site"]) in log.revoked()


def test_a_recorded_token_still_admits_the_site_that_it_was_made_for(told: Any) -> None:
    assert decode_token(told["token"]["text"]).name == "carla"
    row = unpack(TokenRow, bytes.fromhex(told["token"]["row"]))
    request = unpack(JoinRequest, bytes.fromhex(told["token"]["request"]))
    now = datetime.fromisoformat(told["now"]) + timedelta(minutes=5)
    changed, outcome = redeem(row, request, now)
    assert isinstance(outcome, Claims)
    assert changed is not None
    assert changed.state == "spent"


def test_the_envelope_says_its_version(told: Any) -> None:
    packet = bytes.fromhex(told["packets"][0]["packet"])
    assert packet[0] == told["protocol"] <= PROTOCOL_VERSION
