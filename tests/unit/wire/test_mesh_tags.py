"""The numbers that are part of the protocol between sites: they never change their meaning."""

import pytest

from agent.foundation.ids import Digest, SiteId
from agent.wire import documents, gossip, mesh, records
from agent.wire.inside import FROM_GATEWAY, FROM_WORKER, TO_GATEWAY, TO_WORKER, model_key
from agent.wire.limits import (
    PACKET_BYTES_MAX,
    RUMOR_BYTES_MAX,
    SERVING_PER_RECORD_MAX,
    TRIALS_PER_RECORD_MAX,
)
from agent.wire.schema import Tagged

CALLS = [
    "SyncRequest", "Push", "Prepare", "Accept", "Read", "Notice", "Offer", "Withdraw", "Keep",
    "Watch", "Have", "IssuerKeyWanted",
]  # fmt: skip
REPLIES = [
    "SyncReply", "Done", "Declined", "Promise", "Accepted", "Conflict", "ReadReply", "NoticeReply",
    "OfferReply", "HaveReply", "IssuerKeyOffer",
]  # fmt: skip


def names(union: Tagged) -> list[str]:
    return [union._types[tag].__name__ for tag in sorted(union._types)]


@pytest.mark.parametrize(
    ("union", "expected"),
    [
        (mesh.CALLS, CALLS),
        (mesh.REPLIES, REPLIES),
        (gossip.GOSSIP, ["Ping", "Ack", "Nack", "PingRequest", "Gossip"]),
        (records.STATEMENTS, ["SiteRecord", "Accusation"]),
        (documents.BODIES, ["ModelVersion", "Deployment", "Job"]),
    ],
    ids=["calls", "replies", "gossip", "statements", "documents"],
)
def test_tags_between_sites_are_for_ever(union: Tagged, expected: list[str]) -> None:
    assert names(union)[: len(expected)] == expected
    assert sorted(union._types)[: len(expected)] == list(range(1, len(expected) + 1))


def test_messages_inside_a_site_have_one_tag_each() -> None:
    for union in (TO_GATEWAY, FROM_GATEWAY, TO_WORKER, FROM_WORKER):
        assert len(set(union._types.values())) == len(union._types)


def test_the_largest_record_is_a_rumor_that_fits_one_packet() -> None:
    endpoint = records.Endpoint("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255", 65_535, 65_535)
    served = tuple(records.Served(bytes([i]) * 8, 2**40) for i in range(SERVING_PER_RECORD_MAX))
    failed = records.Trial(
        b"r" * 8, records.Stage.FAILED, 2**31, 2**31, 2**31, records.Gate.LATENCY
    )
    record = records.SiteRecord(
        SiteId(b"s" * 32), 2**62, 2**32 - 1, 2**62, "draining", endpoint, 1e5, 1e5, served,
        b"c" * 8, b"p" * 19, b"m" * 8, (failed,) * TRIALS_PER_RECORD_MAX,
    )  # fmt: skip
    body = records.STATEMENTS.pack(record)
    assert len(body) <= RUMOR_BYTES_MAX
    message = gossip.Gossip((records.Signed(body, b"s" * 64),))
    assert len(gossip.GOSSIP.pack(message)) + 37 <= PACKET_BYTES_MAX


def test_a_small_record_stays_below_300_bytes() -> None:
    endpoint = records.Endpoint("192.0.2.17", 7411, 7412)
    record = records.SiteRecord(
        SiteId(b"s" * 32), 2**40, 256, 2**40, "alive", endpoint, 0.25, 2.0, (), b"c" * 8
    )
    assert len(records.STATEMENTS.pack(record)) + 64 <= 300


def test_a_models_key_depends_on_name_and_version() -> None:
    assert model_key("a", "1") != model_key("a", "2") != model_key("b", "1")
    assert len(model_key("a", "1")) == 8


def test_documents_are_told_apart_by_what_they_are_about() -> None:
    digest = Digest(b"d" * 32)
    model = documents.ModelVersion("m", "1", digest, 1, "onnx", ())
    deployment = documents.Deployment("m", "1", ())
    assert documents.key_of(model) == documents.Key("model", "m:1")
    assert documents.key_of(deployment) == documents.Key("deployment", "m")
