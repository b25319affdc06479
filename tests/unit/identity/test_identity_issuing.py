"""A member asks to be an issuer: its key never moves, and the root signs nothing else."""

from dataclasses import replace

import pytest
from cluster_of_keys import NOW, Cluster

from agent.foundation.errors import Malformed, Refused
from agent.identity.certificates import (
    IssuerKey,
    issue_site,
    key_id,
    verify_passport,
)
from agent.identity.issuing import certify_request, check_issuer_request, make_issuer_request
from agent.identity.trust_entries import RemoveIssuer
from agent.identity.trust_signing import sign_entry, sign_revocation
from agent.wire.records import Passport

CLUSTER = Cluster()
PARIS = CLUSTER.site("paris")
KEY = CLUSTER.key()
REQUEST = make_issuer_request(PARIS.passport, PARIS.private, KEY, NOW)


def test_the_root_certifies_the_key_and_what_it_then_signs_is_a_member() -> None:
    log = CLUSTER.log()
    identity, entry = certify_request(REQUEST, log, CLUSTER.root, NOW)
    assert identity.claims.name == "paris"
    log.submit(entry)
    issuer = log.holders()[key_id(KEY.public_key())]
    assert issuer.site == PARIS.site
    other = CLUSTER.key()
    leaf = issue_site(IssuerKey(KEY, issuer.certificate), other.public_key(), PARIS.claims, NOW)
    passport = Passport((leaf, issuer.certificate))
    proven = verify_passport(passport, CLUSTER.root.certificate, NOW, log.revoked())
    assert proven.issuer == key_id(KEY.public_key())


def test_a_request_counts_only_for_the_keys_that_signed_it() -> None:
    log = CLUSTER.log()
    stranger = CLUSTER.key()
    for forged in (
        replace(REQUEST, issuer_key=stranger.public_key().public_bytes_raw()),
        replace(REQUEST, passport=CLUSTER.site("rome").passport),
        replace(REQUEST, at_ms=REQUEST.at_ms + 1),
        replace(REQUEST, proof=bytes(64)),
        replace(REQUEST, issuer_key=bytes([255]) * 32),
        make_issuer_request(PARIS.passport, stranger, KEY, NOW),
    ):
        with pytest.raises(Refused, match="is not signed by"):
            check_issuer_request(forged, log)
    with pytest.raises(Malformed):
        check_issuer_request(replace(REQUEST, passport=Passport((b"no", b"no"))), log)


def test_strangers_and_revoked_sites_are_not_made_issuers() -> None:
    log, foreign = CLUSTER.log(), Cluster(2)
    theirs = foreign.site("paris")
    with pytest.raises(Refused):
        check_issuer_request(make_issuer_request(theirs.passport, theirs.private, KEY, NOW), log)
    with pytest.raises(Refused, match="another cluster"):
        certify_request(REQUEST, log, foreign.root, NOW)
    log.submit(sign_revocation(log, PARIS.site, "", CLUSTER.admin, NOW))
    with pytest.raises(Refused, match="is revoked"):
        certify_request(REQUEST, log, CLUSTER.root, NOW)


def test_a_removed_issuer_key_needs_a_successor() -> None:
    log = CLUSTER.log()
    log.submit(certify_request(REQUEST, log, CLUSTER.root, NOW)[1])
    gone = RemoveIssuer(key_id(KEY.public_key()))
    log.submit(sign_entry(log, gone, CLUSTER.root.private_key, NOW))
    with pytest.raises(Refused, match="never comes back"):
        certify_request(REQUEST, log, CLUSTER.root, NOW)
    again = make_issuer_request(PARIS.passport, PARIS.private, CLUSTER.key(), NOW)
    log.submit(certify_request(again, log, CLUSTER.root, NOW)[1])


def test_an_issuer_is_certified_again_under_its_key() -> None:
    log = CLUSTER.log()
    log.submit(certify_request(REQUEST, log, CLUSTER.root, NOW)[1])
    later = NOW.replace(year=NOW.year + 1)
    log.submit(certify_request(REQUEST, log, CLUSTER.root, later)[1])
    assert len(log.issuers()) == 2
    assert log.height == 3
