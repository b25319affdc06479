"""Making entries of the trust log: the only code that signs them; keys stay with the caller.

Rule: an entry is made for the log as the signer knows it, so it is submitted next or signed again.
"""

from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.foundation.errors import Refused
from agent.foundation.ids import SiteId
from agent.identity.certificates import key_id
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import (
    HEIGHT_MAX,
    MEND_REVOKED_MAX,
    Action,
    MendFork,
    RevokeSite,
    seal_entry,
)


def sign_entry(log: TrustLog, action: Action, key: Ed25519PrivateKey, now: datetime) -> bytes:
    """The packed next entry of ``log``, signed by the root or an admin; submit it next.

    Raises:
        Refused: the key may not sign this action, the log is full or frozen.
    """
    if log.fork is not None or log.height >= HEIGHT_MAX:
        raise Refused(
            "the trust log takes no more entries",
            why="it is frozen" if log.fork else f"it holds {HEIGHT_MAX}",
            mend="mend the fork with the root key: atoll trust mend"
            if log.fork
            else "found a new cluster",
        )
    signer = key_id(key.public_key())
    is_admin = isinstance(action, RevokeSite) and signer in log.admins()
    if signer != log.cluster and not is_admin:
        raise Refused(
            f"{type(action).__name__} cannot be signed with this key",
            why="only the root may, and an admin only revocations",
            mend="use the operator's root key",
        )
    return seal_entry(log.height + 1, log.head, action, key, now)


def sign_revocation(
    log: TrustLog,
    site: SiteId,
    reason: str,
    key: Ed25519PrivateKey,
    now: datetime,
    name: str = "",
) -> bytes:
    """The packed entry that revokes ``site``, signed by an admin (or the root); submit it next."""
    return sign_entry(log, RevokeSite(site, reason[:200], name), key, now)


def sign_mend(log: TrustLog, *, keep: bytes, root: Ed25519PrivateKey, now: datetime) -> bytes:
    """The packed entry with which the root decides the fork of ``log``; submit it at any site.

    It restates the first ``MEND_REVOKED_MAX`` revocations of the dropped branches, so that they hold
    even if their signer is removed later. Others hold for as long as their signer is an admin: so an
    operator undoes a flood of false revocations by removing the admin whose key signed them.

    Args:
        log: as the site that is asked knows it.
        keep: ``first`` or ``tip`` of the branch that is to be the log.
        root: the root key.
        now: wall-clock time, with time zone.

    Raises:
        Refused: there is no fork, ``keep`` is none of its branches, or ``root`` is not the root key.
    """
    fork = log.fork
    if fork is None or key_id(root.public_key()) != log.cluster:
        raise Refused("nothing to mend" if fork is None else "only the root key mends a fork")
    branch = next((one for one in fork.branches if keep in (one.first, one.tip)), None)
    if branch is None:
        raise Refused("the log is not forked into such a branch", mend="see atoll trust")
    revoked = sorted(log.revoked() - log.revoked_by(branch.tip))
    action = MendFork(tuple(revoked[:MEND_REVOKED_MAX]))
    return seal_entry(branch.tip_height + 1, branch.tip, action, root, now)
