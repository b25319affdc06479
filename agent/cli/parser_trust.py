"""What can be typed about trust: revoke a site; issuers, admins, jurisdictions; the log and its forks."""

import argparse
import re
from pathlib import Path

from agent.cli.parser import (
    Verbs,
    label,
    labels,
    name,
)
from agent.cli.parser import _admin_key as admin_key
from agent.cli.parser import _common as common
from agent.cli.parser import _group as group
from agent.cli.parser import _verb as verb


def site(text: str) -> str:
    """A site's name, or the first 8 or more hex digits of its id."""
    if re.fullmatch(r"[0-9a-f]{8,64}", text):
        return text
    return name(text)


def add(verbs: Verbs) -> None:
    """The verbs of this module."""
    sites = group(verbs, "site", "Sites of the cluster.")
    revoke = verb(
        sites, "revoke", "trust_changes:revoke", "Refuse a site's key everywhere, for ever."
    )
    revoke.add_argument("site", type=site, metavar="NAME|ID")
    revoke.add_argument("--reason", default="", help="told to the site, and kept in the trust log")
    revoke.add_argument("--yes", action="store_true", help="also if it is this very site")
    admin_key(revoke)
    _issuers(verbs)
    _admins(verbs)
    _log(verbs)


def _issuers(verbs: Verbs) -> None:
    issuers = group(verbs, "issuer", "Sites that admit and renew others.")
    more = verb(
        issuers, "add", "trust_changes:add_issuer", "Make a member an issuer, with the root key."
    )
    more.add_argument("site", type=site, metavar="NAME|ID", nargs="?", help="asked over the mesh")
    more.add_argument(
        "--request",
        type=Path,
        metavar="FILE",
        help="of `atoll issuer request`, if no agent is here",
    )
    _root(more)
    less = verb(
        issuers,
        "remove",
        "trust_changes:remove_issuer",
        "Refuse an issuer's key and every certificate it signed, for ever.",
    )
    less.add_argument("issuer", type=site, metavar="NAME|ID", help="its site, or its own id")
    less.add_argument("--yes", action="store_true", help="although sites are locked out")
    _from_file(less)
    _root(less)
    request = verb(
        issuers,
        "request",
        "trust_changes:request",
        "Write what this site asks the root to certify: to be carried to where the root key is.",
    )
    request.add_argument("--out", type=Path, metavar="FILE", help="(default: standard output)")


def _admins(verbs: Verbs) -> None:
    admins = group(verbs, "admin", "Keys that sign models, jobs and revocations.")
    key = verb(admins, "key", "trust_admins:make_key", "Make an admin key where it is to be used.")
    key.add_argument("--out", type=Path, metavar="FILE", required=True, help="must not exist yet")
    more = verb(admins, "add", "trust_admins:add", "Let an admin's key sign, with the root key.")
    more.add_argument(
        "key", metavar="PUBLIC", help="the 64 hex digits that `atoll admin key` printed"
    )
    less = verb(
        admins, "remove", "trust_admins:remove", "Let an admin's key sign nothing more, for ever."
    )
    less.add_argument(
        "admin", type=identifier, metavar="ID", help="8 or more digits; see atoll trust"
    )
    less.add_argument("--yes", action="store_true", help="although it is the last one")
    for parser in (more, less):
        _from_file(parser)
        _root(parser)


def identifier(text: str) -> str:
    """The first 8 or more hex digits of a key's id."""
    if not re.fullmatch(r"[0-9a-f]{8,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 8 to 64 hex digits")
    return text


def vocabulary(text: str) -> tuple[str, ...]:
    """Jurisdictions, or none for ``any``."""
    return () if text == "any" else labels(text)


def members(text: str) -> tuple[str, ...]:
    """Jurisdictions, or none for ``none``."""
    return () if text == "none" else labels(text)


def _log(verbs: Verbs) -> None:
    about = "The trust log: issuers, admins, revoked keys, and its fork if it has one."
    trust = verbs.add_parser(
        "trust", help=about, description=about, parents=[common()], allow_abbrev=False
    )
    trust.set_defaults(run="trust:show")
    more = trust.add_subparsers(dest="trust_verb", metavar="VERB", required=False)
    mend = verb(
        more, "mend", "trust_changes:mend", "Decide a fork of the trust log, with the root key."
    )
    mend.add_argument(
        "--keep",
        type=int,
        required=True,
        metavar="NUMBER",
        help="the branch that is to be the log (see atoll trust); revocations of all hold",
    )
    _from_file(mend)
    _root(mend)
    law = verb(
        more,
        "jurisdictions",
        "trust_admins:set_jurisdictions",
        "Say which jurisdictions new sites may have, with the root key.",
    )
    law.add_argument(
        "labels", type=vocabulary, metavar="DE,FR|any", help="in place of the present ones"
    )
    _from_file(law)
    _root(law)
    together = verb(
        more,
        "group",
        "trust_admins:set_group",
        "Say which jurisdictions a label means by a group such as EU, with the root key.",
    )
    together.add_argument("group", type=label, metavar="NAME", help="as labels name it")
    together.add_argument(
        "labels",
        type=members,
        nargs="?",
        metavar="DE,FR|none",
        help="in place of the present ones; may be left out for EU and EEA",
    )
    _from_file(together)
    _root(together)
    export = verb(
        more,
        "export",
        "trust_changes:export",
        "Write the trust log to a file, for a machine without agent.",
    )
    export.add_argument("--out", type=Path, metavar="FILE", help="(default: standard output)")
    take = verb(
        more, "import", "trust_changes:take", "Give the cluster entries that were signed elsewhere."
    )
    take.add_argument("file", type=Path, metavar="FILE")


def _from_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="of `atoll trust export`, if no agent is here"
    )


def _root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root-key",
        type=Path,
        metavar="FILE",
        help="the encrypted root key, root.pem beside it (default: where `atoll init` put it)",
    )
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="its first line opens the root key (asked for on a terminal otherwise)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the signed entry there instead of submitting it",
    )
