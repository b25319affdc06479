"""Catalog documents: an admin's signature makes them count."""

from dataclasses import replace

import pytest
from cluster_of_keys import Cluster

from agent.foundation.errors import Malformed, Refused
from agent.foundation.ids import Digest, JobId, SiteId
from agent.identity.admin import check_document, sign_document
from agent.wire.documents import Body, Deployment, Job, ModelVersion, Stamp

CLUSTER = Cluster()
ADMINS = CLUSTER.log().admins()
STAMP = Stamp(1_777_636_800_000, 0)
MODEL = ModelVersion("magika", "1", Digest(bytes(32)), 10, "onnx", ("DE",))
JOB = Job(
    id=JobId("mnist-0123abcd"),
    recipe="mnist-2nn",
    dataset="mnist",
    committee=(SiteId(bytes(32)),),
    rounds=3,
    epochs=1,
    batch=32,
    learning_rate=0.1,
    seed=1,
    sites_min=2,
    round_timeout_s=60.0,
    publish="",
    residency=(),
)


@pytest.mark.parametrize("body", [MODEL, Deployment("magika", "1", ("edge-1",)), JOB])
def test_a_signed_document_gives_its_body_back(body: Body) -> None:
    assert check_document(sign_document(CLUSTER.admin, STAMP, body), ADMINS) == body


def test_only_an_admin_of_this_cluster_counts() -> None:
    document = sign_document(CLUSTER.key(), STAMP, MODEL)
    with pytest.raises(Refused, match="is not an admin of this cluster"):
        check_document(document, ADMINS)
    with pytest.raises(Refused, match="not an admin"):
        check_document(sign_document(CLUSTER.admin, STAMP, MODEL), {})


def test_no_signed_part_can_be_changed() -> None:
    document = sign_document(CLUSTER.admin, STAMP, MODEL)
    other = sign_document(CLUSTER.admin, Stamp(1, 0), replace(MODEL, version="2"))
    for changed in (
        replace(document, stamp=other.stamp),
        replace(document, body=other.body),
        replace(document, signature=other.signature),
        replace(document, signature=b""),
    ):
        with pytest.raises(Refused, match="is not signed by"):
            check_document(changed, ADMINS)


@pytest.mark.parametrize(
    "body",
    [
        replace(MODEL, name="../up"),
        replace(MODEL, version=""),
        replace(MODEL, residency=("D/E",)),
        Deployment("Magika", "1", ()),
        Deployment("magika", "1", ("a/b",)),
        replace(JOB, id=JobId("../../etc/cron.d/x-00000000")),
        replace(JOB, dataset="/data"),
        replace(JOB, publish="a b"),
    ],
)
def test_a_name_that_is_none_is_neither_signed_nor_accepted(
    body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Malformed):
        sign_document(CLUSTER.admin, STAMP, body)
    with monkeypatch.context() as careless:
        careless.setattr("agent.identity.admin.check_names", lambda _: None)
        document = sign_document(CLUSTER.admin, STAMP, body)
    with pytest.raises(Malformed):
        check_document(document, ADMINS)


def test_a_document_that_no_site_would_take_is_not_signed() -> None:
    sites = tuple(f"{i:064d}" for i in range(1000))
    with pytest.raises(Malformed, match="the bound is"):
        sign_document(CLUSTER.admin, STAMP, Deployment("magika", "1", sites))
