"""Changes of the trust log: signed here with the operator's key, given to the cluster as an entry.

No key leaves this process, and no private key of a site comes into it.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agent.cli.client import AdminClient
from agent.cli.output import clean, print_json
from agent.cli.signing import load_signer
from agent.cli.site_files import admin_client
from agent.cli.trust_files import (
    Known,
    from_agent,
    from_file,
    open_root,
    read_entries,
    source,
    submit,
    write_entries,
    write_log,
)
from agent.drivers.clock import wall
from agent.foundation.errors import Busy, NotFound, Refused, UsageError
from agent.foundation.ids import SiteId, short
from agent.identity.issuing import IssuerRequest, certify_request
from agent.identity.trust_entries import RemoveIssuer
from agent.identity.trust_signing import sign_entry, sign_mend, sign_revocation
from agent.wire.schema import unpack

TRIES_MAX = 3
"""Somebody else may change the log between reading and writing."""
NAMES_SHOWN_MAX = 20


def revoke(asked: argparse.Namespace) -> int:
    """Have every site refuse this site's key, for ever."""
    client, signer = admin_client(asked), load_signer(asked)
    known = from_agent(client)
    site, name = known.find(asked.site)
    who = f"{clean(name) if name else 'site'} ({short(site)})"
    if site in known.log.revoked():
        return tell(asked, known, f"{who} is revoked already", {"site": site.hex(), "name": name})
    if not asked.yes and any(row["self"] and row["id"] == site.hex() for row in known.sites):
        raise UsageError(
            f"{who} is this very site", mend="add --yes if it is to be shut out of the cluster"
        )

    def sign(now_known: Known) -> bytes:
        return sign_revocation(now_known.log, site, asked.reason, signer, wall(), name)

    known = append(client, known, sign)
    kept = [row for row in known.issuers if row["site"] == site.hex()]
    text = f"{who} is revoked: refused here now, and by every other site as soon as it hears of it"
    if kept:
        text += (
            f"\nIt keeps issuer key {kept[0]['id'][:8]}, which still admits and renews others:\n"
            f"  atoll issuer remove {kept[0]['id'][:16]} --root-key FILE"
        )
    return tell(asked, known, text, {"site": site.hex(), "name": name, "is_issuer": bool(kept)})


def add_issuer(asked: argparse.Namespace) -> int:
    """Certify a member's issuer key with the root key."""
    if (asked.site is None) == (asked.request is None):
        raise UsageError("which site?", mend="give its name or id, or --request FILE")
    client = admin_client(asked)
    if asked.request is not None:
        known = from_file(asked.request)
        if not known.request:
            raise UsageError(f"{asked.request} holds no request", mend="use atoll issuer request")
        packed = known.request
    else:
        known = from_agent(client)
        site, _ = known.find(asked.site)
        packed = _request_of(client, site)
    request = unpack(IssuerRequest, packed)
    root = open_root(asked)
    identity, entry = certify_request(request, known.log, root, wall())
    who = f"{clean(identity.claims.name)} ({short(identity.site)})"
    told = {"site": identity.site.hex(), "name": identity.claims.name}
    if asked.out is not None or asked.request is not None:
        return hand_over(asked, entry, f"{who} becomes an issuer when this is imported", told)

    def sign(now_known: Known) -> bytes:
        return certify_request(request, now_known.log, root, wall())[1]

    known = append(client, known, sign)
    text = (
        f"{who} is an issuer: it admits and renews as soon as the log has reached it\n"
        "next       atoll token create there"
    )
    return tell(asked, known, text, told)


def remove_issuer(asked: argparse.Namespace) -> int:
    """Refuse an issuer's key and every certificate that it signed."""
    client = admin_client(asked)
    known = source(asked, client)
    row = _issuer(known, asked.issuer)
    issuer, name = bytes.fromhex(row["id"]), clean(row["name"]) if row["name"] else row["id"][:8]
    locked = [one for one in known.sites if one["issuer"] == row["id"]]
    if not asked.yes:
        _require_consent(known, name, locked)
    root = open_root(asked)

    def sign(now_known: Known) -> bytes:
        return sign_entry(now_known.log, RemoveIssuer(issuer), root.private_key, wall())

    told = {"issuer": row["id"], "name": row["name"], "locked_out": [one["name"] for one in locked]}
    if asked.out is not None or asked.log is not None:
        return hand_over(
            asked, sign(known), f"issuer {name} is removed when this is imported", told
        )
    known = append(client, known, sign)
    text = f"issuer {name} is removed: its key, and every certificate it signed, is refused"
    if locked:
        text += "\n" + _readmission(locked)
    return tell(asked, known, text, told)


def request(asked: argparse.Namespace) -> int:
    """Write this site's request, with the trust log, for where the root key is."""
    client = admin_client(asked)
    write_log(client, asked.out, _request_of(client, None))
    if asked.out is not None and not asked.json:
        print(f"written    {asked.out}")
        print(
            "next       where the root key is: atoll issuer add --request FILE --root-key KEY --out SIGNED"
        )
        print("then       at any site: atoll trust import SIGNED")
    return 0


def mend(asked: argparse.Namespace) -> int:
    """Decide which branch of a forked trust log is the log."""
    client = admin_client(asked)
    known = source(asked, client)
    fork = known.log.fork
    if fork is None:
        raise Refused("the trust log is not forked: there is nothing to mend")
    if not 1 <= asked.keep <= len(fork.branches):
        raise UsageError(f"there is no branch {asked.keep}", mend="see atoll trust")
    branch = fork.branches[asked.keep - 1]
    root = open_root(asked)

    def sign(now_known: Known) -> bytes:
        return sign_mend(now_known.log, keep=branch.first, root=root.private_key, now=wall())

    told = {"kept": branch.tip.hex(), "branches": len(fork.branches)}
    if asked.out is not None or asked.log is not None:
        return hand_over(asked, sign(known), "the fork is mended when this is imported", told)
    known = append(client, known, sign)
    text = (
        f"the fork at height {fork.height} is mended: branch {asked.keep} is the log, and what the"
        " others revoke stays revoked\n"
        "Find out who signed the other branch: whoever has that key can do it again."
    )
    return tell(asked, known, text, told)


def export(asked: argparse.Namespace) -> int:
    """Write the trust log to a file."""
    write_log(admin_client(asked), asked.out)
    return 0


def take(asked: argparse.Namespace) -> int:
    """Give signed entries from a file to the cluster."""
    client = admin_client(asked)
    if why := submit(client, read_entries(asked.file)):
        raise Refused(
            "the entry was not taken",
            why=why,
            mend="if the log has moved since it was exported: export, sign and import again",
        )
    return tell(asked, from_agent(client), "taken: every site has it soon", {})


# --- parts ---------------------------------------------------------------------------------------
def _request_of(client: AdminClient, site: SiteId | None) -> bytes:
    import base64  # noqa: PLC0415 - one use

    body = {"site": "" if site is None else site.hex()}
    return base64.b64decode(client.post("/1/trust/issuer-request", body)["request"])


def append(client: AdminClient, known: Known, sign: Callable[[Known], bytes]) -> Known:
    """Sign and submit the next entry, again if somebody else was quicker; the log afterwards."""
    for _ in range(TRIES_MAX):
        head = known.log.head
        why = submit(client, (sign(known),))
        known = from_agent(client)
        if not why:
            return known
        if known.log.head == head:
            raise Refused("the entry was not taken", why=why)
    raise Busy("the trust log keeps changing", mend="see who else changes it (atoll trust)")


def _issuer(known: Known, text: str) -> dict[str, str]:
    found = [row for row in known.issuers if text == row["name"]]
    found = found or [
        row for row in known.issuers if row["id"].startswith(text) or row["site"].startswith(text)
    ]
    if len(found) > 1:
        which = ", ".join(row["id"][:16] for row in found)
        raise UsageError(f"{text} names several issuers: {which}", mend="give the issuer's id")
    if not found:
        raise NotFound(f"there is no issuer {text}", mend="`atoll trust` lists them")
    return dict(found[0])


def _require_consent(known: Known, name: str, locked: Sequence[Mapping[str, object]]) -> None:
    troubles = []
    if locked:
        names = [clean(one["name"]) for one in locked]
        more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
        troubles.append(
            f"their certificates are by {name}, so they are locked out:"
            f" {', '.join(names[:NAMES_SHOWN_MAX])}{more}"
        )
    if len(known.issuers) == 1:
        troubles.append("it is the last issuer: nobody can join or renew afterwards")
    if troubles:
        raise UsageError(
            f"removing issuer {name} shuts others out",
            why="; ".join(troubles),
            mend="run it again with --yes if that is meant; to spare them, let them renew at another"
            " issuer first (`atoll issuer add`, then `atoll renew` there)\n" + _readmission(locked),
        )


def _readmission(locked: Sequence[Mapping[str, object]]) -> str:
    if not locked:
        return ""
    return (
        "To admit one of them again: `atoll token create --name NAME ...` at another issuer; then,"
        " there: stop the agent, move its state folder away, `atoll join TOKEN`."
    )


def hand_over(
    asked: argparse.Namespace, entry: bytes, text: str, told: Mapping[str, object]
) -> int:
    """Write the signed entry where ``--out`` says, for ``atoll trust import``."""
    out: Path | None = asked.out
    write_entries((entry,), out)
    if out is not None and asked.json:
        print_json({**told, "file": str(out)})
    elif out is not None:
        print(f"{text}\nwritten    {out}\nnext       at any site: atoll trust import {out}")
    return 0


def tell(asked: argparse.Namespace, known: Known, text: str, told: Mapping[str, object]) -> int:
    """Say what was done: ``text`` to a person, ``told`` to a script."""
    if asked.json:
        print_json({**told, "height": known.log.height, "head": known.log.head.hex()})
    else:
        print(text)
    return 0
