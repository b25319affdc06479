"""Catalog documents: signed by an admin, checked by every site before they count.

Rule: a decision counts because an admin key signed it, not because of who delivered it.
"""

from collections.abc import Mapping
from typing import assert_never

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.foundation.errors import Malformed, Refused
from agent.foundation.ids import short
from agent.identity.certificates import key_id
from agent.identity.claims import is_job_id, is_jurisdiction, is_name
from agent.wire.documents import (
    BODIES,
    KINDS,
    Body,
    Deployment,
    Document,
    Job,
    ModelVersion,
    Policy,
    Scope,
    Stamp,
    Unknown,
    Unsigned,
)
from agent.wire.limits import DOCUMENT_BYTES_MAX
from agent.wire.schema import pack


def sign_document(admin_key: Ed25519PrivateKey, stamp: Stamp, body: Body) -> Document:
    """The document that makes ``body`` the cluster's will from ``stamp`` on.

    Raises:
        Malformed: a name in ``body`` is none, or it is longer than ``DOCUMENT_BYTES_MAX``.
    """
    check_names(body)
    return sign_packed(admin_key, stamp, BODIES.pack(body))


def sign_packed(admin_key: Ed25519PrivateKey, stamp: Stamp, packed: bytes) -> Document:
    """As ``sign_document``, of a body as its bytes: fields that this version does not know stay."""
    if len(packed) > DOCUMENT_BYTES_MAX:
        raise Malformed(
            f"document of {len(packed)} bytes", why=f"the bound is {DOCUMENT_BYTES_MAX}"
        )
    author = key_id(admin_key.public_key())
    return Document(stamp, author, packed, admin_key.sign(pack(Unsigned(stamp, author, packed))))


def check_document(document: Document, admins: Mapping[bytes, Ed25519PublicKey]) -> Body:
    """The body of a document that an admin has signed.

    Args:
        document: as received.
        admins: who may sign now (``TrustLog.admins``).

    Raises:
        Refused: its author is no admin, or did not sign it.
        Malformed: it is signed, and its body is of an unknown kind or holds an impossible name.
    """
    key = admins.get(document.author)
    if key is None:
        raise Refused(
            f"{short(document.author)} is not an admin of this cluster",
            why="the trust log does not name that key, or it was removed",
            mend="sign with an admin key, or add this one with the root key",
        )
    unsigned = Unsigned(document.stamp, document.author, document.body)
    try:
        key.verify(document.signature, pack(unsigned))
    except (InvalidSignature, ValueError):
        raise Refused(f"document is not signed by {short(document.author)}") from None
    body: Body = BODIES.unpack(document.body, DOCUMENT_BYTES_MAX)
    check_names(body)
    return body


def check_names(body: Body) -> None:
    """Names become file and folder names and keys of tables: none is a path, in any document.

    Raises:
        Malformed: one is no name, or no jurisdiction.
    """
    names, labels = _names_of(body)
    for name in names:
        if not is_name(name):
            raise Malformed(
                f"{name[:80]!r} is not a name",
                why="a name is 1 to 64 of a-z 0-9 . _ - and starts with a letter or digit",
            )
    for label in labels:
        if not is_jurisdiction(label):
            raise Malformed(f"{label[:80]!r} is not a jurisdiction")


def _names_of(body: Body) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names, and jurisdictions."""
    match body:
        case ModelVersion():
            return (body.name, body.version), body.residency
        case Deployment():
            return (body.model, body.version, *body.sites, *body.regions), body.jurisdictions
        case Job():
            if not is_job_id(body.id):
                raise Malformed(f"{body.id[:80]!r} is not a job id")
            names = (body.recipe, body.dataset, *body.deploy_sites, *filter(None, [body.publish]))
            return names, body.residency
        case Policy():
            # What stands for any letters in a pattern stands here for one.
            patterns = (one.replace("*", "x") for one in (*body.models, *body.applications))
            return (body.name, *patterns), (*body.answer_in, *body.origins)
        case Scope():
            return (body.name,), body.jurisdictions
        case Unknown():
            if body.kind in KINDS:
                raise Malformed(f"a document of an unknown kind calls itself a {body.kind}")
            return (body.kind, body.name), ()
        case _:
            assert_never(body)
