"""Who may sign for the operators, and which jurisdictions there are: entries of the root.

An admin's private key is made where it is used and stays there; what travels is its public key.
"""

import argparse

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.cli.output import print_json
from agent.cli.site_files import admin_client
from agent.cli.trust_changes import append, hand_over, tell
from agent.cli.trust_files import Known, open_root, source
from agent.drivers import keystore
from agent.drivers.clock import wall
from agent.foundation.errors import NotFound, UsageError
from agent.identity.certificates import key_id
from agent.identity.trust_entries import Action, AddAdmin, RemoveAdmin, SetGroup, SetJurisdictions
from agent.identity.trust_signing import sign_entry

EU = (
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV",
    "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
)  # fmt: skip
COUNTRIES = {"EU": EU, "EEA": (*EU, "IS", "LI", "NO")}
"""ISO 3166-1 codes of the members of the Union and of the Economic Area in November 2026. They are copied into
the trust log: what the law changes later, the operator changes there."""
KEY_BYTES = 32
"""A raw Ed25519 public key."""


def make_key(asked: argparse.Namespace) -> int:
    """Make an admin key here; print what the root is to be told of it."""
    public = keystore.make_admin(asked.out.resolve()).public_key()
    text, who = public.public_bytes_raw().hex(), key_id(public).hex()
    if asked.json:
        print_json({"public": text, "admin": who, "file": str(asked.out)})
        return 0
    print(f"written    {asked.out} (keep it secret; --admin-key FILE signs with it)")
    print(f"admin      {who[:16]}")
    print(f"next       where the root key is: atoll admin add {text}")
    return 0


def add(asked: argparse.Namespace) -> int:
    """Let an admin's key sign."""
    public = _public(asked.key)
    who = key_id(public)
    text = f"admin {who.hex()[:8]} may sign models, jobs and revocations"
    known = source(asked, admin_client(asked))
    if who in known.log.admins():
        text = f"admin {who.hex()[:8]} may sign already"
        return tell(asked, known, text, {"admin": who.hex()})
    action = AddAdmin(public.public_bytes_raw())
    return _change(asked, action, text, {"admin": who.hex()})


def remove(asked: argparse.Namespace) -> int:
    """Let an admin's key sign nothing more."""
    known = source(asked, admin_client(asked))
    found = [key for key in sorted(known.log.admins()) if key.hex().startswith(asked.admin)]
    if not found:
        raise NotFound(f"there is no admin {asked.admin}", mend="`atoll trust` lists them")
    if len(found) > 1:
        which = ", ".join(key.hex()[:16] for key in found)
        raise UsageError(f"{asked.admin} names several admins: {which}", mend="give more of the id")
    if len(known.log.admins()) == 1 and not asked.yes:
        raise UsageError(
            "it is the last admin: nobody could publish models, submit jobs or revoke sites",
            mend="add another first (atoll admin key, atoll admin add), or repeat it with --yes",
        )
    who = found[0].hex()
    text = f"admin {who[:8]} may sign nothing more"
    return _change(asked, RemoveAdmin(found[0]), text, {"admin": who})


def set_jurisdictions(asked: argparse.Namespace) -> int:
    """Replace the vocabulary of jurisdictions."""
    chosen: tuple[str, ...] = asked.labels
    text = f"new sites may be in {', '.join(chosen) or 'any jurisdiction'}; certificates stay as they are"
    return _change(asked, SetJurisdictions(chosen), text, {"jurisdictions": list(chosen)})


def set_group(asked: argparse.Namespace) -> int:
    """Say which jurisdictions a group has, in place of what it had."""
    name: str = asked.group
    members: tuple[str, ...] | None = asked.labels
    if members is None:
        members = COUNTRIES.get(name)
        if members is None:
            raise UsageError(
                f"the members of {name} are not known here",
                why=f"known are {' and '.join(COUNTRIES)}",
                mend=f"name them, such as `atoll trust group {name} DE,FR`",
            )
    if name in members:
        raise UsageError(f"{name} cannot be a member of itself")
    is_gone = "no label that names it allows anything by it"
    text = f"group {name}: {', '.join(members) or is_gone}"
    return _change(asked, SetGroup(name, members), text, {"group": name, "members": list(members)})


def _change(asked: argparse.Namespace, action: Action, text: str, told: dict[str, object]) -> int:
    """Have the root sign ``action``; submit it, or write it for somebody who can."""
    client = admin_client(asked)
    known, root = source(asked, client), open_root(asked)

    def sign(now_known: Known) -> bytes:
        return sign_entry(now_known.log, action, root.private_key, wall())

    if asked.out is not None or asked.log is not None:
        return hand_over(asked, sign(known), f"when this is imported: {text}", told)
    return tell(asked, append(client, known, sign), text, told)


def _public(text: str) -> Ed25519PublicKey:
    try:
        raw = bytes.fromhex(text)
        if len(raw) == KEY_BYTES:
            return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        pass
    raise UsageError(
        f"{text[:80]!r} is not an admin's public key",
        why="that is 64 hex digits",
        mend="take it from `atoll admin key --out FILE`, run where the key is to stay",
    )
