"""Write what this tree's protocol looks like on the wire, with the keys that open it.

Run once for a version, in a tree of that version, and keep the file for ever::

    PYTHONPATH=. python tests/recorded/record_protocol.py > tests/recorded/protocol-N/transcript.json

``packets``: gossip between two sites, as sealed; ``calls`` and ``replies``: one body for each tag;
``statements``, ``documents``, ``trust``, ``token``: what is signed and kept. Beside all bytes stands
``says``: the fields in their order, bytes in hexadecimal.
"""

import json
import sys
import types
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from random import Random
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.foundation.ids import SiteId
from agent.identity.certificates import cluster_id, issue_site, make_issuer, make_root, site_id
from agent.identity.claims import Claims
from agent.identity.envelope import Sealer
from agent.identity.tokens import decode_token, make_request, mint
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import Genesis
from agent.identity.trust_signing import sign_entry, sign_revocation
from agent.wire.documents import BODIES
from agent.wire.gossip import GOSSIP, Ack, Gossip, Nack, Ping, PingRequest
from agent.wire.limits import PROTOCOL_VERSION
from agent.wire.mesh import CALLS, REPLIES, Introduction, MemberHead, Push, SyncReply, SyncRequest
from agent.wire.records import (
    STATEMENTS,
    Accusation,
    Endpoint,
    Passport,
    Served,
    Signed,
    SiteRecord,
)
from agent.wire.schema import AtMost, Length, Range, pack

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
BOOT = 7


def plain(value: Any) -> Any:
    """As JSON: a message as the list of its fields, bytes in hexadecimal."""
    if is_dataclass(value):
        return [plain(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def sample(kind: Any) -> Any:  # noqa: PLR0911 - one return for each kind of annotation
    """Some value of an annotation, within its bounds."""
    kind = getattr(kind, "__supertype__", kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        base, bounds = arguments[0], arguments[1:]
        base = getattr(base, "__supertype__", base)
        exact = next((bound.exact for bound in bounds if isinstance(bound, Length)), None)
        low = next((bound.low for bound in bounds if isinstance(bound, Range)), None)
        if get_origin(base) is Annotated or (exact is None and low is None):
            most = next((bound.most for bound in bounds if isinstance(bound, AtMost)), 9)
            value = sample(base)
            return value[:most] if isinstance(value, (bytes, str, tuple)) else value
        if exact is not None:
            return bytes(range(1, exact + 1))
        assert low is not None, "a number with a Range"
        return low + 0.5 if base is float else int(low) + 3
    if origin in (Union, types.UnionType):
        return sample(next(one for one in arguments if one is not type(None)))
    if origin is Literal:
        return arguments[0]
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return (sample(arguments[0]),)
        return tuple(sample(one) for one in arguments)
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        build: Any = kind
        return build(*(sample(hints[field.name]) for field in fields(kind)))
    return {int: 5, float: 0.25, bool: True, bytes: b"\1\2\3", str: "edge-1"}[kind]


def main() -> None:
    """Print the transcript."""
    entropy = Random(1).randbytes
    root = make_root(entropy, NOW)
    issuer = make_issuer(root, entropy, NOW)
    cluster = cluster_id(root.certificate)
    admin = Ed25519PrivateKey.from_private_bytes(entropy(32))
    sites, records, passports = [], [], []
    for number, name in enumerate(("anna", "berta")):
        private, gossip = entropy(32), entropy(32)
        public = X25519PrivateKey.from_private_bytes(gossip).public_key().public_bytes_raw()
        key = Ed25519PrivateKey.from_private_bytes(private)
        claims = Claims(cluster, name, "north", "edge", "DE", ("member",), public)
        passport = Passport((issue_site(issuer, key.public_key(), claims, NOW), issuer.certificate))
        record = SiteRecord(
            site_id(key.public_key()), (BOOT << 32) + 5, BOOT, BOOT << 32, "alive",
            Endpoint(f"192.0.2.{number + 1}", 7411, 7412), 0.25, 2.0,
            (Served(b"model--1", 1500), Served(b"model--2", 9, is_refused=True)), b"catalog8",
        )  # fmt: skip
        body = STATEMENTS.pack(record)
        sites.append({"name": name, "private": private.hex(), "gossip": gossip.hex(),
                      "passport": plain(passport), "public_gossip": public.hex(),
                      "site": record.site.hex()})  # fmt: skip
        records.append(Signed(body, key.sign(body)))
        passports.append(passport)
    ids = [SiteId(bytes.fromhex(str(one["site"]))) for one in sites]
    anna = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(str(sites[0]["private"])))
    body = STATEMENTS.pack(Accusation(ids[0], ids[1], BOOT << 32, is_refused=True))
    accusation = Signed(body, anna.sign(body))

    publics = {
        one: bytes.fromhex(str(s["public_gossip"])) for one, s in zip(ids, sites, strict=True)
    }
    sealers = [
        Sealer(
            one, X25519PrivateKey.from_private_bytes(bytes.fromhex(str(s["gossip"]))), BOOT,
            publics.get, lambda _: BOOT, lambda short: next(i for i in ids if i.startswith(short)),
        )
        for one, s in zip(ids, sites, strict=True)
    ]  # fmt: skip
    talk = [
        (0, Ping(1, (records[0],))), (1, Ack(1, ids[1], (records[1], accusation))),
        (1, PingRequest(2, ids[0])), (0, Nack(2)), (0, Gossip((records[0], records[1]))),
    ]  # fmt: skip
    packets = [
        {"from": sender, "to": 1 - sender, "kind": type(message).__name__, "says": plain(message),
         "packet": sealers[sender].seal(ids[1 - sender], GOSSIP.pack(message)).hex()}
        for sender, message in talk
    ]  # fmt: skip

    met = [
        Introduction(passport, record) for passport, record in zip(passports, records, strict=True)
    ]
    heads = tuple(MemberHead(one, (BOOT << 32) + 5) for one in ids)
    real = [
        SyncRequest(met[0], heads, ()),
        Push((met[0],), ()),
        SyncReply((met[1],), (), (ids[0],), ()),
    ]
    bodies: dict[str, list[dict[str, Any]]] = {"calls": [], "replies": [], "documents": []}
    for name, tagged in (("calls", CALLS), ("replies", REPLIES), ("documents", BODIES)):
        kinds = list(tagged._types.values())
        messages = [one for one in real if type(one) in kinds]
        messages += [sample(kind) for kind in kinds if kind not in {type(one) for one in messages}]
        bodies[name] = [
            {"kind": type(one).__name__, "says": plain(one), "body": tagged.pack(one).hex()}
            for one in messages
        ]

    log = TrustLog(cluster)
    raw = admin.public_key().public_bytes_raw()
    genesis = Genesis(root.certificate, issuer.certificate, raw, ("DE", "FR"))
    log.append(sign_entry(log, genesis, root.private_key, NOW))
    log.append(sign_revocation(log, ids[1], "lost", admin, NOW))
    token, row = mint(
        cluster=cluster, issuer=ids[0], name="carla", region="north", tier="edge", jurisdiction="DE",
        roles=("member",), seeds=(("192.0.2.1", 7411),), entropy=entropy, now=NOW,
    )  # fmt: skip
    request = make_request(
        decode_token(token), Ed25519PrivateKey.from_private_bytes(entropy(32)),
        X25519PrivateKey.from_private_bytes(entropy(32)),
    )  # fmt: skip
    transcript = {
        "protocol": PROTOCOL_VERSION, "now": NOW.isoformat(), "boot": BOOT,
        "root": root.certificate.hex(), "cluster": cluster.hex(), "sites": sites,
        "packets": packets, **bodies,
        "statements": [plain(one) for one in (*records, accusation)],
        "trust": [entry.hex() for entry in log.entries()],
        "token": {"text": token, "row": pack(row).hex(), "request": pack(request).hex()},
    }  # fmt: skip
    json.dump(transcript, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
